"""Where a query follows the keys of the database, which a question never names.

Along the only foreign key between two tables, `t1.id = t2.singer_id` says no more than `t1 = t2`,
`singer.id IN (SELECT singer_id FROM concert)` no more than `singer IN (SELECT concert FROM
concert)`, and if `id` is the primary key, `GROUP BY t1.id` no more than `GROUP BY t1`. The encoder
reads the short form: a join along other columns is then easy to tell from the right one.
"""

from collections.abc import Iterator
from typing import NamedTuple

from encoder.aliases import Aliases
from sqlenv.query import Select, Source, find_table
from sqlenv.schema import Schema, Table
from sqlenv.text import ASCII_LOWER

BEFORE_OPERAND = ("where", "having", "on", "and", "or", "not", "(")


class KeyUse(NamedTuple):
    """Tokens that stand for tables alone.

    Attributes:
        tables: the tokens that name them, in the order in which FROM does.
    """

    span: range
    tables: tuple[int, ...]


class Column(NamedTuple):
    """A column in a query: its tokens, a token that names its table, and where FROM has this."""

    span: range
    name: str
    table_at: int
    source_at: int
    table: Table


def key_uses(aliases: Aliases, schema: Schema) -> Iterator[KeyUse]:
    """Yields the conditions along foreign keys, and the primary keys that a query groups by."""
    columns = Columns(aliases, schema)
    for select in aliases.query.selects:
        yield from joins(columns, select)
        yield from memberships(columns, select)
        for item in aliases.query.items(select.clause("group")):
            column = columns.at(select, item)
            if column and [column.name] == primary_key(column.table):
                yield KeyUse(item, (column.table_at,))


class Columns:
    """Finds what the columns of a query are."""

    def __init__(self, aliases: Aliases, schema: Schema):
        self.aliases, self.schema, self.query = aliases, schema, aliases.query
        self.defined = aliases.names(aliases.defined)

    def at(self, select: Select, span: range) -> Column | None:
        """The column that is all of a span: table.column, or column if FROM has one table alone."""
        tokens, own = self.query.tokens, select.all_sources()
        if len(span) == 3 and tokens[span.start + 1].text == ".":
            place = span.start
            source = visible_source(select, self.aliases.name(place))
        elif len(span) == 1 and span.start in self.aliases.columns and len(own) == 1:
            place, source = own[0].item, own[0]
            if source.alias != self.aliases.name(place):
                return None
        else:
            return None
        if source is None or source.table in self.defined:
            return None
        table = find_table(self.schema, source.table)
        name = self.aliases.name(span.stop - 1)
        return table and Column(span, name, place, source.item, table)


def visible_source(select: Select | None, alias: str) -> Source | None:
    """The table that a SELECT or one around it knows by this name."""
    while select:
        for source in select.all_sources():
            if source.alias == alias:
                return source
        select = select.parent
    return None


def joins(columns: Columns, select: Select) -> Iterator[KeyUse]:
    """Conditions of the form a.b = c.d."""
    query = columns.query
    for condition in (*select.conditions(), *(s.on for s in select.grouped if s.on)):
        for leaf in query.leaves(condition):
            if len(leaf) == 7 and query.tokens[leaf[3]].text in ("=", "=="):
                pair = columns.at(select, leaf[:3]), columns.at(select, leaf[4:])
                if is_key(*pair):
                    ordered = sorted((c.source_at, c.table_at) for c in pair if c)
                    yield KeyUse(leaf, tuple(at for _, at in ordered))


def memberships(columns: Columns, select: Select) -> Iterator[KeyUse]:
    """The columns of a IN (SELECT b …), if this SELECT is the one in parentheses."""
    tokens = columns.query.tokens
    stop = select.start - 2  # IN, or NOT IN
    if select.opener != "in" or select.compound or select.parent is None or stop < 0:
        return
    stop -= tokens[stop - 1].text == "not"
    start = stop - (3 if tokens[stop - 2].text == "." else 1)
    if start < 1 or tokens[start - 1].text not in BEFORE_OPERAND:
        return
    result = select.clause("select")
    if result and tokens[result.start].text == "distinct":
        result = result[1:]
    pair = columns.at(select.parent, range(start, stop)), columns.at(select, result)
    if is_key(*pair):
        yield from (KeyUse(column.span, (column.table_at,)) for column in pair if column)


def is_key(left: Column | None, right: Column | None) -> bool:
    """Whether two columns are those of the only foreign key between two different tables."""
    if left is None or right is None or left.table == right.table:
        return False
    pairs = {
        (k.column, k.to_column) for k in left.table.foreign_keys if k.table == right.table.name
    } | {(k.to_column, k.column) for k in right.table.foreign_keys if k.table == left.table.name}
    lower = [tuple(name and name.translate(ASCII_LOWER) for name in pair) for pair in pairs]
    return lower == [(left.name, right.name)]


def primary_key(table: Table) -> list[str]:
    return [c.name.translate(ASCII_LOWER) for c in table.columns if c.primary_key]
