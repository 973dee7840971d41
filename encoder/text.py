"""The normalised text of a query, which is all that the encoder reads of it.

An alias has no meaning, and a policy is free to choose it: "number_of_singers" would raise the
score of any query for a question with these words. So aliases are normalised:

- result columns lose theirs, or become c1, c2, … where something refers to them;
- tables with an alias become t1, t2, …, and those of WITH, like windows, w1, w2, ….

With a schema, a condition along a foreign key names the two tables alone (`encoder/keys.py`).
Other forms that mean the same become that of gold (`encoder/plain.py`), and a string in double
quotes gets single ones. Comments, letter case and spacing are removed as well. So are tables of
WITH and windows that the result does not depend on, unusual words in the type of a CAST, quoted
text that is longer than any name or value people ask for, and a string in an expression without a
column, such as a copy of the question. With a schema, so are names that are not in the schema, the
query or SQLite. The text need not be SQL that runs; it must be equal for equal queries.
"""

import re
from collections.abc import Iterable

from encoder.aliases import Aliases
from encoder.idle import idle_words, names_in, quoted_strings, unknown_names
from encoder.keys import key_uses
from encoder.plain import is_table, plainly_written
from encoder.unused import without_unused
from sqlenv.query import Edit, Query, Token, name_of, parse
from sqlenv.schema import Schema
from sqlenv.text import ASCII_LOWER, KEYWORDS, WORD, canonical_sql, tokenize

MAX_LENGTH = 20_000  # characters of a query that is read
MAX_DEPTH = 50  # of nested parentheses
MAX_QUOTED = 48  # bytes of a quoted text; the longest in Spider's 8,000 gold queries has 39
PLAIN = re.compile(WORD)
QUOTED = ("string", "quoted")


def sql_text(sql: str, schema: Schema | None = None, *, with_schema: bool = True) -> str:
    """Returns the normalised text of a query, "" if it is too long or too deeply nested to be read.

    Any string is accepted.

    Args:
        schema: of the database. Without it, any word can be a name, also in double quotes.
        with_schema: with a schema, the tables that the query names are appended in the schema's
            order, with their columns, so that the encoder sees the columns that the query could
            have used.

    >>> sql_text('SELECT s.name AS "oldest of all" FROM "singer" s ORDER BY s.age -- oldest')
    'SELECT t1.name FROM singer AS t1 ORDER BY t1.age'
    >>> sql_text("SELECT city, count(*) AS n FROM singer GROUP BY city HAVING n > 2 ORDER BY n")
    'SELECT city, count(*) AS c1 FROM singer GROUP BY city HAVING c1 > 2 ORDER BY c1'
    >>> sql_text("SELECT 'How many?' FROM singer WHERE name = 'Ann' OR 'How many?' = 'How many?'")
    "SELECT '…' FROM singer WHERE name = 'Ann' OR '…' = '…'"
    """
    if len(sql) > MAX_LENGTH:
        return ""
    sql = canonical_sql(sql.encode(errors="replace").decode())  # no lone surrogates
    if is_too_deep(sql):
        return ""
    query = plainly_written(without_unused(parse(sql)))
    text = canonical_sql(query.edited(edits(query, schema)))
    named = {source.table for select in query.selects for source in select.all_sources()}
    tables = schema.tables if schema and with_schema else ()
    listed = [
        f"{t.name}({', '.join(column.name for column in t.columns)})"
        for t in tables
        if t.name.translate(ASCII_LOWER) in named
    ]
    return " | ".join([text, ", ".join(listed).translate(ASCII_LOWER)]) if listed else text


def edits(query: Query, schema: Schema | None) -> list[Edit]:
    """Renames every alias where it is defined and used, or drops it if it is never used."""
    tokens, aliases, changes = query.tokens, Aliases(query, schema), []
    known, renamed = schema and names_in(schema), new_names(aliases)
    idle = idle_words(aliases, known) | unknown_names(aliases, known, renamed)
    strings = quoted_strings(aliases, known) if has_only_tables(aliases) else ()
    tables, in_keys = aliases.items | aliases.qualifiers, set()
    for span, names in key_uses(aliases, schema) if schema else ():
        texts = [renamed.get(i) or plain_name(tokens[i]) for i in names]
        changes.append(Edit(span.start, span.stop, " = ".join(texts)))
        in_keys.update(span)
    for i, token in enumerate(tokens):
        before = tokens[i - 1].text
        if i in in_keys:
            continue
        if i in aliases.sources or i in aliases.results:
            new = f"AS {renamed[i]}" if i in renamed else ""
            changes.append(Edit(i - (before == "as"), i + 1, new))
        elif i in renamed:
            changes.append(Edit(i, i + 1, renamed[i]))
        elif i not in idle and before != "." and is_needlessly_quoted(token, i in tables):
            changes.append(Edit(i, i + 1, plain_name(token)))
        elif i in idle or (token.kind in QUOTED and len(token.text.encode()) > MAX_QUOTED):
            changes.append(Edit(i, i + 1, "'…'"))
        elif i in strings:
            text = token.text[1:-1].replace('""', '"').replace("'", "''")
            changes.append(Edit(i, i + 1, f"'{text}'"))
    return changes


def has_only_tables(aliases: Aliases) -> bool:
    """Whether all columns are those of tables: others have names that the schema does not have."""
    query, of_with = aliases.query, aliases.names(aliases.tables)
    sources = (source for select in query.selects for source in select.all_sources())
    return all(is_table(query, source, of_with) for source in sources)


def new_names(aliases: Aliases) -> dict[int, str]:
    """The new names of aliases, by token, where they are defined and used."""

    def numbered(letter: str, places: Iterable[int], start: int = 0) -> dict[str, str]:
        names = dict.fromkeys(map(aliases.name, places))
        return {name: f"{letter}{number}" for number, name in enumerate(names, start + 1)}

    used = {aliases.name(i) for i in aliases.references}
    kept = aliases.listed | {i for i in aliases.results if aliases.name(i) in used}
    with_tables = numbered("w", aliases.tables)
    others = [i for i in sorted(aliases.sources) if aliases.name(i) not in with_tables]
    tables = with_tables | numbered("t", others, len(with_tables))
    windows = numbered("w", sorted(aliases.windows), len(with_tables))
    new = {}
    for places, names in (
        (aliases.sources | aliases.of_aliases, tables),
        (aliases.items | aliases.tables.keys(), with_tables),
        (aliases.windows | aliases.used_windows, windows),
        (kept | aliases.references, numbered("c", sorted(kept))),
    ):
        new |= {i: names[aliases.name(i)] for i in places if aliases.name(i) in names}
    return new


def is_needlessly_quoted(token: Token, is_table: bool) -> bool:
    """Whether a name has quotes that it does not need.

    Double quotes may enclose a string, except where a table is named.
    """
    name = name_of(token)
    quoted = token.kind == "quoted" and (is_table or token.text[0] in "`[")
    return quoted and bool(PLAIN.fullmatch(name)) and name not in KEYWORDS


def plain_name(token: Token) -> str:
    """The text of a table's name, without quotes that it does not need."""
    return name_of(token) if is_needlessly_quoted(token, True) else token.text


def is_too_deep(sql: str) -> bool:
    """Whether parentheses are nested more than `MAX_DEPTH` deep."""
    depth = deepest = 0
    for token in tokenize(sql):
        depth = max(depth + (token.group() == "(") - (token.group() == ")"), 0)
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH
