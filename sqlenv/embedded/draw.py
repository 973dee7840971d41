"""Draws the parts of questions (tables, columns, literals, conditions) and writes their SQL."""

import random
import re
import sqlite3
from dataclasses import dataclass, field

from sqlenv.embedded.databases import Column, Table


@dataclass(frozen=True)
class Condition:
    """A predicate on the rows of a table.

    Attributes:
        key: eq, gt, ge, lt, between or null; for a foreign key ``by`` (the parent's name) or
            ``link`` (a condition on the parent).
        inner: for ``link``: the condition on the parent.
    """

    table: str
    column: str
    key: str
    values: tuple = ()
    inner: "Condition | None" = None


@dataclass(frozen=True)
class Superlative:
    """The rows with the greatest or smallest values of a column."""

    table: str
    column: str
    key: str  # max or min


@dataclass
class Question:
    """A question without words: its gold SQL, and the slots that a lexicon fills with text.

    Attributes:
        ties: a query for the sort keys; None without ORDER BY. A question whose result depends on
            tied keys is not used.
        limit: the LIMIT of the query; 0 for none.
    """

    db: str
    shape: str
    sql: str
    slots: dict
    ties: str | None = None
    limit: int = 0


def literal(value) -> str:
    """A value as SQL text."""
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else str(value)


def select_sql(columns: str, tables: list[str], joins: list[str], rest: str) -> str:
    """``SELECT columns FROM ... JOIN ... rest``, with aliases T1, T2, ... for several tables.

    ``[table].`` in the arguments becomes the alias of the table, or nothing for one table.
    """
    alias = {table: f"T{i + 1}" for i, table in enumerate(tables)}
    source = tables[0]
    if len(tables) > 1:
        source += " AS T1" + "".join(
            f" JOIN {table} AS {alias[table]} ON {on}" for table, on in zip(tables[1:], joins)
        )
    text = f"SELECT {columns} FROM {source}" + (f" {rest}" if rest else "")
    return re.sub(
        r"\[(\w+)\]\.", lambda name: f"{alias[name[1]]}." if len(tables) > 1 else "", text
    )


@dataclass
class Draw:
    """Draws the parts of questions about one database."""

    db: str
    tables: dict[str, Table]
    connection: sqlite3.Connection
    rng: random.Random
    values: dict = field(default_factory=dict)

    def table(self, *roles: str) -> Table:
        """A table that has columns of all these roles."""
        return self.rng.choice(
            [t for t in self.tables.values() if all(t.with_role(role) for role in roles)]
        )

    def column(
        self,
        table: Table,
        *roles: str,
        not_null: bool = False,
        exclude: Column | None = None,
    ) -> Column:
        """A column that has one of these roles.

        Raises:
            LookupError: the table has no such column.
        """
        columns = [
            column
            for column in table.with_role(*roles)
            if not (not_null and column.nullable) and column != exclude
        ]
        if not columns:
            raise LookupError(f"{table.name} has no such column")
        return self.rng.choice(columns)

    def asked_column(self, table: Table) -> Column:
        """A column to ask for, usually the one that names the row."""
        if table.label and self.rng.random() < 0.6:
            return table.label
        return self.column(table, "name", "category", "code", "number", "date")

    def reference(self) -> tuple[Table, Column, Table]:
        """A (child, foreign key, parent)."""
        return self.rng.choice(
            [
                (child, column, self.tables[column.args])
                for child in self.tables.values()
                for column in child.with_role("ref")
                if self.tables[column.args].label
            ]
        )

    def literals(self, table: Table, column: Column) -> list:
        """All values of a column, sorted, without NULL."""
        key = (table.name, column.name)
        if key not in self.values:
            query = (
                f"SELECT {column.name} FROM {table.name} WHERE {column.name} IS NOT NULL ORDER BY 1"
            )
            self.values[key] = [row[0] for row in self.connection.execute(query)]
        return self.values[key]

    def number(self, table: Table, column: Column, low: float = 0.1, high: float = 0.9):
        """A number or date to compare a column with, between two quantiles of its values.

        It is often a value of the column, so that > and >= differ, and otherwise a round number.
        """
        values = self.literals(table, column)
        value = values[int(self.rng.uniform(low, high) * (len(values) - 1))]
        if (
            column.role == "number"
            and self.rng.random() < 0.4
            and value >= 100
            and "year" not in column.name
        ):
            digits = len(str(int(value))) - 2
            value = round(value / 10**digits) * 10**digits
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def condition(
        self, table: Table, depth: int = 2, *, exclude: Column | None = None
    ) -> Condition:
        """A condition on a table, sometimes on a parent at most ``depth`` joins away."""
        references = table.with_role("ref")
        if depth and references and self.rng.random() < 0.35:
            reference = self.rng.choice(references)
            parent = self.tables[reference.args]
            if self.rng.random() < 0.4 and parent.label:
                name = self.rng.choice(self.literals(parent, parent.label))
                return Condition(table.name, reference.name, "by", (name,))
            return Condition(
                table.name, reference.name, "link", (), self.condition(parent, depth - 1)
            )
        column = self.column(table, "category", "code", "number", "date", exclude=exclude)
        if column.nullable and self.rng.random() < 0.1:
            return Condition(table.name, column.name, "null")
        if column.role in ("category", "code"):
            options = sorted(set(self.literals(table, column)))
            count = 2 if self.rng.random() < 0.2 and len(options) > 2 else 1
            return Condition(table.name, column.name, "eq", tuple(self.rng.sample(options, count)))
        key = self.rng.choice(
            (("gt", "ge", "lt") if column.role == "number" else ("gt", "lt")) * 6 + ("between",)
        )
        if key == "between":
            low, high = self.number(table, column, 0.1, 0.45), self.number(table, column, 0.55, 0.9)
            return Condition(table.name, column.name, key, (low, high))
        return Condition(table.name, column.name, key, (self.number(table, column),))

    def where(self, condition: Condition, tables: list[str], joins: list[str]) -> str:
        """The condition as SQL; appends the tables that it joins to ``tables`` and ``joins``."""
        name = f"[{condition.table}].{condition.column}"
        if condition.key in ("by", "link"):
            reference = next(
                c for c in self.tables[condition.table].columns if c.name == condition.column
            )
            parent = self.tables[reference.args]
            if parent.name in tables:
                raise LookupError("the table is joined already")
            tables.append(parent.name)
            joins.append(f"{name} = [{parent.name}].{parent.key}")
            if condition.inner:
                return self.where(condition.inner, tables, joins)
            return f"[{parent.name}].{parent.label.name} = {literal(condition.values[0])}"
        values = [literal(value) for value in condition.values]
        if condition.key == "null":
            return f"{name} IS NULL"
        if condition.key == "between":
            return f"{name} BETWEEN {values[0]} AND {values[1]}"
        if condition.key == "eq" and len(values) > 1:
            return f"{name} IN ({', '.join(values)})"
        return f"{name} {dict(eq='=', gt='>', ge='>=', lt='<')[condition.key]} {values[0]}"

    def select(
        self,
        columns: str,
        table: Table,
        *conditions: Condition,
        connector: str = "AND",
        rest: str = "",
    ) -> str:
        """``SELECT columns FROM table [JOIN ...] [WHERE ...] rest``"""
        tables, joins = [table.name], []
        where = f" {connector} ".join(self.where(c, tables, joins) for c in conditions)
        return select_sql(
            columns, tables, joins, " ".join(filter(None, [where and f"WHERE {where}", rest]))
        )

    def question(self, shape: str, sql: str, **slots) -> Question:
        """A question; ``slots`` may also have its ``ties`` and ``limit``."""
        ties, limit = slots.pop("ties", None), slots.pop("limit", 0)
        slots = {
            name: (value.name,) if isinstance(value, Table) else value
            for name, value in slots.items()
        }
        return Question(self.db, shape, sql, slots, ties, limit)
