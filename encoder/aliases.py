"""The names that a query gives to tables, windows and results, and where it uses them."""

from collections.abc import Iterable, Iterator, Mapping

from sqlenv.query import QUERY_STARTS, Query, Select, Source, is_alias, name_of
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER

NAMES = ("name", "quoted", "string")  # SQLite accepts a string where only a name can stand
OPERATORS = frozenset(
    "all and between case collate distinct else escape from in is or then when".split()
)  # the words before an operand, but for those that may also be a name: LIKE, GLOB and OVER
KEY_ENDS = ("asc", "desc", "collate", "nulls", ",")  # what may follow a name that is a sort key


class Aliases:
    """The names in a query, as token indices.

    Args:
        schema: of the database. Without it, a name that may be a column or an alias is an alias.

    Attributes:
        tables: where WITH names a table, with the tokens of the table's query.
        listed: where WITH names a column, as in WITH t(a, b) AS.
        sources: where a table or a subquery of FROM gets an alias.
        aliased: the tables and subqueries that get one.
        results: where a result column gets one.
        windows: where a window is named.
        windows_at: the parentheses that open their definitions.
        defined: the names of all tables of WITH and windows.
        used_windows: where one is used.
        items: the tables of FROM, and after IN.
        types: the types in CAST, which may be any words.
        collations: the names after COLLATE, which may be any words where nothing is compared.
        qualifiers: names before a dot.
        of_aliases: those of `qualifiers` that are aliases or tables of WITH.
        scopes: which of these names a token sees.
        columns: all other names but those of functions.
        references: those of `columns` that are the alias of a result.
    """

    def __init__(self, query: Query, schema: Schema | None = None):
        self.query, tokens, bodies = query, query.tokens, dict(bodies_after_as(query))
        self.tables = {i: bodies[i] for i in tables_of_with(query, bodies)}
        lists = [range(i + 2, query.closing.get(i + 1, 0)) for i in self.tables]
        self.listed = {i for span in lists for i in span if tokens[i].kind in NAMES}
        aliases = dict(source_aliases(query))
        self.sources, self.aliased = set(aliases.values()), aliases.keys()
        self.results = set(result_aliases(query))
        self.items = {source.item for select in query.selects for source in select.all_sources()}
        self.types = set(cast_types(query))
        names = {i for i, token in enumerate(tokens) if token.kind in NAMES}
        # A name after IN is a table, too; so is a string.
        self.items |= {i for i in names if is_table_after_in(query, i)}
        self.windows = bodies.keys() - self.tables
        self.windows_at = {bodies[i].start for i in self.windows}
        self.defined = {*bodies}
        self.used_windows = {i for i in names if is_used_window(query, i)}
        self.collations = {i for i in range(1, len(tokens)) if tokens[i - 1].text == "collate"}
        # A table of WITH may be called "left".
        self.qualifiers = {i for i in range(len(tokens)) if query.next_text(i) == "."}
        strings = {i for i in names if tokens[i].kind == "string" and tokens[i - 1].text != "."}
        self.columns = {i for i in names - strings if query.next_text(i) not in (".", "(")}
        self.columns -= {*bodies, *self.listed, *self.sources, *self.results}
        self.columns -= self.items | self.types | self.collations | self.used_windows
        self.scopes = Scopes(self, columns_of_tables(schema) if schema else {})
        self.references = {i for i in self.columns if self.scopes.is_reference(i)}
        self.of_aliases = {i for i in self.qualifiers if self.scopes.is_of_alias(i)}

    def name(self, i: int) -> str:
        return name_of(self.query.tokens[i])

    def names(self, places: Iterable[int]) -> set[str]:
        return {self.name(i) for i in places}


class Scopes:
    """Where the aliases of tables and results can be used.

    Attributes:
        sources: the tables of each SELECT, by the name that it knows them by.
        own: the aliases of its results.
        used: the names that its results are made of: columns, even if they are aliases, too.
        tables: the tokens of its FROM, without its conditions.
        known: the columns of its tables, as far as the schema tells.
        sortable: the names that its ORDER BY looks for first.
        given: {alias: the names that this subquery or table of WITH gives to its columns}, and
            under None those of all.
    """

    def __init__(self, aliases: Aliases, columns: Mapping[str, set[str]]):
        self.query = query = aliases.query
        self.own, self.used, self.known = {}, {}, {}
        self.aliased, self.of_with = aliases.aliased, aliases.names(aliases.tables)
        self.tables = {select: tables_of_from(select) for select in query.selects}
        self.sources = {
            select: {source.alias: source for source in reversed(select.all_sources())}
            for select in query.selects
        }
        for select in query.selects:
            span = [i for i in select.clause("select") if query.select_of[i] is select]
            self.own[select] = aliases.names(aliases.results.intersection(span))
            self.used[select] = aliases.names(aliases.columns.intersection(span))
            tables = {source.table for source in select.all_sources()} - self.of_with
            self.known[select] = set().union(*(columns.get(table or "", ()) for table in tables))
        self.sortable = self._sortable()
        self.given = self._given(aliases)

    def _sortable(self) -> dict[Select, set[str]]:
        """The own aliases and, after UNION and the like, those of the operands before it."""
        names, query = dict(self.own), self.query
        starts = {select.start: select for select in query.selects}
        ends = {select.end: select for select in query.selects}
        for operator in query.set_operators:
            left, right = ends.get(operator.start), starts.get(operator.stop)
            if left and right:
                names[right] = names[left] | names[right]
        return names

    def _given(self, aliases: Aliases) -> dict[Select, dict[str | None, set[str]]]:
        query, tables = self.query, self.of_with
        inside = {i for body in aliases.tables.values() for i in body}
        of_tables = aliases.names(aliases.results & inside | aliases.listed)
        readers = [
            s.start for s in query.selects if any(f.table in tables for f in s.all_sources())
        ]
        given: dict[Select, dict[str | None, set[str]]] = {s: {None: set()} for s in query.selects}
        for select in query.selects:
            for source in select.all_sources():
                names = of_tables if source.table in tables else set()
                if source.table is None:
                    span = range(source.item, query.closing.get(source.item, source.item))
                    names = aliases.names(i for i in aliases.results if i in span)
                    if any(start in span for start in readers):
                        names |= of_tables
                given[select][source.alias] = names
                given[select][None] |= names
        return given

    def is_reference(self, i: int) -> bool:
        """Whether the name of a column is an alias. Where only a schema could tell, it is."""
        tokens, name = self.query.tokens, name_of(self.query.tokens[i])
        qualifier = name_of(tokens[i - 2]) if tokens[i - 1].text == "." else None
        for select, at in self._around(i):
            given = self.given[select]
            if qualifier is None:
                if self._is_sort_key(at, select) and name in self.sortable[select]:
                    return True
                if name in self.known[select]:
                    return False
                if name in given[None] or self._is_own(name, select, at):
                    return True
            elif qualifier in given:
                return name in given[qualifier]
        return False

    def is_of_alias(self, i: int) -> bool:
        """Whether a name before a dot is an alias or a table of WITH. It is not if it is known to
        be the name of a table without an alias.
        """
        source = self.source_of(i)
        return not source or source.item in self.aliased or source.table in self.of_with

    def source_of(self, i: int) -> Source | None:
        """The table or subquery whose name or alias token `i` is, before a dot."""
        name = name_of(self.query.tokens[i])
        for select, _ in self._around(i):
            if name in self.sources[select]:
                return self.sources[select][name]
        return None

    def _around(self, i: int) -> Iterator[tuple[Select, int]]:
        """The SELECTs whose names token `i` sees, each with the token itself or its subquery's."""
        select, at = self.query.select_of[i], i
        while select:
            if at == i or at not in self.tables[select]:  # tables of FROM do not see each other
                yield select, at
            select, at = select.parent, select.start

    def _is_sort_key(self, at: int, select: Select) -> bool:
        """Whether token `at` is a whole sort key of the SELECT."""
        query, order = self.query, select.clause("order")
        ends = at + 1 == order.stop or query.next_text(at) in KEY_ENDS
        return at in order and query.tokens[at - 1].text in ("by", ",") and ends

    def _is_own(self, name: str, select: Select, at: int) -> bool:
        """Whether a name at token `at`, or in the subquery there, is an alias of the SELECT, if it
        is no sort key.
        """
        if self._is_sort_key(at, select):
            return False
        hidden = at in select.clause("select") or at in self.tables[select]
        return not hidden and name in self.own[select] and name not in self.used[select]


def tables_of_from(select: Select) -> set[int]:
    """The tokens in the FROM of a SELECT, without its conditions."""
    return set(select.clause("from")).difference(*(source.on for source in select.all_sources()))


def bodies_after_as(query: Query) -> Iterator[tuple[int, range]]:
    """Names of WITH's tables and of windows, each with its definition, in parentheses after AS."""
    opening = {last: first for first, last in query.closing.items()}
    for first, last in query.closing.items():
        at = first - 1
        while at > 0 and query.tokens[at].text in ("not", "materialized"):
            at -= 1
        name = opening.get(at - 1, at) - 1  # before the list of columns, if there is one
        is_name = name >= 0 and query.tokens[name].kind in (*NAMES, "keyword")
        if is_name and query.tokens[at].text == "as":
            yield name, range(first, last)


def tables_of_with(query: Query, bodies: dict[int, range]) -> list[int]:
    """Those of the definitions that are tables of WITH; the others are windows."""
    return [i for i, body in bodies.items() if query.next_text(body.start) in QUERY_STARTS]


def is_table_after_in(query: Query, i: int) -> bool:
    """Whether a table or function is named here, as in a IN t and a IN main.t."""
    before = [token.text for token in query.tokens[max(i - 3, 0) : i]]
    return before[-1:] == ["in"] or (before[-1:] == ["."] and before[:1] == ["in"])


def is_used_window(query: Query, i: int) -> bool:
    """Whether a window is named here, as in OVER w, OVER (w …) and WINDOW v AS (w …)."""
    before = [token.text for token in query.tokens[max(i - 2, 0) : i]]
    return before[-1:] == ["over"] or before in (["over", "("], ["as", "("])


def columns_of_tables(schema: Schema) -> dict[str, set[str]]:
    """The columns of each table and view; all names in lower case."""
    return {
        table.name.translate(ASCII_LOWER): {c.name.translate(ASCII_LOWER) for c in table.columns}
        for table in (*schema.tables, *schema.views)
    }


def source_aliases(query: Query) -> Iterator[tuple[int, int]]:
    """The tables and subqueries that get an alias, and where it is."""
    tokens = query.tokens
    for select in query.selects:
        for source in select.all_sources():
            after = query.closing.get(source.item, source.item) + 1
            while tokens[after : after + 1] and tokens[after].text == ".":
                after += 2
            after = query.closing.get(after, after - 1) + 1  # the arguments of a function
            has_as = after < source.last and tokens[after].text == "as"
            after += has_as
            if after < source.last and is_alias(tokens[after], has_as):
                yield source.item, after


def result_aliases(query: Query) -> Iterator[int]:
    """The aliases of result columns, where they are defined."""
    for select in query.selects:
        for item in query.items(select.clause("select")):
            last = item.stop - 1
            has_as = len(item) > 1 and query.tokens[last - 1].text == "as"
            if is_alias(query.tokens[last], has_as) and (has_as or is_after_value(query, item)):
                yield last


def is_after_value(query: Query, item: range) -> bool:
    """Whether the last word of a result follows a whole expression, which makes it an alias."""
    is_whole, i = False, item.start
    while i < item.stop - 1:
        token, before = query.tokens[i], query.tokens[i - 1]
        word = token.text if token.kind == "keyword" else ""
        if i in query.closing:
            is_whole, i = True, query.closing[i]
        elif token.kind == "mark" or word in OPERATORS:
            is_whole = False
        elif word in ("like", "glob"):  # names where an operand stands
            is_whole = not is_whole
        elif word == "over":
            is_whole = before.text != ")"
        elif word != "not":  # NOT a, a NOT LIKE b and a NOT NULL
            is_whole = True
        i += 1
    return is_whole


def cast_types(query: Query) -> Iterator[int]:
    """The words of the types in CAST."""
    for first, last in query.closing.items():
        if query.tokens[first - 1].text == "cast":
            places = [i for i in range(first, last) if query.tokens[i].text == "as"]
            words = range(places[-1] + 1, last) if places else ()
            yield from (i for i in words if query.tokens[i].kind in NAMES)
