"""What the worst predictions cost: cross joins with large results, and queries without end.

python -m benchmarks.sandbox_pressure --predictions 1000
python -m benchmarks.sandbox_pressure --batch 128

The first evaluates a predictions file by evaluate.py and prints the peak memory of its process and
of the sandbox's workers (Linux). The second runs batches of hostile queries with every fourth one
harmless, with the time limit and the budget of training.
"""

import argparse
import contextlib
import io
import json
import math
import re
import resource
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import evaluate
from grpo.rewards import TIMEOUT_BUDGET
from sqlenv import Sandbox

HOSTILE = {
    "endless": "WITH RECURSIVE n(x) AS (SELECT {} UNION ALL SELECT x + 1 FROM n) "
    "SELECT max(x) FROM n",
    "stuck": "SELECT instr(a, substr(a, 1, 2000000) || 'b{}') "
    "FROM (SELECT printf('%.4000000c', 'a') AS a)",
}


class MeasuredSandbox(Sandbox):
    """Knows the peak memory of its workers, in MiB, when it is closed."""

    peak = 0

    def close(self) -> None:
        for worker in filter(None, self._workers):
            status = Path(f"/proc/{worker.process.pid}/status").read_text()
            peak = int(re.search(r"VmHWM:\s*(\d+)", status)[1]) >> 10
            MeasuredSandbox.peak = max(MeasuredSandbox.peak, peak)
        super().close()


def write_database(path: Path, rows: int) -> None:
    """Two tables with ``rows`` pairs of rows, at least."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table, column in (("customer", "name"), ("purchase", "item")):
            connection.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, {column} TEXT)")
            values = ((i, f"{table} number {i}") for i in range(math.isqrt(rows)))
            connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", values)
        connection.commit()


def measure_memory(folder: Path, predictions: int, rows: int) -> None:
    """Evaluates joins without ON. One in ten is right, by gold of the same size."""
    write_database(folder / "dataset" / "spider" / "database" / "shop" / "shop.sqlite", rows)
    lines = []
    for i in range(predictions):
        predicted = f"SELECT customer.name, purchase.item, {i} FROM customer JOIN purchase"
        gold = predicted if i % 10 == 0 else f"SELECT name, {i} FROM customer"
        row = {"db_id": "shop", "question": f"{i}?", "lang": "en", "gold": gold}
        lines.append(json.dumps(row | {"predicted": predicted}))
    (folder / "p.jsonl").write_text("\n".join(lines))
    evaluate.Sandbox = MeasuredSandbox
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = evaluate.main(["--predictions", str(folder / "p.jsonl"), "--data", str(folder)])
    if code:
        sys.exit(printed.getvalue())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{predictions} predictions of {math.isqrt(rows) ** 2} rows: peak {peak} MiB, of a worker "
        f"{MeasuredSandbox.peak} MiB; {time.process_time():.0f} s of CPU time without the workers'"
    )


def measure_batches(folder: Path, size: int) -> None:
    """Runs a batch of each kind of hostile queries; harmless ones must give their number."""
    write_database(folder / "shop.sqlite", 100)
    with Sandbox() as sandbox:
        for kind, hostile in HOSTILE.items():
            texts = ["SELECT {}" if i % 4 == 3 else hostile for i in range(size)]
            queries = [(folder / "shop.sqlite", text.format(i)) for i, text in enumerate(texts)]
            start, used = time.monotonic(), cpu_seconds()
            results = sandbox.run_many(queries, timeout_budget=TIMEOUT_BUDGET)
            seconds = time.monotonic() - start
            sandbox.close()  # the time of a worker counts when it has ended
            right = sum(result.rows == [(i,)] for i, result in enumerate(results))
            print(
                f"{kind}: {seconds:.1f} s, {cpu_seconds() - used:.1f} s of CPU time; {right} of "
                f"{size // 4} harmless queries right, the others {results[0].status}"
            )


def cpu_seconds() -> float:
    """CPU time of this process and of the worker processes that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--predictions", type=int, help="how many to evaluate")
    task.add_argument("--batch", type=int, help="how many queries to run as a batch of training")
    parser.add_argument("--rows", type=int, default=20_000, help="of each prediction (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.predictions:
            measure_memory(Path(folder), arguments.predictions, arguments.rows)
        else:
            measure_batches(Path(folder), arguments.batch)


if __name__ == "__main__":
    main()
