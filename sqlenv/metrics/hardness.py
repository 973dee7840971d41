"""Spider's hardness levels of gold queries: easy, medium, hard, extra.

The level depends on three counts over the first SELECT of the query, as defined by Spider's
evaluation script (Yu et al. 2018):

    components   WHERE, GROUP BY, ORDER BY and LIMIT, 1 each; every JOIN, OR and LIKE
    nested       subqueries in ON, WHERE and HAVING; 1 for UNION, INTERSECT or EXCEPT
    others       1 each for several aggregates, several columns in SELECT, several conditions in
                 WHERE and several columns in GROUP BY

Published results use that script, so its peculiarities are kept: NOT in WHERE and AND or OR in
HAVING count as aggregates, aggregates in HAVING do not; a subquery in FROM counts as a table; the
right operand of a UNION does not count, with its ORDER BY and LIMIT. The script cannot parse
arithmetic on aggregates, nested conditions in parentheses, IS NULL, EXISTS, CASE, subqueries in
SELECT and WITH. Here the same rules apply to them; the last two count as nested.
"""

from sqlenv.query import Query, Select, parse

LEVELS = ("easy", "medium", "hard", "extra")
AGGREGATES = ("avg", "count", "group_concat", "max", "min", "string_agg", "sum", "total")


def hardness(sql: str) -> str:
    """Returns the level of a query, one of LEVELS.

    >>> hardness("SELECT count(*) FROM singer WHERE age > 30")
    'easy'
    >>> hardness("SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer)")
    'hard'
    """
    components, nested, others = counts(sql)
    if nested == 0:
        if components <= 1 and others == 0:
            return "easy"
        if (components <= 1 and others <= 2) or (components == 2 and others <= 1):
            return "medium"
        if (components <= 2 and others > 2) or (components == 3 and others <= 2):
            return "hard"
    elif nested == 1 and components <= 1 and others == 0:
        return "hard"
    return "extra"


def counts(sql: str) -> tuple[int, int, int]:
    """Returns (components, nested, others) as defined at the top of this file."""
    query = parse(sql)
    select = next((select for select in query.selects if not select.opener), None)
    if select is None:
        return 0, 0, 0
    conditions = words(query, select, *select.conditions())
    components = sum(clause in select.clauses for clause in ("where", "group", "order", "limit"))
    components += len(select.sources[1:]) + conditions.count("or") + conditions.count("like")

    opened = (i for i in query.closing if query.next_text(i) in ("select", "with", "values"))
    tables = [source.item for source in select.sources]
    nested = sum(query.select_of[i] in (select, None) and i not in tables for i in opened)
    nested += any(query.select_of[operator.start] is select for operator in query.set_operators)

    columns, where, group, having, order = (
        words(query, select, select.clause(name))
        for name in ("select", "where", "group", "having", "order")
    )
    aggregates = sum(
        text in AGGREGATES and following == "("
        for clause in (columns, order)
        for text, following in zip(clause, clause[1:])
    )
    aggregates += where.count("not") + connectors(having)
    lists = [len(query.items(select.clause(name))) > 1 for name in ("select", "group")]
    return components, nested, sum([aggregates > 1, connectors(where) > 0, *lists])


def words(query: Query, select: Select, *spans: range) -> list[str]:
    """The tokens of these spans that are not in a subquery."""
    return [query.tokens[i].text for span in spans for i in span if query.select_of[i] is select]


def connectors(condition: list[str]) -> int:
    """The number of ANDs and ORs, without the AND of each BETWEEN."""
    return condition.count("and") + condition.count("or") - condition.count("between")
