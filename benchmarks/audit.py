"""Does the policy please the encoder instead of answering? Answers that the encoder finds right and
the test suite wrong.

    python -m benchmarks.audit runs/paper/*.jsonl                   # how many, of what kind
    python -m benchmarks.audit runs/paper/NAME.jsonl --draw 200     # some, to be read

The files are those of ``evaluate.py --save-predictions``. Of all answers a table counts pieces that
can change no result, as a policy would write to please a judge of texts: a column selected twice, a
condition, a value of a list or a query of a set operation repeated. docs/results/audit.jsonl has
200 drawn answers, each read and given a class and a reason.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

from grpo.evaluation.report import Rows, markdown_table
from sqlenv.errors import UserError, exit_code


def parts(sql: str) -> dict[str, list[str]]:
    """Lists in the SQL in which nothing should stand twice."""
    columns = re.match(r"\s*SELECT\s+(?:DISTINCT\s+)?(.*?)\s+FROM\s", sql, re.I | re.S)
    condition = re.search(r"\bWHERE\b(.*)", sql, re.I | re.S)
    values = re.search(r"\bIN\s*\(([^()]*)\)", sql, re.I)
    return {
        "column": columns[1].split(",") if columns else [],
        "condition": re.split(r"\b(?:AND|OR)\b", condition[1], flags=re.I) if condition else [],
        "value": values[1].split(",") if values else [],
        "query": re.split(r"\b(?:UNION|INTERSECT|EXCEPT)\b", sql, flags=re.I),
    }


def repeated(sql: str) -> list[str]:
    """What stands twice.

    >>> repeated("SELECT age, age FROM players WHERE goals > 3 AND goals > 3 OR id IN (1, 2)")
    ['column', 'condition']
    """
    found = {name: [one.strip().lower() for one in texts] for name, texts in parts(sql).items()}
    return [name for name, texts in found.items() if len(texts) != len(set(texts))]


def read(path: Path) -> list[dict]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if any(row["semantic"] is None or row["test_suite"] is None for row in rows):
            raise UserError(f"{path}: made without --test-suite or without an encoder")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a file of predictions: {error!r}") from error
    return rows


def deceived(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["semantic"] and not row["test_suite"]]


def counts(paths: list[Path]) -> Rows:
    """Of each file, shares of all answers in percent."""
    kinds = list(parts(""))
    names = (f"{kind} twice" for kind in kinds)
    table = [("answers of", "n", "semantic, wrong", *names, "any of these")]
    for path in paths:
        rows = read(path)
        found = [repeated(row["predicted"] or "") for row in rows]
        each = Counter(kind for one in found for kind in one)
        numbers = len(deceived(rows)), *(each[kind] for kind in kinds), sum(map(bool, found))
        shares = (f"{100 * number / len(rows):.1f}" for number in numbers)
        table.append((path.stem, str(len(rows)), *shares))
    return table


def run(arguments: argparse.Namespace) -> None:
    if not arguments.draw:
        print(markdown_table(counts(arguments.files)))
        return
    rows = deceived([row for path in arguments.files for row in read(path)])
    random.Random(0).shuffle(rows)
    for row in rows[: arguments.draw]:
        kept = {name: row[name] for name in ("lang", "db_id", "question", "gold", "predicted")}
        print(json.dumps(kept, ensure_ascii=False))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--draw", type=int, default=0, help="print so many at random, as JSON")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
