"""Equivalent rewrites of a SQL query: another text with the same result on every database.

A correct verifier accepts all of them (`benchmarks/testsuite_power.py` counts), and an encoder
should score them like gold. A rewrite is returned only where the text of the query shows that the
meaning is unchanged, so rarely all kinds apply. One exception: a comparison of two columns with
different collations, which is rare.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlenv.query import Edit, Query, Select, name_of, parse
from sqlenv.text import canonical_sql

FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "==": "=", "!=": "!=", "<>": "<>"}
OPPOSITE = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "=": "!=", "!=": "=", "<>": "="}

Rewrites = Iterator[Iterable[Edit]]


class Rewrite(NamedTuple):
    """A rewrite of a query.

    Attributes:
        kind: a key of KINDS.
    """

    sql: str
    kind: str


def equivalent_rewrites(sql: str) -> list[Rewrite]:
    """Returns equivalent rewrites of a query, at most one of each kind; it is deterministic.

    >>> [rewrite.sql for rewrite in equivalent_rewrites("SELECT a FROM t WHERE b > 3")][:2]
    ['SELECT a FROM t WHERE (b > 3)', 'SELECT a FROM t WHERE 3 < b']
    """
    query, canonical, rewrites = parse(sql), canonical_sql(sql), []
    for kind, rewrite in KINDS.items():
        text = query.edited(rewrite(query))
        if canonical_sql(text) != canonical:
            rewrites.append(Rewrite(text, kind))
    return rewrites


def leaves(query: Query) -> Iterator[tuple[Select, range]]:
    """The conditions without AND and OR, each with its SELECT."""
    for select in query.selects:
        for span in select.conditions():
            yield from ((select, leaf) for leaf in query.leaves(span))


def comparison(query: Query, leaf: range) -> int | None:
    """Token index of a plain comparison's operator; None if the condition is anything else."""
    places, i = [], leaf.start
    while i < leaf.stop:
        if query.tokens[i].kind == "mark" and query.tokens[i].text in FLIPPED:
            places.append(i)
        elif query.tokens[i].kind == "keyword" and query.tokens[i].text not in ("null",):
            return None
        i = query.closing.get(i, i) + 1
    return places[0] if len(places) == 1 else None


def bracketed(query: Query) -> Iterator[Edit]:
    """Parentheses around each condition."""
    for _, leaf in leaves(query):
        yield Edit(leaf.start, leaf.start, "(")
        yield Edit(leaf.stop, leaf.stop, ")")


def flipped(query: Query) -> Iterator[Edit]:
    """5 < a for a > 5, and b = a for a = b."""
    for _, leaf in outermost(query):
        at = comparison(query, leaf)
        if at is not None:
            left, right = query.text(leaf.start, at), query.text(at + 1, leaf.stop)
            yield Edit(leaf.start, leaf.stop, f"{right} {FLIPPED[query.tokens[at].text]} {left}")


def outermost(query: Query) -> Iterator[tuple[Select, range]]:
    """The conditions that no other condition contains, so that edits of them do not overlap."""
    covered = -1
    for select, leaf in sorted(leaves(query), key=lambda pair: pair[1].start):
        if leaf.start > covered:
            covered = leaf.stop - 1
            yield select, leaf


def negated(query: Query) -> Iterator[Edit]:
    """NOT a <= 5 for a > 5: neither is true for NULL. Not in ON, where it would be slow."""
    for select, leaf in outermost(query):
        at = comparison(query, leaf)
        if any(leaf.start in source.on for source in select.sources):
            continue
        if at is not None and query.tokens[at].text in OPPOSITE:
            opposite = OPPOSITE[query.tokens[at].text]
            left, right = query.text(leaf.start, at), query.text(at + 1, leaf.stop)
            yield Edit(leaf.start, leaf.stop, f"NOT ({left} {opposite} {right})")


def reordered(query: Query) -> Iterator[Edit]:
    """The operands of AND, or of OR, in reverse order."""
    covered = -1
    for select in query.selects:
        for span in select.conditions():
            for parts, places in query.levels(span):
                words = {query.tokens[i].text for i in places}
                if len(words) == 1 and parts[0].start > covered:
                    covered = parts[-1].stop
                    texts = [query.text(part.start, part.stop) for part in reversed(parts)]
                    joined = f" {words.pop().upper()} ".join(texts)
                    yield Edit(parts[0].start, parts[-1].stop, joined)


def between(query: Query) -> Iterator[Edit]:
    """Two comparisons for BETWEEN."""
    for _, leaf in leaves(query):
        words = [query.tokens[i].text for i in leaf]
        plain = not {"(", "not", "case"} & set(words)
        if plain and "and" in words and words[0] != "between" and "between" in words:
            at, middle = leaf.start + words.index("between"), leaf.start + words.index("and")
            tested = query.text(leaf.start, at)
            low, high = query.text(at + 1, middle), query.text(middle + 1, leaf.stop)
            yield Edit(leaf.start, leaf.stop, f"({tested} >= {low} AND {tested} <= {high})")


def as_between(query: Query) -> Iterator[Edit]:
    """BETWEEN for >= and <= on the same column."""
    for select in query.selects:
        for span in select.conditions():
            parts, places = query.split(span)
            if len(parts) != 2 or query.tokens[places[0]].text != "and":
                continue
            ats = [at for part in parts if (at := comparison(query, part)) is not None]
            if [query.tokens[at].text for at in ats] != [">=", "<="]:
                continue
            tested, other = (query.text(p.start, at) for p, at in zip(parts, ats))
            if canonical_sql(tested) == canonical_sql(other):
                low, high = (query.text(at + 1, p.stop) for p, at in zip(parts, ats))
                yield Edit(span.start, span.stop, f"{tested} BETWEEN {low} AND {high}")


def as_in(query: Query) -> Iterator[Edit]:
    """IN for an equality with a literal, and one IN for several that OR connects."""
    for select in query.selects:
        where = select.clause("where")
        values = set(query.literals(where, select))
        parts, places = query.split(where)
        ats = [at for part in parts if (at := comparison(query, part)) is not None]
        if not where or len(ats) < len(parts) or any(query.tokens[i].text != "or" for i in places):
            continue
        plain = all(
            query.tokens[at].text == "=" and at + 1 in values and part.stop == at + 2
            for part, at in zip(parts, ats)
        )
        tested = {canonical_sql(query.text(part.start, at)) for part, at in zip(parts, ats)}
        if plain and len(tested) == 1:
            listed = ", ".join(query.text(at + 1, at + 2) for at in ats)
            column = query.text(parts[0].start, ats[0])
            yield Edit(where.start, where.stop, f"{column} IN ({listed})")


def renamed(query: Query) -> Iterator[Edit]:
    """Other aliases."""
    names = {}
    for select in query.selects:
        for source in select.sources:
            if source.table is not None and source.alias != source.table:
                names.setdefault(source.alias, f"r{len(names) + 1}_{source.table[:1]}")
                place = source.item + 1
                place += 2 * (query.tokens[place].text == ".")  # main.singer AS s
                place += query.tokens[place].text == "as"
                yield Edit(place, place + 1, names[source.alias])
    for i, token in enumerate(query.tokens[:-1]):
        if query.tokens[i + 1].text == "." and name_of(token) in names:
            yield Edit(i, i + 1, names[name_of(token)])


def joins_swapped(query: Query) -> Iterator[Edit]:
    """FROM b JOIN a ON … for FROM a JOIN b ON …."""
    for select in query.selects:
        starred = any(
            query.tokens[i].text == "*" and query.tokens[i - 1].text != "("
            for i in select.clause("select")
        )
        # USING (x) has no place before the second table, and x is that of the first.
        using = any(query.tokens[i].text == "using" for i in select.clause("from"))
        if len(select.sources) < 2 or starred or using:
            continue
        first, second = select.sources[:2]
        words = [token.text for token in query.tokens[second.first : second.item]]
        end = second.on.start - 1 if second.on else second.last
        if words in (["join"], ["inner", "join"]) and first.last == second.first:
            yield Edit(first.item, first.last, query.text(second.item, end) + " ")
            yield Edit(second.item, end, query.text(first.item, first.last) + " ")


def on_in_where(query: Query) -> Iterator[Edit]:
    """The condition of the last join in WHERE."""
    for select in query.selects:
        if len(select.sources) < 2:
            continue
        last = select.sources[-1]
        words = [[t.text for t in query.tokens[s.first : s.item]] for s in select.sources[1:]]
        if not last.on or any(w not in (["join"], ["inner", "join"]) for w in words):
            continue
        condition = query.text(last.on.start, last.on.stop)
        where = select.clause("where")
        yield Edit(last.on.start - 1, last.on.stop, "" if where else f"WHERE {condition}")
        if where:
            yield Edit(where.start, where.start, f"({condition}) AND (")
            yield Edit(where.stop, where.stop, ")")


def columns_turned(query: Query) -> Iterator[Edit]:
    """The columns of the result in reverse order, which is free."""
    span = query.selects[0].clause("select") if len(query.selects) == 1 else range(0)
    keys = [*query.selects[0].clause("order"), *query.selects[0].clause("group")] if span else []
    if any(query.tokens[i].kind == "number" for i in keys):
        return  # ORDER BY 1 would be another column
    if span and query.tokens[span.start].text == "distinct":
        span = range(span.start + 1, span.stop)
    items = query.items(span) if span else []
    if len(items) > 1:
        texts = [query.text(item.start, item.stop) for item in reversed(items)]
        yield Edit(span.start, span.stop, ", ".join(texts) + " ")


def operands_swapped(query: Query) -> Iterator[Edit]:
    """B UNION A for A UNION B, B INTERSECT A for A INTERSECT B."""
    if len(query.set_operators) != 1:
        return
    (operator,) = query.set_operators
    before = [s for s in query.selects if s.end == operator.start]
    after = [s for s in query.selects if s.start == operator.stop]
    if query.tokens[operator.start].text == "except" or not before or not after:
        return
    left, right = before[-1], after[0]
    if not {"order", "limit"} & right.clauses.keys():
        yield Edit(left.start, left.end, query.text(right.start, right.end) + " ")
        yield Edit(right.start, right.end, query.text(left.start, left.end))


def counted(query: Query) -> Iterator[Edit]:
    """count(1) for count(*)."""
    for i, name in query.aggregates():
        if name == "count" and query.tokens[i + 2].text == "*":
            yield Edit(i + 2, i + 3, "1")


def spelled_out(query: Query) -> Iterator[Edit]:
    """ASC, OFFSET 0 and INNER where they are left out."""
    for select in query.selects:
        order, limit = select.clause("order"), select.clause("limit")
        for item in query.items(order) if order else ():
            if query.tokens[item.stop - 1].text not in ("asc", "desc"):
                last = query.text(item.stop - 1, item.stop)
                yield Edit(item.stop - 1, item.stop, f"{last} ASC")
        if len(limit) == 1:
            yield Edit(limit.start, limit.stop, f"{query.text(limit.start, limit.stop)} OFFSET 0")
        for source in select.sources:
            if [token.text for token in query.tokens[source.first : source.item]] == ["join"]:
                yield Edit(source.first, source.item, "INNER JOIN ")


KINDS = {
    "brackets": bracketed,
    "sides swapped": flipped,
    "NOT and the opposite": negated,
    "AND or OR reordered": reordered,
    "comparisons for BETWEEN": between,
    "BETWEEN for comparisons": as_between,
    "IN for equality": as_in,
    "aliases renamed": renamed,
    "joins swapped": joins_swapped,
    "ON in WHERE": on_in_where,
    "columns turned": columns_turned,
    "operands swapped": operands_swapped,
    "count(1)": counted,
    "defaults spelled out": spelled_out,
}
