"""Measures how many wrong queries test-suite accuracy (TS) and execution accuracy (EX) reject, and
whether they reject correct ones.

    python -m benchmarks.testsuite_power --data ROOT

For each distinct gold query of a split the benchmark makes mutants
(``sqlenv/testsuite/mutants.py``, ``edge_cases.py``) and equivalent rewrites
(``encoder/rewrites.py``) and builds the test suites in a new cache. It prints, by kind, how many
mutants that differ from gold are killed by EX and by TS, and how many rewrites are rejected.

A mutant differs from gold if its result differs on some database on which the result of gold is
deterministic: the given one, a variant of the suite, or one of --pool databases drawn for that gold
alone with other seeds. The remaining mutants are equivalent, or no database drawn this way shows
the difference.

The suites are chosen with these mutants. With --leave-out they are also chosen without each kind in
turn, and only the mutants of that kind are counted, to estimate the power against other mistakes.

Rewrites of a gold query whose result is not deterministic on the given database (a tie at its
LIMIT) are counted separately.
"""

import argparse
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from encoder.rewrites import KINDS as REWRITE_KINDS
from encoder.rewrites import Rewrite, equivalent_rewrites
from sqlenv import EMBEDDED, Sandbox, load_dataset, load_schema, results_match
from sqlenv.errors import UserError, exit_code
from sqlenv.schema import open_read_only
from sqlenv.testsuite.distill import MANY_ROWS, DrawnDatabase, GoldQuery, choose_variants
from sqlenv.testsuite.edge_cases import EDGE_KINDS
from sqlenv.testsuite.mutants import KINDS, Mutant, make_mutants
from sqlenv.testsuite.populate import draw_database
from sqlenv.testsuite.profile import read_profile
from sqlenv.testsuite.suite import Suite, load_suite, suite_matches
from sqlenv.text import is_ordered

MUTANT_KINDS = KINDS | EDGE_KINDS
OTHER_SEEDS = "pool"  # prefix of the seeds of the pool, which differ from those of the suites


@dataclass
class Counts:
    """The results of all databases; counters and examples of mutants and rewrites are by kind."""

    golds: int = 0
    failing: int = 0
    gold_against_gold: int = 0
    with_rows: int = 0  # gold queries that return a row on the given database
    with_rows_in_suite: int = 0  # … or on a variant
    mutants: Counter = field(default_factory=Counter)
    differing: Counter = field(default_factory=Counter)
    killed_by_ex: Counter = field(default_factory=Counter)
    killed_by_ts: Counter = field(default_factory=Counter)
    killed_left_out: Counter = field(default_factory=Counter)  # by suites without that kind
    rewrites: Counter = field(default_factory=Counter)
    arbitrary: Counter = field(default_factory=Counter)  # rewrites of nondeterministic gold
    arbitrary_rejected_by_ex: Counter = field(default_factory=Counter)
    rejected: list = field(default_factory=list)  # rewrites
    missed: list = field(default_factory=list)  # differing mutants that TS does not kill
    equal: list = field(default_factory=list)  # mutants that no database distinguishes


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(EMBEDDED), help="dataset root (%(default)s)")
    parser.add_argument("--lang", default="en")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--databases", help="only these, a comma list")
    parser.add_argument("--pool", type=int, default=40, help="databases for each gold")
    parser.add_argument("--seed", type=int, default=0, help="of the suites and of the pool")
    parser.add_argument("--leave-out", action="store_true", help="also without each kind (minutes)")
    parser.add_argument("--show", type=int, default=0, help="examples to print of each outcome")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Measures all databases and prints the report."""
    golds: dict[Path, dict[str, None]] = {}
    for example in load_dataset(options.data, options.lang, options.split):
        golds.setdefault(example.db_path, {})[example.gold_sql] = None
    known = [path.stem for path in golds]
    names = options.databases.split(",") if options.databases else known
    if unknown := set(names) - set(known):
        raise UserError(f"--databases {min(unknown)}: choose from {', '.join(sorted(known))}")
    counts, variants, seconds, cpu_seconds = Counts(), [], {}, {}
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as cache:
        for path in [path for path in golds if path.stem in names]:
            start, start_cpu = time.perf_counter(), time.process_time()
            suite = load_suite(path, golds[path], sandbox, seed=options.seed, cache=cache)
            seconds[path.stem] = time.perf_counter() - start
            cpu_seconds[path.stem] = time.process_time() - start_cpu
            variants.append(len(suite.variants))
            measure(suite, list(golds[path]), sandbox, options, counts)
            print(f"{path.stem}: {seconds[path.stem]:.1f} s, {variants[-1]} variants", flush=True)
    report_building(counts, variants, seconds, cpu_seconds)
    report(counts, options.show)


def measure(
    suite: Suite, golds: list[str], sandbox: Sandbox, options: argparse.Namespace, counts: Counts
) -> None:
    """Adds the results of one database to the counts."""
    results = dict(zip(golds, sandbox.run_many((suite.db_path, gold) for gold in golds)))
    running = [gold for gold in golds if results[gold].status == "ok"]
    counts.golds += len(running)
    counts.failing += len(golds) - len(running)
    counts.gold_against_gold += sum(suite_matches(sandbox, [(suite, g, g) for g in running]))
    for gold in running:
        has_rows = bool(results[gold].rows)
        rows = [sandbox.run(path, gold).rows for path in suite.variants_by_gold[gold]]
        counts.with_rows += has_rows
        counts.with_rows_in_suite += has_rows or any(map(bool, rows))
    schema = load_schema(suite.db_path)
    mutants = [(g, m) for g in running for m in make_mutants(g, schema, edge_cases=True)]
    queries = {gold: GoldQuery(gold, len(results[gold].columns), schema) for gold in running}
    with closing(open_read_only(suite.db_path)) as connection:
        given = DrawnDatabase(connection)
        deterministic = {gold for gold in running if given.gold_result(queries[gold]) is not None}
    differing = count_mutants(suite, mutants, queries, deterministic, sandbox, options, counts)
    if options.leave_out:
        count_left_out(suite, mutants, queries, differing, options.seed, counts)
    rewrites = [(gold, rewrite) for gold in running for rewrite in equivalent_rewrites(gold)]
    count_rewrites(suite, rewrites, deterministic, sandbox, counts)


def count_mutants(
    suite: Suite,
    mutants: list[tuple[str, Mutant]],
    queries: dict[str, GoldQuery],
    deterministic: set[str],
    sandbox: Sandbox,
    options: argparse.Namespace,
    counts: Counts,
) -> dict[tuple[str, str], bool]:
    """Counts the mutants; returns {(gold, mutant): whether EX kills it} of those that differ."""
    live: dict[str, dict[str, tuple[Mutant, bool]]] = {gold: {} for gold in queries}
    differing = {}
    for (gold, mutant), (ex, variants) in zip(mutants, agreement(suite, mutants, sandbox)):
        counts.mutants[mutant.kind] += 1
        # A different result does not count if the result of gold is not deterministic.
        if not variants or (not ex and gold in deterministic):
            counts.differing[mutant.kind] += 1
            counts.killed_by_ex[mutant.kind] += not ex
            counts.killed_by_ts[mutant.kind] += 1
            differing[gold, mutant.sql] = not ex
        else:
            live[gold][mutant.sql] = mutant, ex
    profile = read_profile(suite.db_path, list(queries))
    for number, (gold, query) in enumerate(queries.items()):
        rng = random.Random(f"{OTHER_SEEDS} {options.seed} {gold}")
        for turn in range(options.pool if live[gold] else 0):
            rows = MANY_ROWS if turn % 8 == 7 else None
            with closing(draw_database(profile, [number], rng, rows)) as connection:
                killed = DrawnDatabase(connection).killed(query, list(live[gold]))
            for mutant, ex in [live[gold].pop(sql) for sql in killed]:
                counts.differing[mutant.kind] += 1
                # On nondeterministic gold, EX can reject it by chance, and then TS rejects it, too.
                counts.killed_by_ex[mutant.kind] += not ex
                counts.killed_by_ts[mutant.kind] += not ex
                differing[gold, mutant.sql] = not ex
                if ex:
                    counts.missed.append((gold, mutant))
        counts.equal += [(gold, mutant) for mutant, _ in live[gold].values()]
    return differing


def count_left_out(
    suite: Suite,
    mutants: list[tuple[str, Mutant]],
    queries: dict[str, GoldQuery],
    differing: dict[tuple[str, str], bool],
    seed: int,
    counts: Counts,
) -> None:
    """Counts the mutants of each kind that are killed by suites chosen without that kind."""
    profile = read_profile(suite.db_path, list(queries))
    for kind in sorted(
        {mutant.kind for gold, mutant in mutants if (gold, mutant.sql) in differing}
    ):
        for gold in queries.values():
            gold.mutants = [m for sql, m in mutants if sql == gold.sql and m.kind != kind]
        variants = choose_variants(profile, list(queries.values()), seed=seed)
        for sql, mutant in mutants:
            if mutant.kind == kind and (sql, mutant.sql) in differing:
                killed = differing[sql, mutant.sql] or any(
                    drawn.killed(queries[sql], [mutant.sql]) for drawn in variants
                )
                counts.killed_left_out[kind] += killed
        for drawn in variants:
            drawn.connection.close()


def count_rewrites(
    suite: Suite,
    cases: list[tuple[str, Rewrite]],
    deterministic: set[str],
    sandbox: Sandbox,
    counts: Counts,
) -> None:
    """Counts the rewrites and those that are rejected."""
    for (gold, rewrite), (ex, variants) in zip(cases, agreement(suite, cases, sandbox)):
        counts.rewrites[rewrite.kind] += 1
        if gold not in deterministic:
            counts.arbitrary[rewrite.kind] += 1
            counts.arbitrary_rejected_by_ex[rewrite.kind] += not ex
        if not variants or (not ex and gold in deterministic):
            counts.rejected.append((gold, rewrite))


def agreement(
    suite: Suite, cases: Sequence[tuple[str, Mutant | Rewrite]], sandbox: Sandbox
) -> list[tuple[bool, bool]]:
    """Whether each query agrees with gold on the given database (EX), and on all variants."""
    queries = dict.fromkeys(
        (path, sql)
        for gold, case in cases
        for path in suite.databases(gold)
        for sql in (gold, case.sql)
    )
    results = dict(zip(queries, sandbox.run_many(queries)))

    def agrees(path: Path, gold: str, sql: str) -> bool:
        return results_match(results[path, gold], results[path, sql], is_ordered(gold))

    return [
        (
            agrees(suite.db_path, gold, case.sql),
            all(agrees(path, gold, case.sql) for path in suite.variants_by_gold[gold]),
        )
        for gold, case in cases
    ]


def report_building(
    counts: Counts, variants: list[int], seconds: dict[str, float], cpu_seconds: dict[str, float]
) -> None:
    """Prints the sizes of the suites and the cost of building them."""
    print(f"\n{len(seconds)} databases, {counts.golds} distinct gold queries that run", end="")
    print(f" ({counts.failing} do not)" if counts.failing else "")
    print(f"gold against itself is correct by TS: {counts.gold_against_gold} of {counts.golds}")
    print(f"gold returns rows on the given database: {counts.with_rows}, ", end="")
    print(f"on it or on a variant: {counts.with_rows_in_suite}")
    mean = sum(variants) / len(variants)
    print(f"variants a database: {mean:.1f} on average, {max(variants)} at most")
    for name, times in (("wall clock", seconds), ("CPU", cpu_seconds)):
        slowest = max(times, key=lambda db: times[db])
        mean = sum(times.values()) / len(times)
        print(f"building, {name}: {mean:.1f} s a database on average, ", end="")
        print(f"{times[slowest]:.1f} s at most ({slowest})")
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 << (20 if sys.platform == "darwin" else 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"peak memory: {peak:.0f} MiB")


def report(counts: Counts, show: int) -> None:
    """Prints the tables of mutants and rewrites, and examples."""
    left_out = counts.killed_left_out
    columns = [counts.mutants, counts.differing, counts.killed_by_ex, counts.killed_by_ts]
    columns += [left_out] if left_out else []
    print(f"\n{'mutants':16}{'number':>7}{'differ':>8}{'EX kills':>10}{'TS kills':>10}", end="")
    print(f"{'EX %':>8}{'TS %':>8}{'left out %' if left_out else '':>12}")
    for kind in MUTANT_KINDS:
        print_row(kind, *(column[kind] for column in columns))
    print_row("all", *(column.total() for column in columns))
    rejected = Counter(rewrite.kind for _, rewrite in counts.rejected)
    columns = (counts.rewrites, counts.arbitrary, rejected)
    print(f"\n{'equivalent rewrites':25}{'number':>7}{'of arbitrary gold':>19}{'rejected':>10}")
    for kind in REWRITE_KINDS:
        print(f"{kind:25}{'{:7}{:19}{:10}'.format(*(column[kind] for column in columns))}")
    print(f"{'all':25}{'{:7}{:19}{:10}'.format(*(column.total() for column in columns))}")
    print(
        f"EX rejects {counts.arbitrary_rejected_by_ex.total()} of the {counts.arbitrary.total()} "
        "rewrites of gold whose result is not deterministic on the given database"
    )
    examples = {
        "rejected": counts.rejected,
        "missed": counts.missed,
        "equal on all databases": counts.equal,
    }
    for title, pairs in examples.items():
        for gold, case in random.Random(0).sample(pairs, min(show, len(pairs))):
            print(f"\n{title} ({case.kind}):\n  {gold}\n  {case.sql}")


def print_row(kind: str, number: int, differing: int, *killed: int) -> None:
    """Prints a row; ``killed`` by EX, by TS and, with --leave-out, by suites without the kind."""
    shares = [f"{100 * n / differing:.1f}" if differing else "-" for n in killed]
    widths = (8, 8, 12)
    shares = "".join(f"{share:>{width}}" for share, width in zip(shares, widths))
    print(f"{kind:16}{number:7}{differing:8}{killed[0]:10}{killed[1]:10}{shares}")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
