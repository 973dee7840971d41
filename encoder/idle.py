"""Finds the words of a query that a policy could choose freely, because they name nothing and are
compared with nothing. The encoder reads "…" in their place.

They are strings in expressions without a column, unusual types and collations and, if the schema is
known, names that are not in the schema, the query or SQLite. SQLite does not look up every name: it
runs "0 AND zebra".
"""

import contextlib
import functools
import itertools
import sqlite3
from collections.abc import Container, Iterator

from encoder.aliases import NAMES, Aliases
from sqlenv.query import Query
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER

DATABASES = ("main", "temp")
COLLATIONS = ("binary", "nocase", "rtrim")
# Words of SQLite's grammar that `KEYWORDS` lacks, since they may also be names.
GRAMMAR = frozenset(
    "current exclude false first following groups last match materialized no nulls others preceding"
    " range regexp row rows ties true unbounded window".split()
)
ROW_IDS = ("rowid", "oid", "_rowid_")
TYPES = "int integer real float double decimal numeric char varchar text blob".split()


def names_in(schema: Schema) -> set[str]:
    """The names of tables, views and columns, in lower case, and those that every table has."""
    tables = (*schema.tables, *schema.views)
    parts = {part.name.translate(ASCII_LOWER) for t in tables for part in (t, *t.columns)}
    return parts.union(ROW_IDS)


@functools.cache
def sqlite_functions() -> frozenset[str]:
    """The functions that SQLite has, those for FROM included."""
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        rows = connection.execute(
            "SELECT name FROM pragma_function_list UNION SELECT name FROM pragma_module_list"
        )
        return frozenset(name for (name,) in rows)


def unknown_names(aliases: Aliases, known: set[str] | None, renamed: Container[int]) -> set[int]:
    """Names that neither the schema nor SQLite has, other than text in double quotes, which is
    then a string. Without a schema none is known to be one.
    """
    if known is None:
        return set()
    query, tokens, unknown = aliases.query, aliases.query.tokens, set()
    elsewhere = aliases.sources | aliases.results | aliases.defined
    elsewhere |= aliases.types | aliases.collations
    places = aliases.items | aliases.qualifiers | aliases.used_windows
    for i, token in enumerate(tokens):
        after = query.next_text(i)
        is_part = i in places or tokens[i - 1].text == "." or after == "("
        is_string = token.kind == "string" or (token.kind == "quoted" and token.text[0] == '"')
        if token.kind not in NAMES or i in elsewhere or i in renamed or is_string and not is_part:
            continue
        if i in aliases.used_windows:  # one that is defined has a new name
            possible = ()
        elif after == "(":
            possible = sqlite_functions(), GRAMMAR
        else:
            possible = known, DATABASES if after == "." else GRAMMAR
        if not any(aliases.name(i) in names for names in possible):
            unknown.add(i)
    return unknown


def idle_words(aliases: Aliases, known: set[str] | None) -> set[int]:
    """Strings in an expression that names no column, or in none, and words that SQL does not have.

    SQLite accepts any word as a type, as a collation where nothing is compared, and as a database
    before a function in FROM.

    Args:
        known: the names in the schema, where other names in double quotes are strings.
    """
    tokens, columns = aliases.query.tokens, aliases.columns
    strings = {i for i, token in enumerate(tokens) if token.kind == "string"} - columns
    strings |= quoted_strings(aliases, known)
    columns = columns - strings - unknown_columns(aliases, known)
    spans = list(expressions(aliases))
    named = {i for span in spans if not columns.isdisjoint(span) for i in span}
    unnamed = {i for span in spans if columns.isdisjoint(span) for i in span}
    words = {i for i in aliases.types if aliases.name(i) not in TYPES}
    words |= {i for i in aliases.collations if aliases.name(i) not in COLLATIONS}
    words |= {i for i in aliases.items & aliases.qualifiers if aliases.name(i) not in DATABASES}
    return {i for i in strings if i in unnamed or i not in named} | words


def unknown_columns(aliases: Aliases, known: set[str] | None) -> set[int]:
    """Names that stand where a column can and that the schema does not have."""
    if known is None:
        return set()
    return {i for i in aliases.columns - aliases.references if aliases.name(i) not in known}


def quoted_strings(aliases: Aliases, known: set[str] | None) -> set[int]:
    """Those of them in double quotes, which are strings to SQLite."""
    tokens = aliases.query.tokens
    unknown = unknown_columns(aliases, known)
    return {i for i in unknown if tokens[i].text[0] == '"' and tokens[i - 1].text != "."}


def expressions(aliases: Aliases) -> Iterator[range]:
    """Yields the spans of expressions, of which one may contain another."""
    query, tokens = aliases.query, aliases.query.tokens
    for select in query.selects:
        for clause in ("select", "group", "order"):
            yield from query.items(select.clause(clause))
        limit = select.clause("limit")
        yield from parts(query, limit, [i for i in limit if tokens[i].text == "offset"])
        for condition in (*select.conditions(), *(s.on for s in select.grouped if s.on)):
            yield from query.leaves(condition)
        for source in select.all_sources():
            if source.table is None:
                yield range(source.item, query.closing.get(source.item, source.item) + 1)
    for first, last in query.closing.items():
        before, inside = tokens[first - 1].text, range(first + 1, last)
        if before == "values":
            yield from rows_of_values(query, first)
        elif function_at(query, first) in aliases.items:  # its arguments
            yield from query.items(inside)
        elif before == "over" or first in aliases.windows_at:
            yield from window_parts(query, inside)
        elif before == "filter":
            yield from query.leaves(inside[1:])


def rows_of_values(query: Query, first: int) -> Iterator[range]:
    """Yields the expressions in the rows after VALUES, the first in parentheses at ``first``."""
    while first in query.closing:
        yield from query.items(range(first + 1, query.closing[first]))
        first = query.closing[first]
        first += 2 if query.next_text(first) == "," else 1


def function_at(query: Query, first: int) -> int:
    """The first token of the name before a parenthesis, as in json_each( and main.json_each(."""
    return first - 3 if query.tokens[first - 2].text == "." else first - 1


def window_parts(query: Query, span: range) -> Iterator[range]:
    """Yields the expressions after PARTITION BY and ORDER BY, and those of the frame."""
    tokens, ends = query.tokens, []
    for i in span:
        before = tokens[i - 1]
        is_after_operand = before.text == ")" or before.kind != "mark" and before.text != "by"
        frame = tokens[i].text in ("rows", "range", "groups") and is_after_operand
        ends += [i] if frame or tokens[i].text == "by" else []
    yield from parts(query, span, ends)


def parts(query: Query, span: range, ends: list[int]) -> Iterator[range]:
    """Yields the items of a comma-separated list, cut at some of its words."""
    for item in query.items(span):
        bounds = [item.start - 1, *(i for i in ends if i in item), item.stop]
        yield from (range(first + 1, last) for first, last in itertools.pairwise(bounds))
