"""Which parts of SQL the gold queries of datasets have, side by side.

    python -m benchmarks.clauses                    # the embedded dataset's dev split
    python -m benchmarks.clauses data ROOT          # beside that of MultiSpider, in percent

Every different gold query of the English dev split counts once; the levels of hardness are
Spider's (sqlenv/metrics/hardness.py).
"""

import argparse
import sys
from collections import Counter

from grpo.evaluation.report import Rows, markdown_table
from sqlenv import EMBEDDED, load_dataset
from sqlenv.errors import exit_code
from sqlenv.metrics.hardness import LEVELS, hardness
from sqlenv.query import parse

SET_OPERATORS = ("union", "intersect", "except")
WORDS = ("distinct", "like", "between", "or", "not", "null")
PARTS = (
    "where",
    "join",
    "two joins or more",
    "aggregate",
    "group by",
    "having",
    "order by",
    "limit",
)
PARTS += (*WORDS, "nested query", *SET_OPERATORS, *LEVELS)


def parts(sql: str) -> set[str]:
    """What occurs in a query, of `PARTS`.

    >>> sorted(parts("SELECT city FROM singer GROUP BY city HAVING count(*) > 2"))
    ['aggregate', 'group by', 'having', 'medium']
    """
    query = parse(sql)
    clauses = {name for select in query.selects for name in select.clauses}
    named = {"group": "group by", "order": "order by"}
    found = {named.get(name, name) for name in clauses}
    found |= {token.text for token in query.tokens if token.kind == "keyword"}
    joins = max((len(select.sources) - 1 for select in query.selects), default=0)
    found |= {"join"} if joins > 0 else set()
    found |= {"two joins or more"} if joins > 1 else set()
    found |= {"aggregate"} if any(query.aggregates()) else set()
    found |= {"nested query"} if any(select.opener for select in query.selects) else set()
    return (found | {hardness(sql)}) & set(PARTS)


def table(roots: list[str]) -> Rows:
    """Shares in percent, a column for each dataset."""
    columns = []
    for root in roots:
        golds = {(one.db_id, one.gold_sql) for one in load_dataset(root, "en", "dev")}
        counts = Counter(part for _, sql in golds for part in parts(sql))
        columns.append([f"{100 * counts[part] / len(golds):.1f}" for part in PARTS] + [len(golds)])
    rows = zip((*PARTS, "different queries"), *columns)
    return [("", *roots), *(tuple(map(str, row)) for row in rows)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="*", default=[str(EMBEDDED)], help="datasets (data)")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: print(markdown_table(table(arguments.roots))))


if __name__ == "__main__":
    sys.exit(main())
