"""A parser for the part of SQL's grammar that mutants, rewrites and test suites need.

``parse`` finds every SELECT of a text, nested ones included, with the spans of its clauses and the
tables in its FROM. ``Query`` gives access to conditions, column references and literals. Positions
are token indices, and ``Query.edited`` replaces whole tokens, so that no edit changes the inside of
a string or a name. The parser is lenient: it skips what it does not understand. SQLite decides what
is valid SQL.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlenv.schema import Column, Schema, Table
from sqlenv.text import ASCII_LOWER, KEYWORDS, tokenize

CLAUSES = {"from": 1, "where": 1, "group": 2, "having": 1, "window": 1, "order": 2, "limit": 1}
SET_OPERATORS = ("union", "intersect", "except")
JOIN_WORDS = frozenset("natural left right full outer inner cross join".split())
COMPARISONS = frozenset(("=", "==", "!=", "<>", "<", "<=", ">", ">="))
AGGREGATES = ("count", "sum", "avg", "min", "max")
QUERY_STARTS = ("select", "values", "with")  # after a parenthesis
VALUE_FOLLOWS = COMPARISONS | {"like", "glob", "between", "and", "(", ","}


class Token(NamedTuple):
    """A token of the text ``sql[start:end]``."""

    kind: str  # keyword, name, quoted, string, number or mark
    text: str  # lower case (A to Z) for keywords and names, as written for the others
    start: int
    end: int


class Edit(NamedTuple):
    """The replacement of tokens ``first`` to ``last`` (exclusive) by a text."""

    first: int
    last: int
    text: str


@dataclass
class Source:
    """A table or subquery of a FROM: tokens ``first`` to ``last`` with its JOIN and ON."""

    first: int
    item: int  # the token of the table's name or of the subquery's parenthesis
    last: int
    table: str | None  # lower case; None for a subquery
    alias: str  # lower case; the table's name if it has no alias
    on: range  # the condition; empty if there is none


@dataclass(eq=False)
class Select:
    """A SELECT: tokens ``start`` to ``end``.

    Attributes:
        parent: the enclosing SELECT.
        opener: the token before its parenthesis ("in", "exists", "=", …); "" at the top level.
        compound: whether it is an operand of UNION, INTERSECT or EXCEPT.
        clauses: the span of each clause, without its keyword.
        sources: the tables and subqueries of its FROM. One without a table may also be several
            tables in parentheses, as in FROM a JOIN (b JOIN c).
        grouped: the tables and subqueries in such parentheses.
    """

    start: int
    parent: "Select | None"
    opener: str
    end: int = 0
    compound: bool = False
    clauses: dict[str, range] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    grouped: list[Source] = field(default_factory=list)

    def all_sources(self) -> list[Source]:
        """Those of FROM itself, and those in parentheses there."""
        return self.sources + self.grouped

    def clause(self, name: str) -> range:
        """The span of a clause; empty if the SELECT does not have it."""
        return self.clauses.get(name, range(0))

    def conditions(self) -> Iterator[range]:
        """Yields the spans of WHERE, HAVING and each ON."""
        yield from (self.clauses[name] for name in ("where", "having") if name in self.clauses)
        yield from (source.on for source in self.sources if source.on)


class Reference(NamedTuple):
    """A column name in a query: tokens ``first`` to ``last`` (exclusive)."""

    first: int
    last: int
    qualifier: str | None
    column: str  # lower case
    select: Select


@dataclass
class Query:
    """A parsed query."""

    sql: str
    tokens: list[Token]
    closing: dict[int, int]  # index of an opening parenthesis -> index of the closing one
    selects: list[Select]  # in the order of their SELECT
    select_of: list[Select | None]  # the innermost SELECT around each token
    set_operators: list[range]  # UNION, UNION ALL, INTERSECT, EXCEPT

    def text(self, first: int, last: int) -> str:
        """The text of tokens ``first`` to ``last`` (exclusive)."""
        tokens = self.tokens[first:last]
        return self.sql[tokens[0].start : tokens[-1].end] if tokens else ""

    def edited(self, edits: Iterable[Edit]) -> str:
        """The text of the query after the edits, whose spans must not overlap."""
        sql = self.sql
        for first, last, text in sorted(edits, reverse=True):
            at_end = first >= len(self.tokens)
            start = self.tokens[-1].end if at_end else self.tokens[first].start
            end = self.tokens[:last][-1].end if last > first else start
            sql = sql[:start] + text + sql[end:]
        return sql.strip()

    def references(self, select: Select) -> Iterator[Reference]:
        """Yields the names in a SELECT that may be columns, without those in its subqueries."""
        sources = select.clause("from")
        conditions = {i for source in select.sources for i in source.on}
        for i in range(select.start + 1, select.end):
            token = self.tokens[i]
            before, after = self.tokens[i - 1].text, self.next_text(i)
            is_name = token.kind in ("name", "quoted") or before == "."
            if self.select_of[i] is not select or not is_name or after in (".", "("):
                continue
            if before == "as" or (i in sources and i not in conditions):
                continue
            qualified = before == "."
            qualifier = name_of(self.tokens[i - 2]) if qualified else None
            yield Reference(i - 2 if qualified else i, i + 1, qualifier, name_of(token), select)

    def resolve(self, reference: Reference, schema: Schema) -> tuple[Source, Table, Column] | None:
        """The source, table and column that a reference names; None if no table in scope has it."""
        select = reference.select
        while select is not None:
            for source in select.sources:
                if reference.qualifier in (None, source.alias):
                    match = find_column(schema, source.table, reference.column)
                    if match:
                        return source, *match
            select = select.parent
        return None

    def literals(self, span: range, select: Select, schema: Schema | None = None) -> Iterator[int]:
        """Yields the tokens of a span that are literals, without those in subqueries.

        SQLite reads "France" in double quotes as a string if no column has that name. Without a
        schema it counts as a string where a value is expected, as after an operator.
        """
        columns = {
            reference.last - 1
            for reference in self.references(select)
            if schema and self.resolve(reference, schema)
        }
        for i in span:
            token = self.tokens[i]
            if self.select_of[i] is not select:
                continue
            if token.kind in ("string", "number"):
                yield i
            elif token.kind == "quoted" and token.text[0] == '"' and i not in columns:
                is_name = self.next_text(i) == "." or self.tokens[i - 1].text in (".", "as")
                if not is_name and (schema or self.tokens[i - 1].text in VALUE_FOLLOWS):
                    yield i

    def next_text(self, index: int) -> str:
        """The text of the token after this one; "" at the end."""
        return self.tokens[index + 1].text if index + 1 < len(self.tokens) else ""

    def aggregates(self) -> Iterator[tuple[int, str]]:
        """Yields the position and the name of each aggregate function."""
        for i, token in enumerate(self.tokens):
            if token.text in AGGREGATES and i + 1 in self.closing:
                arguments = range(i + 2, self.closing[i + 1])
                if arguments and len(self.items(arguments)) == 1:  # min(a, b) is not an aggregate
                    yield i, token.text

    def split(self, span: range) -> tuple[list[range], list[int]]:
        """The operands of a condition's ANDs and ORs, and the positions of these."""
        parts, connectors, start, i = [], [], span.start, span.start
        between = case = 0
        while i < span.stop:
            text = self.tokens[i].text if self.tokens[i].kind in ("keyword", "mark") else ""
            case = max(case + (text == "case") - (text == "end"), 0)  # "end" may be an alias
            between += text == "between"
            if text == "and" and between:
                between -= 1
            elif text in ("and", "or") and not case:
                parts.append(range(start, i))
                connectors.append(i)
                start = i + 1
            i = self.closing.get(i, i) + 1
        return [*parts, range(start, span.stop)], connectors

    def parenthesized(self, span: range) -> range | None:
        """The inside of a condition of the form (…) or NOT (…); None for any other."""
        start = span.start + (bool(span) and self.tokens[span.start].text == "not")
        is_whole = self.closing.get(start) == span.stop - 1 and self.next_text(start) != "select"
        return range(start + 1, span.stop - 1) if is_whole else None

    def levels(self, span: range) -> Iterator[tuple[list[range], list[int]]]:
        """Yields ``split`` of a condition, then of each condition in parentheses inside it."""
        parts, connectors = self.split(span)
        yield parts, connectors
        for part in parts:
            inner = self.parenthesized(part)
            if inner:
                yield from self.levels(inner)

    def leaves(self, span: range) -> Iterator[range]:
        """Yields the conditions that contain no further AND or OR."""
        for parts, _ in self.levels(span):
            yield from (part for part in parts if part and self.parenthesized(part) is None)

    def items(self, span: range) -> list[range]:
        """The items of a comma-separated list."""
        items, start, i = [], span.start, span.start
        while i < span.stop:
            if self.tokens[i].text == ",":
                items.append(range(start, i))
                start = i + 1
            i = self.closing.get(i, i) + 1
        return [*items, range(start, span.stop)]


def parse(sql: str) -> Query:
    """Parses a query. Text that is not a query gives the parts that look like one."""
    tokens = read_tokens(sql)
    closing = match_parentheses(tokens)
    query = Query(sql, tokens, closing, [], [], [])
    # For each open parenthesis the SELECT in it and the token before it.
    frames: list[list] = [[None, ""]]
    for i, token in enumerate(tokens):
        enclosing = next((frame[0] for frame in reversed(frames) if frame[0]), None)
        query.select_of.append(enclosing)
        current = frames[-1][0]
        if i in closing:
            frames.append([None, tokens[i - 1].text if i else ""])
        elif token.text == ")" and token.kind == "mark" and len(frames) > 1:
            finish(frames.pop()[0], i)
        elif token.kind == "keyword" and token.text == "select":
            outer = next((frame[0] for frame in reversed(frames[:-1]) if frame[0]), None)
            select = Select(i, outer, frames[-1][1])
            select.compound = bool(query.set_operators) and i == query.set_operators[-1].stop
            select.clauses["select"] = range(i + 1, i + 1)
            frames[-1][0] = query.select_of[i] = select
            query.selects.append(select)
        elif current and (token.kind == "keyword" or is_window_clause(tokens, i)):
            if token.text in SET_OPERATORS:
                finish(current, i)
                current.compound, frames[-1][0] = True, None
                both = i + 1 < len(tokens) and tokens[i + 1].text == "all"
                query.set_operators.append(range(i, i + 1 + both))
            elif token.text in CLAUSES and not is_distinct_from(tokens, i):
                close_clause(current, i)
                start = i + CLAUSES[token.text]
                current.clauses[token.text] = range(start, start)
    for select, _ in frames:
        finish(select, len(tokens))
    for select in query.selects:
        select.sources = list(read_sources(query, select.clause("from")))
        select.grouped = list(read_grouped(query, select.sources))
    return query


def read_tokens(sql: str) -> list[Token]:
    """The tokens without spaces, comments and trailing semicolons."""
    tokens = []
    for match in tokenize(sql):
        kind, text = match.lastgroup, match.group()
        if kind in ("space", "comment"):
            continue
        if kind == "word":
            text = text.translate(ASCII_LOWER)
            # After a dot a keyword is a name.
            is_keyword = text in KEYWORDS and not (tokens and tokens[-1].text == ".")
            kind = "keyword" if is_keyword else "name"
        tokens.append(Token(kind, text, match.start(), match.end()))
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    return tokens


def match_parentheses(tokens: list[Token]) -> dict[int, int]:
    """{index of an opening parenthesis: index of the closing one}"""
    closing, opened = {}, []
    for i, token in enumerate(tokens):
        if token.kind == "mark" and token.text == "(":
            opened.append(i)
        elif token.kind == "mark" and token.text == ")" and opened:
            closing[opened.pop()] = i
    return closing


def is_distinct_from(tokens: list[Token], i: int) -> bool:
    """Whether token ``i`` is the FROM of IS [NOT] DISTINCT FROM."""
    words = [token.text for token in tokens[max(i - 2, 0) : i]]
    return tokens[i].text == "from" and words in (["is", "distinct"], ["not", "distinct"])


def is_window_clause(tokens: list[Token], i: int) -> bool:
    """Whether a token is the WINDOW of WINDOW w AS (…); elsewhere this word is a name."""
    texts = [token.text for token in tokens[i : i + 4]]
    return texts[:1] == ["window"] and texts[2:] == ["as", "("]


def close_clause(select: Select, end: int) -> None:
    """Ends the current clause of a SELECT before token ``end``."""
    name, span = list(select.clauses.items())[-1]
    select.clauses[name] = range(min(span.start, end), end)


def finish(select: Select | None, end: int) -> None:
    """Ends a SELECT before token ``end``."""
    if select:
        close_clause(select, end)
        select.end = end


def read_sources(query: Query, span: range) -> Iterator[Source]:
    """Yields the tables and subqueries of a FROM, from left to right."""
    tokens, i = query.tokens, span.start
    while i < span.stop:
        first = i
        if i > span.start:
            i = after_join_words(query, span, i)
        if i == span.stop:
            return
        item, table = i, None
        i = query.closing.get(i, i)
        if i == item:
            if query.next_text(i) == "." and i + 2 < span.stop:  # main.singer
                i += 2
            table = name_of(tokens[i])
        i += 1
        alias = table or ""
        has_as = i < span.stop and tokens[i].text == "as"
        i += has_as
        if i < span.stop and is_alias(tokens[i], has_as):
            alias, i = name_of(tokens[i]), i + 1
        start = i
        while i < span.stop and not is_join_word(query, i):
            i = query.closing.get(i, i) + 1
        has_on = start < i and tokens[start].text == "on"
        yield Source(first, item, i, table, alias, range(start + 1, i) if has_on else range(0))


def read_grouped(query: Query, sources: list[Source]) -> Iterator[Source]:
    """Yields the tables and subqueries in the parentheses of a FROM that hold no subquery."""
    pending = list(sources)
    while pending:  # no recursion: a text may have any number of parentheses
        item = pending.pop().item
        if item in query.closing and query.next_text(item) not in QUERY_STARTS:
            inner = list(read_sources(query, range(item + 1, query.closing[item])))
            pending += inner
            yield from inner


def after_join_words(query: Query, span: range, i: int) -> int:
    """The position after JOIN and the words before it, or after a comma."""
    while i < span.stop and is_join_word(query, i):
        i += 1
        if query.tokens[i - 1].text in ("join", ","):
            break  # what follows is a table, even if it is called "left"
    return i


def is_join_word(query: Query, i: int) -> bool:
    """Whether token ``i`` is a comma or a word of a join. In a.left and left.a it is a name."""
    token = query.tokens[i]
    is_word = token.kind == "keyword" and token.text in JOIN_WORDS and query.next_text(i) != "."
    return is_word or token.text == ","


def is_alias(token: Token, has_as: bool) -> bool:
    """Whether a token after a table, and perhaps AS, is its alias."""
    return token.kind in ("name", "quoted", "string") or (has_as and token.kind == "keyword")


def name_of(token: Token) -> str:
    """The name in a token, unquoted and in lower case."""
    text = token.text
    if token.kind in ("quoted", "string") and len(text) > 1:
        quote = text[0]
        text = text[1:-1] if quote == "[" else text[1:-1].replace(quote * 2, quote)
    return text.translate(ASCII_LOWER)


def find_table(schema: Schema, name: str | None) -> Table | None:
    """The table with this name, given in lower case."""
    return next((t for t in schema.tables if t.name.translate(ASCII_LOWER) == name), None)


def find_column(schema: Schema, table: str | None, column: str) -> tuple[Table, Column] | None:
    """The table and column with these names, given in lower case."""
    owner = find_table(schema, table)
    if owner is None:
        return None
    return next(
        ((owner, c) for c in owner.columns if c.name.translate(ASCII_LOWER) == column), None
    )
