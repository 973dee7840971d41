"""Queries that people write for a gold query and that differ from it only on unusual rows.

``benchmarks/testsuite_mistakes.py`` measures how many of them test suites reject. Those of LISTED
are mutants of ``sqlenv/testsuite/edge_cases.py`` in another spelling, or are seen on the same rows.
Those of OTHERS resemble none, so they show how suites handle mistakes that they were not chosen
for.
"""

from collections.abc import Iterator

from sqlenv.query import Edit, Query, Reference, Select, find_table, parse
from sqlenv.schema import Column, Schema
from sqlenv.testsuite.mutants import Mutant
from sqlenv.testsuite.swaps import MutantEdits, type_family
from sqlenv.text import ASCII_LOWER, canonical_sql


def make_mistakes(sql: str, schema: Schema) -> list[Mutant]:
    """The mistaken queries of all kinds, which differ from each other in canonical form."""
    query, seen, mistakes = parse(sql), {canonical_sql(sql)}, []
    for kind, make in (LISTED | OTHERS).items():
        for edits in make(query, schema):
            text = query.edited(edits)
            if canonical_sql(text) not in seen:
                seen.add(canonical_sql(text))
                mistakes.append(Mutant(text, kind))
    return mistakes


def comparisons(
    query: Query, schema: Schema, operators: tuple[str, ...]
) -> Iterator[tuple[range, Reference, Column, int]]:
    """Conditions ``column operator literal``: the span, the column and the literal's token."""
    for select in query.selects:
        references = {r.first: r for r in query.references(select)}
        for span in select.conditions():
            for leaf in query.leaves(span):
                reference = references.get(leaf.start)
                literals = list(query.literals(leaf, select, schema))
                resolved = reference and query.resolve(reference, schema)
                at = reference.last if reference else leaf.stop
                if not resolved or literals != [leaf.stop - 1] or at + 2 != leaf.stop:
                    continue
                if query.tokens[at].text in operators:
                    yield leaf, reference, resolved[2], leaf.stop - 1


def texts(query: Query, schema: Schema, operator: str) -> Iterator[tuple[range, str, str]]:
    """Conditions ``column operator 'text'``: the span, the column, the text without quotes."""
    for leaf, reference, _, at in comparisons(query, schema, (operator,)):
        inner = query.tokens[at].text[1:-1]
        if query.tokens[at].kind in ("string", "quoted") and inner and "'" not in inner:
            yield leaf, query.text(reference.first, reference.last), inner


def shown_columns(query: Query, schema: Schema) -> Iterator[tuple[Select, Reference, Column]]:
    """The columns of the result that are nothing but a column."""
    for select in query.selects:
        items = [(item.start, item.stop) for item in query.items(select.clause("select"))]
        for reference in query.references(select) if select.parent is None else ():
            resolved = query.resolve(reference, schema)
            if resolved and (reference.first, reference.last) in items:
                yield select, reference, resolved[2]


def limited(count: int, query: Query) -> MutantEdits:
    """LIMIT at the end."""
    last = [select for select in query.selects if select.parent is None][-1:]
    if last and "limit" not in last[0].clauses:
        yield [Edit(len(query.tokens), len(query.tokens), f" LIMIT {count}")]


def limit_100(query: Query, schema: Schema) -> MutantEdits:
    """At most 100 rows."""
    yield from limited(100, query)


def limit_50(query: Query, schema: Schema) -> MutantEdits:
    """At most 50 rows."""
    yield from limited(50, query)


def case_blind(query: Query, schema: Schema) -> MutantEdits:
    """Equality of texts in any case, by lower() and by LIKE."""
    for leaf, column, text in texts(query, schema, "="):
        if any(character.isascii() and character.isalpha() for character in text):
            yield [Edit(leaf.start, leaf.stop, f"lower({column}) = '{text.lower()}'")]
            if not {"%", "_"} & set(text):
                yield [Edit(leaf.start, leaf.stop, f"{column} LIKE '{text}'")]


def like_for_equal(query: Query, schema: Schema) -> MutantEdits:
    """LIKE '%x%' for = 'x'."""
    for leaf, column, text in texts(query, schema, "="):
        yield [Edit(leaf.start, leaf.stop, f"{column} LIKE '%{text}%'")]


def coalesced(query: Query, schema: Schema) -> MutantEdits:
    """coalesce(column, '') for a column of the result."""
    for _, reference, column in shown_columns(query, schema):
        name = query.text(reference.first, reference.last)
        other = "0" if type_family(column.type) == "number" else "''"
        yield [Edit(reference.first, reference.last, f"coalesce({name}, {other})")]


def left_joins(query: Query, schema: Schema) -> MutantEdits:
    """LEFT JOIN for JOIN, each alone and all of a SELECT."""
    for select in query.selects:
        edits = [
            Edit(source.first, source.item, "LEFT JOIN ")
            for source in select.sources
            if [t.text for t in query.tokens[source.first : source.item]] == ["join"]
        ]
        yield from ([edit] for edit in edits)
        yield edits


def null_as_zero(query: Query, schema: Schema) -> MutantEdits:
    """avg(coalesce(x, 0)) for avg(x); so for sum, min and max."""
    for i, name in query.aggregates():
        span = range(i + 2, query.closing[i + 1])
        if name != "count" and query.tokens[span.start].text != "distinct":
            text = query.text(span.start, span.stop)
            yield [Edit(span.start, span.stop, f"coalesce({text}, 0)")]


def half_more(query: Query, schema: Schema) -> MutantEdits:
    """> n.5 for > n; >= n - 0.5 for >= n."""
    for _, _, _, at in comparisons(query, schema, (">", ">=", "<", "<=")):
        if query.tokens[at].text.isdecimal():
            up = query.tokens[at - 1].text in (">", "<=")
            number = int(query.tokens[at].text) + (0.5 if up else -0.5)
            yield [Edit(at, at + 1, str(number))]


def not_exists(query: Query, schema: Schema) -> MutantEdits:
    """NOT EXISTS (SELECT … WHERE column = x) for x NOT IN (SELECT column …)."""
    for select in query.selects:
        outer, at = select.parent, select.start - 1  # of the parenthesis
        words = [token.text for token in query.tokens[at - 2 : at]]
        blocked = {"group", "having", "limit", "order"} & select.clauses.keys()
        if words != ["not", "in"] or select.compound or blocked or outer is None:
            continue
        tested = next((r for r in query.references(outer) if r.last == at - 2), None)
        resolved = tested and query.resolve(tested, schema)
        inner = query.text(select.clause("select").start, select.clause("select").stop)
        if not resolved or resolved[0].alias in {s.alias for s in select.sources}:
            continue
        if inner.lower().startswith("distinct "):
            inner = inner[9:]
        name = f"{resolved[0].alias}.{query.text(tested.last - 1, tested.last)}"
        if select.clause("where"):
            place, word = select.clause("where").start, ""
            joined = f"{inner} = {name} AND "
        else:
            place, word = select.clause("from").stop, " WHERE "
            joined = f"{inner} = {name} "
        yield [Edit(tested.first, at, "NOT EXISTS "), Edit(place, place, word + joined)]


def next_whole(query: Query, schema: Schema) -> MutantEdits:
    """>= n + 1 for > n; > n - 1 for >= n."""
    others = {">": (">=", 1), ">=": (">", -1), "<": ("<=", -1), "<=": ("<", 1)}
    for _, _, _, at in comparisons(query, schema, tuple(others)):
        if query.tokens[at].text.isdecimal():
            operator, step = others[query.tokens[at - 1].text]
            yield [Edit(at - 1, at + 1, f"{operator} {int(query.tokens[at].text) + step}")]


def unequal_or_null(query: Query, schema: Schema) -> MutantEdits:
    """(a != x OR a IS NULL) for a != x."""
    for leaf, reference, _, _ in comparisons(query, schema, ("!=", "<>")):
        column, text = query.text(reference.first, reference.last), query.text(leaf[0], leaf.stop)
        yield [Edit(leaf.start, leaf.stop, f"({text} OR {column} IS NULL)")]


def instr_for_like(query: Query, schema: Schema) -> MutantEdits:
    """instr(a, 'x') for a LIKE '%x%', which ignores case."""
    for leaf, column, text in texts(query, schema, "like"):
        inner = text.strip("%")
        if text == f"%{inner}%" and inner and not {"%", "_"} & set(inner):
            yield [Edit(leaf.start, leaf.stop, f"instr({column}, '{inner}') > 0")]


def sum_by_count(query: Query, schema: Schema) -> MutantEdits:
    """sum(x) / count(*) for avg(x): whole numbers are divided without a fraction."""
    for i, name in query.aggregates():
        span = range(i + 2, query.closing[i + 1])
        if name == "avg" and query.tokens[span.start].text != "distinct":
            text = query.text(span.start, span.stop)
            yield [Edit(i, span.stop + 1, f"sum({text}) / count(*)")]


def first_for_extreme(query: Query, schema: Schema) -> MutantEdits:
    """SELECT x … ORDER BY x LIMIT 1 for SELECT min(x): NULL comes first."""
    for i, name in query.aggregates():
        select, stop = query.select_of[i], query.closing[i + 1]
        alone = select.clause("select") == range(i, stop + 1) and len(query.selects) == 1
        if name in ("min", "max") and alone and not {"group", "order", "limit"} & {*select.clauses}:
            text, order = query.text(i + 2, stop), "DESC" if name == "max" else "ASC"
            end = len(query.tokens)
            yield [Edit(i, stop + 1, text), Edit(end, end, f" ORDER BY {text} {order} LIMIT 1")]


def extreme_for_first(query: Query, schema: Schema) -> MutantEdits:
    """WHERE x = (SELECT min(x) …) for ORDER BY x LIMIT 1."""
    select = query.selects[0]
    order, limit = select.clause("order"), select.clause("limit")
    table = find_table(schema, select.sources[0].table) if len(select.sources) == 1 else None
    free = not {"where", "group"} & select.clauses.keys() and len(query.selects) == 1
    if order and free and table and query.text(limit.start, limit.stop) == "1":
        direction = query.tokens[order.stop - 1].text
        span = range(order.start, order.stop - (direction in ("asc", "desc")))
        column = query.text(span.start, span.stop)
        if len(span) == 1 and column.translate(ASCII_LOWER) in {
            c.name.translate(ASCII_LOWER) for c in table.columns
        }:
            name = "max" if direction == "desc" else "min"
            source = query.text(select.clause("from").start, select.clause("from").stop)
            text = f"WHERE {column} = (SELECT {name}({column}) FROM {source})"
            yield [Edit(order.start - 2, limit.stop, text)]


def union_for_or(query: Query, schema: Schema) -> MutantEdits:
    """SELECT … WHERE a UNION SELECT … WHERE b for WHERE a OR b: without repeated rows."""
    select = query.selects[0]
    where = select.clause("where")
    parts, places = query.split(where)
    if len(query.selects) == 1 and len(parts) == 2 and query.tokens[places[0]].text == "or":
        if where.stop == len(query.tokens):
            head = query.text(0, where.start)
            yield [Edit(places[0], places[0] + 1, f"UNION {head}")]


def grouped_by_shown(query: Query, schema: Schema) -> MutantEdits:
    """GROUP BY the column of the result, not by the key."""
    for select, reference, _ in shown_columns(query, schema):
        group = select.clause("group")
        if group:
            name = query.text(reference.first, reference.last)
            yield [Edit(group.start, group.stop, f"{name} ")]


LISTED = {
    "LIMIT 100 added": limit_100,
    "case-blind =": case_blind,
    "coalesce(column, '')": coalesced,
    "LIKE '%x%' for =": like_for_equal,
    "LEFT JOIN": left_joins,
    "avg(coalesce(x, 0))": null_as_zero,
    "> n.5 for > n": half_more,
    "NOT EXISTS for NOT IN": not_exists,
    "LIMIT 50 added": limit_50,
    ">= n + 1 for > n": next_whole,
    "!= or NULL": unequal_or_null,
    "instr for LIKE": instr_for_like,
}
OTHERS = {
    "sum / count for avg": sum_by_count,
    "ORDER BY LIMIT 1 for max": first_for_extreme,
    "= (SELECT max) for LIMIT 1": extreme_for_first,
    "UNION for OR": union_for_or,
    "GROUP BY shown column": grouped_by_shown,
}
