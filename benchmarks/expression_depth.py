"""Measures how long SQLite takes to plan statements that are as deep as a limit allows.

    python -m benchmarks.expression_depth
    python -m benchmarks.expression_depth --limits 100,200

SQLite cannot be interrupted meanwhile, so the sandbox limits the depth of an expression. Each
statement of up to MAX_SQL bytes runs with the limits of the sandbox, but for the depth, in a
process of its own. Prints its CPU seconds by limit, and how it ended.
"""

import argparse
import multiprocessing
import sqlite3
import sys
import time

from sqlenv.metrics.tables import text_table
from sqlenv.sandbox.sandbox import MAX_SQL
from sqlenv.sandbox.worker import LIMITS, limit_heap

LIMITS_OF_DEPTH = (30, 100, 200, 300, 1000)
SCHEMA = """CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b TEXT); CREATE INDEX by_a ON t (a);
    INSERT INTO t VALUES (1, 5, 'x'), (2, 6, 'y'), (3, 7, NULL), (4, 7, 'z');"""
TABLES = ", ".join(f"t AS t{number}" for number in range(8))
JOINED = "t0.id = t1.a AND t2.id = t3.a AND t4.id = t5.a AND t6.id = t7.a AND t0.a = {}"


def chain(piece: str, depth: int) -> str:
    """As many columns as fit, each of them ``a`` with ``piece`` appended to the depth allowed."""
    column = "a" + piece * (depth - 2)
    return f"SELECT {', '.join([column] * min(1000, MAX_SQL // (len(column) + 3)))} FROM t"


def alternatives(condition: str, tables: str, depth: int) -> str:
    """Ten ANDs of as many ORs as fit and are allowed."""
    width = min(depth - 16, MAX_SQL // 11 // (len(condition) + 4))
    group = f"({' OR '.join(condition.format(number) for number in range(width))})"
    return f"SELECT count(*) FROM {tables} WHERE " + " AND ".join([group] * 10)


STATEMENTS = {
    "a + a + …": lambda depth: chain(" + a", depth),
    "a IN (1) IN (1) …": lambda depth: chain(" IN (1)", depth),
    "a BETWEEN 1 AND 2 BETWEEN 1 AND 2 …": lambda depth: chain(" BETWEEN 1 AND 2", depth),
    "(a = 0 OR a = 1 …) AND …": lambda depth: alternatives("t0.a = {}", "t AS t0", depth),
    "the same over 8 joined tables": lambda depth: alternatives(JOINED, TABLES, depth),
}


def run(statement: str, depth: int) -> tuple[float, str]:
    """CPU seconds of a statement within a depth, and "ok" or the error."""
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.setlimit(sqlite3.SQLITE_LIMIT_EXPR_DEPTH, depth)
    limit_heap(connection, 512)
    start = time.process_time()
    try:
        connection.execute(statement).fetchall()
        outcome = "ok"
    except MemoryError:
        outcome = "out of memory"
    except sqlite3.Error as error:
        outcome = str(error)
    return time.process_time() - start, outcome


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--limits", default=",".join(map(str, LIMITS_OF_DEPTH)), help="a comma list (%(default)s)"
    )
    limits = [int(limit) for limit in parser.parse_args(argv).limits.split(",")]
    rows = [("expression", *map(str, limits))]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, statement in STATEMENTS.items():
            results = [pool.apply(run, (statement(limit), limit)) for limit in limits]
            rows.append((name, *(f"{seconds:.2f} s, {outcome}" for seconds, outcome in results)))
    print(f"SQLite {sqlite3.sqlite_version}\n\n{text_table(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
