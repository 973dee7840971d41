"""The schema of a database, and its text in a model's prompt.

Published databases contain errors: foreign keys to tables that do not exist or without a column,
names with spaces, text that is not valid UTF-8. Everything readable is read. References to missing
tables and columns, and views of them, are left out, since SQL that uses them fails.
"""

import bisect
import contextlib
import functools
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.sandbox.worker import DATE_FUNCTIONS
from sqlenv.text import ASCII_LOWER, RESERVED

# What a declared type contains, as a regular expression -> what a prompt shows; the first that
# occurs counts.
SHOWN_TYPES = {
    "INT|BOOL": "INTEGER",
    "CHAR|CLOB|TEXT": "TEXT",
    "DATETIME|TIMESTAMP": "DATETIME",
    "DATE": "DATE",
    r"REAL|FLOA|DOUB|\b(NUM(ERIC|BER)?|DEC(IMAL)?)\b": "REAL",  # and not ENUM
}
SAMPLE_LENGTH = 40  # characters shown of a sample value
DESCRIPTION_LENGTH = 120  # characters shown of a column's description
WITHOUT_TYPES = 4  # steps of shortening a schema's text that leave all columns in it

Values = Mapping[tuple[str, str], Sequence]  # of each (table, column)


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
    """A table or view with its columns and foreign keys."""

    name: str
    columns: tuple[Column, ...]
    foreign_keys: tuple[ForeignKey, ...]  # to existing tables only, in the order of the columns
    is_view: bool = False


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables and views of a database, without SQLite's internal and virtual tables."""

    tables: tuple[Table, ...]  # in the order of creation
    views: tuple[Table, ...] = ()  # in the order of creation, those that can be read


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
    # Without virtual tables: the sandbox denies them, and reading the columns of one fails if this
    # SQLite lacks its module. SQLite writes these statements with exactly this beginning.
    names = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL %'"
    )
    names = [name for (name,) in names if not name.lower().startswith("sqlite_")]
    names = list(filter(_is_utf8, names))
    _act_as_sandbox(connection)
    columns = {name: _columns(connection, name) for name in names}
    tables = tuple(Table(n, columns[n], _foreign_keys(connection, n, columns)) for n in names)
    return Schema(tables, tuple(_views(connection)))


def check_has_table(path: str | os.PathLike) -> None:
    """Raises UserError if a query has nothing to read in a database: the file that a mistyped name
    creates is an empty one.
    """
    schema = load_schema(path)
    if not schema.tables + schema.views:
        raise UserError(f"{path}: the database has no table")


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


def _act_as_sandbox(connection: sqlite3.Connection) -> None:
    """From now on, SQLite compiles what the sandbox does: there, views and generated columns may
    not call the functions that it has replaced (sqlenv/sandbox/worker.py). As there, the schema
    must have been read before: otherwise SQLite may refuse it as a whole.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    for name in (*DATE_FUNCTIONS, "printf", "format"):
        connection.create_function(name, -1, lambda *_: None, deterministic=True)


def _can_read(connection: sqlite3.Connection, table: str, column: str = "*") -> bool:
    """Whether SQLite compiles a query of it; one that reads a missing table does not, either."""
    try:
        connection.execute(f"EXPLAIN SELECT {column} FROM {quote_name(table)}")
    except sqlite3.OperationalError:
        return False
    return True


def _columns(connection: sqlite3.Connection, table: str) -> tuple[Column, ...]:
    # Hidden are columns of virtual tables (1), which a * leaves out, and generated ones (2, 3).
    sql = "SELECT name, type, pk, hidden FROM pragma_table_xinfo(?) WHERE hidden != 1"
    rows = connection.execute(sql, [table]).fetchall()
    return tuple(
        Column(name, " ".join(type.split()), pk > 0)
        for name, type, pk, generated in rows
        if _is_utf8(name) and (not generated or _can_read(connection, table, quote_name(name)))
    )


def primary_key(connection: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table's primary key, in its order, which may not be that of the table."""
    sql = "SELECT name FROM pragma_table_info(?) WHERE pk ORDER BY pk"
    return [name for (name,) in connection.execute(sql, [table])]


def _views(connection: sqlite3.Connection) -> Iterator[Table]:
    """The views that a query can read: SQLite compiles one, as it does in the sandbox."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchall()
    for name in filter(_is_utf8, (name for (name,) in names)):
        if _can_read(connection, name):
            yield Table(name, _columns(connection, name), (), is_view=True)


def _is_utf8(name: str) -> bool:
    """No query can write other names."""
    return "\ufffd" not in name


def _foreign_keys(
    connection: sqlite3.Connection, table: str, columns: Mapping[str, tuple[Column, ...]]
) -> tuple[ForeignKey, ...]:
    sql = 'SELECT "from", "table", "to", seq FROM pragma_foreign_key_list(?)'
    tables = {_folded(name): name for name in columns}
    names = [_folded(column.name) for column in columns[table]]
    keys = set()
    for column, to_table, to_column, part in connection.execute(sql, [table]):
        target = tables.get(_folded(to_table))
        if target is None or _folded(column) not in names:
            continue
        if to_column is None:  # SQLite uses the primary key
            primary = primary_key(connection, target)
            to_column = primary[part] if part < len(primary) else None
        else:
            target_names = {_folded(c.name): c.name for c in columns[target]}
            to_column = target_names.get(_folded(to_column))
        name = columns[table][names.index(_folded(column))].name
        keys.add(ForeignKey(name, target, to_column))
    return tuple(
        sorted(keys, key=lambda k: (names.index(_folded(k.column)), k.table, k.to_column or ""))
    )


def _folded(name: str) -> str:
    """A name as SQLite compares it: without the case of A to Z."""
    return name.translate(ASCII_LOWER)


def schema_text(schema: Schema, **options) -> str:
    """Returns the text of ``fit_schema``, which has the options, without saying whether it has all
    columns.
    """
    return fit_schema(schema, **options)[0]


def fit_schema(
    schema: Schema,
    *,
    budget: int | None = None,
    count_tokens: Callable[[str], int] = len,
    samples: Values | None = None,
    matches: Values | None = None,
    descriptions: Mapping[str, str] | None = None,
) -> tuple[str, bool]:
    """Returns the schema as text within a budget, and whether it has all columns. It has one CREATE
    TABLE line per table, then one CREATE VIEW line per view, with its columns in place of its
    query.

    Descriptions and sample values are at the end of a line, as ``-- column (description): value,
    value; column: …``. The values that the question names have a line of their own after all
    others, so that prompts about a database begin alike. If the full text is too long, it is
    shortened step by step, and the first text within the budget is returned. These parts are left
    out, in this order:

    1. the sample values
    2. the descriptions
    3. the values that the question names
    4. the columns' types
    5. columns in no primary or foreign key, table by table, the widest table first
    6. all columns

    Args:
        budget: the maximum length in the unit of ``count_tokens``; None for no limit. The shortest
            text is returned even if it exceeds the budget.
        count_tokens: the length of a text.
        samples: from ``sample_values``.
        matches: from ``question_values``.
        descriptions: of columns, by "table.column" in any case.
    """
    described = {k.lower(): " ".join(v.split()) for k, v in (descriptions or {}).items()}
    texts = _texts(schema, samples or {}, matches or {}, described)

    def fits(text: Callable[[], str]) -> bool:
        return budget is None or count_tokens(text()) <= budget

    if fits(texts[0]):
        return texts[0](), True
    first = bisect.bisect_left(texts, True, lo=1, hi=len(texts) - 1, key=fits)
    return texts[first](), first <= WITHOUT_TYPES


def _texts(
    schema: Schema, samples: Values, matches: Values, descriptions: Mapping[str, str]
) -> list[Callable[[], str]]:
    """Functions that make the texts for a schema, from the longest to the shortest."""
    tables = schema.tables + schema.views
    widest = sorted(tables, key=lambda t: -len(t.columns))
    named = f"\n{_named_values(matches)}" if matches else ""

    def commented(samples: Values, descriptions: Mapping[str, str], end: str = "") -> str:
        return "\n".join(table_line(t) + _comment(t, samples, descriptions) for t in tables) + end

    def untyped(shortened: int) -> str:
        short = {table.name for table in widest[:shortened]}
        lines = (table_line(t, types=False, keys_only=t.name in short) for t in tables)
        return "\n".join(lines)

    return [
        functools.partial(commented, samples, descriptions, named),
        functools.partial(commented, {}, descriptions, named),
        functools.partial(commented, {}, {}, named),
        functools.partial(commented, {}, {}),
        functools.partial(untyped, 0),  # at WITHOUT_TYPES
        *(functools.partial(untyped, shortened) for shortened in range(1, len(tables) + 1)),
        lambda: "\n".join(f"{_create(t)};" for t in tables),
    ]


def shown_type(declared: str) -> str:
    """A column's type as a prompt shows it: by SQLite's rules of affinity
    (https://sqlite.org/datatype3.html, section 3.1), but for dates and times.

    Dialects of SQL have many words for a few types, and a model reads the few more easily.

    >>> [shown_type(t) for t in ("smallint unsigned", "VARCHAR(20)", "decimal(10,2)", "timestamp")]
    ['INTEGER', 'TEXT', 'REAL', 'DATETIME']
    """
    upper = declared.upper()
    return next(
        (shown for words, shown in SHOWN_TYPES.items() if re.search(words, upper)), declared
    )


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
            words.append(shown_type(column.type))
        if primary == [column.name]:
            words.append("PRIMARY KEY")
        for key in keys:
            target = f"({quote_name(key.to_column)})" if key.to_column else ""
            words.append(f"REFERENCES {quote_name(key.table)}{target}")
        parts.append(" ".join(words))
    if len(primary) > 1:
        parts.append(f"PRIMARY KEY ({', '.join(map(quote_name, primary))})")
    body = f" ({', '.join(parts)})" if parts else ""
    return f"{_create(table)}{body};"


def _create(table: Table) -> str:
    return f"CREATE {'VIEW' if table.is_view else 'TABLE'} {quote_name(table.name)}"


def _comment(table: Table, samples: Values, descriptions: Mapping[str, str]) -> str:
    """The descriptions and values of a table's columns, behind its line; "" without any."""
    parts = []
    for column in table.columns:
        values = samples.get((table.name, column.name), ())
        shown = ", ".join(
            " ".join(str(v).split())[:SAMPLE_LENGTH] for v in values if type(v) is not bytes
        )
        described = descriptions.get(f"{table.name}.{column.name}".lower(), "")
        described = described and f" ({described[:DESCRIPTION_LENGTH]})"
        if shown or described:
            name = " ".join(column.name.split())
            parts.append(f"{name}{described}{shown and f': {shown}'}")
    return f" -- {'; '.join(parts)}" if parts else ""


def _named_values(matches: Values) -> str:
    """The values that a question names, in a line, in full and as SQL has them, to be copied."""
    parts = [
        f"{quote_name(table)}.{quote_name(column)} = " + ", ".join(map(_literal, values))
        for (table, column), values in matches.items()
    ]
    return f"-- Values in the question: {'; '.join(parts)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Returns the name of a table or column as SQL, quoted if necessary."""
    plain = re.fullmatch(r"[^\W\d]\w*", name) and _folded(name) not in RESERVED
    return name if plain else '"' + name.replace('"', '""') + '"'
