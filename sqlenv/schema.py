"""A database's schema, and the text by which a model gets to know it.

Published databases are not tidy: foreign keys point to tables that do not exist, or name no
column; names contain spaces; text is not valid UTF-8. What can be read is read, and what points
nowhere is left out, since a model that follows it writes SQL that fails.
"""

import functools
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.text import ASCII_LOWER, RESERVED

SAMPLE_LENGTH = 40  # characters of a sample value that are shown


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str  # as declared, "" where nothing is
    primary_key: bool  # alone or as a part of it


@dataclass(frozen=True, slots=True)
class ForeignKey:
    column: str
    table: str
    to_column: str | None  # None: the database does not say, or names one that does not exist


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    columns: tuple[Column, ...]
    foreign_keys: tuple[ForeignKey, ...]  # those whose table exists, in the order of the columns


@dataclass(frozen=True, slots=True)
class Schema:
    tables: tuple[Table, ...]  # in the order of creation, without SQLite's own


def load_schema(db_path: str | os.PathLike) -> Schema:
    """Return the tables of a SQLite file. Kept in memory until the file changes.

    Raises UserError, naming the path, if the file is missing or is not a SQLite database.
    """
    try:
        status = os.stat(db_path)
    except OSError as error:
        raise UserError(f"{db_path}: cannot open this database ({error.strerror})") from error
    return _load_schema(os.path.abspath(db_path), status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1024)
def _load_schema(path: str, _mtime: int, _size: int) -> Schema:
    connection = _connect(path)
    try:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = [name for (name,) in names if not name.lower().startswith("sqlite_")]
        columns = {name: _columns(connection, name) for name in names}
        tables = [Table(n, columns[n], _foreign_keys(connection, n, columns)) for n in names]
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a SQLite database ({error})") from error
    finally:
        connection.close()
    return Schema(tuple(tables))


def _connect(path: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(read_only_uri(path), uri=True)
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a SQLite database ({error})") from error
    connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
    return connection


def _columns(connection: sqlite3.Connection, table: str) -> tuple[Column, ...]:
    rows = connection.execute("SELECT name, type, pk FROM pragma_table_info(?)", [table])
    return tuple(Column(name, " ".join(type.split()), pk > 0) for name, type, pk in rows)


def _foreign_keys(
    connection: sqlite3.Connection, table: str, columns: Mapping[str, tuple[Column, ...]]
) -> tuple[ForeignKey, ...]:
    sql = 'SELECT "from", "table", "to", seq FROM pragma_foreign_key_list(?)'
    tables = {name.lower(): name for name in columns}
    own = [column.name.lower() for column in columns[table]]
    keys = set()
    for column, to_table, to_column, part in connection.execute(sql, [table]):
        target = tables.get(to_table.lower())
        if target is None or column.lower() not in own:
            continue
        if to_column is None:  # SQLite takes the primary key
            primary = [c.name for c in columns[target] if c.primary_key]
            to_column = primary[part] if part < len(primary) else None
        else:
            found = {c.name.lower(): c.name for c in columns[target]}
            to_column = found.get(to_column.lower())
        name = columns[table][own.index(column.lower())].name
        keys.add(ForeignKey(name, target, to_column))
    return tuple(
        sorted(keys, key=lambda k: (own.index(k.column.lower()), k.table, k.to_column or ""))
    )


def sample_values(db_path: str | os.PathLike, count: int) -> dict[tuple[str, str], tuple]:
    """Return up to `count` different values, not NULL, of each (table, column).

    Raises UserError as `load_schema` does.
    """
    schema, values = load_schema(db_path), {}
    connection = _connect(os.path.abspath(db_path))
    try:
        for table in schema.tables:
            source = quote_name(table.name)
            for column in table.columns:
                name = quote_name(column.name)
                # The inner LIMIT keeps a large table from being read to its end.
                rows = connection.execute(
                    f"SELECT DISTINCT v FROM (SELECT {name} AS v FROM {source} LIMIT 1000) "
                    "WHERE v IS NOT NULL LIMIT ?",
                    [count],
                )
                values[table.name, column.name] = tuple(value for (value,) in rows)
    except sqlite3.Error as error:
        raise UserError(f"{Path(db_path)}: cannot be read ({error})") from error
    finally:
        connection.close()
    return values


def schema_text(
    schema: Schema,
    budget: int | None = None,
    count_tokens: Callable[[str], int] = len,
    samples: Mapping[tuple[str, str], Sequence] | None = None,
) -> str:
    """Return the schema as one CREATE TABLE line per table, as long as the budget allows.

    budget is in the unit of `count_tokens`; None means no limit. `samples` as `sample_values`
    gives them. What does not fit is left out step by step, the first text that fits is returned:

    1. the sample values, at the end of a table's line as `-- column: value, value; column: …`
    2. the columns' types
    3. columns that are in no primary or foreign key, table by table, the widest first
    4. what is left except the tables' names

    The last is returned even if it does not fit either.
    """
    text = ""
    for text in _versions(schema, samples or {}):
        if budget is None or count_tokens(text) <= budget:
            break
    return text


def _versions(schema: Schema, samples: Mapping) -> Iterator[str]:
    """The texts for a schema, from the fullest to the shortest."""
    tables = schema.tables
    if samples:
        yield "\n".join(table_line(t) + _sample_comment(t, samples) for t in tables)
    yield "\n".join(table_line(t) for t in tables)
    lines = {t.name: table_line(t, types=False) for t in tables}
    yield "\n".join(lines.values())
    for table in sorted(tables, key=lambda t: -len(t.columns)):
        lines[table.name] = table_line(table, types=False, keys_only=True)
        yield "\n".join(lines.values())
    yield "\n".join(f"CREATE TABLE {quote_name(t.name)};" for t in tables)


def table_line(table: Table, types: bool = True, keys_only: bool = False) -> str:
    """Return `CREATE TABLE t (a INTEGER PRIMARY KEY, b_id INTEGER REFERENCES b(b_id));`."""
    primary = [column.name for column in table.columns if column.primary_key]
    parts = []
    for column in table.columns:
        keys = [key for key in table.foreign_keys if key.column == column.name]
        if keys_only and not keys and not column.primary_key:
            continue
        words = [quote_name(column.name)]
        if types and column.type:
            words.append(column.type)
        if primary == [column.name]:
            words.append("PRIMARY KEY")
        for key in keys:
            target = f"({quote_name(key.to_column)})" if key.to_column else ""
            words.append(f"REFERENCES {quote_name(key.table)}{target}")
        parts.append(" ".join(words))
    if len(primary) > 1:
        parts.append(f"PRIMARY KEY ({', '.join(map(quote_name, primary))})")
    body = f" ({', '.join(parts)})" if parts else ""
    return f"CREATE TABLE {quote_name(table.name)}{body};"


def _sample_comment(table: Table, samples: Mapping[tuple[str, str], Sequence]) -> str:
    parts = []
    for column in table.columns:
        values = samples.get((table.name, column.name), ())
        shown = [" ".join(str(v).split())[:SAMPLE_LENGTH] for v in values if type(v) is not bytes]
        if shown:
            parts.append(f"{column.name}: {', '.join(shown)}")
    return f" -- {'; '.join(parts)}" if parts else ""


def quote_name(name: str) -> str:
    """Return a table's or column's name as it must stand in SQL, in quotes only if needed."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.translate(ASCII_LOWER) not in RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'
