"""Mutants of a SQL query: one small change each, of the kinds of mistakes that models make.

Examples are ``>`` for ``>=``, a dropped DISTINCT, another aggregate, column, literal or sort
direction, or a dropped join. Test suites are built so that their databases distinguish the mutants
from gold (``suite.py``), and the encoder uses mutants as hard negatives. Most mutants need only the
text of the query; some also need the schema. Changes that cannot change the meaning are avoided
(DISTINCT inside IN, for example), but some mutants are equivalent to the query.
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
from sqlenv.testsuite.edge_cases import EDGE_KINDS
from sqlenv.testsuite.swaps import (
    OTHER_COMPARISONS,
    MutantEdits,
    joins,
    other_columns,
    other_tables,
    type_family,
)
from sqlenv.text import ASCII_LOWER, canonical_sql

OTHER_SET_OPERATORS = {
    "union": ("UNION ALL", "INTERSECT", "EXCEPT"),
    "union all": ("UNION",),
    "intersect": ("UNION", "EXCEPT"),
    "except": ("UNION", "INTERSECT"),
}
NEGATABLE = ("in", "like", "glob", "between")
CONNECTORS = {"and": "OR", "or": "AND"}


class Mutant(NamedTuple):
    """A changed query."""

    sql: str
    kind: str  # a key of KINDS or of EDGE_KINDS


def make_mutants(
    sql: str, schema: Schema | None = None, *, edge_cases: bool = False
) -> list[Mutant]:
    """Returns the mutants of a query, always in the same order.

    The mutants and the query differ from each other in canonical form. With a schema, columns are
    replaced by others of the same table and type family, tables by others that have the used
    columns, and joins are dropped if nothing else uses them. Without a schema, there are no mutants
    of the kinds "column" and "table", and joins are dropped only if all columns are qualified.

    Args:
        sql: the query.
        schema: of its database.
        edge_cases: add the mutants of ``edge_cases.py``, which differ from the query only on rows
            that few databases have.

    >>> [m.sql for m in make_mutants("SELECT a FROM t WHERE b > 3") if m.kind == "literal"]
    ['SELECT a FROM t WHERE b > 4', 'SELECT a FROM t WHERE b > 2']
    """
    query = parse(sql)
    seen, mutants = {canonical_sql(sql)}, []
    for kind, mutate in (KINDS | EDGE_KINDS if edge_cases else KINDS).items():
        for edits in mutate(query, schema):
            text = query.edited(edits)
            canonical = canonical_sql(text)
            if canonical not in seen:
                seen.add(canonical)
                mutants.append(Mutant(text, kind))
    return mutants


def comparisons(query: Query, schema: Schema | None) -> MutantEdits:
    """Another comparison operator."""
    on = {i for select in query.selects for source in select.sources for i in source.on}
    for i, token in enumerate(query.tokens):
        if token.kind == "mark" and i not in on:
            yield from ([Edit(i, i + 1, other)] for other in OTHER_COMPARISONS.get(token.text, ()))


def distincts(query: Query, schema: Schema | None) -> MutantEdits:
    """DISTINCT dropped or added where duplicates matter."""
    for select in query.selects:
        if counts_rows(query, select):
            after = query.next_text(select.start)
            if after == "distinct":
                yield [Edit(select.start + 1, select.start + 2, "")]
            elif has_repeats(query, select, schema) and not has_limit_one(query, select):
                yield [Edit(select.start + 1, select.start + 1, "DISTINCT ")]
    for i, name in query.aggregates():
        if name in ("min", "max") or query.tokens[i + 2].text == "*":
            continue
        if query.tokens[i + 2].text == "distinct":
            yield [Edit(i + 2, i + 3, "")]
        else:
            yield [Edit(i + 2, i + 2, "DISTINCT ")]


def counts_rows(query: Query, select: Select) -> bool:
    """Whether duplicate rows of a SELECT change the query's result."""
    operators = {query.text(s.start, s.stop).lower() for s in query.set_operators}
    if select.compound and operators != {"union all"}:
        return False
    return select.opener not in ("in", "exists") and select.opener not in COMPARISONS


def has_limit_one(query: Query, select: Select) -> bool:
    """Whether a SELECT has LIMIT 1."""
    return query.text(select.clause("limit").start, select.clause("limit").stop) == "1"


def has_repeats(query: Query, select: Select, schema: Schema | None) -> bool:
    """Whether a SELECT may return duplicates: it is not one aggregate and has no unique key."""
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


def other_aggregates(query: Query, schema: Schema | None) -> MutantEdits:
    """Another aggregate function of the same argument, but no sum or average of texts."""
    columns = {r.last - 1: r for s in query.selects for r in query.references(s)} if schema else {}
    for i, name in query.aggregates():
        last = query.closing[i + 1] - 1
        if query.tokens[last].text == "*":
            continue
        resolved = query.resolve(columns[last], schema) if last in columns else None
        text = resolved and type_family(resolved[2].type) != "number" and name not in ("sum", "avg")
        for other in AGGREGATES:
            if other != name and not (text and other in ("sum", "avg")):
                yield [Edit(i, i + 1, other)]


def literals(query: Query, schema: Schema | None) -> MutantEdits:
    """A number plus or minus 1, a string or pattern without its last or first character."""
    for select in query.selects:
        for span in select.conditions():
            for i in query.literals(span, select, schema):
                token = query.tokens[i]
                for text in neighbours(token.text):
                    yield [Edit(i, i + 1, text)]


def neighbours(literal: str) -> list[str]:
    """Literals close to the given one, as SQL text."""
    if literal[0] in "'\"":
        inner = literal[1:-1]
        quote = literal[0]
        if len(inner) < 2 or quote in inner:
            return [quote + inner + "x" + quote]
        texts = [inner[:-1]]
        if inner.startswith("%"):  # a LIKE pattern: the text must then start with the rest
            texts.append(inner[1:])
        return [quote + text + quote for text in texts]
    if literal.isdecimal() and len(literal) < 19:
        number = int(literal)
        return [str(number + 1), str(number - 1)] if number else ["1"]
    try:
        number = float(literal) + 1
    except ValueError:  # hexadecimal, or a BLOB
        return []
    return [repr(number)] if math.isfinite(number) else []


def sorting(query: Query, schema: Schema | None) -> MutantEdits:
    """The other sort direction, or no ORDER BY, where the order matters."""
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


def limits(query: Query, schema: Schema | None) -> MutantEdits:
    """A limit plus or minus 1, or no limit; not where SQLite takes the first row, as in = (…)."""
    for select in query.selects:
        span = select.clause("limit")
        written = query.tokens[span.start].text if span else ""
        if written.isdecimal() and len(written) < 19 and select.opener not in COMPARISONS:
            count = int(written)
            yield [Edit(span.start, span.start + 1, str(count + 1))]
            if count > 1:
                yield [Edit(span.start, span.start + 1, str(count - 1))]
            yield [Edit(span.start - 1, span.stop, "")]


def connectors(query: Query, schema: Schema | None) -> MutantEdits:
    """OR for AND, AND for OR."""
    for select in query.selects:
        for span in select.conditions():
            for _, places in query.levels(span):
                for i in places:
                    yield [Edit(i, i + 1, CONNECTORS[query.tokens[i].text])]


def conditions(query: Query, schema: Schema | None) -> MutantEdits:
    """A condition dropped from WHERE or HAVING."""
    for select in query.selects:
        for span in (select.clause("where"), select.clause("having")):
            if span:
                yield [Edit(span.start - 1, span.stop, "")]
                for parts, places in query.levels(span):
                    yield from ([drop(parts, places, at)] for at in range(len(parts)) if places)


def drop(parts: list[range], places: list[int], at: int) -> Edit:
    """Drops a part of a condition with the AND or OR next to it."""
    if at == 0:
        return Edit(parts[0].start, places[0] + 1, "")
    return Edit(places[at - 1], parts[at].stop, "")


def havings(query: Query, schema: Schema | None) -> MutantEdits:
    """A condition moved from WHERE to HAVING, or back if it has no aggregate."""
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
    """Inserts a condition at the front of HAVING or WHERE; adds the clause if it is missing."""
    if target:
        return Edit(target.start, target.start, f"{text} AND ")
    after = select.clause("group").stop if into_having else select.clause("from").stop
    return Edit(after, after, f" {'HAVING' if into_having else 'WHERE'} {text} ")


def set_operations(query: Query, schema: Schema | None) -> MutantEdits:
    """Another set operation, or its left operand alone."""
    for span in query.set_operators:
        name = " ".join(token.text for token in query.tokens[span.start : span.stop])
        for other in OTHER_SET_OPERATORS[name]:
            yield [Edit(span.start, span.stop, other)]
        following = next((s for s in query.selects if s.start == span.stop), None)
        if following and not {"order", "limit"} & following.clauses.keys():
            yield [Edit(span.start, following.end, "")]


def negations(query: Query, schema: Schema | None) -> MutantEdits:
    """NOT dropped, or inserted before IN, LIKE, BETWEEN, EXISTS and NULL."""
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
