"""The normalised text of a query, which is all that the encoder reads of it.

An alias has no meaning, and a policy is free to choose it: "number_of_singers" would raise the
score of any query for a question with these words. So aliases are normalised:

- result columns lose theirs, or become c1, c2, … where something refers to them;
- tables with an alias become t1, t2, …, and those of WITH w1, w2, ….

Comments, letter case and spacing are removed as well. So is quoted text that is longer than any
name or value people ask for, and a string that is compared with no column, such as a copy of the
question. The text need not be SQL that runs; it must be equal for equal queries.
"""

import re

from sqlenv.query import Edit, Query, Token, name_of, parse
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER, KEYWORDS, canonical_sql

MAX_LENGTH = 20_000  # characters of a query that are read
MAX_DEPTH = 50  # of nested parentheses
MAX_QUOTED = 48  # bytes of a quoted text; the longest in Spider's 8,000 gold queries has 39
PLAIN = re.compile(r"[^\W\d]\w*")
NAMES = ("name", "quoted")
QUOTED = ("string", "quoted")


def sql_text(sql: str, schema: Schema | None = None) -> str:
    """Returns the normalised text of a query; any string is accepted.

    With a schema, the tables that the query names are appended in the schema's order, with their
    columns, so that the encoder sees the columns that the query could have used.

    >>> sql_text('SELECT s.name AS "oldest of all" FROM "singer" s ORDER BY s.age -- oldest')
    'SELECT t1.name FROM singer AS t1 ORDER BY t1.age'
    >>> sql_text("SELECT city, count(*) AS n FROM singer GROUP BY city HAVING n > 2 ORDER BY n")
    'SELECT city, count(*) AS c1 FROM singer GROUP BY city HAVING c1 > 2 ORDER BY c1'
    >>> sql_text("SELECT 'How many?' FROM singer WHERE name = 'Ann' OR 'How many?' = 'How many?'")
    "SELECT '…' FROM singer WHERE name = 'Ann' OR '…' = '…'"
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
    """Renames every alias where it is defined and used, or drops it if it is never used."""
    tokens, edit_at = query.tokens, {}
    tables, columns = {}, {}  # new names by old name
    for number, place in enumerate(with_tables(query)):
        tables[name_of(tokens[place])] = f"w{number + 1}"
    items = {source.item for select in query.selects for source in select.sources}
    defined = dict.fromkeys(table_aliases(query), "t") | dict.fromkeys(column_aliases(query), "c")
    is_name = [token.kind in NAMES and tokens[i - 1].text != "." for i, token in enumerate(tokens)]
    used = {name_of(t) for i, t in enumerate(tokens) if is_name[i] and i not in defined}
    idle = idle_strings(query)
    for place, letter in sorted(defined.items()):
        name, new_names = name_of(tokens[place]), tables if letter == "t" else columns
        if letter == "t" or name in used:
            new = f"AS {new_names.setdefault(name, f'{letter}{len(new_names) + 1}')}"
        else:
            new = ""
        first = place - (tokens[place - 1].text == "as")
        edit_at[first] = Edit(first, place + 1, new)
    for i, token in enumerate(tokens):
        is_table = i in items or query.next_text(i) in (".", "as")
        new = (tables if is_table else columns).get(name_of(token)) if is_name[i] else None
        if i in defined:
            continue
        if new or (is_name[i] and is_needlessly_quoted(token, is_table)):
            edit_at[i] = Edit(i, i + 1, new or name_of(token))
        elif i in idle or (token.kind in QUOTED and len(token.text.encode()) > MAX_QUOTED):
            edit_at[i] = Edit(i, i + 1, "'…'")
    return list(edit_at.values())


def idle_strings(query: Query) -> set[int]:
    """Indices of strings in a result column or a condition that names no column."""
    spans = [item for select in query.selects for item in query.items(select.clause("select"))]
    for select in query.selects:
        spans += [leaf for condition in select.conditions() for leaf in query.leaves(condition)]
    idle = [
        span
        for span in spans
        if not any(query.tokens[i].kind in NAMES and query.next_text(i) != "(" for i in span)
    ]
    return {i for span in idle for i in span if query.tokens[i].kind == "string"}


def with_tables(query: Query) -> list[int]:
    """Token indices of the names of WITH's tables, where they are defined."""
    return [
        place - 2
        for place in query.closing
        if place > 1
        and query.tokens[place - 1].text == "as"
        and query.tokens[place - 2].kind in NAMES
        and query.next_text(place) in ("select", "values", "with")
    ]


def table_aliases(query: Query) -> list[int]:
    """Token indices of the aliases of tables and subqueries, where they are defined."""
    places = []
    for select in query.selects:
        for source in select.sources:
            after = query.closing.get(source.item, source.item) + 1
            while query.tokens[after : after + 1] and query.tokens[after].text == ".":
                after += 2
            after += after < source.last and query.tokens[after].text == "as"
            if after < source.last and query.tokens[after].kind in (*NAMES, "string"):
                places.append(after)
    return places


def column_aliases(query: Query) -> list[int]:
    """Token indices of the aliases of result columns, where they are defined."""
    places = []
    for select in query.selects:
        for item in query.items(select.clause("select")):
            last = item.stop - 1
            if len(item) < 2 or query.tokens[last].kind not in (*NAMES, "string"):
                continue
            before = query.tokens[last - 1]
            follows_value = before.kind in (*NAMES, "number", "string") or before.text == ")"
            if before.text == "as" or follows_value or before.text == "end":
                places.append(last)
    return places


def is_needlessly_quoted(token: Token, is_table: bool) -> bool:
    """Whether a name has quotes that it does not need.

    Double quotes may enclose a string, except where a table is named.
    """
    name = name_of(token)
    quoted = token.kind == "quoted" and (is_table or token.text[0] in "`[")
    return quoted and bool(PLAIN.fullmatch(name)) and name not in KEYWORDS


def is_too_deep(query: Query) -> bool:
    """Whether parentheses are nested more than `MAX_DEPTH` deep."""
    depth = deepest = 0
    for token in query.tokens:
        depth += (token.text == "(") - (token.text == ")")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
