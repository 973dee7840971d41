"""Finds queries whose answer SQL leaves open: variants of the text that decide what SQLite may.

SQL does not say which of several tied rows a LIMIT keeps, in which order an ORDER BY leaves them,
or from which row of a group a column comes that is neither grouped nor aggregated; two equivalent
queries may then give different results. Where a query's answer is determined, all the texts here
give it. Where they differ, it is arbitrary and no basis to judge by.
"""

from collections.abc import Iterator

from sqlenv.query import Edit, Query, Select, Source, find_table, parse
from sqlenv.schema import Schema

ORDERS = ("ASC", "DESC")
# Functions whose result depends on the order of rows (for OVER, any may), and those from whose row
# SQLite takes the other columns of a group, so that ties matter.
ORDER_DEPENDENT = ("group_concat", "string_agg", "over", "min", "max")


def perturbed_queries(sql: str, width: int, schema: Schema) -> list[str]:
    """Return texts of a query with `width` columns, each deciding what is open in its own way.

    Tables are read in the order of their values, ascending or descending; each ORDER BY or LIMIT,
    in subqueries too, decides ties by the rows, the smallest or the greatest first; a column that
    a group leaves open is its smallest or its greatest. Nothing is open in most queries: then
    there are no texts.

    >>> perturbed_queries("SELECT a FROM t ORDER BY c LIMIT 1", 1, Schema(()))[3]
    'SELECT a FROM (SELECT * FROM t ORDER BY 1 DESC LIMIT -1) AS t ORDER BY c , 1 DESC LIMIT 1'
    """
    query, texts = parse(sql), []
    depends = any(token.text in ORDER_DEPENDENT for token in query.tokens)
    for tie_order in ORDERS:
        decided = []
        for select in query.selects:
            decided += ties_broken(query, select, width, tie_order)
            decided += open_columns(query, select, schema, tie_order)
        for order in ORDERS if decided or depends else ():
            sources = [source for select in query.selects for source in select.sources]
            sorted_ = [edit for s in sources for edit in sorted_source(query, s, schema, order)]
            texts.append(query.edited([*decided, *sorted_]))
    return list(dict.fromkeys(texts))


def ties_broken(query: Query, select: Select, width: int, order: str) -> Iterator[Edit]:
    """The columns of the result as last keys of ORDER BY."""
    count = width if select.parent is None else len(query.items(select.clause("select")))
    keys = sort_keys(count, order)
    if "order" in select.clauses:
        stop = select.clause("order").stop
        yield Edit(stop, stop, f", {keys} ")
    elif "limit" in select.clauses:
        at = select.clause("limit").start - 1
        yield Edit(at, at, f"ORDER BY {keys} ")


def open_columns(query: Query, select: Select, schema: Schema, order: str) -> Iterator[Edit]:
    """The smallest, or greatest, value for a column beside aggregates or GROUP BY that is not
    grouped itself; NULL counts as the greatest, since min() and max() pass over it.

    Where there is a min() or max() already, SQLite takes the columns from its row, so they are not
    open unless there is a tie; reading the tables in another order shows that.
    """
    own = [(i, name) for i, name in query.aggregates() if query.select_of[i] is select]
    if not own and "group" not in select.clauses or {"min", "max"} & {name for _, name in own}:
        return
    inside = {place for i, _ in own for place in range(i, query.closing[i + 1])}
    names = ["select", "having"] if select.compound else ["select", "having", "order"]
    spans = [select.clause(name) for name in names]
    resolved = [(r, query.resolve(r, schema)) for r in query.references(select)]
    # The rows of a query further out are none of this one's groups.
    resolved = [(r, f[0].alias, f[2]) for r, f in resolved if f and f[0] in select.sources]
    grouped = [(alias, c) for r, alias, c in resolved if r.first in select.clause("group")]
    for reference, alias, column in resolved:
        first, last = reference.first, reference.last
        is_open = first not in inside and (alias, column) not in grouped
        if is_open and any(first in span for span in spans):
            name = query.text(first, last)
            greatest = f"CASE WHEN count({name}) = count(*) THEN max({name}) END"
            yield Edit(first, last, f"min({name})" if order == "ASC" else greatest)


def sorted_source(query: Query, source: Source, schema: Schema, order: str) -> list[Edit]:
    """A table of a FROM in parentheses, sorted; LIMIT keeps SQLite from leaving the sorting out."""
    end = source.item + (3 if query.next_text(source.item) == "." else 1)
    if source.table is None or query.next_text(end - 1) == "(":  # a subquery; a function
        return []
    table, name = find_table(schema, source.table), query.text(source.item, end)
    keys = sort_keys(len(table.columns) if table else 1, order)
    named = end < source.last and query.tokens[end].text not in ("on", "using")
    alias = "" if named else f" AS {query.text(end - 1, end)}"
    return [Edit(source.item, end, f"(SELECT * FROM {name} ORDER BY {keys} LIMIT -1){alias}")]


def sort_keys(count: int, order: str) -> str:
    return ", ".join(f"{number + 1} {order}" for number in range(count))
