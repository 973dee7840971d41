"""What several shapes need: aggregates, joins along foreign keys, and an order without ties."""

from dataclasses import dataclass

from sqlenv.embedded.databases import Column, Table
from sqlenv.embedded.draw import Condition, Draw, select_sql

FUNCTIONS = ("count", "avg", "min", "max", "sum")


@dataclass(frozen=True)
class Link:
    """A foreign key of a child table to its parent."""

    child: Table
    column: Column
    parent: Table

    def on(self, first: Table) -> str:
        """The condition of the join, as ``select_sql`` takes it; a column of ``first`` leads."""
        sides = [ref(self.child, self.column), ref(self.parent, self.parent.key)]
        return " = ".join(sides if first is self.child else reversed(sides))


def ref(table: Table, column: Column | str) -> str:
    """A column as ``select_sql`` takes it."""
    return f"[{table.name}].{column if isinstance(column, str) else column.name}"


def functions_of(shape: str) -> list[str]:
    """The aggregates in the name of a shape: ``["count", "avg"]`` for group_count_avg."""
    return [word for word in shape.split("_") if word in FUNCTIONS]


def call(function: str, x: str) -> str:
    """An aggregate of a column, or the number of rows."""
    return "COUNT(*)" if function == "count" else f"{function.upper()}({x})"


def measured(draw: Draw, table: Table, functions: list[str]) -> Column:
    """A numeric column for these aggregates.

    Raises:
        LookupError: the table has none, or the sum of the one drawn has no meaning.
    """
    x = draw.column(table, "number")
    if "sum" in functions and not x.additive:
        raise LookupError("the sum of this column has no meaning")
    return x


def differ(a: Condition, b: Condition) -> None:
    """Raises LookupError if two conditions are on one column."""
    if a.column == b.column:
        raise LookupError("two conditions on one column")


def check_order(draw: Draw, keys: str, limit: int) -> None:
    """Raises LookupError if the order of the first rows is open, since sort keys are tied.

    Args:
        keys: a query for the sort keys, in order.
        limit: the number of rows.
    """
    first = draw.connection.execute(f"{keys} LIMIT {limit + 1}").fetchall()
    if len(set(first)) <= limit:
        raise LookupError("tied sort keys")


def links(draw: Draw) -> list[Link]:
    """All foreign keys."""
    return [
        Link(child, column, draw.tables[column.args])
        for child in draw.tables.values()
        for column in child.with_role("ref")
    ]


def two_links(draw: Draw) -> tuple[Link, Link]:
    """A foreign key, and one of its parent to a table whose rows have names.

    Raises:
        LookupError: there are no three generations.
    """
    return draw.rng.choice(
        [
            (lower, upper)
            for lower in links(draw)
            for upper in links(draw)
            if upper.child is lower.parent and upper.parent.label
        ]
    )


def joined(
    draw: Draw,
    columns: str,
    tables: list[Table],
    keys: list[Link],
    end: str = "",
    a: Condition | None = None,
) -> str:
    """``SELECT columns FROM tables[0] JOIN tables[1] ... [WHERE a] end``

    Args:
        keys: for each two consecutive tables the foreign key between them.
        a: a condition on one of the tables.
    """
    names, joins = [t.name for t in tables], [key.on(t) for key, t in zip(keys, tables)]
    where = f"WHERE {draw.where(a, names, joins)}" if a else ""
    return select_sql(columns, names, joins, " ".join(filter(None, [where, end])))
