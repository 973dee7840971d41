"""Writes a query in the form that gold has, where SQL leaves a choice that no question speaks of:
INNER JOIN or JOIN, aliases for the tables of a join, a table's name before its columns.
"""

from collections.abc import Iterator

from encoder.aliases import bodies_after_as, result_aliases, source_aliases, tables_of_with
from sqlenv.query import Edit, Query, Select, Source, name_of, parse
from sqlenv.text import KEYWORDS, canonical_sql


def plainly_written(query: Query) -> Query:
    """The query in this form.

    >>> plainly_written(parse("SELECT s.x FROM s INNER JOIN c ON s.id == c.s LIMIT 3 OFFSET 0")).sql
    'SELECT s.x FROM s AS s JOIN c AS c ON s.id = c.s LIMIT 3'
    >>> plainly_written(parse("SELECT singer.name FROM singer WHERE singer.age > 3")).sql
    'SELECT name FROM singer WHERE age > 3'
    """
    changes = [*shorter_words(query), *table_names(query)]
    return parse(canonical_sql(query.edited(changes))) if changes else query


def shorter_words(query: Query) -> Iterator[Edit]:
    """JOIN for INNER JOIN, LEFT JOIN for LEFT OUTER JOIN, = for ==, no OFFSET 0, and no DISTINCT in
    what IN looks through.
    """
    items = {source.item for select in query.selects for source in select.all_sources()}
    for i, token in enumerate(query.tokens):
        before = query.tokens[i - 1].text
        is_word = token.text == "inner" and before != "as" and i not in items  # and no table
        if query.next_text(i) == "join" and (is_word or (before, token.text) == ("left", "outer")):
            yield Edit(i, i + 1, "")
        elif token.text == "==":
            yield Edit(i, i + 1, "=")
    for select in query.selects:
        limit, after = select.clause("limit"), select.start + 1
        is_set = select.opener == "in" and not limit and not select.compound
        if is_set and query.tokens[after].text == "distinct":
            yield Edit(after, after + 1, "")
        if len(limit) > 2 and [query.tokens[i].text for i in limit[-2:]] == ["offset", "0"]:
            yield Edit(limit[-2], limit.stop, "")


def table_names(query: Query) -> Iterator[Edit]:
    """In a SELECT of tables of the database: aliases, which have no meaning, for those of a join;
    at the top, no table before the columns of a single one.
    """
    tokens, aliased = query.tokens, {item for item, _ in source_aliases(query)}
    of_with = {name_of(tokens[i]) for i in tables_of_with(query, dict(bodies_after_as(query)))}
    results = list(result_aliases(query))
    for select in query.selects:
        tables = [source.item for source in select.sources]
        if not all(is_table(query, source, of_with) for source in select.sources):
            continue
        for item in tables if len(tables) > 1 else ():
            if item not in aliased:
                name = query.text(item, item + 1)
                yield Edit(item, item + 1, f"{name} AS {name}")
        if len(tables) == 1 and tables[0] not in aliased and select.parent is None:
            names = {name_of(tokens[i]) for i in results if query.select_of[i] is select}
            yield from without_qualifiers(query, select, name_of(tokens[tables[0]]), names)


def is_table(query: Query, source: Source, of_with: set[str]) -> bool:
    """Whether FROM has a table of the database here, by its name alone: not a subquery, a function
    or one of the tables of WITH.
    """
    is_name = query.next_text(source.item) not in (".", "(")
    return is_name and source.table is not None and source.table not in of_with


def without_qualifiers(
    query: Query, select: Select, table: str, results: set[str]
) -> Iterator[Edit]:
    """Removes a table's name before its columns where the column is then still found: neither in
    subqueries, whose tables come first, nor before the name of a result. (In a subquery, gold names
    the table, too, since most speak of a table outside.)
    """
    tokens = query.tokens
    # The sort keys of a compound are looked for in its first operand.
    sorted_by = select.clause("order") if select.compound else ()
    for i in range(select.start + 1, min(select.end, len(tokens) - 2)):
        is_qualifier = query.next_text(i) == "." and tokens[i - 1].text != "."
        if query.select_of[i] is select and is_qualifier and name_of(tokens[i]) == table:
            column = tokens[i + 2]
            is_name = column.kind in ("name", "quoted") and column.text not in KEYWORDS
            if is_name and name_of(column) not in results and i not in sorted_by:
                yield Edit(i, i + 2, "")
