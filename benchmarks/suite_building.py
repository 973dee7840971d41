"""Measures how long the test suite of a database of BIRD's size takes to build.

    python -m benchmarks.suite_building                    # 8 tables, 11 columns each, 560,000 rows
    python -m benchmarks.suite_building --golds 200

BIRD's databases have 7 tables, 54 columns and 549,000 rows on average, those of its dev split 140
questions. The benchmark writes such a database and gold queries in BIRD's style (joins of up to
four tables, two or three conditions, ratios of CASE, subqueries, ORDER BY with LIMIT), always the
same, builds the suite in a new cache, and prints the seconds of CPU of this process (without the
sandbox's workers) and the share of mutants that the variants kill.
"""

import argparse
import cProfile
import pstats
import random
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from sqlenv import Sandbox, load_schema
from sqlenv.errors import exit_code
from sqlenv.schema import open_read_only
from sqlenv.testsuite import suite as suite_module
from sqlenv.testsuite.distill import DrawnDatabase, GoldQuery
from sqlenv.testsuite.suite import load_suite

TYPES = ("INTEGER", "REAL", "TEXT", "DATE", "TEXT", "INTEGER", "REAL", "TEXT")
WORDS = "red green blue north south east west alpha beta gamma delta omega Pro Max Mini".split()


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", type=int, default=8)
    parser.add_argument("--columns", type=int, default=11, help="of each table")
    parser.add_argument("--rows", type=int, default=70_000, help="of each table")
    parser.add_argument("--golds", type=int, default=140)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    return parser.parse_args(argv)


def column_names(columns: int) -> list[tuple[str, str]]:
    """(name, type) of the columns beside the keys."""
    return [(f"c{i}", TYPES[i % len(TYPES)]) for i in range(columns - 2)]


def write_database(path: Path, tables: int, columns: int, rows: int) -> None:
    """Writes the database: each table but the first refers to an earlier one."""
    rng = random.Random(0)
    with closing(sqlite3.connect(path)) as connection:
        for t in range(tables):
            listed = ", ".join(f"{name} {type_}" for name, type_ in column_names(columns))
            parent = f"parent INTEGER REFERENCES t{(t - 1) // 2}(id)" if t else "parent INTEGER"
            connection.execute(f"CREATE TABLE t{t} (id INTEGER PRIMARY KEY, {parent}, {listed})")
            marks = ", ".join("?" * columns)
            connection.executemany(
                f"INSERT INTO t{t} VALUES ({marks})",
                (
                    (i, rng.randint(1, rows), *(value(c, rng) for _, c in column_names(columns)))
                    for i in range(1, rows + 1)
                ),
            )
        connection.commit()


def value(type_: str, rng: random.Random) -> int | float | str:
    """A random value of a column."""
    if type_ == "INTEGER":
        return rng.randint(0, 500)
    if type_ == "REAL":
        return rng.randint(0, 4000) / 8
    if type_ == "DATE":
        return f"{rng.randint(1990, 2020)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    return f"{rng.choice(WORDS)} {rng.choice(WORDS)}"


def make_gold(tables: int, columns: int, rng: random.Random) -> str:
    """A gold query over a table and up to three of its ancestors."""
    t = rng.randrange(tables)
    chain = [t]
    while chain[-1] and len(chain) < rng.choice((1, 2, 3, 4)):
        chain.append((chain[-1] - 1) // 2)
    source = f"t{chain[0]}"
    for child, parent in zip(chain, chain[1:]):
        source += f" INNER JOIN t{parent} ON t{child}.parent = t{parent}.id"

    def column(*types: str) -> str:
        names = [name for name, type_ in column_names(columns) if not types or type_ in types]
        return f"t{rng.choice(chain)}.{rng.choice(names)}"

    def condition() -> str:
        text = f"{column('TEXT')} = '{value('TEXT', rng)}'"
        number = f"{column('INTEGER', 'REAL')} {rng.choice(('>', '<', '>='))} {rng.randint(9, 490)}"
        date = f"strftime('%Y', {column('DATE')}) = '{rng.randint(1991, 2019)}'"
        like = f"{column('TEXT')} LIKE '%{rng.choice(WORDS)}%'"
        return rng.choice((text, text, number, number, date, like))

    where = " AND ".join(condition() for _ in range(rng.choice((1, 2, 2, 3))))
    number, shown = column("INTEGER", "REAL"), column()
    return rng.choice(
        (
            f"SELECT {shown}, {column()} FROM {source} WHERE {where}",
            f"SELECT count(t{t}.id) FROM {source} WHERE {where}",
            f"SELECT DISTINCT {shown} FROM {source} WHERE {where}",
            f"SELECT {shown} FROM {source} WHERE {where} ORDER BY {number} DESC LIMIT 1",
            f"SELECT avg({number}) FROM {source} WHERE {where}",
            f"SELECT CAST(sum(CASE WHEN {condition()} THEN 1 ELSE 0 END) AS REAL) * 100 / count(*)"
            f" FROM {source} WHERE {where}",
            f"SELECT {shown}, count(*) FROM {source} WHERE {where} GROUP BY {shown}"
            " HAVING count(*) > 2",
            f"SELECT {shown} FROM {source} WHERE {number} > (SELECT avg({number}) FROM {source})"
            f" AND {where}",
        )
    )


def run(options: argparse.Namespace) -> None:
    """Writes the database, builds the suite and prints the report."""
    rng = random.Random(1)
    golds = {make_gold(options.tables, options.columns, rng) for _ in range(options.golds)}
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        path = Path(folder, "large.sqlite")
        write_database(path, options.tables, options.columns, options.rows)
        print(f"{path.stat().st_size >> 20} MiB, {len(golds)} gold queries", flush=True)
        start, profiler = time.process_time(), cProfile.Profile(time.process_time)
        if options.profile:
            profiler.enable()
        suite = load_suite(path, golds, sandbox, cache=Path(folder, "cache"))
        profiler.disable()
        print(f"{time.process_time() - start:.1f} s of CPU, {len(suite.variants)} variants")
        if options.profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
        report_killed(suite)


def report_killed(suite: suite_module.Suite) -> None:
    """Prints the share of mutants, equivalent ones included, that the variants kill."""
    schema, killed, number = load_schema(suite.db_path), 0, 0
    connections = {path: DrawnDatabase(open_read_only(path)) for path in suite.variants}
    for gold, paths in suite.variants_by_gold.items():
        mutants = {m.sql for m in suite_module.make_mutants(gold, schema, edge_cases=True)}
        query = GoldQuery(gold, 1, schema)
        live = set(mutants)
        for path in paths:
            query.perturbed = []  # these variants have been checked
            live -= connections[path].killed(query, live)
        number, killed = number + len(mutants), killed + len(mutants) - len(live)
    without = sum(not paths for paths in suite.variants_by_gold.values())
    print(f"{killed} of {number} mutants killed; {without} gold queries without a variant")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
