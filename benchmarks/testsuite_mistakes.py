"""Measures which share of the mistakes of ``benchmarks/mistakes.py`` test-suite accuracy (TS) and
execution accuracy (EX) see.

    python -m benchmarks.testsuite_mistakes --data ROOT

Only mistakes that provably differ from gold are counted: those with another result on a database on
which the result of gold is deterministic. That is the given database, a variant of the suite, or
one of --pool witnesses for each gold query. A witness keeps what a suite keeps: the constraints of
the schema, whole numbers in integer columns, and keys without NULL and with a parent where the
given database has them so. Its other cells are NULL, empty, in another case, longer, or moved by a
quarter, at random, and some witnesses have hundreds of rows.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.mistakes import LISTED, OTHERS, make_mistakes
from sqlenv import EMBEDDED, Sandbox, load_dataset, load_schema
from sqlenv.errors import UserError, exit_code
from sqlenv.schema import open_read_only, quote_name
from sqlenv.testsuite.distill import DrawnDatabase, GoldQuery
from sqlenv.testsuite.populate import draw_database
from sqlenv.testsuite.profile import DatabaseProfile, read_profile
from sqlenv.testsuite.suite import Suite, load_suite
from sqlenv.testsuite.swaps import type_family

MANY_ROWS = 240  # of a table of some witnesses
CHANGED = 0.2  # share of the cells of a witness that are changed


@dataclass
class Counts:
    """The results of all databases, by kind; and the mistakes that TS does not see."""

    number: Counter = field(default_factory=Counter)
    differing: Counter = field(default_factory=Counter)
    seen_by_ex: Counter = field(default_factory=Counter)
    seen_by_ts: Counter = field(default_factory=Counter)
    missed: list = field(default_factory=list)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(EMBEDDED), help="dataset root (%(default)s)")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--databases", help="only these, a comma list")
    parser.add_argument("--pool", type=int, default=16, help="witnesses for each gold")
    parser.add_argument("--show", type=int, default=0, help="missed mistakes to print")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Measures all databases and prints the report."""
    golds: dict[Path, dict[str, None]] = {}
    for example in load_dataset(options.data, "en", options.split):
        golds.setdefault(example.db_path, {})[example.gold_sql] = None
    known = [path.stem for path in golds]
    names = options.databases.split(",") if options.databases else known
    if unknown := set(names) - set(known):
        raise UserError(f"--databases {min(unknown)}: choose from {', '.join(sorted(known))}")
    counts, seconds = Counts(), []
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as cache:
        for path in [path for path in golds if path.stem in names]:
            start = time.process_time()
            suite = load_suite(path, golds[path], sandbox, cache=cache)
            seconds.append(time.process_time() - start)
            print(f"{path.stem}: {seconds[-1]:.1f} s, {len(suite.variants)} variants", flush=True)
            measure(suite, options.pool, counts)
    print(
        f"building: {sum(seconds) / len(seconds):.2f} s of CPU a database, {max(seconds):.1f} max"
    )
    report(counts, options.show)


def measure(suite: Suite, pool: int, counts: Counts) -> None:
    """Adds the results of one database to the counts."""
    schema = load_schema(suite.db_path)
    golds = list(suite.variants_by_gold)
    profile = read_profile(suite.db_path, golds)
    with closing(open_read_only(suite.db_path)) as connection:
        given = DrawnDatabase(connection)
        variants = {path: DrawnDatabase(open_read_only(path)) for path in suite.variants}
        for number, gold in enumerate(golds):
            result = given.run(gold)
            if result.status == "ok":
                query = GoldQuery(gold, len(result.columns), schema)
                kinds = {m.sql: m.kind for m in make_mistakes(gold, schema)}
                live = {sql for sql in kinds if given.run(sql).status == "ok"}
                counts.number.update(kinds[sql] for sql in live)
                ex = given.killed(query, live)
                ts = ex.union(
                    *(variants[p].killed(query, live - ex) for p in suite.variants_by_gold[gold])
                )
                proven = ts | prove(profile, number, query, live - ts, pool)
                for counter, sqls in zip(
                    (counts.differing, counts.seen_by_ex, counts.seen_by_ts), (proven, ex, ts)
                ):
                    counter.update(kinds[sql] for sql in sqls)
                counts.missed += [(kinds[sql], gold, sql) for sql in sorted(proven - ts)]
        for drawn in variants.values():
            drawn.connection.close()


def prove(
    profile: DatabaseProfile, number: int, query: GoldQuery, live: Iterable[str], pool: int
) -> set[str]:
    """The mistakes whose result differs from that of gold on some witness."""
    rng, proven, live = random.Random(query.sql), set(), set(live)
    for turn in range(pool):
        if live:
            rows = MANY_ROWS if turn % 3 == 2 else None
            with closing(draw_database(profile, [number], rng, rows)) as connection:
                change_cells(connection, profile, rng)
                killed = DrawnDatabase(connection).killed(query, live)
            proven |= killed
            live -= killed
    return proven


def change_cells(connection, profile: DatabaseProfile, rng: random.Random) -> None:
    """Changes cells outside keys; where a constraint forbids it, the cell stays."""
    connection.create_function("draw", 0, rng.random)
    for table in profile.tables.values():
        for column in table.columns.values():
            if column.key or column.unique:
                continue
            name = quote_name(column.name)
            forms = [name, f"{name} || 'x'", f"'x ' || {name}", f"upper({name})", f"lower({name})"]
            forms += [f"'x' || {name}", "''"]
            if type_family(column.type) == "number":
                whole = "INT" in column.type.upper()
                forms = [f"{name} + 1", "0"] if whole else [f"{name} + 0.25", f"{name} - 0.25"]
            forms += ["NULL", "NULL"] if column.nullable else []
            choices = " ".join(f"WHEN {i} THEN {form}" for i, form in enumerate(forms))
            connection.execute(
                f"UPDATE OR IGNORE {quote_name(table.name)} SET {name} ="
                f" CASE CAST(draw() * {len(forms)} AS INT) {choices} END WHERE draw() < {CHANGED}"
            )


def report(counts: Counts, show: int) -> None:
    """Prints a row for each kind, and missed mistakes."""
    print(f"\n{'':28}{'number':>8}{'differ':>8}{'EX sees':>9}{'TS sees':>9}{'TS %':>8}")
    for title, kinds in (("listed", LISTED), ("others", OTHERS), ("all", LISTED | OTHERS)):
        rows = {kind: [kind] for kind in kinds} if title != "all" else {}
        for name, members in (rows | {title: list(kinds)}).items():
            columns = (counts.number, counts.differing, counts.seen_by_ex, counts.seen_by_ts)
            numbers = [sum(column[kind] for kind in members) for column in columns]
            share = f"{100 * numbers[3] / numbers[1]:.1f}" if numbers[1] else "-"
            print("{:28}{:8}{:8}{:9}{:9}{:>8}".format(name, *numbers, share))
        print()
    for kind, gold, sql in random.Random(0).sample(counts.missed, min(show, len(counts.missed))):
        print(f"\nmissed ({kind}):\n  {gold}\n  {sql}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
