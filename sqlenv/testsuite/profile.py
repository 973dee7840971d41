"""What is known of a database and of the questions asked on it, read before databases like it are
drawn (`draw.py`): its schema with all constraints, some of its values, which columns refer to
which, and the literals that the gold queries compare each column with.
"""

import functools
import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.query import Query, parse
from sqlenv.schema import Schema, load_schema, quote_name
from sqlenv.testsuite.literals import COUNT, columns_of, gold_literals, joined_columns
from sqlenv.testsuite.swaps import family
from sqlenv.text import ASCII_LOWER

SAMPLE = 40  # values of a column, and rows of a table, taken from the given database
LONGEST = 200  # characters or bytes of a value that is taken
COUNTED = 200  # the greatest number of rows that groups are made of because a query counts them
SCANNED = 2000  # rows of a table that are looked at for that


@dataclass
class ColumnPlan:
    name: str
    type: str
    nullable: bool
    unique: bool  # by itself
    key: bool  # in a primary or foreign key, so that it is NULL only where it is in the given data
    integer: bool  # the row's number: takes nothing but integers
    values: list = field(default_factory=list)  # some that stand in the given database
    names: tuple[str, ...] = ()  # its own and those of the columns that it is linked with


@dataclass(frozen=True)
class Link:
    """Columns whose values come from a parent's: a foreign key, or what gold queries join on.

    `strict`: every row has its parent, by declaration or as the given database shows. `nulls`: the
    given database has rows that point nowhere.
    """

    columns: tuple[str, ...]  # lower case, like all names here
    parent: str
    parent_columns: tuple[str, ...]
    strict: bool
    nulls: bool = False


@dataclass
class TablePlan:
    name: str
    columns: dict[str, ColumnPlan]  # those that can be written
    links: list[Link] = field(default_factory=list)
    rows: list[tuple] = field(default_factory=list)  # some of the given ones


@dataclass
class GoldPlan:
    """What a database has to hold for a gold query to part from its near misses."""

    literals: dict[str, list[list]]  # column -> values that it is compared with, neighbours behind
    counts: list[int]  # numbers of rows that a group is compared with
    sorts: set[str]  # columns in ORDER BY
    groups: set[str]  # columns in GROUP BY
    tables: set[str]


@dataclass
class Blueprint:
    statements: list[str]  # CREATE TABLE, CREATE INDEX, CREATE VIEW
    tables: dict[str, TablePlan]
    golds: list[GoldPlan]


def read_blueprint(db_path: str | os.PathLike, golds: Sequence[str]) -> Blueprint:
    """Read a SQLite file. Raises UserError if it is missing or is not a database."""
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
        add_joined(connection, tables, [p for q in queries for p in joined_columns(q, schema)])
    except sqlite3.Error as error:
        raise UserError(f"{db_path}: cannot be read as a SQLite database ({error})") from error
    finally:
        connection.close()
    share_values(tables)
    share_names(tables)
    return Blueprint(statements, tables, [plan_gold(query, schema, tables) for query in queries])


def plan_gold(query: Query, schema: Schema, tables: dict[str, TablePlan]) -> GoldPlan:
    literals = gold_literals(query, schema)
    counts = [group[0] for group in literals.pop(COUNT, ())]
    counts = [number for number in counts if isinstance(number, int) and 0 < number <= COUNTED]
    read = {source.table for select in query.selects for source in select.sources if source.table}
    if not read <= tables.keys():  # views, or table expressions: any table may be behind them
        read = set(tables)
    sorts, groups = columns_of(query, "order"), columns_of(query, "group")
    return GoldPlan(literals, counts, sorts, groups, read)


def open_read_only(db_path: str | os.PathLike) -> sqlite3.Connection:
    connection = sqlite3.connect(read_only_uri(db_path), uri=True)
    connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
    return connection


def lower(name: str) -> str:
    return name.translate(ASCII_LOWER)


def read_statements(connection: sqlite3.Connection) -> tuple[list[str], list[str]]:
    """The statements that make the schema, and the names of virtual tables, which are left out.

    Triggers are left out, too: they would only get in the way of filling the tables.
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


def read_table(connection: sqlite3.Connection, name: str) -> TablePlan:
    columns = {}
    described = connection.execute(
        'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?)', [name]
    ).fetchall()
    unique = set(unique_columns(connection, name))
    primary = [lower(column) for column, _, _, pk, _ in described if pk]
    for column, type_, notnull, pk, hidden in described:
        if hidden == 0:  # the others are computed
            alone = bool(pk) and len(primary) == 1
            plan = ColumnPlan(
                column,
                type_,
                not notnull and not pk,
                alone or lower(column) in unique,
                bool(pk),
                alone and type_.upper() == "INTEGER",
            )
            plan.values = sampled_values(connection, name, column)
            columns[lower(column)] = plan
    listed = ", ".join(quote_name(plan.name) for plan in columns.values())
    rows = connection.execute(f"SELECT {listed} FROM {quote_name(name)} LIMIT {SAMPLE}").fetchall()
    return TablePlan(name, columns, [], rows)


def unique_columns(connection: sqlite3.Connection, table: str) -> Iterator[str]:
    """Columns that a UNIQUE constraint or index covers alone."""
    indexes = connection.execute(
        'SELECT name FROM pragma_index_list(?) WHERE "unique" AND NOT partial', [table]
    ).fetchall()
    for (index,) in indexes:
        names = connection.execute("SELECT name FROM pragma_index_info(?)", [index]).fetchall()
        if len(names) == 1 and names[0][0] is not None:
            yield lower(names[0][0])


def sampled_values(connection: sqlite3.Connection, table: str, column: str) -> list:
    """Some values of a column, without NULL.

    Fractions are rounded to eighths, which floating point adds up exactly, in any order: whether
    a value is above the average must not depend on the order of rows.
    """
    source = f"SELECT {quote_name(column)} COLLATE BINARY AS v FROM {quote_name(table)}"
    rows = connection.execute(
        f"SELECT DISTINCT v FROM ({source} LIMIT {SCANNED})"
        f" WHERE v IS NOT NULL AND length(v) <= {LONGEST} LIMIT {SAMPLE}"
    )
    values = [round(v * 8) / 8 if isinstance(v, float) and abs(v) < 1e9 else v for (v,) in rows]
    return list(dict.fromkeys(values))


def read_foreign_keys(
    connection: sqlite3.Connection, table: TablePlan, tables: dict[str, TablePlan]
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
        primary = [name for name, plan in tables[parent].columns.items() if plan.key]
        targets = [lower(to) if to else "" for _, to in pairs]
        targets = tuple(targets if all(targets) else primary)
        if len(targets) == len(columns) and set(targets) <= tables[parent].columns.keys():
            nulls = any(has_nulls(connection, table, column) for column in columns)
            links.append(Link(columns, parent, targets, True, nulls))
    for link in links:
        for column in link.columns:
            table.columns[column].key = True
    return list(dict.fromkeys(links))


def has_nulls(connection: sqlite3.Connection, table: TablePlan, column: str) -> bool:
    name = quote_name(table.columns[column].name)
    sql = f"SELECT 1 FROM {quote_name(table.name)} WHERE {name} IS NULL LIMIT 1"
    return connection.execute(sql).fetchone() is not None


def add_joined(connection: sqlite3.Connection, tables: dict, pairs: list) -> None:
    """Link columns that gold queries join although no foreign key says so.

    The parent is the side with unique values; every row has a parent if that is so in the given
    database, so that a join that only looks something up stays one.
    """
    linked = {
        frozenset(((lower(table.name), column), (link.parent, target)))
        for table in tables.values()
        for link in table.links
        for column, target in zip(link.columns, link.parent_columns)
    }
    for pair in pairs:
        known = all(table in tables and column in tables[table].columns for table, column in pair)
        if not known or frozenset(pair) in linked:
            continue
        linked.add(frozenset(pair))
        second_first = tables[pair[0][0]].columns[pair[0][1]].unique
        (child, column), (parent, target) = pair[::-1] if second_first else pair
        strict = tables[parent].columns[target].unique and not has_dangling(
            connection, tables[child], column, tables[parent], target
        )
        # A second link of a column could contradict the first.
        if not any(column in link.columns for link in tables[child].links):
            nulls = has_nulls(connection, tables[child], column)
            tables[child].links.append(Link((column,), parent, (target,), strict, nulls))
            tables[child].columns[column].key |= strict


def has_dangling(
    connection: sqlite3.Connection, child: TablePlan, column: str, parent: TablePlan, target: str
) -> bool:
    name, to = (quote_name(t.columns[c].name) for t, c in ((child, column), (parent, target)))
    sql = (
        f"SELECT 1 FROM {quote_name(child.name)} WHERE {name} IS NOT NULL AND {name} NOT IN"
        f" (SELECT {to} FROM {quote_name(parent.name)} WHERE {to} IS NOT NULL) LIMIT 1"
    )
    return connection.execute(sql).fetchone() is not None


def share_values(tables: dict[str, TablePlan]) -> None:
    """Let columns of one name hold values of each other: "state" of owners and of professionals
    meet in INTERSECT and EXCEPT."""
    named = defaultdict(list)
    for table in tables.values():
        for name, plan in table.columns.items():
            if not plan.key:
                named[name, family(plan)].append(plan)
    for plans in named.values():
        together = [value for plan in plans for value in plan.values[: SAMPLE // len(plans)]]
        for plan in plans if len(plans) > 1 else ():
            plan.values = list(dict.fromkeys([*plan.values, *together]))


def share_names(tables: dict[str, TablePlan]) -> None:
    """Let literals that a query compares a column with reach the columns that it is linked with."""
    groups = {(t, c): {(t, c)} for t, table in tables.items() for c in table.columns}
    for name, table in tables.items():
        for link in table.links:
            for column, target in zip(link.columns, link.parent_columns):
                merged = groups[name, column] | groups[link.parent, target]
                groups.update(dict.fromkeys(merged, merged))
    for (table, column), group in groups.items():
        tables[table].columns[column].names = tuple(sorted({name for _, name in group}))
