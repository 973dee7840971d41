"""What a gold query says about values: the literals that it compares columns with, the columns that
it sorts or groups by, and those that it takes to hold the same things.
"""

from collections import defaultdict
from collections.abc import Iterator

from sqlenv.query import COMPARISONS, Query, Select
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER

COUNT = ""  # the name under which literals stand that are compared with a count


def gold_literals(query: Query, schema: Schema) -> dict[str, list[list]]:
    """For each column the literals that a query compares it with, each with its neighbours.

    The columns are told by their names alone, so that views and table expressions do no harm.
    """
    found = defaultdict(list)
    for select in query.selects:
        counts = {i for i, name in query.aggregates() if name == "count"}
        for span in select.conditions():
            for leaf in query.leaves(span):
                values = [literal_value(query, i) for i in query.literals(leaf, select, schema)]
                names = {r.column for r in query.references(select) if r.first in leaf}
                if counts & set(leaf):
                    names = {COUNT}
                for name in names:
                    found[name] += [nearby(v) for v in values if v is not None]
    return dict(found)


def literal_value(query: Query, index: int) -> int | float | str | None:
    """The value of a literal; None for the kinds that are not used here (BLOB, hexadecimal)."""
    text = query.tokens[index].text
    if text[0] in "'\"":
        return text[1:-1].replace(text[0] * 2, text[0])
    try:
        # SQLite takes integers beyond 64 bits for floats, too.
        number = int(text) if text.isdecimal() and len(text) < 19 else float(text)
    except ValueError:
        return None
    before = [token.text for token in query.tokens[max(index - 2, 0) : index]]
    signed = before[-1:] == ["-"] and (before[0] in COMPARISONS | {"between", "and", "(", ","})
    return -number if signed else number


def nearby(value: int | float | str) -> list:
    """A value, then values next to it: on both sides of a boundary, matching a pattern and not.

    >>> nearby(3), nearby("%ab")
    ([3, 2, 4], ['ab', 'qab', 'abq', 'b', '%ab'])
    """
    if not isinstance(value, str):
        return [value, value - 1, value + 1]
    if "%" in value or "_" in value:
        bare = value.replace("_", "x").replace("%", "")
        filled = value.replace("_", "x").replace("%", "q")
        return list(dict.fromkeys([bare, filled, bare + "q", bare[1:], value]))
    if not value:
        return ["", " "]
    if value.isascii() and value.isdigit() and len(value) < 19:
        return [value, str(max(int(value) - 1, 0)), str(int(value) + 1)]
    last = ord(value[-1])
    others = [value[:-1] + chr(code) for code in (max(last - 1, 32), min(last + 1, 0x10FFFF))]
    # Surrogates are no characters; SQLite takes none.
    others = [other for other in others if not "\ud800" <= other[-1] <= "\udfff"]
    return [value, *others, value + "x", value[:-1]]


def columns_of(query: Query, clause: str) -> set[str]:
    """The names of the columns in the ORDER BYs ("order") or GROUP BYs ("group") of a query."""
    return {
        reference.column
        for select in query.selects
        for reference in query.references(select)
        if reference.first in select.clause(clause)
    }


def joined_columns(query: Query, schema: Schema) -> Iterator[tuple[tuple[str, str], ...]]:
    """Pairs of (table, column) that a query sets equal, or looks up in a subquery."""
    for select in query.selects:
        for span in select.conditions():
            for leaf in query.leaves(span):
                found = columns_in(query, select, leaf, schema)
                equal = any(query.tokens[i].text in ("=", "==") for i in leaf)
                if len(found) == 2 and equal and found[0] != found[1]:
                    yield tuple(found)
        outer = select.parent
        if outer and select.opener == "in":
            inner = columns_in(query, select, select.clause("select"), schema)
            before = range(max(outer.start, select.start - 5), select.start)
            tested = columns_in(query, outer, before, schema)
            if len(inner) == 1 and tested and tested[-1] != inner[0]:
                yield tested[-1], inner[0]


def columns_in(query: Query, select: Select, span: range, schema: Schema) -> list[tuple[str, str]]:
    """The (table, column) of the references of a SELECT within a span."""
    found = []
    for reference in query.references(select):
        if reference.first in span:
            resolved = query.resolve(reference, schema)
            if resolved:
                names = resolved[1].name, resolved[2].name
                found.append(tuple(name.translate(ASCII_LOWER) for name in names))
    return found
