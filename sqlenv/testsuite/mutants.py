"""Near misses of a SQL query: one small change each, of the kinds that models and people get wrong.

`>` for `>=`, a dropped DISTINCT, another aggregate, column, literal or sort direction, a join left
out … A judge worth trusting tells them from gold (`testsuite.py`), and an encoder worth trusting
puts them further from the question than gold (hard negatives). They come from the text alone; a
schema, where given, adds those that need to know which columns there are. Changes that plainly
leave the meaning as it is are not made (DISTINCT inside IN, for one); some others may.
"""

import math
from typing import NamedTuple

from sqlenv.query import (
    AGGREGATES,
    COMPARISONS,
    Edit,
    Query,
    Select,
    find_table,
    name_of,
    parse,
)
from sqlenv.schema import Schema
from sqlenv.testsuite.swaps import INSTEAD, Mutants, family, joins, other_columns, other_tables
from sqlenv.text import ASCII_LOWER, canonical_sql

SET_INSTEAD = {
    "union": ("UNION ALL", "INTERSECT", "EXCEPT"),
    "union all": ("UNION",),
    "intersect": ("UNION", "EXCEPT"),
    "except": ("UNION", "INTERSECT"),
}
NEGATABLE = ("in", "like", "glob", "between")
CONNECTORS = {"and": "OR", "or": "AND"}


class Mutant(NamedTuple):
    sql: str
    kind: str  # a key of KINDS


def make_mutants(sql: str, schema: Schema | None = None) -> list[Mutant]:
    """Return the near misses of a query, in an order that depends on nothing but the arguments.

    No two are the same in canonical form, and none is the query itself. With a schema, columns are
    exchanged for others of the same table and family of types, tables for others that have the
    columns in use, and joins dropped where nothing else needs them; without one, the kinds
    "column" and "table" are missing and joins are dropped only where every column is qualified.

    >>> [miss.sql for miss in make_mutants("SELECT a FROM t WHERE b > 3") if miss.kind == "literal"]
    ['SELECT a FROM t WHERE b > 4', 'SELECT a FROM t WHERE b > 2']
    """
    query = parse(sql)
    seen, found = {canonical_sql(sql)}, []
    for kind, mutate in KINDS.items():
        for edits in mutate(query, schema):
            mutant = query.edited(edits)
            canonical = canonical_sql(mutant)
            if canonical not in seen:
                seen.add(canonical)
                found.append(Mutant(mutant, kind))
    return found


def comparisons(query: Query, schema: Schema | None) -> Mutants:
    """Another comparison operator."""
    on = {i for select in query.selects for source in select.sources for i in source.on}
    for i, token in enumerate(query.tokens):
        if token.kind == "mark" and i not in on:
            yield from ([Edit(i, i + 1, other)] for other in INSTEAD.get(token.text, ()))


def distincts(query: Query, schema: Schema | None) -> Mutants:
    """DISTINCT dropped or added, where repeated rows or values count."""
    for select in query.selects:
        if counts_rows(query, select):
            after = query.next_text(select.start)
            if after == "distinct":
                yield [Edit(select.start + 1, select.start + 2, "")]
            elif has_repeats(query, select, schema) and not takes_one(query, select):
                yield [Edit(select.start + 1, select.start + 1, "DISTINCT ")]
    for i, name in query.aggregates():
        if name in ("min", "max") or query.tokens[i + 2].text == "*":
            continue
        if query.tokens[i + 2].text == "distinct":
            yield [Edit(i + 2, i + 3, "")]
        else:
            yield [Edit(i + 2, i + 2, "DISTINCT ")]


def counts_rows(query: Query, select: Select) -> bool:
    """Whether a repeated row of a SELECT shows in the query's result."""
    operators = {query.text(s.start, s.stop).lower() for s in query.set_operators}
    if select.compound and operators != {"union all"}:
        return False
    return select.opener not in ("in", "exists") and select.opener not in COMPARISONS


def takes_one(query: Query, select: Select) -> bool:
    return query.text(select.clause("limit").start, select.clause("limit").stop) == "1"


def has_repeats(query: Query, select: Select, schema: Schema | None) -> bool:
    """Whether a SELECT's rows may repeat: it is no lone aggregate and holds no key of its rows."""
    listed = {r.column for r in query.references(select) if r.first in select.clause("select")}
    aggregated = any(i in select.clause("select") for i, _ in query.aggregates())
    if "group" in select.clauses:
        keys = query.items(select.clause("group"))
        return not all(name_of(query.tokens[key.stop - 1]) in listed for key in keys if key)
    if aggregated:
        return False
    table = find_table(schema, select.sources[0].table) if schema and select.sources else None
    keys = {c.name.translate(ASCII_LOWER) for c in table.columns if c.primary_key} if table else ()
    starred = query.next_text(select.start) == "*"
    return not (len(select.sources) == 1 and keys and (starred or listed >= keys))


def other_aggregates(query: Query, schema: Schema | None) -> Mutants:
    """Another aggregate function of the same argument; no sums of texts."""
    columns = {r.last - 1: r for s in query.selects for r in query.references(s)} if schema else {}
    for i, name in query.aggregates():
        last = query.closing[i + 1] - 1
        if query.tokens[last].text == "*":
            continue
        resolved = query.resolve(columns[last], schema) if last in columns else None
        text = resolved and family(resolved[2]) != "number" and name not in ("sum", "avg")
        for other in AGGREGATES:
            if other != name and not (text and other in ("sum", "avg")):
                yield [Edit(i, i + 1, other)]


def literals(query: Query, schema: Schema | None) -> Mutants:
    """A number one up or down, a text or pattern without its last or first character."""
    for select in query.selects:
        for span in select.conditions():
            for i in query.literals(span, select, schema):
                token = query.tokens[i]
                for text in neighbours(token.text):
                    yield [Edit(i, i + 1, text)]


def neighbours(literal: str) -> list[str]:
    """Literals near to one, as SQL text."""
    if literal[0] in "'\"":
        inner = literal[1:-1]
        quote = literal[0]
        if len(inner) < 2 or quote in inner:
            return [quote + inner + "x" + quote]
        found = [inner[:-1]]
        if inner.startswith("%"):  # LIKE: nothing may stand before it any more
            found.append(inner[1:])
        return [quote + text + quote for text in found]
    if literal.isdecimal() and len(literal) < 19:
        number = int(literal)
        return [str(number + 1), str(number - 1)] if number else ["1"]
    try:
        number = float(literal) + 1
    except ValueError:  # hexadecimal, or a BLOB
        return []
    return [repr(number)] if math.isfinite(number) else []


def sorting(query: Query, schema: Schema | None) -> Mutants:
    """The other sort direction, or no sorting, where the order shows in the result."""
    for select in query.selects:
        span = select.clause("order")
        if not span or (select.opener and "limit" not in select.clauses):
            continue
        for item in query.items(span):
            last = query.tokens[item.stop - 1].text
            if last in ("asc", "desc"):
                other = "DESC" if last == "asc" else "ASC"
                yield [Edit(item.stop - 1, item.stop, other)]
            else:
                yield [
                    Edit(item.stop - 1, item.stop, query.text(item.stop - 1, item.stop) + " DESC")
                ]
        yield [Edit(span.start - 2, span.stop, "")]


def limits(query: Query, schema: Schema | None) -> Mutants:
    """One row more or less, or all; not where SQLite takes the first row anyway, as in = (…)."""
    for select in query.selects:
        span = select.clause("limit")
        written = query.tokens[span.start].text if span else ""
        if written.isdecimal() and len(written) < 19 and select.opener not in COMPARISONS:
            count = int(written)
            yield [Edit(span.start, span.start + 1, str(count + 1))]
            if count > 1:
                yield [Edit(span.start, span.start + 1, str(count - 1))]
            yield [Edit(span.start - 1, span.stop, "")]


def connectors(query: Query, schema: Schema | None) -> Mutants:
    """OR for AND, AND for OR."""
    for select in query.selects:
        for span in select.conditions():
            for _, places in query.levels(span):
                for i in places:
                    yield [Edit(i, i + 1, CONNECTORS[query.tokens[i].text])]


def conditions(query: Query, schema: Schema | None) -> Mutants:
    """A condition dropped from WHERE or HAVING."""
    for select in query.selects:
        for span in (select.clause("where"), select.clause("having")):
            if span:
                yield [Edit(span.start - 1, span.stop, "")]
                for parts, places in query.levels(span):
                    yield from ([drop(parts, places, at)] for at in range(len(parts)) if places)


def drop(parts: list[range], places: list[int], at: int) -> Edit:
    """One part of a condition and the AND or OR beside it go."""
    if at == 0:
        return Edit(parts[0].start, places[0] + 1, "")
    return Edit(places[at - 1], parts[at].stop, "")


def havings(query: Query, schema: Schema | None) -> Mutants:
    """A condition moved from WHERE to HAVING, or back where it has no aggregate."""
    for select in query.selects:
        where, having = select.clause("where"), select.clause("having")
        if "group" not in select.clauses:
            continue
        for span, target in ((where, having), (having, where)):
            if not span:
                continue
            parts, places = query.split(span)
            for at, part in enumerate(parts):
                if span is having and any(i in part for i, _ in query.aggregates()):
                    continue
                if any(query.tokens[i].text == "or" for i in places):
                    continue
                text = query.text(part.start, part.stop)
                whole = Edit(span.start - 1, span.stop, "")
                yield [
                    drop(parts, places, at) if places else whole,
                    insertion(select, span is where, target, text),
                ]


def insertion(select: Select, into_having: bool, target: range, text: str) -> Edit:
    """A condition put at the front of HAVING or WHERE, or that clause made for it."""
    if target:
        return Edit(target.start, target.start, f"{text} AND ")
    after = select.clause("group").stop if into_having else select.clause("from").stop
    return Edit(after, after, f" {'HAVING' if into_having else 'WHERE'} {text} ")


def set_operations(query: Query, schema: Schema | None) -> Mutants:
    """Another set operation, or only what stands before it."""
    for span in query.set_operators:
        name = " ".join(token.text for token in query.tokens[span.start : span.stop])
        for other in SET_INSTEAD[name]:
            yield [Edit(span.start, span.stop, other)]
        following = next((s for s in query.selects if s.start == span.stop), None)
        if following and not {"order", "limit"} & following.clauses.keys():
            yield [Edit(span.start, following.end, "")]


def negations(query: Query, schema: Schema | None) -> Mutants:
    """NOT dropped, or put before IN, LIKE, BETWEEN, EXISTS and NULL."""
    for i, token in enumerate(query.tokens):
        if token.kind != "keyword":
            continue
        if token.text == "not":
            yield [Edit(i, i + 1, "")]
        elif query.tokens[i - 1].text != "not" and token.text in (*NEGATABLE, "exists"):
            yield [Edit(i, i, "NOT ")]
        elif token.text == "is" and query.next_text(i) == "null":
            yield [Edit(i + 1, i + 1, "NOT ")]


KINDS = {
    "comparison": comparisons,
    "distinct": distincts,
    "aggregate": other_aggregates,
    "column": other_columns,
    "table": other_tables,
    "literal": literals,
    "sort": sorting,
    "limit": limits,
    "join": joins,
    "and_or": connectors,
    "condition": conditions,
    "having": havings,
    "set_operation": set_operations,
    "negation": negations,
}
