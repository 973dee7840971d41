"""Prints the shares of gold queries that have each SQL clause, for several datasets, in percent.

    python -m benchmarks.clauses                           # the embedded dataset
    python -m benchmarks.clauses sqlenv/embedded ROOT      # and MultiSpider in ROOT

Every distinct gold query of the English dev split counts once. The hardness levels are Spider's
(sqlenv/metrics/hardness.py).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from sqlenv import EMBEDDED, load_dataset
from sqlenv.errors import exit_code
from sqlenv.metrics.hardness import LEVELS, hardness
from sqlenv.metrics.tables import Rows, markdown_table
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
    """Returns the members of PARTS that occur in a query.

    >>> sorted(parts("SELECT city FROM singer GROUP BY city HAVING count(*) > 2"))
    ['aggregate', 'group by', 'having', 'medium']
    """
    query = parse(sql)
    clauses = {name for select in query.selects for name in select.clauses}
    joins = max((len(select.sources) - 1 for select in query.selects), default=0)
    conditions = {
        "group by": "group" in clauses,
        "order by": "order" in clauses,
        "join": joins > 0,
        "two joins or more": joins > 1,
        "aggregate": any(query.aggregates()),
        "nested query": any(select.opener for select in query.selects),
    }
    names = clauses | {token.text for token in query.tokens if token.kind == "keyword"}
    names |= {name for name, holds in conditions.items() if holds} | {hardness(sql)}
    return names & set(PARTS)


def table(roots: list[str]) -> Rows:
    """Returns the rows of the table, with a column of percentages for each dataset."""
    columns = []
    for root in roots:
        examples = load_dataset(root, "en", "dev")
        golds = {(example.db_id, example.gold_sql) for example in examples}
        counts = Counter(part for _, sql in golds for part in parts(sql))
        columns.append([f"{100 * counts[part] / len(golds):.1f}" for part in PARTS] + [len(golds)])
    rows = zip((*PARTS, "different queries"), *columns)
    return [("", *(Path(root).name for root in roots)), *(tuple(map(str, row)) for row in rows)]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="*", default=[str(EMBEDDED)], help="datasets (%(default)s)")
    arguments = parser.parse_args(argv)
    return exit_code(lambda: print(markdown_table(table(arguments.roots))))


if __name__ == "__main__":
    sys.exit(main())
