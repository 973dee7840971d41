"""The schema of a database, and its text in a model's prompt.

Published databases contain errors: foreign keys to tables that do not exist or without a column,
names with spaces, text that is not valid UTF-8. Everything readable is read. References to missing
tables and columns are left out, since SQL that uses them fails.
"""

import contextlib
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

SAMPLE_LENGTH = 40  # characters shown of a sample value


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    name: str
    type: str  # as declared; "" if there is no declaration
    primary_key: bool  # part of the primary key


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A reference from a column to another table."""

    column: str
    table: str
    to_column: str | None  # None if it is not declared or does not exist


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its columns and foreign keys."""

    name: str
    columns: tuple[Column, ...]
    foreign_keys: tuple[ForeignKey, ...]  # to existing tables only, in the order of the columns


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a database."""

    tables: tuple[Table, ...]  # in the order of creation, without SQLite's internal ones


def load_schema(db_path: str | os.PathLike) -> Schema:
    """Returns the schema of a SQLite file; it is cached until the file changes.

    Raises:
        UserError: the file is missing, is not a SQLite database, or has changes in a journal.
    """
    uri, status = read_only_uri(db_path), os.stat(db_path)
    try:
        return _load_schema(uri, status.st_mtime_ns, status.st_size)
    except sqlite3.Error as error:
        raise UserError(f"{db_path}: cannot be read as a SQLite database ({error})") from error


@functools.lru_cache(maxsize=1024)
def _load_schema(uri: str, _mtime: int, _size: int) -> Schema:
    with contextlib.closing(_connect(uri)) as connection:
        return read_schema(connection)


def read_schema(connection: sqlite3.Connection) -> Schema:
    """Returns the schema of an open database."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    names = [name for (name,) in names if not name.lower().startswith("sqlite_")]
    columns = {name: _columns(connection, name) for name in names}
    return Schema(tuple(Table(n, columns[n], _foreign_keys(connection, n, columns)) for n in names))


def open_read_only(path: str | os.PathLike) -> sqlite3.Connection:
    """Opens a SQLite file; invalid UTF-8 in its texts is replaced.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        return _connect(read_only_uri(path))
    except sqlite3.Error as error:
        raise UserError(f"{path}: cannot be read as a SQLite database ({error})") from error


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True)
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
    names = [column.name.lower() for column in columns[table]]
    keys = set()
    for column, to_table, to_column, part in connection.execute(sql, [table]):
        target = tables.get(to_table.lower())
        if target is None or column.lower() not in names:
            continue
        if to_column is None:  # SQLite uses the primary key
            primary = [c.name for c in columns[target] if c.primary_key]
            to_column = primary[part] if part < len(primary) else None
        else:
            target_names = {c.name.lower(): c.name for c in columns[target]}
            to_column = target_names.get(to_column.lower())
        name = columns[table][names.index(column.lower())].name
        keys.add(ForeignKey(name, target, to_column))
    return tuple(
        sorted(keys, key=lambda k: (names.index(k.column.lower()), k.table, k.to_column or ""))
    )


def sample_values(db_path: str | os.PathLike, count: int) -> dict[tuple[str, str], tuple]:
    """Returns up to ``count`` different values of each (table, column), without NULL.

    Raises:
        UserError: as in ``load_schema``.
    """
    schema, values = load_schema(db_path), {}
    connection = open_read_only(db_path)
    try:
        for table in schema.tables:
            source = quote_name(table.name)
            for column in table.columns:
                name = quote_name(column.name)
                # The inner LIMIT avoids reading the whole of a large table.
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
    *,
    budget: int | None = None,
    count_tokens: Callable[[str], int] = len,
    samples: Mapping[tuple[str, str], Sequence] | None = None,
) -> str:
    """Returns the schema as text, one CREATE TABLE line per table, within a budget.

    If the full text is too long, it is shortened step by step, and the first text within the
    budget is returned. These parts are left out, in this order:

    1. the sample values, at the end of a table's line as ``-- column: value, value; column: …``
    2. the columns' types
    3. columns in no primary or foreign key, table by table, the widest table first
    4. all columns

    Args:
        budget: the maximum length in the unit of ``count_tokens``; None for no limit. The shortest
            text is returned even if it exceeds the budget.
        count_tokens: the length of a text.
        samples: values to show, from ``sample_values``.
    """
    text = ""
    for text in _texts(schema, samples or {}):
        if budget is None or count_tokens(text) <= budget:
            break
    return text


def _texts(schema: Schema, samples: Mapping) -> Iterator[str]:
    """Yields the texts for a schema, from the longest to the shortest."""
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


def table_line(table: Table, *, types: bool = True, keys_only: bool = False) -> str:
    """Returns ``CREATE TABLE t (a INTEGER PRIMARY KEY, b_id INTEGER REFERENCES b(b_id));``."""
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
    """Returns the name of a table or column as SQL, quoted if necessary."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and name.translate(ASCII_LOWER) not in RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'
