"""The one text by which the encoder knows a query, whatever names the query gives.

An alias means nothing, and a policy is free to choose it: "number_of_singers" pleases an encoder
that has read the question. So a table goes by its own name, or by t1, t2, … where the query reads
it twice, those of WITH by w1, w2, …; a column of the only table at hand needs no table before it;
result columns lose their alias, or are called c1, c2, … where something refers to them. Comments,
case and spaces go as well, and so does what is in quotes and longer than any name or value that
people ask for, such as a copy of the question. It need not be SQL that runs, only the same for the
same query.
"""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import count

from sqlenv.clauses import Edit, Query, Select, Source, Token, name_of, parse
from sqlenv.schema import Schema
from sqlenv.sql import ASCII_LOWER, KEYWORDS, canonical_sql

MAX_LENGTH = 20_000  # characters of a query that are read
MAX_DEPTH = 50  # parentheses in each other
MAX_QUOTED = 48  # bytes of what is in quotes; the longest in Spider's 8,000 gold queries has 39
PLAIN = re.compile(r"[^\W\d]\w*")
NAMES = ("name", "quoted")
ALIASES = (*NAMES, "string")


def sql_text(sql: str, schema: Schema | None = None) -> str:
    """Return the text of a query that the encoder reads; any string is accepted.

    With a schema, the tables that the query names follow, in the schema's order, so that the
    encoder sees which columns there were to choose from.

    >>> sql_text('SELECT s.name AS "oldest of all" FROM "singer" s ORDER BY s.age -- oldest')
    'SELECT name FROM singer ORDER BY age'
    >>> sql_text("SELECT city, count(*) AS n FROM singer GROUP BY city HAVING n > 2 ORDER BY n")
    'SELECT city, count(*) AS c1 FROM singer GROUP BY city HAVING c1 > 2 ORDER BY c1'
    """
    sql = sql[:MAX_LENGTH].encode(errors="replace").decode()  # no lone surrogates
    query = parse(canonical_sql(sql))
    if is_too_deep(query):
        return query.sql
    text = canonical_sql(query.edited(edits(query)))
    named = {source.table for select in query.selects for source in select.sources}
    tables = [t for t in schema.tables if t.name.translate(ASCII_LOWER) in named] if schema else []
    listed = [f"{t.name}({', '.join(column.name for column in t.columns)})" for t in tables]
    return " | ".join([text, ", ".join(listed).translate(ASCII_LOWER)]) if listed else text


def edits(query: Query) -> list[Edit]:
    """The changes of tokens that give a query's text."""
    found = [*table_edits(query), *column_edits(query)]
    done = {i for edit in found for i in range(edit.first, edit.last)}
    for i, token in enumerate(query.tokens):
        if token.kind in ("string", "quoted") and i not in done:
            text = plain_name(token, is_name="." in (query.tokens[i - 1].text, query.next_text(i)))
            long = text == token.text and len(text.encode()) > MAX_QUOTED
            found.append(Edit(i, i + 1, "'…'" if long else text))
    return found


def table_edits(query: Query) -> Iterator[Edit]:
    """A table is known by its own name, or as t1, t2, … where that would name two in reach.

    Columns of the only table of their SELECT need no name of a table before them.
    """
    tokens = query.tokens
    new = {}
    for number, place in enumerate(with_tables(query), start=1):
        new[name_of(tokens[place])] = f"w{number}"
        yield Edit(place, place + 1, f"w{number}")
    uses = dict(qualifiers(query))
    twice = named_twice(query)
    needed = {id(source) for i, source in uses.items() if not is_alone(query.owners[i], source)}
    called, numbers = {}, count(1)
    for select in query.selects:
        for source in select.sources:
            place, end = table_place(query, source), alias_end(query, source)
            name = new.get(source.table, plain_name(tokens[place])) if source.table else ""
            called[id(source)] = name
            if id(source) in needed and (not name or (id(select), source.table) in twice):
                called[id(source)] = f"t{next(numbers)}"
                name = f"{name} AS {called[id(source)]}".strip()
            if place < end:
                yield Edit(place, end, name)
    for i, source in uses.items():
        if is_alone(query.owners[i], source):
            yield Edit(i, i + 2, "")
        else:
            yield Edit(i, i + 1, called[id(source)])


def is_alone(select: Select, source: Source) -> bool:
    return len(select.sources) == 1 and select.sources[0] is source


def qualifiers(query: Query) -> Iterator[tuple[int, Source]]:
    """Where a table is named before a column, and which of those in reach it is."""
    in_reach = {id(s): {source.alias: source for source in s.sources} for s in query.selects}
    items = {source.item for select in query.selects for source in select.sources}
    for i, token in enumerate(query.tokens):
        select = query.owners[i]
        follows_dot = query.tokens[i - 1].text == "."
        if token.kind not in NAMES or query.next_text(i) != "." or follows_dot or i in items:
            continue
        while select and name_of(token) not in in_reach[id(select)]:
            select = select.parent
        if select:
            yield i, in_reach[id(select)][name_of(token)]


def named_twice(query: Query) -> set[tuple[int, str | None]]:
    """(id of a SELECT, table): tables that it, or one around or inside it, names once more."""
    tables = {id(s): Counter(source.table for source in s.sources) for s in query.selects}
    found = {(s, table) for s, counts in tables.items() for table in counts if counts[table] > 1}
    for select in query.selects:
        around = select.parent
        while around:
            both = tables[id(select)].keys() & tables[id(around)].keys()
            found |= {(id(s), table) for s in (select, around) for table in both}
            around = around.parent
    return found


def table_place(query: Query, source: Source) -> int:
    """Where its name stands; for a subquery where it has ended."""
    place = query.closing.get(source.item, source.item - 1) + 1
    while query.next_text(place) == "." and place + 2 < source.last:  # main.singer
        place += 2
    return place


def alias_end(query: Query, source: Source) -> int:
    """Where its name, and the alias if it has one, have ended."""
    end = table_place(query, source) + (source.table is not None)
    alias = end + (end < source.last and query.tokens[end].text == "as")
    return alias + 1 if alias < source.last and query.tokens[alias].kind in ALIASES else end


def column_edits(query: Query) -> Iterator[Edit]:
    """A result column is called c1, c2, … where something refers to it, and has no alias else."""
    tokens, known = query.tokens, {}
    given, made = column_aliases(query), with_tables(query)
    named = {None, *(name_of(tokens[i]) for i in made)}  # tables that the query itself makes
    derived = {i + 2 for i, source in qualifiers(query) if source.table in named}
    sources = [source for select in query.selects for source in select.sources]
    others = {i for s in sources for i in range(table_place(query, s), alias_end(query, s))}
    others.update(given, made)
    uses = [
        i
        for i, token in enumerate(tokens)
        if token.kind in NAMES and i not in others and query.next_text(i) != "."
        if tokens[i - 1].text != "." or i in derived
    ]
    used = {name_of(tokens[i]) for i in uses}
    for place in given:
        name = name_of(tokens[place])
        first = place - (tokens[place - 1].text == "as")
        if name in used:
            known.setdefault(name, f"c{len(known) + 1}")
        yield Edit(first, place + 1, f"AS {known[name]}" if name in used else "")
    for i in uses:
        if name_of(tokens[i]) in known:
            yield Edit(i, i + 1, known[name_of(tokens[i])])


def with_tables(query: Query) -> list[int]:
    """Where the tables of WITH get their names."""
    return [
        place - 2
        for place in query.closing
        if place > 1
        and query.tokens[place - 1].text == "as"
        and query.tokens[place - 2].kind in NAMES
        and query.next_text(place) in ("select", "values", "with")
    ]


def column_aliases(query: Query) -> list[int]:
    """Where the aliases of result columns stand."""
    found = []
    for select in query.selects:
        for item in query.items(select.clause("select")):
            last = item.stop - 1
            if len(item) < 2 or query.tokens[last].kind not in ALIASES:
                continue
            before = query.tokens[last - 1]
            follows_value = before.kind in (*NAMES, "number", "string") or before.text == ")"
            if before.text == "as" or follows_value or before.text == "end":
                found.append(last)
    return found


def plain_name(token: Token, is_name: bool = True) -> str:
    """The text of a name, without quotes that it does not need.

    Double quotes may also be those of a string, but not where only a name can stand.
    """
    name = name_of(token)
    quoted = token.kind == "quoted" and (is_name or token.text[0] in "`[")
    return name if quoted and PLAIN.fullmatch(name) and name not in KEYWORDS else token.text


def is_too_deep(query: Query) -> bool:
    depth = deepest = 0
    for token in query.tokens:
        depth += (token.text == "(") - (token.text == ")")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
