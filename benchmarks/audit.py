"""Counts answers that the encoder finds right and the test suite wrong: does the policy write for
the encoder instead of answering?

    python -m benchmarks.audit runs/paper/main/*-0.jsonl             # how many, of what kind
    python -m benchmarks.audit runs/paper/main/NAME.jsonl --draw 200 # a random sample, to be read

The files are those of ``evaluate.py --save-predictions``, as benchmarks/paper_table.py keeps them.
Questions whose gold query fails do not count. A table also counts, in all answers,
repetitions that cannot change the result but may raise a similarity of texts: a column selected
twice; a condition, a value of a list or a query of a set operation repeated.
docs/results/audit.jsonl has 200 drawn answers, each read and given a class and a reason.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

from sqlenv.errors import UserError, exit_code
from sqlenv.metrics.tables import Rows, markdown_table

FLAGS = re.IGNORECASE | re.DOTALL
BETWEEN = re.compile(r"(\bBETWEEN\s+\S+)\s+AND(\s)", FLAGS)  # whose AND joins no conditions
COLUMNS = re.compile(r"\A\s*SELECT\s+(?:DISTINCT\s+)?(.*?)\s+FROM\s", FLAGS)
COMMA = re.compile(r",(?![^()]*\))")  # not between a function's arguments
SET_OPERATOR = re.compile(r"\b(?:UNION|INTERSECT|EXCEPT)\b", FLAGS)
END = rf"\b(?:GROUP|ORDER|LIMIT)\b|{SET_OPERATOR.pattern}|\Z"
CONDITIONS = re.compile(rf"\bWHERE\b(?=(.*?)(?:{END}))", FLAGS)  # also those of nested queries
VALUES = re.compile(r"\bIN\s*\(([^()]*)\)", FLAGS)
ORDER = re.compile(r"\b(?:ORDER\s+BY|LIMIT)\b[^()]*\Z", FLAGS)  # of the whole query


def sql_lists(sql: str) -> dict[str, list[list[str]]]:
    """Lists in the SQL in which nothing should stand twice, by the name of their elements."""
    conditions = CONDITIONS.findall(BETWEEN.sub(r"\1,\2", sql))
    return {
        "column": [COMMA.split(columns) for columns in COLUMNS.findall(sql)],
        "condition": [re.split(r"\b(?:AND|OR)\b", each, flags=FLAGS) for each in conditions],
        "value": [values.split(",") for values in VALUES.findall(sql)],
        "query": [SET_OPERATOR.split(ORDER.sub("", sql))],
    }


def repeated(sql: str) -> list[str]:
    """The names of those lists that repeat an element.

    >>> repeated("SELECT age, age FROM players WHERE goals > 3 AND goals > 3 OR id IN (1, 2)")
    ['column', 'condition']
    """
    names = []
    for name, lists in sql_lists(sql).items():
        same = ({element.strip(" \n)").lower() for element in elements} for elements in lists)
        if any(len(different) < len(elements) for different, elements in zip(same, lists)):
            names.append(name)
    return names


def read_answers(path: Path) -> list[dict]:
    """Reads a file of ``evaluate.py --save-predictions``, without questions whose gold query fails.

    Raises:
        UserError: the file is something else or has no question, or was measured without encoder or
            test suite.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [row for row in map(json.loads, filter(None, lines)) if row["gold_ok"]]
        if not rows:
            raise UserError(f"{path}: no question whose gold query runs")
        if any(row["semantic"] is None or row["test_suite"] is None for row in rows):
            raise UserError(f"{path}: saved without --test-suite or without an encoder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of predictions: {error!r}") from error
    return rows


def false_positives(rows: list[dict]) -> list[dict]:
    """The answers that the encoder finds right and the test suite wrong."""
    return [row for row in rows if row["semantic"] and not row["test_suite"]]


def audit_table(paths: list[Path]) -> Rows:
    """A row for each file: shares of its answers in percent."""
    kinds = list(sql_lists(""))
    names = (f"{kind} twice" for kind in kinds)
    table = [("answers of", "n", "semantic, wrong", *names, "any of these")]
    for path in paths:
        rows = read_answers(path)
        repetitions = [repeated(row["predicted"] or "") for row in rows]
        by_kind = Counter(kind for answer in repetitions for kind in answer)
        counts = (
            len(false_positives(rows)),
            *(by_kind[k] for k in kinds),
            sum(map(bool, repetitions)),
        )
        table.append((path.stem, str(len(rows)), *(f"{100 * n / len(rows):.1f}" for n in counts)))
    return table


def run(arguments: argparse.Namespace) -> None:
    if not arguments.draw:
        print(markdown_table(audit_table(arguments.files)))
        return
    rows = false_positives([row for path in arguments.files for row in read_answers(path)])
    random.Random(0).shuffle(rows)
    for row in rows[: arguments.draw]:
        shown = {name: row[name] for name in ("lang", "db_id", "question", "gold", "predicted")}
        print(json.dumps(shown, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--draw", type=int, default=0, help="print so many at random, as JSON")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
