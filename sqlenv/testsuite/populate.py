"""Draws small databases with a given schema, on which queries and their mutants differ.

The databases are small, with few different values, so that the rows on which two queries differ are
likely to change their results: duplicates, ties, empty groups, parents without children and
boundary values are frequent. The constraints of the schema hold: keys are unique, every row has the
parent that its foreign key refers to, and SQLite itself refuses rows that violate the rest.
"""

import itertools
import json
import random
import re
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date

from sqlenv.sandbox.worker import allow_double_quotes
from sqlenv.schema import quote_name
from sqlenv.testsuite.edge_cases import is_whole
from sqlenv.testsuite.profile import (
    ColumnProfile,
    DatabaseProfile,
    GoldProfile,
    Link,
    TableProfile,
)
from sqlenv.testsuite.swaps import type_family
from sqlenv.text import ASCII_LOWER

MAX_ROWS = 120  # of a table, so that joins without a condition stay fast
UNREAD_ROWS = 8  # typical rows of a table that no query in focus reads
SIZES = (3, 6, 12, 24, 40)  # typical rows of the tables of a database
DISTINCT_VALUES = (1, 2, 2, 3, 4, 6, 8, 12, None)  # of a column; None: as many as rows
NULL_SHARES = (0, 0, 0.1, 0.3)
# Of the rows drawn for a query: those that meet most conditions, and of the others those with a
# literal or a boundary value of it.
MEETING_SHARE, LITERAL_SHARE = 0.6, 0.6
ISO_DATE = re.compile(r"\d{4}-[01]\d-[0-3]\d")
DATE_START = re.compile(r"\d{4}(-|-[01]\d-?)?")


def draw_database(
    profile: DatabaseProfile, focus: Sequence[int], rng: random.Random, rows: int | None = None
) -> sqlite3.Connection:
    """Returns a new database in memory.

    Args:
        profile: of the given database.
        focus: indices of the gold queries whose literals the columns shall contain.
        rng: the same state gives the same database.
        rows: of each table, so many that most results have as many; None for few rows.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    allow_double_quotes(connection)
    connection.execute("BEGIN")
    for statement in profile.statements:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError:
            pass  # a user-defined function or collation; gold queries that need it are not verified
    insert_rows(connection, profile.tables, ValueGenerator(profile, focus, rng, rows))
    connection.execute("COMMIT")
    return connection


class ValueGenerator:
    """Draws the values of one database, column by column.

    Each row is drawn for one of the queries in focus, or for none. Where that query compares a
    column with a literal, the row either meets most such conditions, as do its parents, so that one
    condition decides, or tends to contain the literal or a boundary value of it.
    """

    def __init__(
        self,
        profile: DatabaseProfile,
        focus: Sequence[int],
        rng: random.Random,
        rows: int | None,
    ):
        self.tables, self.golds, self.rng = profile.tables, profile.golds, rng
        meeting_share = 0.9 if rows else MEETING_SHARE
        self.boundary_share = 0.05 if rows else 0.25  # of the literals of such rows
        self.distinct_values = (8, None, None) if rows else DISTINCT_VALUES
        self.drawn: dict[tuple[str, str], list] = {}
        self.in_progress: set[tuple[str, str]] = set()
        golds = [self.golds[number] for number in focus]
        self.sorts = {name for gold in golds for name in gold.sorts}
        self.groups = {name for gold in golds for name in gold.groups}
        self.null_share = rng.choice(NULL_SHARES)
        counts = [count for gold in golds for count in gold.counts]
        # A size of groups that a query in focus compares with; 0 for none.
        self.count = rng.choice(counts) if counts and rng.random() < 0.7 else 0
        read = {name for gold in golds for name in gold.tables}
        size = max(rng.choice(SIZES), 3 * len(focus))
        self.sizes = {
            name: rows or self.draw_size(table, size if name in read else min(size, UNREAD_ROWS))
            for name, table in self.tables.items()
        }
        queries = (None, *focus, *focus, *focus, *(focus if rows else ()))
        # For each table the query that each row is drawn for, and whether it meets most conditions.
        self.focus = {
            name: [(query, rng.random() < meeting_share) for query in rng.choices(queries, k=count)]
            for name, count in self.sizes.items()
        }

    def draw_size(self, table: TableProfile, size: int) -> int:
        """The number of rows of a table: more for children than for parents, so that there are
        groups, and enough for two groups of ``self.count`` rows."""
        size = size * self.rng.choice((1, 1, 2)) // self.rng.choice((1, 1, 2))
        if table.links:
            size = min(2 * size, MAX_ROWS)
        if table.links or self.groups & table.columns.keys():
            size = max(size, 2 * self.count + 3)
        return 0 if self.rng.random() < 0.01 else size

    def column(self, table: str, name: str) -> list:
        """The values of a column, one for each row; the columns of its parent are drawn first."""
        if (table, name) not in self.drawn:
            link = next((k for k in self.tables[table].links if name in k.columns), None)
            parents = {(link.parent, target) for target in link.parent_columns} if link else set()
            if link and not parents & self.in_progress:
                children = {(table, column) for column in link.columns}
                self.in_progress |= children
                self.draw_link(table, link)
                self.in_progress -= children
            if (table, name) not in self.drawn:
                self.drawn[table, name] = self.draw_values(table, name)
        return self.drawn[table, name]

    def draw_link(self, table: str, link: Link) -> None:
        """Draws a parent for each row, so that parents have many children, one or none."""
        rng = self.rng
        keys = list(zip(*(self.column(link.parent, target) for target in link.parent_columns)))
        keys = [key for key in zip(keys, self.focus[link.parent]) if None not in key[0]]
        columns = [self.tables[table].columns[name] for name in link.columns]
        if not keys:
            return
        rng.shuffle(keys)
        if any(column.unique for column in columns):
            chosen = [keys[i % len(keys)][0] for i in range(self.sizes[table])]
        else:
            chosen = self.draw_parents(table, keys[: rng.randint(1, len(keys))])
        for at, (name, column) in enumerate(zip(link.columns, columns)):
            if (table, name) in self.drawn:
                continue  # drawn from another parent; rows that match only one are deleted later
            values = [key[at] for key in chosen]
            if not link.strict:
                others = self.draw_values(table, name)
                values = [o if rng.random() < 0.2 else v for v, o in zip(values, others)]
            if link.nulls and column.nullable:
                values = [None if rng.random() < 0.15 else value for value in values]
            self.drawn[table, name] = values

    def draw_parents(self, table: str, keys: list[tuple[tuple, tuple]]) -> list[tuple]:
        """The key of the parent of each row, from pairs of a key and its row's entry in focus."""
        skew, chosen = self.rng.choice((1, 1.5, 2, 3)), []
        if self.count and self.rng.random() < 0.7:
            chosen, keys = self.repeat([key for key, _ in keys]), keys[2:] or keys
        alike: dict[tuple, list] = {}
        for key in keys:
            alike.setdefault(key[1], []).append(key)
        for entry in self.focus[table][len(chosen) :]:
            similar = entry in alike and (entry[1] or self.rng.random() < 0.6)
            pool = alike[entry] if similar else keys
            chosen.append(pool[int(len(pool) * self.rng.random() ** skew)][0])
        return chosen[: self.sizes[table]]

    def repeat(self, values: list) -> list:
        """Repeats the first one or two values ``self.count`` times, plus or minus 1, so that there
        are groups on both sides of the count that a query compares with."""
        rng = self.rng
        times = [self.count + rng.choice((-1, 0, 1)) for _ in range(rng.choice((1, 2)))]
        return [value for value, count in zip(values, times) for _ in range(count)]

    def draw_values(self, table: str, name: str) -> list:
        """Values of a column that do not depend on other columns."""
        rng, column, rows = self.rng, self.tables[table].columns[name], self.focus[table]
        count = rng.choice(self.distinct_values)
        # Ties leave the order of a query open, and rows with the same primary key are refused,
        # which would reduce the groups that queries count.
        untied = name in self.sorts and rng.random() < 0.5
        if column.unique or count is None or untied or (column.key and self.count):
            values = distinct_values(column, len(rows), rng)
        else:
            distinct = distinct_values(column, count, rng)
            values = rng.choices(distinct, k=len(rows))
            if self.count and name in self.groups and rng.random() < 0.7:
                others = rng.choices(distinct[2:] or distinct, k=len(rows))
                values = [*self.repeat(distinct), *others][: len(rows)]
        met = self.place_literals(column, values, rows, repeat=not (column.unique or untied))
        if untied or column.key or not column.nullable:
            return values
        if self.null_share and rng.random() < 0.6:
            return [
                None if row not in met and rng.random() < self.null_share else value
                for row, value in enumerate(values)
            ]
        return values

    def place_literals(
        self, column: ColumnProfile, values: list, rows: list[tuple], *, repeat: bool
    ) -> set[int]:
        """Replaces values by literals that the query of each row compares the column with.

        Args:
            column: the column.
            values: of each row, changed in place.
            rows: the entries of its table in ``self.focus``.
            repeat: whether a value may occur twice.

        Returns:
            The rows that meet most conditions and got a literal here.
        """
        rng, met = self.rng, set()
        golds = {query for query, _ in rows if query is not None}
        groups = {query: literal_groups(column, self.golds[query]) for query in golds}
        for row, (query, meets) in enumerate(rows if any(groups.values()) else ()):
            if not groups.get(query) or not (meets or rng.random() < LITERAL_SHARE):
                continue
            group = rng.choice(groups[query])
            boundary = rng.random() < (self.boundary_share if meets else 0.7)
            value = rng.choice(group) if boundary else group[0]
            if repeat or value not in values:
                values[row] = value
                met |= {row} if meets else set()
        return met


def literal_groups(column: ColumnProfile, gold: GoldProfile) -> list[list]:
    """The literals that a query compares the column with, as ``gold_literals`` returns them.

    For a column of fractions those a quarter away are added, and years and months become dates.
    """
    groups = [group for name in column.names for group in gold.literals.get(name, ())]
    if column.integer:
        groups = [[v for v in map(as_integer, group) if v is not None] for group in groups]
    elif not is_whole(column.type):
        groups = [
            [*group, group[1] - 0.25, group[1] + 0.25] if not isinstance(group[1], str) else group
            for group in groups
        ]
    example = column.values[0] if column.values else None
    if isinstance(example, str) and ISO_DATE.match(example):
        groups = [[as_date(value, example) for value in group] for group in groups]
    return [group for group in groups if group]


def as_date(value, example: str):
    """The start of a date, such as a year, continued as in an example; other values unchanged."""
    is_start = isinstance(value, str) and DATE_START.fullmatch(value)
    return value + example[len(value) :] if is_start else value


def distinct_values(column: ColumnProfile, count: int, rng: random.Random) -> list:
    """Different values for a column: those of the given database first, then synthetic ones."""
    values = rng.sample(column.values, min(count, len(column.values)))
    seen = set(column.values)
    synthetic = (synthetic_value(column, number) for number in itertools.count(1))
    while len(values) < count:
        value = next(synthetic)
        if value not in seen:
            seen.add(value)
            values.append(value)
    return values


def as_integer(value) -> int | None:
    """The value as an integer; None if it is not one or exceeds 64 bits."""
    try:
        number = int(value)
    except (ValueError, OverflowError):  # a text; infinity
        return None
    return number if abs(number) < 1 << 63 else None


def synthetic_value(column: ColumnProfile, number: int):
    """The value number ``number`` of an endless sequence, similar to the column's values."""
    example = column.values[number % len(column.values)] if column.values else None
    if example is None:
        fraction = any(word in column.type.upper() for word in ("REA", "FLO", "DOU"))
        defaults = {"number": 0.5 if fraction else 0, "time": "2000-01-01"}
        example = defaults.get(type_family(column.type), column.name)
    if column.integer or isinstance(example, int):
        return number
    if isinstance(example, float):
        return number + 0.5
    if isinstance(example, str) and example.isascii() and example.isdigit():
        return str(int(example) + number)
    if isinstance(example, str) and ISO_DATE.match(example):
        day = date.fromordinal(730_120 + number).isoformat()  # from the year 2000 on
        return day + example[len(day) :]
    if isinstance(example, bytes):
        return example + str(number).encode()
    if isinstance(example, str) and is_json(example):
        return example + " " * number
    return f"{example} {number}"


def is_json(text: str) -> bool:
    """Whether a text is an object or a list of JSON, which functions of JSON have to read."""
    if text[:1] not in ("{", "["):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def insert_rows(
    connection: sqlite3.Connection, tables: dict[str, TableProfile], values: ValueGenerator
) -> None:
    """Inserts the rows. A refused row is replaced by a sampled row with the keys of the refused."""
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    created = {name.translate(ASCII_LOWER) for (name,) in rows}
    for name, table in tables.items():
        if name not in created or not table.columns:
            continue
        rows = zip(*(values.column(name, column) for column in table.columns))
        marks = ", ".join("?" * len(table.columns))
        listed = ", ".join(quote_name(column.name) for column in table.columns.values())
        insert = f"INSERT OR IGNORE INTO {quote_name(table.name)} ({listed}) VALUES ({marks})"
        keys = [column.key or column.unique for column in table.columns.values()]
        for number, row in enumerate(rows):
            if not insert_row(connection, insert, row) and table.rows:
                sampled = table.rows[number % len(table.rows)]
                mixed = [drawn if key else s for drawn, s, key in zip(row, sampled, keys)]
                insert_row(connection, insert, mixed)
    delete_orphans(connection, {name: tables[name] for name in tables if name in created})


def insert_row(connection: sqlite3.Connection, insert: str, row: Iterable) -> bool:
    """Inserts a row; returns whether the schema allows it."""
    try:
        return connection.execute(insert, tuple(row)).rowcount == 1
    # OR IGNORE does not cover wrong types in STRICT tables, nor errors of functions in the schema,
    # such as json_type() of a text that is no JSON.
    except sqlite3.Error:
        return False


def delete_orphans(connection: sqlite3.Connection, tables: dict[str, TableProfile]) -> None:
    """Deletes rows without a parent until none is left: SQLite refused the parent, or two foreign
    keys of the row disagree."""
    deleted = 1
    while deleted:
        deleted = 0
        for table in tables.values():
            for link in table.links:
                if link.strict and link.parent in tables:
                    sql = delete_orphans_sql(table, link, tables[link.parent])
                    deleted += connection.execute(sql).rowcount


def delete_orphans_sql(table: TableProfile, link: Link, parent: TableProfile) -> str:
    """The DELETE of all rows of a table without a parent."""
    columns = [f"c.{quote_name(table.columns[name].name)}" for name in link.columns]
    keys = [f"p.{quote_name(parent.columns[name].name)}" for name in link.parent_columns]
    equal = " AND ".join(f"{key} = {column}" for key, column in zip(keys, columns))
    filled = " AND ".join(f"{column} IS NOT NULL" for column in columns)
    return (
        f"DELETE FROM {quote_name(table.name)} AS c WHERE {filled}"
        f" AND NOT EXISTS (SELECT 1 FROM {quote_name(parent.name)} AS p WHERE {equal})"
    )
