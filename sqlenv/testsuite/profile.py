"""Reads the profile of a database, from which ``populate.py`` draws similar databases.

The profile has the schema with its constraints, sampled values, the columns that refer to others,
and the literals that the gold queries compare each column with.
"""

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlenv.errors import UserError
from sqlenv.query import Query, parse
from sqlenv.schema import Schema, load_schema, open_read_only, primary_key, quote_name
from sqlenv.testsuite.literals import COUNT, columns_of, gold_literals, joined_columns
from sqlenv.testsuite.swaps import type_family
from sqlenv.text import ASCII_LOWER

SAMPLE = 40  # values of a column, and rows of a table, sampled from the given database
MAX_LENGTH = 200  # characters or bytes of a sampled value
MAX_COUNT = 200  # the greatest count in a gold query for which groups of that size are drawn
SCANNED = 2000  # rows of a table that are read for its sample


@dataclass
class ColumnProfile:
    """A column: its constraints and sampled values."""

    name: str
    type: str
    nullable: bool
    unique: bool  # without other columns
    key: bool  # part of a primary or foreign key: NULL only if it is in the given database
    integer: bool  # an alias of the rowid, which holds only integers
    values: list = field(default_factory=list)  # sampled from the given database
    names: tuple[str, ...] = ()  # its own name and those of the columns that it is linked to


@dataclass(frozen=True)
class Link:
    """Columns that refer to a parent table: by a foreign key, or by a join in a gold query.

    Attributes:
        strict: every row has a parent, by declaration or in the given database.
        nulls: the columns contain NULL in the given database.
    """

    columns: tuple[str, ...]  # lower case, like all names here
    parent: str
    parent_columns: tuple[str, ...]
    strict: bool
    nulls: bool = False


@dataclass
class TableProfile:
    """A table: its columns, references to other tables and sampled rows."""

    name: str
    columns: dict[str, ColumnProfile]  # without generated columns
    links: list[Link] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)  # sampled from the given database


@dataclass
class GoldProfile:
    """The parts of a gold query that decide which values distinguish it from its mutants."""

    literals: dict[str, list[list]]  # of each column, as ``gold_literals`` returns them
    counts: list[int]  # literals that the query compares a count with
    sorts: set[str]  # columns in ORDER BY
    groups: set[str]  # columns in GROUP BY
    tables: set[str]


@dataclass
class DatabaseProfile:
    """A database: the statements of its schema, its tables and the gold queries on it."""

    statements: list[str]  # CREATE TABLE, CREATE INDEX, CREATE VIEW
    tables: dict[str, TableProfile]
    golds: list[GoldProfile]


def read_profile(db_path: str | os.PathLike, golds: Sequence[str]) -> DatabaseProfile:
    """Reads the profile of a SQLite file.

    Raises:
        UserError: the file is missing or is not a SQLite database.
    """
    schema = load_schema(db_path)
    connection = open_read_only(db_path)
    try:
        statements, virtual = read_statements(connection)
        tables = {
            lower(table.name): read_table(connection, table.name)
            for table in schema.tables
            if not any(
                lower(table.name) == v or lower(table.name).startswith(v + "_") for v in virtual
            )
        }
        for table in tables.values():
            table.links = read_foreign_keys(connection, table, tables)
        queries = [parse(gold) for gold in golds]
        add_join_links(connection, tables, [p for q in queries for p in joined_columns(q, schema)])
    except sqlite3.Error as error:
        raise UserError(f"{db_path}: cannot be read as a SQLite database ({error})") from error
    finally:
        connection.close()
    exchange_values(tables)
    propagate_names(tables)
    return DatabaseProfile(
        statements, tables, [profile_gold(query, schema, tables) for query in queries]
    )


def profile_gold(query: Query, schema: Schema, tables: dict[str, TableProfile]) -> GoldProfile:
    """Extracts the profile of a gold query."""
    literals = gold_literals(query, schema)
    counts = [group[1] for group in literals.pop(COUNT, ())]
    counts = [number for number in counts if isinstance(number, int) and 0 < number <= MAX_COUNT]
    read = {source.table for select in query.selects for source in select.sources if source.table}
    if not read <= tables.keys():  # views or table expressions, which may read any table
        read = set(tables)
    sorts, groups = columns_of(query, "order"), columns_of(query, "group")
    return GoldProfile(literals, counts, sorts, groups, read)


def lower(name: str) -> str:
    """The name in lower case, A to Z only, as SQLite compares names."""
    return name.translate(ASCII_LOWER)


def read_statements(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """The CREATE statements of the schema, and the names of virtual tables.

    Virtual tables are omitted, and triggers too, since they would change inserted rows.
    """
    rows = connection.execute(
        "SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        " AND type != 'trigger' AND name NOT LIKE 'sqlite~_%' ESCAPE '~'"
        " ORDER BY type = 'view', type = 'index', rowid"
    ).fetchall()
    virtual = [lower(name) for _, name, sql in rows if sql[:14].upper() == "CREATE VIRTUAL"]
    statements = [
        sql
        for _, name, sql in rows
        if not any(lower(name) == v or lower(name).startswith(v + "_") for v in virtual)
    ]
    return statements, virtual


def read_table(connection: sqlite3.Connection, name: str) -> TableProfile:
    """Reads the columns and a sample of a table."""
    columns = {}
    described = connection.execute(
        'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?)', [name]
    ).fetchall()
    unique = set(unique_columns(connection, name))
    primary = [lower(column) for column, _, _, pk, _ in described if pk]
    for column, type_, notnull, pk, hidden in described:
        if hidden == 0:  # the others are generated columns
            is_primary_key = bool(pk) and len(primary) == 1
            columns[lower(column)] = ColumnProfile(
                column,
                type_,
                nullable=not notnull and not pk,
                unique=is_primary_key or lower(column) in unique,
                key=bool(pk),
                integer=is_primary_key and type_.upper() == "INTEGER",
                values=sampled_values(connection, name, column),
            )
    listed = ", ".join(quote_name(column.name) for column in columns.values())
    rows = connection.execute(f"SELECT {listed} FROM {quote_name(name)} LIMIT {SAMPLE}").fetchall()
    return TableProfile(name, columns, [], rows)


def unique_columns(connection: sqlite3.Connection, table: str) -> Iterator[str]:
    """Yields the columns that have a UNIQUE constraint or index without other columns."""
    indexes = connection.execute(
        'SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial', [table]
    ).fetchall()
    for (index,) in indexes:
        names = connection.execute("SELECT name FROM pragma_index_info(?)", [index]).fetchall()
        if len(names) == 1 and names[0][0] is not None:
            yield lower(names[0][0])


def sampled_values(connection: sqlite3.Connection, table: str, column: str) -> list:
    """A sample of the values of a column, without NULL.

    Floats are rounded to eighths, whose sums are exact in any order: whether a value is above the
    average must not depend on the order of rows.
    """
    source = f"SELECT {quote_name(column)} COLLATE BINARY AS v FROM {quote_name(table)}"
    rows = connection.execute(
        f"SELECT DISTINCT v FROM ({source} LIMIT {SCANNED})"
        f" WHERE v IS NOT NULL AND length(v) <= {MAX_LENGTH} LIMIT {SAMPLE}"
    )
    values = [round(v * 8) / 8 if isinstance(v, float) and abs(v) < 1e9 else v for (v,) in rows]
    return list(dict.fromkeys(values))


def read_foreign_keys(
    connection: sqlite3.Connection, table: TableProfile, tables: dict[str, TableProfile]
) -> list[Link]:
    """The declared foreign keys whose table and columns exist."""
    keys = defaultdict(list)
    rows = connection.execute(
        'SELECT id, "table", "from", "to" FROM pragma_foreign_key_list(?) ORDER BY id, seq',
        [table.name],
    )
    for number, parent, column, to_column in rows.fetchall():
        keys[number, lower(parent)].append((lower(column), to_column))
    links = []
    for (_, parent), pairs in keys.items():
        columns = tuple(column for column, _ in pairs)
        if parent not in tables or not set(columns) <= table.columns.keys():
            continue
        primary = [lower(name) for name in primary_key(connection, tables[parent].name)]
        targets = [lower(to) if to else "" for _, to in pairs]
        targets = tuple(targets if all(targets) else primary)
        if len(targets) == len(columns) and set(targets) <= tables[parent].columns.keys():
            nulls = any(has_nulls(connection, table, column) for column in columns)
            links.append(Link(columns, parent, targets, True, nulls))
    for link in links:
        for column in link.columns:
            table.columns[column].key = True
    return list(dict.fromkeys(links))


def has_nulls(connection: sqlite3.Connection, table: TableProfile, column: str) -> bool:
    """Whether a column of the given database contains NULL."""
    name = quote_name(table.columns[column].name)
    sql = f"SELECT 1 FROM {quote_name(table.name)} WHERE {name} IS NULL LIMIT 1"
    return connection.execute(sql).fetchone() is not None


def add_join_links(connection: sqlite3.Connection, tables: dict, pairs: list) -> None:
    """Links columns that gold queries join without a declared foreign key.

    The parent is the side with unique values. Every row has a parent if this holds in the given
    database, so that a lookup join finds a row in the drawn databases, too.
    """
    linked = {
        frozenset(((lower(table.name), column), (link.parent, target)))
        for table in tables.values()
        for link in table.links
        for column, target in zip(link.columns, link.parent_columns)
    }
    for pair in pairs:
        exist = all(table in tables and column in tables[table].columns for table, column in pair)
        if not exist or frozenset(pair) in linked:
            continue
        linked.add(frozenset(pair))
        first_is_parent = tables[pair[0][0]].columns[pair[0][1]].unique
        (child, column), (parent, target) = pair[::-1] if first_is_parent else pair
        strict = tables[parent].columns[target].unique and not has_dangling(
            connection, tables[child], column, tables[parent], target
        )
        # Two links of a column could contradict each other.
        if not any(column in link.columns for link in tables[child].links):
            nulls = has_nulls(connection, tables[child], column)
            tables[child].links.append(Link((column,), parent, (target,), strict, nulls))
            tables[child].columns[column].key |= strict


def has_dangling(
    connection: sqlite3.Connection,
    child: TableProfile,
    column: str,
    parent: TableProfile,
    target: str,
) -> bool:
    """Whether a row of the given database has a value that the parent lacks."""
    name, to = (quote_name(t.columns[c].name) for t, c in ((child, column), (parent, target)))
    sql = (
        f"SELECT 1 FROM {quote_name(child.name)} WHERE {name} IS NOT NULL AND {name} NOT IN"
        f" (SELECT {to} FROM {quote_name(parent.name)} WHERE {to} IS NOT NULL) LIMIT 1"
    )
    return connection.execute(sql).fetchone() is not None


def exchange_values(tables: dict[str, TableProfile]) -> None:
    """Adds values of columns with the same name to each other, for INTERSECT and EXCEPT: "state" of
    owners and "state" of professionals."""
    same_name = defaultdict(list)
    for table in tables.values():
        for name, column in table.columns.items():
            if not column.key:
                same_name[name, type_family(column.type)].append(column)
    for columns in same_name.values():
        shared = [v for column in columns for v in column.values[: SAMPLE // len(columns)]]
        for column in columns if len(columns) > 1 else ():
            column.values = list(dict.fromkeys([*column.values, *shared]))


def propagate_names(tables: dict[str, TableProfile]) -> None:
    """Applies the literals that a query compares a column with to the columns linked to it."""
    groups = {(t, c): {(t, c)} for t, table in tables.items() for c in table.columns}
    for name, table in tables.items():
        for link in table.links:
            for column, target in zip(link.columns, link.parent_columns):
                merged = groups[name, column] | groups[link.parent, target]
                groups.update(dict.fromkeys(merged, merged))
    for (table, column), group in groups.items():
        tables[table].columns[column].names = tuple(sorted({name for _, name in group}))
