"""Measures the overhead of the sandbox over plain sqlite3 on the gold queries of a dataset.

    python -m benchmarks.sandbox_speed --data ROOT [--lang en] [--split dev] [--workers 2]

Both run the same queries in alternating rounds, with open databases and running workers. Plain
sqlite3 uses one thread without limits and fetches all rows. Target: the sandbox takes at most twice
as long (with two workers on two idle cores).
"""

import argparse
import sqlite3
import statistics
import sys
import time
from pathlib import Path

from sqlenv import EMBEDDED, Sandbox, load_dataset
from sqlenv.errors import exit_code
from sqlenv.schema import open_read_only


def run_plain(connections: dict, queries: list[tuple[Path, str]]) -> list[list[tuple] | None]:
    """Returns the rows of each query; None if it fails."""
    results = []
    for path, sql in queries:
        try:
            results.append(connections[path].execute(sql).fetchall())
        except sqlite3.Error:
            results.append(None)
    return results


def runnable(connections: dict, sandbox: Sandbox, queries: list) -> list[tuple[Path, str]]:
    """Returns the queries that run, after a check that the sandbox gives the same rows."""
    plain, sandboxed = run_plain(connections, queries), sandbox.run_many(queries)
    for (path, sql), rows, execution in zip(queries, plain, sandboxed):
        if rows is not None and rows != execution.rows:
            raise RuntimeError(f"{path.name}: {sql}: not the same rows ({execution.status})")
    return [query for query, rows in zip(queries, plain) if rows is not None]


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=EMBEDDED, help="dataset root (%(default)s)")
    parser.add_argument("--lang", default="en")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    examples = load_dataset(arguments.data, arguments.lang, arguments.split)
    queries = [(example.db_path, example.gold_sql) for example in examples]
    connections = {path: open_read_only(path) for path in {path for path, _ in queries}}
    times = {"plain": [], "sandbox": []}
    with Sandbox(workers=arguments.workers, timeout=30) as sandbox:
        queries = runnable(connections, sandbox, queries)
        runs = {
            "plain": lambda: run_plain(connections, queries),
            "sandbox": lambda: sandbox.run_many(queries),
        }
        for _ in range(arguments.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    print(f"{len(queries)} queries, {arguments.workers} workers, {arguments.rounds} rounds")
    for name, seconds in times.items():
        each = statistics.median(seconds) / len(queries) * 1e6
        print(f"{name:8} median {statistics.median(seconds) * 1e3:7.1f} ms, {each:5.1f} µs a query")
    ratios = sorted(boxed / plain for plain, boxed in zip(times["plain"], times["sandbox"]))
    ratio = statistics.median(ratios)
    print(f"ratio    median {ratio:.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
