"""Near misses that swap or drop what a query reads: other columns, other tables, other joins.

Most of them need a schema that says which columns there are. `mutants.py` has the other kinds.
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

ALTERNATIVES = 2  # other columns or tables tried for each one named
OUTER = ("left", "right", "full", "natural")
INSTEAD = {
    ">": (">=", "<"),
    ">=": (">", "<="),
    "<": ("<=", ">"),
    "<=": ("<", ">="),
    "=": ("!=",),
    "==": ("!=",),
    "!=": ("=",),
    "<>": ("=",),
}

Mutants = Iterator[Iterable[Edit]]


def family(column: Column) -> str:
    """number, time or text, by the declared type; SQLite's rules, and what people mean by them."""
    declared = column.type.upper()
    if any(word in declared for word in ("DATE", "TIME")):
        return "time"
    numbers = ("INT", "REAL", "FLOA", "DOUB", "NUM", "DEC", "BOOL")
    return "number" if any(word in declared for word in numbers) else "text"


def other_columns(query: Query, schema: Schema | None) -> Mutants:
    """Another column of the same table and family of types, once and wherever it is named."""
    yield from column_edits(query, schema, in_join=False)


def column_edits(query: Query, schema: Schema | None, in_join: bool) -> Mutants:
    counted = {i + 2 for i, name in query.aggregates() if name == "count"}
    for select in query.selects if schema else ():
        on = {i for source in select.sources for i in source.on}
        places: dict[tuple, list[Reference]] = {}
        for reference in query.references(select):
            resolved = query.resolve(reference, schema)
            # count(a) and count(b) differ in NULLs only, which is not what anyone confuses.
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
    return Edit(reference.last - 1, reference.last, quote_name(column.name))


def is_unambiguous(column: Column, own: Source, select: Select, schema: Schema) -> bool:
    """Whether a column may stand without its table's name."""
    name = column.name.translate(ASCII_LOWER)
    others = [source.table for source in select.sources if source is not own]
    return not any(find_column(schema, table, name) for table in others)


def alternatives(source: Source, table: Table, column: Column) -> list[Column]:
    """The next columns of the same family, going round."""
    at = table.columns.index(column)
    others = table.columns[at + 1 :] + table.columns[:at]
    return [other for other in others if family(other) == family(column)][:ALTERNATIVES]


def other_tables(query: Query, schema: Schema | None) -> Mutants:
    """Another table that has the columns in use."""
    used = used_columns(query, schema) if schema else []
    for select in query.selects if schema else ():
        names = [source.table for source in select.sources]
        for source in select.sources:
            table = find_table(schema, source.table)
            if not table:
                continue
            at = schema.tables.index(table)
            references = [reference for reference, found in used if found is source]
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
                # The table's own name may stand before its columns, too.
                named = [r.first for r in references if r.qualifier == source.table]
                places = [source.item, *named] if source.alias == source.table else [source.item]
                yield [Edit(place, place + 1, name) for place in places]


def name_of_table(table: Table) -> str:
    return table.name.translate(ASCII_LOWER)


def used_columns(query: Query, schema: Schema) -> list[tuple[Reference, Source]]:
    found = []
    for select in query.selects:
        for reference in query.references(select):
            resolved = query.resolve(reference, schema)
            if resolved:
                found.append((reference, resolved[0]))
    return found


def joins(query: Query, schema: Schema | None) -> Mutants:
    """A join dropped, made an outer or inner one, or its ON changed or dropped."""
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
                others = INSTEAD.get(query.tokens[i].text, ())
                yield from ([Edit(i, i + 1, other)] for other in others)
            if source.on:
                yield [Edit(source.on.start - 1, source.on.stop, "")]
    yield from column_edits(query, schema, in_join=True)


def drop_source(select: Select, at: int) -> list[Edit]:
    if at:
        return [Edit(select.sources[at].first, select.sources[at].last, "")]
    first, second = select.sources
    edits = [Edit(first.item, second.item, "")]
    return [*edits, Edit(second.on.start - 1, second.on.stop, "")] if second.on else edits


def is_droppable(query: Query, select: Select, at: int, schema: Schema | None) -> bool:
    """Whether nothing outside the join's ON names a source, and leaving it out may matter."""
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
    """Whether a SELECT asks for all columns, of one table or of all."""
    span = select.clause("select")
    return any(item and query.tokens[item.stop - 1].text == "*" for item in query.items(span))


def is_lookup(
    query: Query, select: Select, source: Source, on: range, schema: Schema | None
) -> bool:
    """Whether a join finds for each row the one row that its foreign key points to."""
    found = []
    for reference in query.references(select) if schema else ():
        if reference.first in on:
            found.append(query.resolve(reference, schema))
    if len(found) != 2 or None in found:
        return False
    found.sort(key=lambda resolved: resolved[0] is source)
    (_, child, column), (to, parent, key) = found
    return to is source and any(
        (k.column, k.table, k.to_column) == (column.name, parent.name, key.name)
        for k in child.foreign_keys
    )


def keeps_unmatched(query: Query, select: Select, source: Source, schema: Schema | None) -> bool:
    """Whether rows that a LEFT JOIN adds can exist, and pass WHERE and the other joins."""
    if is_lookup(query, select, source, source.on, schema):
        return False
    elsewhere = {i for other in select.sources if other is not source for i in other.on}
    for reference in query.references(select) if schema else ():
        if reference.first in elsewhere or reference.first in select.clause("where"):
            resolved = query.resolve(reference, schema)
            if resolved and resolved[0] is source:
                return False
    return True
