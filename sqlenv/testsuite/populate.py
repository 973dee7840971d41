"""Draws small databases with a given schema, so that queries and their near misses part ways.

Small, since with few rows and few different values the rows on which two queries differ are likely
to show in their results: duplicates, ties, empty groups, parents without children and boundary
values are the rule then, not the exception. What the schema demands holds: keys are unique, every
row has the parent that its foreign key names, SQLite itself refuses the rest.
"""

import itertools
import random
import re
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date

from sqlenv.schema import quote_name
from sqlenv.testsuite.profile import Blueprint, ColumnPlan, Link, TablePlan
from sqlenv.testsuite.swaps import family
from sqlenv.text import ASCII_LOWER

MAX_ROWS = 80  # of a table, so that joins without a condition stay fast
UNREAD = 8  # typical rows of a table that no query in focus names
SIZES = (3, 6, 12, 24, 40)  # typical rows of a table; one for a whole database
SPREADS = (1, 2, 2, 3, 4, 6, 8, 12, None)  # different values of a column; None: as many as rows
NULL_SHARES = (0, 0, 0.1, 0.3)
ISO_DATE = re.compile(r"\d{4}-[01]\d-[0-3]\d")


def draw_database(
    blueprint: Blueprint, focus: Sequence[int], rng: random.Random
) -> sqlite3.Connection:
    """Return a new database in memory.

    `focus` are the numbers of the gold queries whose literals the columns shall hold. Different
    states of `rng` give different databases, the same state the same one.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.execute("BEGIN")
    for statement in blueprint.statements:
        try:
            connection.execute(statement)
        except sqlite3.OperationalError:
            pass  # a function or collation of somebody's own; a gold that needs it is not judged
    Draw(blueprint, focus, rng).fill(connection)
    connection.execute("COMMIT")
    return connection


class Draw:
    """The values of one database, column by column.

    Each row is drawn for one of the queries in focus, or for none: where that query compares a
    column with a literal, the row tends to hold the literal or a neighbour of it, and its parents
    tend to be rows of the same query. So conditions on several columns are met together.
    """

    def __init__(self, blueprint: Blueprint, focus: Sequence[int], rng: random.Random):
        self.tables, self.golds, self.rng = blueprint.tables, blueprint.golds, rng
        self.drawn: dict[tuple[str, str], list] = {}
        self.busy: set[tuple[str, str]] = set()
        plans = [self.golds[number] for number in focus]
        self.sorts = {name for plan in plans for name in plan.sorts}
        self.groups = {name for plan in plans for name in plan.groups}
        self.null_share = rng.choice(NULL_SHARES)
        counts = [count for plan in plans for count in plan.counts]
        self.count = rng.choice(counts) if counts and rng.random() < 0.7 else 0
        read = {name for plan in plans for name in plan.tables}
        size = max(rng.choice(SIZES), 2 * len(focus))
        self.sizes = {
            name: self.size(table, size if name in read else min(size, UNREAD))
            for name, table in self.tables.items()
        }
        queries = (None, *focus, *focus, *focus)
        self.focus = {name: rng.choices(queries, k=count) for name, count in self.sizes.items()}

    def size(self, table: TablePlan, size: int) -> int:
        """How many rows to draw: more for children than for parents, so that groups form, and
        enough for two groups of the size that a query in focus compares with."""
        size = size * self.rng.choice((1, 1, 2)) // self.rng.choice((1, 1, 2))
        if table.links:
            size = min(2 * size, MAX_ROWS)
        if table.links or self.groups & table.columns.keys():
            size = max(size, 2 * self.count + 3)
        return 0 if self.rng.random() < 0.01 else size

    def column(self, table: str, name: str) -> list:
        """The values of a column, one a row; those that it takes from another are drawn first."""
        if (table, name) not in self.drawn:
            link = next((k for k in self.tables[table].links if name in k.columns), None)
            parents = {(link.parent, target) for target in link.parent_columns} if link else set()
            if link and not parents & self.busy:
                own = {(table, column) for column in link.columns}
                self.busy |= own
                self.draw_link(table, link)
                self.busy -= own
            if (table, name) not in self.drawn:
                self.drawn[table, name] = self.plain(table, name)
        return self.drawn[table, name]

    def draw_link(self, table: str, link: Link) -> None:
        """Give each row a parent: some have many children, some one, some none."""
        rng = self.rng
        keys = list(zip(*(self.column(link.parent, target) for target in link.parent_columns)))
        keys = [key for key in zip(keys, self.focus[link.parent]) if None not in key[0]]
        plans = [self.tables[table].columns[column] for column in link.columns]
        if not keys:
            return
        rng.shuffle(keys)
        if any(plan.unique for plan in plans):
            chosen = [keys[i % len(keys)][0] for i in range(self.sizes[table])]
        else:
            chosen = self.parents(table, keys[: rng.randint(1, len(keys))])
        for at, (column, plan) in enumerate(zip(link.columns, plans)):
            if (table, column) in self.drawn:
                continue  # taken from another parent; rows that fit with neither are dropped
            values = [key[at] for key in chosen]
            if not link.strict:
                others = self.plain(table, column)
                values = [o if rng.random() < 0.2 else v for v, o in zip(values, others)]
            if link.nulls and plan.nullable:
                values = [None if rng.random() < 0.15 else value for value in values]
            self.drawn[table, column] = values

    def parents(self, table: str, keys: list[tuple[tuple, int | None]]) -> list[tuple]:
        """For each row the key of its parent."""
        skew, chosen = self.rng.choice((1, 1.5, 2, 3)), []
        if self.count and self.rng.random() < 0.7:
            chosen, keys = self.counted([key for key, _ in keys]), keys[2:] or keys
        fitting: dict[int | None, list] = {}
        for key in keys:
            fitting.setdefault(key[1], []).append(key)
        for focus in self.focus[table][len(chosen) :]:
            among = fitting[focus] if focus in fitting and self.rng.random() < 0.6 else keys
            chosen.append(among[int(len(among) * self.rng.random() ** skew)][0])
        return chosen[: self.sizes[table]]

    def counted(self, values: list) -> list:
        """One or two of the values, each as often as a query in focus counts, or one more or less:
        groups on both sides of the boundary."""
        rng = self.rng
        times = [self.count + rng.choice((-1, 0, 1)) for _ in range(rng.choice((1, 2)))]
        return [value for value, count in zip(values, times) for _ in range(count)]

    def plain(self, table: str, name: str) -> list:
        """Values that depend on no other column."""
        rng, plan, rows = self.rng, self.tables[table].columns[name], self.focus[table]
        spread = rng.choice(SPREADS)
        # Ties leave a query's order open, and rows that share a primary key are refused, so that
        # counted groups would fall short.
        untied = name in self.sorts and rng.random() < 0.5
        if plan.unique or spread is None or untied or (plan.key and self.count):
            values = self.different(plan, len(rows))
        else:
            different = self.different(plan, spread)
            values = rng.choices(different, k=len(rows))
            if self.count and name in self.groups and rng.random() < 0.7:
                others = rng.choices(different[2:] or different, k=len(rows))
                values = [*self.counted(different), *others][: len(rows)]
        literals = {number: self.nearby(plan, number) for number in set(rows) - {None}}
        for row, number in enumerate(rows if any(literals.values()) else ()):
            if literals.get(number) and rng.random() < 0.6:
                group = rng.choice(literals[number])
                value = group[0] if rng.random() < 0.5 else rng.choice(group)
                if not (plan.unique or untied) or value not in values:
                    values[row] = value
        if untied or plan.key or not plan.nullable:
            return values
        if self.null_share and rng.random() < 0.6:
            values = [None if rng.random() < self.null_share else value for value in values]
        return values

    def nearby(self, plan: ColumnPlan, number: int) -> list[list]:
        """The literals that a query compares the column with, each with its neighbours."""
        found = self.golds[number].literals
        groups = [group for name in plan.names for group in found.get(name, ())]
        if plan.integer:
            groups = [[v for v in map(as_integer, group) if v is not None] for group in groups]
        return [group for group in groups if group]

    def different(self, plan: ColumnPlan, count: int) -> list:
        """Different values: those of the given database, then made ones."""
        values = self.rng.sample(plan.values, min(count, len(plan.values)))
        seen = set(plan.values)
        made = (made_value(plan, number) for number in itertools.count(1))
        while len(values) < count:
            value = next(made)
            if value not in seen:
                seen.add(value)
                values.append(value)
        return values

    def fill(self, connection: sqlite3.Connection) -> None:
        """Write the rows; where one is refused, a row of the given database with its keys."""
        made = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        names = {name.translate(ASCII_LOWER) for (name,) in made}
        for name in [name for name, table in self.tables.items() if table.columns]:
            if name not in names:
                continue
            table = self.tables[name]
            rows = zip(*(self.column(name, column) for column in table.columns))
            marks = ", ".join("?" * len(table.columns))
            listed = ", ".join(quote_name(plan.name) for plan in table.columns.values())
            insert = f"INSERT OR IGNORE INTO {quote_name(table.name)} ({listed}) VALUES ({marks})"
            keys = [plan.key or plan.unique for plan in table.columns.values()]
            for number, row in enumerate(rows):
                if not is_taken(connection, insert, row) and table.rows:
                    given = table.rows[number % len(table.rows)]
                    mixed = [own if key else g for own, g, key in zip(row, given, keys)]
                    is_taken(connection, insert, mixed)
        self.drop_orphans(connection, names)

    def drop_orphans(self, connection: sqlite3.Connection, names: set[str]) -> None:
        """Delete rows without their parent, which SQLite refused or two foreign keys disagree on,
        then the rows that this makes orphans."""
        deleted = 1
        while deleted:
            deleted = 0
            for name, table in self.tables.items():
                if name not in names:
                    continue
                for link in table.links:
                    if link.strict and link.parent in names:
                        sql = orphans(table, link, self.tables[link.parent])
                        deleted += connection.execute(sql).rowcount


def is_taken(connection: sqlite3.Connection, insert: str, row: Iterable) -> bool:
    """Insert a row; whether the schema allowed it."""
    try:
        return connection.execute(insert, tuple(row)).rowcount == 1
    except sqlite3.IntegrityError:  # OR IGNORE does not cover wrong types in STRICT tables
        return False


def orphans(table: TablePlan, link: Link, parent: TablePlan) -> str:
    """DELETE of the rows whose parent is not there."""
    own = [f"c.{quote_name(table.columns[name].name)}" for name in link.columns]
    keys = [f"p.{quote_name(parent.columns[name].name)}" for name in link.parent_columns]
    equal = " AND ".join(f"{key} = {column}" for key, column in zip(keys, own))
    filled = " AND ".join(f"{column} IS NOT NULL" for column in own)
    child, to = quote_name(table.name), quote_name(parent.name)
    return (
        f"DELETE FROM {child} AS c WHERE {filled}"
        f" AND NOT EXISTS (SELECT 1 FROM {to} AS p WHERE {equal})"
    )


def as_integer(value) -> int | None:
    """The integer that a value is or is written as, or None; None beyond 64 bits, too."""
    try:
        number = int(value)
    except (ValueError, OverflowError):  # a text; infinity
        return None
    return number if abs(number) < 1 << 63 else None


def made_value(plan: ColumnPlan, number: int):
    """The n-th of endless different values for a column, like those that stand in it."""
    example = plan.values[number % len(plan.values)] if plan.values else None
    if example is None:
        kind = family(plan)
        fraction = any(word in plan.type.upper() for word in ("REA", "FLO", "DOU"))
        example = {"number": 0.5 if fraction else 0, "time": "2000-01-01"}.get(kind, plan.name)
    if plan.integer or isinstance(example, int):
        return number
    if isinstance(example, float):
        return number + 0.5
    if isinstance(example, str) and example.isascii() and example.isdigit():
        return str(int(example) + number)
    if isinstance(example, str) and ISO_DATE.match(example):
        day = date.fromordinal(730_120 + number).isoformat()  # from 2000 on
        return day + example[len(day) :]
    return f"{example} {number}"
