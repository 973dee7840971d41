"""Mutants with other columns, other tables or other joins than the query.

Most of them need the schema. ``mutants.py`` has the other kinds.
"""

from collections.abc import Iterable, Iterator

from sqlenv.query import (
    Edit,
    Query,
    Reference,
    Select,
    Source,
    find_column,
    find_table,
)
from sqlenv.schema import Column, Schema, Table, quote_name
from sqlenv.text import ASCII_LOWER

ALTERNATIVES = 2  # columns or tables by which each name is replaced in turn
OUTER = ("left", "right", "full", "natural")
OTHER_COMPARISONS = {
    ">": (">=", "<"),
    ">=": (">", "<="),
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    "=": ("!=",),
    "==": ("!=",),
    "!=": ("=",),
    "<>": ("=",),
}

MutantEdits = Iterator[Iterable[Edit]]  # the edits of each mutant


def type_family(declared: str) -> str:
    """Classifies a column by its declared type: "number", "time" or "text"."""
    declared = declared.upper()
    if any(word in declared for word in ("DATE", "TIME")):
        return "time"
    numbers = ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "BOOL")
    return "number" if any(word in declared for word in numbers) else "text"


def other_columns(query: Query, schema: Schema | None) -> MutantEdits:
    """Another column of the same table and type family, at each place alone and at all places."""
    yield from column_edits(query, schema, in_join=False)


def column_edits(query: Query, schema: Schema | None, *, in_join: bool) -> MutantEdits:
    """Replaced columns, either those in ON or all others."""
    counted = {i + 2 for i, name in query.aggregates() if name == "count"}
    for select in query.selects if schema else ():
        on = {i for source in select.sources for i in source.on}
        places: dict[tuple, list[Reference]] = {}
        for reference in query.references(select):
            resolved = query.resolve(reference, schema)
            # count(a) and count(b) differ only in NULLs, which is not a typical mistake.
            if not resolved or reference.first in counted or (reference.first in on) != in_join:
                continue
            others = alternatives(*resolved)
            if reference.qualifier is None:
                others = [o for o in others if is_unambiguous(o, resolved[0], select, schema)]
            yield from ([rename(reference, other)] for other in others)
            same = places.setdefault((resolved[0].alias, resolved[2].name), [])
            same.append(reference)
            if len(same) > 1:
                yield from ([rename(place, other) for place in same] for other in others)


def rename(reference: Reference, column: Column) -> Edit:
    """Replaces the name of a column."""
    return Edit(reference.last - 1, reference.last, quote_name(column.name))


def is_unambiguous(column: Column, source: Source, select: Select, schema: Schema) -> bool:
    """Whether a column can be used without its table's name."""
    name = column.name.translate(ASCII_LOWER)
    others = [other.table for other in select.sources if other is not source]
    return not any(find_column(schema, table, name) for table in others)


def alternatives(source: Source, table: Table, column: Column) -> list[Column]:
    """The next columns of the same type family, cyclically."""
    at = table.columns.index(column)
    others = table.columns[at + 1 :] + table.columns[:at]
    family = type_family(column.type)
    return [other for other in others if type_family(other.type) == family][:ALTERNATIVES]


def other_tables(query: Query, schema: Schema | None) -> MutantEdits:
    """Another table that has the columns used of this one."""
    used = used_columns(query, schema) if schema else []
    for select in query.selects if schema else ():
        names = [source.table for source in select.sources]
        for source in select.sources:
            table = find_table(schema, source.table)
            if not table:
                continue
            at = schema.tables.index(table)
            references = [reference for reference, used_source in used if used_source is source]
            others = [
                other
                for other in schema.tables[at + 1 :] + schema.tables[:at]
                if other.name.translate(ASCII_LOWER) not in names
                and all(
                    find_column(Schema((other,)), name_of_table(other), r.column)
                    for r in references
                )
            ]
            for other in others[:ALTERNATIVES]:
                name = quote_name(other.name)
                # Without an alias its columns may be qualified by the table's name.
                qualifiers = [r.first for r in references if r.qualifier == source.table]
                has_alias = source.alias != source.table
                places = [source.item] if has_alias else [source.item, *qualifiers]
                yield [Edit(place, place + 1, name) for place in places]


def name_of_table(table: Table) -> str:
    """The table's name in lower case."""
    return table.name.translate(ASCII_LOWER)


def used_columns(query: Query, schema: Schema) -> list[tuple[Reference, Source]]:
    """The column references of a query, with the table or subquery that each belongs to."""
    used = []
    for select in query.selects:
        for reference in query.references(select):
            resolved = query.resolve(reference, schema)
            if resolved:
                used.append((reference, resolved[0]))
    return used


def joins(query: Query, schema: Schema | None) -> MutantEdits:
    """A join dropped, changed to an outer or inner join, or its ON changed or dropped."""
    for select in query.selects:
        for at, source in enumerate(select.sources):
            if is_droppable(query, select, at, schema):
                yield drop_source(select, at)
            words = [token.text for token in query.tokens[source.first : source.item]]
            if words in (["join"], ["inner", "join"]) and keeps_unmatched(
                query, select, source, schema
            ):
                yield [Edit(source.first, source.item, "LEFT JOIN ")]
            elif words in (["left", "join"], ["left", "outer", "join"]):
                yield [Edit(source.first, source.item, "JOIN ")]
            for i in source.on:
                others = OTHER_COMPARISONS.get(query.tokens[i].text, ())
                yield from ([Edit(i, i + 1, other)] for other in others)
            if source.on:
                yield [Edit(source.on.start - 1, source.on.stop, "")]
    yield from column_edits(query, schema, in_join=True)


def drop_source(select: Select, at: int) -> list[Edit]:
    """Drops a table from FROM, with the ON of its join."""
    if at:
        return [Edit(select.sources[at].first, select.sources[at].last, "")]
    first, second = select.sources
    edits = [Edit(first.item, second.item, "")]
    return [*edits, Edit(second.on.start - 1, second.on.stop, "")] if second.on else edits


def is_droppable(query: Query, select: Select, at: int, schema: Schema | None) -> bool:
    """Whether only the ON of its join uses a table, and its removal may change the result."""
    sources = select.sources
    joined = sources[at or 1] if len(sources) > 1 else None
    if joined is None or (at == 0 and len(sources) > 2) or is_starred(query, select):
        return False
    if any(query.tokens[i].text in OUTER for i in range(joined.first, joined.item)):
        return False
    if is_lookup(query, select, sources[at], joined.on, schema):
        return False
    for reference in (r for inner in query.selects for r in query.references(inner)):
        if reference.first in joined.on:
            continue
        if reference.qualifier is None and schema is None:
            return False
        resolved = query.resolve(reference, schema) if schema else None
        if resolved:
            if resolved[0] is sources[at]:
                return False
        elif reference.qualifier == sources[at].alias:
            return False
    return True


def is_starred(query: Query, select: Select) -> bool:
    """Whether a SELECT has ``*`` or ``table.*`` among its columns."""
    span = select.clause("select")
    return any(item and query.tokens[item.stop - 1].text == "*" for item in query.items(span))


def is_lookup(
    query: Query, select: Select, source: Source, on: range, schema: Schema | None
) -> bool:
    """Whether a join only looks up, for each row, the row that its foreign key refers to."""
    columns = []
    for reference in query.references(select) if schema else ():
        if reference.first in on:
            columns.append(query.resolve(reference, schema))
    if len(columns) != 2 or None in columns:
        return False
    columns.sort(key=lambda resolved: resolved[0] is source)
    (_, child, column), (parent_source, parent, key) = columns
    return parent_source is source and any(
        (k.column, k.table, k.to_column) == (column.name, parent.name, key.name)
        for k in child.foreign_keys
    )


def keeps_unmatched(query: Query, select: Select, source: Source, schema: Schema | None) -> bool:
    """Whether a LEFT JOIN can add rows that pass WHERE and the other joins."""
    if is_lookup(query, select, source, source.on, schema):
        return False
    other_joins = {i for other in select.sources if other is not source for i in other.on}
    for reference in query.references(select) if schema else ():
        if reference.first in other_joins or reference.first in select.clause("where"):
            resolved = query.resolve(reference, schema)
            if resolved and resolved[0] is source:
                return False
    return True
