"""Finds where a query uses keys of the database, whose columns a question rarely names.

Along the only foreign key between two tables, `t1.id = t2.singer_id` says no more than `t1 = t2`,
`singer.id IN (SELECT singer_id FROM concert)` no more than `singer IN (SELECT concert FROM
concert)`, and if `id` is the primary key, `GROUP BY t1.id` no more than `GROUP BY t1`. The encoder
reads the short form: a join along other columns is then easy to tell from the right one. Columns
of one key that differ in collation are shortened, too, although the order of = matters for them.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from encoder.aliases import Aliases
from sqlenv.query import Select, Source
from sqlenv.schema import Schema, Table
from sqlenv.text import ASCII_LOWER, KEYWORDS, WORD

NEW_NAME = re.compile(r"[twc]\d+")  # that an alias gets
PLAIN = re.compile(WORD)


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
    """Yields the conditions along foreign keys (of IN: the two columns), and the primary keys that
    a query groups by. No two of them overlap.
    """
    columns, query = Columns(aliases, schema), aliases.query
    for select in query.selects:
        for condition in (*select.conditions(), *(s.on for s in select.grouped if s.on)):
            for leaf in query.leaves(condition):
                if query.select_of[leaf.start] is select:  # not of a subquery in parentheses
                    yield from columns.join(select, leaf)
                    yield from columns.membership(select, leaf)
        for item in query.items(select.clause("group")):
            column = columns.at(select, item)
            if column and [column.name] == primary_key(column.table):
                yield KeyUse(item, (column.table_at,))


class Columns:
    """Finds what the columns of a query are."""

    def __init__(self, aliases: Aliases, schema: Schema):
        self.aliases, self.query = aliases, aliases.query
        self.starts = {select.start: select for select in self.query.selects}
        names = {c.name for t in (*schema.tables, *schema.views) for c in t.columns}
        self.column_names = {name.translate(ASCII_LOWER) for name in names}
        self.tables = {table.name.translate(ASCII_LOWER): table for table in schema.tables}
        known = self.column_names.union(self.tables)
        self.aliases_are_free = not any(map(NEW_NAME.fullmatch, known))
        for name in aliases.names(aliases.defined):
            self.tables.pop(name, None)

    def join(self, select: Select, leaf: range) -> Iterator[KeyUse]:
        """A condition of the form a.b = c.d."""
        if len(leaf) == 7 and self.query.tokens[leaf[3]].text in ("=", "=="):
            pair = self.at(select, leaf[:3]), self.at(select, leaf[4:])
            if is_key(*pair):
                ordered = sorted((c.source_at, c.table_at) for c in pair if c)
                yield KeyUse(leaf, tuple(at for _, at in ordered))

    def membership(self, select: Select, leaf: range) -> Iterator[KeyUse]:
        """The two columns of a condition of the form a IN (SELECT b …)."""
        tokens, closing = self.query.tokens, self.query.closing
        words = [tokens[i].text for i in leaf[:5]]  # a.b NOT IN (
        at = leaf.start + (words.index("in") if "in" in words else len(words))
        if closing.get(at + 1) != leaf.stop - 1 or at + 2 not in self.starts:
            return
        inner = self.starts[at + 2]
        operand = range(leaf.start, at - (words[at - leaf.start - 1] == "not"))
        pair = self.at(select, operand), self.at(inner, inner.clause("select"))
        if not inner.compound and is_key(*pair):
            yield from (KeyUse(column.span, (column.table_at,)) for column in pair if column)

    def at(self, select: Select, span: range) -> Column | None:
        """The column that is all of a span: table.column, or column if FROM has one table alone."""
        tokens, own = self.query.tokens, select.all_sources()
        if len(span) == 3 and tokens[span.start + 1].text == ".":
            place = span.start
            source = self.aliases.scopes.source_of(place)
        elif len(span) == 1 and span.start in self.aliases.columns and len(own) == 1:
            place, source = own[0].item, own[0]
            if source.alias != self.aliases.name(place):
                return None
        else:
            return None
        table = source and self.tables.get(source.table or "")
        if source is None or table is None or not self.can_stand_alone(place, source):
            return None
        return Column(span, self.aliases.name(span.stop - 1), place, source.item, table)

    def can_stand_alone(self, place: int, source: Source) -> bool:
        """Whether the name of a table can be nothing else: not a column, and not a string. Where it
        is an alias, its new name counts.
        """
        name = self.aliases.name(place)
        if source.item in self.aliases.aliased:
            return self.aliases_are_free
        is_string = self.query.tokens[place].kind == "string" or not PLAIN.fullmatch(name)
        return not is_string and name not in KEYWORDS and name not in self.column_names


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
