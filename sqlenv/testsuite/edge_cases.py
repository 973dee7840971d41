"""Mutants that differ from a query only on rows that few databases have: texts in another case or
within longer ones, NULL, fractions, more than 100 rows.

Test suites are built for these mutants, too. They are no hard negatives of the encoder: a question
in words rarely decides between them and gold.
"""

from collections.abc import Iterator

from sqlenv.query import Edit, Query, Reference, Select
from sqlenv.schema import Column, Schema, Table
from sqlenv.testsuite.swaps import MutantEdits, is_lookup, type_family

ROW_LIMIT = 100
TO_GLOB = str.maketrans("%_", "*?")
# A limit between whole numbers, on the side that keeps all of them.
HALVES = {">": 0.5, "<=": 0.5, ">=": -0.5, "<": -0.5}


def row_limits(query: Query, schema: Schema | None) -> MutantEdits:
    """LIMIT 100, where there may be more rows."""
    last = [select for select in query.selects if select.parent is None][-1:]
    for select in last:
        aggregated = any(query.select_of[i] is select for i, _ in query.aggregates())
        one_row = aggregated and "group" not in select.clauses and not select.compound
        if "limit" not in select.clauses and not one_row:
            yield [Edit(len(query.tokens), len(query.tokens), f" LIMIT {ROW_LIMIT}")]


def letter_cases(query: Query, schema: Schema | None) -> MutantEdits:
    """=, != and IN that ignore the case of letters; a LIKE that does not."""
    for select in query.selects:
        for span in select.conditions():
            for leaf in query.leaves(span):
                for i in query.literals(leaf, select, schema):
                    text, before = query.tokens[i].text, query.tokens[i - 1].text
                    inner = text[1:-1]
                    if text[0] not in "'\"" or inner.lower() == inner.upper():
                        continue
                    if before in ("=", "==", "!=", "<>"):
                        yield [Edit(i, i + 1, f"{text} COLLATE NOCASE")]
                    elif before == "like" and not set("*?[") & set(inner):
                        yield [Edit(i - 1, i + 1, f"GLOB {text.translate(TO_GLOB)}")]
                    elif before == "(" and query.tokens[i - 2].text == "in":
                        at = i - 2 - (query.tokens[i - 3].text == "not")
                        yield [Edit(at, at, "COLLATE NOCASE ")]


def substrings(query: Query, schema: Schema | None) -> MutantEdits:
    """LIKE '%x%' for = 'x'."""
    for select in query.selects:
        for span in select.conditions():
            for i in query.literals(span, select, schema):
                text, before = query.tokens[i].text, query.tokens[i - 1].text
                if text[0] in "'\"" and len(text) > 2 and before in ("=", "=="):
                    yield [Edit(i - 1, i + 1, f"LIKE {text[0]}%{text[1:-1]}%{text[0]}")]


def nulls(query: Query, schema: Schema | None) -> MutantEdits:
    """NULL shown or aggregated as 0 or '', not equal to a literal, or left out where it sorts."""
    columns = dict(nullable_columns(query, schema)) if schema else {}
    aggregates = {i + 2: name for i, name in query.aggregates() if name != "count"}
    shown = {
        (item.start + (query.tokens[item.start].text == "distinct"), item.stop)
        for select in query.selects
        if select.parent is None
        for item in query.items(select.clause("select"))
        if item
    }
    for reference, column in columns.items():
        first, last = reference.first, reference.last
        is_argument = first in aggregates and query.next_text(last - 1) == ")"
        if is_argument or (first, last) in shown:
            other = "0" if type_family(column.type) == "number" else "''"
            yield [Edit(first, last, f"coalesce({query.text(first, last)}, {other})")]
    tested = {reference.first: reference for reference in columns}
    for select in query.selects:
        for span in select.conditions():
            for leaf in query.leaves(span):
                reference = tested.get(leaf.start)
                if reference and query.next_text(reference.last - 1) in ("!=", "<>", "not"):
                    name = query.text(reference.first, reference.last)
                    text = query.text(leaf.start, leaf.stop)
                    yield [Edit(leaf.start, leaf.stop, f"({text} OR {name} IS NULL)")]
        for reference in columns:
            if reference.first in select.clause("order") and "group" not in select.clauses:
                name = query.text(reference.first, reference.last)
                yield with_condition(select, f"{name} IS NOT NULL")


def with_condition(select: Select, condition: str) -> list[Edit]:
    """Adds a condition to WHERE."""
    if where := select.clause("where"):
        return [
            Edit(where.start, where.start, f"{condition} AND ("),
            Edit(where.stop, where.stop, ")"),
        ]
    stop = select.clause("from").stop
    return [Edit(stop, stop, f" WHERE {condition} ")]


def nullable_columns(query: Query, schema: Schema) -> Iterator[tuple[Reference, Column]]:
    """The columns outside keys, in which a suite's databases may have NULL."""
    for select in query.selects:
        for reference in query.references(select):
            resolved = query.resolve(reference, schema)
            if resolved and not is_key(*resolved[1:]):
                yield reference, resolved[2]


def is_key(table: Table, column: Column) -> bool:
    """Whether a column is part of a primary or foreign key."""
    return column.primary_key or any(key.column == column.name for key in table.foreign_keys)


def not_null_keys(query: Query, schema: Schema | None) -> MutantEdits:
    """NOT IN (SELECT …) without NULL among the values, as with NOT EXISTS."""
    for select in query.selects:
        span, group = select.clause("select"), "group" in select.clauses
        words = [token.text for token in query.tokens[max(select.start - 3, 0) : select.start]]
        name = next((r for r in query.references(select) if r.last == span.stop), None)
        if words != ["not", "in", "("] or not name or select.compound or group:
            continue
        yield with_condition(select, f"{query.text(name.first, name.last)} IS NOT NULL")


def outer_joins(query: Query, schema: Schema | None) -> MutantEdits:
    """LEFT JOIN for every JOIN of a SELECT, where this can add rows that pass WHERE."""
    for select in query.selects:
        plain = [
            source
            for source in select.sources
            if [token.text for token in query.tokens[source.first : source.item]]
            in (["join"], ["inner", "join"])
        ]
        tested = {
            resolved[0].alias
            for reference in query.references(select)
            if schema and reference.first in select.clause("where")
            if (resolved := query.resolve(reference, schema))
        }
        lookups = [is_lookup(query, select, source, source.on, schema) for source in plain]
        # One join alone is a mutant of the kind "join".
        if len(plain) > 1 and not all(lookups) and not tested & {s.alias for s in plain}:
            yield [Edit(source.first, source.item, "LEFT JOIN ") for source in plain]


def fractions(query: Query, schema: Schema | None) -> MutantEdits:
    """> n.5 for > n, where fractions are compared."""
    averages = {i for i, name in query.aggregates() if name == "avg"}
    for select in query.selects:
        references = {
            r.first: query.resolve(r, schema) if schema else None for r in query.references(select)
        }
        for span in select.conditions():
            for leaf in query.leaves(span):
                columns = [match for first, match in references.items() if first in leaf]
                whole = schema and all(match and is_whole(match[2].type) for match in columns)
                if whole and not averages & set(leaf):
                    continue
                for i in query.literals(leaf, select, schema):
                    text, half = query.tokens[i].text, HALVES.get(query.tokens[i - 1].text)
                    if half and text.isdecimal() and len(text) < 16:
                        yield [Edit(i, i + 1, str(int(text) + half))]


def is_whole(declared: str) -> bool:
    """Whether a column of this type is meant for whole numbers or for times, not for fractions."""
    return "INT" in declared.upper() or type_family(declared) == "time"


EDGE_KINDS = {
    "row_limit": row_limits,
    "letter_case": letter_cases,
    "substring": substrings,
    "null": nulls,
    "not_null_key": not_null_keys,
    "outer_join": outer_joins,
    "fraction": fractions,
}
