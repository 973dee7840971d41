"""Extracts from a gold query the literals that it compares columns with, the columns that it sorts
or groups by, and the pairs of columns that it joins.
"""

from collections import defaultdict
from collections.abc import Iterator

from sqlenv.query import COMPARISONS, Query, Select
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER

COUNT = ""  # the column name for literals that are compared with a count


def gold_literals(query: Query, schema: Schema) -> dict[str, list[list]]:
    """For each column the literals that a query compares it with.

    Each is a list: a value for which the condition holds, the literal, its boundary values. Columns
    are identified by name only, so that columns of views and table expressions count, too.
    """
    literals = defaultdict(list)
    for select in query.selects:
        counts = {i for i, name in query.aggregates() if name == "count"}
        for span in select.conditions():
            for leaf in query.leaves(span):
                values = [
                    [satisfying_value(query, i, value), *boundary_values(value)]
                    for i in query.literals(leaf, select, schema)
                    if (value := literal_value(query, i)) is not None
                ]
                names = {r.column for r in query.references(select) if r.first in leaf}
                if counts & set(leaf):
                    names = {COUNT}
                for name in names:
                    literals[name] += values
    return dict(literals)


def literal_value(query: Query, index: int) -> int | float | str | None:
    """The value of a literal; None for a BLOB or a hexadecimal number."""
    text = query.tokens[index].text
    if text[0] in "'\"":
        return text[1:-1].replace(text[0] * 2, text[0])
    try:
        # SQLite reads integers beyond 64 bits as floats, too.
        number = int(text) if text.isdecimal() and len(text) < 19 else float(text)
    except ValueError:
        return None
    before = [token.text for token in query.tokens[max(index - 2, 0) : index]]
    signed = before[-1:] == ["-"] and (before[0] in COMPARISONS | {"between", "and", "(", ","})
    return -number if signed else number


def satisfying_value(query: Query, index: int, value: int | float | str) -> int | float | str:
    """A value whose comparison with a literal holds; the literal for what is not understood."""
    before = [token.text for token in query.tokens[max(index - 2, 0) : index]]
    same, *others = boundary_values(value)
    if "not" in before or before[-1:] in (["!="], ["<>"]):
        return others[0]
    if before[-1:] in ([">"], ["<"]) and not isinstance(value, str):
        return value + 1 if before[-1] == ">" else value - 1
    return same


def boundary_values(value: int | float | str) -> list:
    """The value, then neighbouring values: less and greater ones, the same text in another case, or
    matches of a LIKE pattern and non-matches.

    >>> boundary_values(3), boundary_values("%ab")
    ([3, 2, 4], ['ab', 'qab', 'abq', 'AB', 'b', '%ab'])
    """
    if not isinstance(value, str):
        return [value, value - 1, value + 1]
    if "%" in value or "_" in value:
        bare = value.replace("_", "x").replace("%", "")
        filled = value.replace("_", "x").replace("%", "q")
        others = [filled, bare + "q", other_case(bare), bare[1:], value]
        return list(dict.fromkeys([bare, *others]))
    if not value:
        return ["", " "]
    if value.isascii() and value.isdigit() and len(value) < 19:
        return [value, str(max(int(value) - 1, 0)), str(int(value) + 1)]
    last = ord(value[-1])
    neighbours = [value[:-1] + chr(code) for code in (max(last - 1, 32), min(last + 1, 0x10FFFF))]
    # SQLite does not accept surrogates.
    neighbours = [text for text in neighbours if not "\ud800" <= text[-1] <= "\udfff"]
    return list(dict.fromkeys([value, *neighbours, value + "x", value[:-1], other_case(value)]))


def other_case(text: str) -> str:
    """The text in upper case, or in lower case if it is in upper case."""
    return text.lower() if text == text.upper() else text.upper()


def columns_of(query: Query, clause: str) -> set[str]:
    """The names of the columns in the ORDER BYs ("order") or GROUP BYs ("group") of a query."""
    return {
        reference.column
        for select in query.selects
        for reference in query.references(select)
        if reference.first in select.clause(clause)
    }


def joined_columns(query: Query, schema: Schema) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yields pairs of (table, column) that a query compares by ``=`` or ``IN (SELECT …)``."""
    for select in query.selects:
        for span in select.conditions():
            for leaf in query.leaves(span):
                columns = columns_in(query, select, leaf, schema)
                equal = any(query.tokens[i].text in ("=", "==") for i in leaf)
                if len(columns) == 2 and equal and columns[0] != columns[1]:
                    yield tuple(columns)
        outer = select.parent
        if outer and select.opener == "in":
            inner = columns_in(query, select, select.clause("select"), schema)
            before = range(max(outer.start, select.start - 5), select.start)
            tested = columns_in(query, outer, before, schema)
            if len(inner) == 1 and tested and tested[-1] != inner[0]:
                yield tested[-1], inner[0]


def columns_in(query: Query, select: Select, span: range, schema: Schema) -> list[tuple[str, str]]:
    """The (table, column) of each column reference of a SELECT within a span, in lower case."""
    columns = []
    for reference in query.references(select):
        if reference.first in span:
            resolved = query.resolve(reference, schema)
            if resolved:
                names = resolved[1].name, resolved[2].name
                columns.append(tuple(name.translate(ASCII_LOWER) for name in names))
    return columns
