"""How hard a gold query is, in Spider's four levels: easy, medium, hard, extra.

The level follows from three counts over the query's first SELECT, those of the evaluation script
that comes with Spider (Yu et al. 2018):

    components   WHERE, GROUP BY, ORDER BY and LIMIT, 1 each; every JOIN, OR and LIKE
    nested       sub-queries in ON, WHERE and HAVING; 1 for UNION, INTERSECT or EXCEPT
    others       1 each for: several aggregates, columns in SELECT, conditions in WHERE, columns in
                 GROUP BY

Published tables come from that script, so its habits are kept: NOT in WHERE and AND or OR in
HAVING count as aggregates, aggregates in HAVING do not; a sub-query in FROM counts as a table;
what stands right of a UNION, its ORDER BY and LIMIT included, does not count. It cannot read
arithmetic on aggregates, nested conditions in parentheses, IS NULL, EXISTS, CASE, sub-queries in
SELECT and WITH. Here they count by the same rules, the last two as nested.
"""

from sqlenv.query import Query, Select, parse

LEVELS = ("easy", "medium", "hard", "extra")
AGGREGATES = ("avg", "count", "group_concat", "max", "min", "string_agg", "sum", "total")


def hardness(sql: str) -> str:
    """Return the level of a query, one of LEVELS.

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
    """Return (components, nested, others) as the module's docstring defines them."""
    query = parse(sql)
    select = next((one for one in query.selects if not one.opener), None)
    if select is None:
        return 0, 0, 0
    conditions = words(query, select, *select.conditions())
    components = sum(clause in select.clauses for clause in ("where", "group", "order", "limit"))
    components += len(select.sources[1:]) + conditions.count("or") + conditions.count("like")

    opened = (i for i in query.closing if query.next_text(i) in ("select", "with", "values"))
    tables = [source.item for source in select.sources]
    nested = sum(query.owners[i] in (select, None) and i not in tables for i in opened)
    nested += any(query.owners[operator.start] is select for operator in query.set_operators)

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
    """The tokens in these spans that stand in no sub-query."""
    return [query.tokens[i].text for span in spans for i in span if query.owners[i] is select]


def connectors(condition: list[str]) -> int:
    """How many AND and OR there are, without the AND of each BETWEEN."""
    return condition.count("and") + condition.count("or") - condition.count("between")
