"""Detects queries whose result SQL does not determine, such as those that depend on row order.

SQL does not define which of several tied rows a LIMIT keeps, in which order an ORDER BY returns
tied rows, or from which row of a group a bare column is taken (a column that is neither grouped nor
aggregated). Where a value is compared with a subquery of several rows, SQLite takes the first and
other databases refuse the query. Equivalent queries may then give different results.

``perturbed_queries`` rewrites a query so that each rewrite makes these choices differently. If all
rewrites give the same result, the query is deterministic. Otherwise its result is arbitrary: no
prediction can be verified by it.
``tie_broken_queries`` are those rewrites that do not read tables in another order, for databases so
large that sorting their tables takes too long.
"""

from collections.abc import Iterator

from sqlenv.query import COMPARISONS, Edit, Query, Select, Source, find_table, name_of, parse
from sqlenv.schema import Schema

ORDERS = ("ASC", "DESC")
# Functions whose result may depend on the order of rows (any function with OVER), and those from
# whose row SQLite takes the bare columns of a group, so that ties matter.
ORDER_DEPENDENT = ("group_concat", "string_agg", "over", "min", "max")
# Between these an expression is whole: no operator binds a part of it to something outside.
STARTS = ("(", ",", "select", "distinct", "by", "having")
ENDS = (")", ",", "as", "from", "having", "order", "limit", "asc", "desc", "")


def perturbed_queries(sql: str, width: int, schema: Schema) -> list[str]:
    """Returns rewrites of a query that make the choices left open by SQL in different ways.

    Tables are read in ascending or descending order of their rows. Each ORDER BY or LIMIT, also in
    subqueries, breaks ties by the result's columns, ascending or descending. A bare column of a
    group is its minimum or its maximum. ``= (SELECT …)`` takes the first value, the last, or any.
    Most queries leave nothing open; the list is then empty.

    Args:
        sql: the query.
        width: the number of columns of its result.
        schema: the schema of its database.

    >>> perturbed_queries("SELECT a FROM t ORDER BY c LIMIT 1", 1, Schema(()))[3]
    'SELECT a FROM (SELECT * FROM t ORDER BY 1 DESC LIMIT -1) AS t ORDER BY c , 1 DESC LIMIT 1'
    """
    query, rewrites = parse(sql), []
    depends_on_order = any(token.text in ORDER_DEPENDENT for token in query.tokens)
    sources = [source for select in query.selects for source in select.sources]
    for choice in ORDERS:
        edits = open_choices(query, width, schema, choice)
        for order in ORDERS if edits or depends_on_order else ():
            sorting = [edit for s in sources for edit in sorted_source(query, s, schema, order)]
            rewrites.append(query.edited([*edits, *sorting]))
    if edits := [Edit(i, i + 1, "IN") for i in equality_tokens(query)]:
        rewrites.append(query.edited(edits))
    return list(dict.fromkeys(rewrites))


def equality_tokens(query: Query) -> list[int]:
    """The index of each = before a subquery that may have several rows."""
    return [
        s.start - 2 for s in query.selects if is_single_value(query, s) and s.opener in ("=", "==")
    ]


def tie_broken_queries(sql: str, width: int, schema: Schema) -> list[str]:
    """Returns two rewrites that break ties and take bare columns in different ways; none if the
    query leaves neither open. The arguments are those of ``perturbed_queries``.

    >>> tie_broken_queries("SELECT a FROM t ORDER BY c LIMIT 1", 1, Schema(()))
    ['SELECT a FROM t ORDER BY c , 1 ASC LIMIT 1', 'SELECT a FROM t ORDER BY c , 1 DESC LIMIT 1']
    """
    query = parse(sql)
    choices = [open_choices(query, width, schema, choice) for choice in ORDERS]
    return [query.edited(edits) for edits in choices if edits]


def open_choices(query: Query, width: int, schema: Schema, choice: str) -> list[Edit]:
    """The edits that break all ties and take all bare columns in one way."""
    return [
        edit
        for select in query.selects
        for edits in (
            tie_breakers(query, select, width, choice),
            bare_columns(query, select, schema, choice),
        )
        for edit in edits
    ]


def tie_breakers(query: Query, select: Select, width: int, order: str) -> Iterator[Edit]:
    """Appends all columns of the result to the keys of ORDER BY."""
    count = len(query.items(select.clause("select"))) if select.opener else width
    keys = sort_keys(count, order)
    if "order" in select.clauses:
        stop = select.clause("order").stop
        yield Edit(stop, stop, f", {keys} ")
    elif "limit" in select.clauses:
        at = select.clause("limit").start - 1
        yield Edit(at, at, f"ORDER BY {keys} ")
    elif is_single_value(query, select):
        yield Edit(select.end, select.end, f" ORDER BY {keys} ")


def is_single_value(query: Query, select: Select) -> bool:
    """Whether a value is compared with a subquery, of which SQLite takes the first row, and which
    may have several: it is not one aggregate, and has no ORDER BY and LIMIT that choose a row.
    """
    one_row = "group" not in select.clauses and any(
        query.select_of[i] is select for i, _ in query.aggregates()
    )
    chosen = {"order", "limit"} & select.clauses.keys()
    return select.opener in COMPARISONS and not (one_row or chosen or select.compound)


def bare_columns(query: Query, select: Select, schema: Schema, order: str) -> Iterator[Edit]:
    """Replaces bare columns of a query with GROUP BY or aggregates by their minimum or maximum.

    NULL counts as the maximum, since min() and max() ignore it. In a query with min() or max()
    SQLite takes bare columns from the row of the minimum or maximum. They are then arbitrary only
    if there is a tie, which shows when the tables are read in another order.
    """
    aggregates = [(i, name) for i, name in query.aggregates() if query.select_of[i] is select]
    names = {name for _, name in aggregates}
    if not aggregates and "group" not in select.clauses or {"min", "max"} & names:
        return
    aggregated = {i for start, _ in aggregates for i in range(start, query.closing[start + 1])}
    clauses = ["select", "having"] if select.compound else ["select", "having", "order"]
    spans = [select.clause(name) for name in clauses]
    resolved = [(r, query.resolve(r, schema)) for r in query.references(select)]
    # Columns of an outer query are constant here.
    resolved = [(r, m[0].alias, m[2]) for r, m in resolved if m and m[0] in select.sources]
    keys = list(grouping_keys(query, select, {r.first for r, _, _ in resolved}))
    grouped = [(alias, c) for r, alias, c in resolved if range(r.first, r.last) in keys]
    determined = aggregated.union(*(repetitions(query, key) for key in keys))
    for reference, alias, column in resolved:
        first, last = reference.first, reference.last
        is_bare = first not in determined and (alias, column) not in grouped
        if is_bare and any(first in span for span in spans):
            name = query.text(first, last)
            maximum = f"CASE WHEN count({name}) = count(*) THEN max({name}) END"
            yield Edit(first, last, f"min({name})" if order == "ASC" else maximum)


def grouping_keys(query: Query, select: Select, columns: set[int]) -> Iterator[range]:
    """Yields the expressions of GROUP BY, where an ordinal or an alias names an item of the SELECT.

    Args:
        columns: the tokens that begin the name of a column, which comes before an equal alias.
    """
    items = query.items(select.clause("select"))
    for key in query.items(select.clause("group")):
        named, token = [], query.tokens[key.start] if len(key) == 1 else None
        if token and token.kind == "number" and token.text.isdecimal():
            named = items[int(token.text) - 1 :][:1]
        elif token and token.kind in ("name", "quoted") and key.start not in columns:
            named = [item for item in items if alias_of(query, item) == name_of(token)]
        yield from named or [key]


def alias_of(query: Query, item: range) -> str | None:
    """The name that an item of a SELECT gives to its expression, with or without AS."""
    before = query.tokens[item.stop - 2] if len(item) > 1 else None
    has_alias = before and (before.kind != "mark" or before.text == ")")
    return name_of(query.tokens[item.stop - 1]) if has_alias else None


def repetitions(query: Query, key: range) -> Iterator[int]:
    """Yields the tokens of an expression, and of those that repeat it."""
    texts = [token.text for token in query.tokens] + [""]
    for start in range(len(texts) - len(key)):
        stop = start + len(key)
        is_whole = texts[start - 1] in STARTS and texts[stop] in ENDS
        if start == key.start or is_whole and texts[start:stop] == texts[key.start : key.stop]:
            yield from range(start, stop)


def sorted_source(query: Query, source: Source, schema: Schema, order: str) -> list[Edit]:
    """Replaces a table of a FROM by a sorted subquery; SQLite would omit the sort without LIMIT."""
    end = source.item + (3 if query.next_text(source.item) == "." else 1)
    is_function = query.next_text(end - 1) == "("
    if source.table is None or is_function or is_recursive(query, source):
        return []
    table, name = find_table(schema, source.table), query.text(source.item, end)
    keys = sort_keys(len(table.columns) if table else 1, order)
    has_alias = end < source.last and query.tokens[end].text not in ("on", "using")
    alias = "" if has_alias else f" AS {query.text(end - 1, end)}"
    return [Edit(source.item, end, f"(SELECT * FROM {name} ORDER BY {keys} LIMIT -1){alias}")]


def is_recursive(query: Query, source: Source) -> bool:
    """Whether a table is the common table expression that it helps to define, which SQLite accepts
    only in its FROM itself.
    """
    opening = {last: first for first, last in query.closing.items()}
    for first, last in query.closing.items():
        if first < source.item < last and query.tokens[first - 1].text == "as":
            name = opening.get(first - 2, first - 1) - 1  # before the names of its columns, if any
            if name_of(query.tokens[name]) == source.table:
                return True
    return False


def sort_keys(count: int, order: str) -> str:
    """ORDER BY keys for ``count`` columns: ``1 ASC, 2 ASC``."""
    return ", ".join(f"{number + 1} {order}" for number in range(count))
