"""How much more test-suite accuracy (TS) sees than execution accuracy (EX), and whether it errs.

python benchmarks/testsuite_power.py --data ROOT

For each distinct gold query of a split it makes mutants (`sqlenv/testsuite/mutants.py`) and
equivalent rewrites (`encoder/rewrites.py`), builds the test suites in a fresh cache, and prints, by
kind, how many mutants that really differ EX and TS tell from gold, and how many rewrites they
reject.

A mutant really differs if some database tells it from gold: the given one, a variant of the
suite, or one of --pool databases drawn for that gold alone, from other seeds than the suite. On
none of them may gold's answer be arbitrary. The near misses that nothing tells apart are counted,
too: those that are no misses at all, and what no database drawn this way can show.

The suites are chosen with these near misses in sight. --leave-out asks what they make of mistakes
that nobody thought of: for each kind, suites are chosen without it, and only that kind is counted.

A rewrite of a gold whose answer is arbitrary on the given database (a tie at its LIMIT) has no
right answer there, so it is counted apart.
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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from encoder.rewrites import KINDS as REWRITE_KINDS
from encoder.rewrites import Rewrite, equivalent_rewrites
from sqlenv import EMBEDDED, Sandbox, load_dataset, load_schema, results_match
from sqlenv.errors import exit_code
from sqlenv.testsuite.distill import Drawn, Gold, choose_variants
from sqlenv.testsuite.mutants import KINDS as MISS_KINDS
from sqlenv.testsuite.mutants import Mutant, make_mutants
from sqlenv.testsuite.populate import draw_database
from sqlenv.testsuite.profile import open_read_only, read_blueprint
from sqlenv.testsuite.suite import Suite, load_suite, suite_matches
from sqlenv.text import is_ordered

OTHER_SEEDS = "pool"  # put before the seed, so that the pool shares no draw with a suite


@dataclass
class Counts:
    """Near misses and rewrites of all databases, by kind."""

    golds: int = 0
    failing: int = 0
    gold_against_gold: int = 0
    shown: int = 0  # golds that return a row on the given database
    shown_by_suite: int = 0  # … or on a variant
    misses: Counter = field(default_factory=Counter)
    differ: Counter = field(default_factory=Counter)
    by_ex: Counter = field(default_factory=Counter)
    by_ts: Counter = field(default_factory=Counter)
    rewrites: Counter = field(default_factory=Counter)
    arbitrary: Counter = field(default_factory=Counter)
    rejected_by_ex: Counter = field(default_factory=Counter)
    rejected: list = field(default_factory=list)
    missed: list = field(default_factory=list)
    unseen: list = field(default_factory=list)
    by_others: Counter = field(default_factory=Counter)  # … by suites chosen without that kind


def arguments(argv: list[str] | None) -> argparse.Namespace:
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
    parser.add_argument("--show", type=int, default=0, help="examples of what was missed")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    golds: dict[Path, dict[str, None]] = {}
    for example in load_dataset(options.data, options.lang, options.split):
        golds.setdefault(example.db_path, {})[example.gold_sql] = None
    wanted = options.databases.split(",") if options.databases else [p.stem for p in golds]
    counts, variants, seconds, cpu_seconds = Counts(), [], {}, {}
    with Sandbox() as sandbox, tempfile.TemporaryDirectory() as cache:
        for path in [path for path in golds if path.stem in wanted]:
            start, start_cpu = time.perf_counter(), time.process_time()
            suite = load_suite(path, golds[path], sandbox, options.seed, cache)
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
    """Add what one database shows."""
    results = dict(zip(golds, sandbox.run_many((suite.db_path, gold) for gold in golds)))
    running = [gold for gold in golds if results[gold].status == "ok"]
    counts.golds += len(running)
    counts.failing += len(golds) - len(running)
    counts.gold_against_gold += sum(suite_matches(sandbox, [(suite, g, g) for g in running]))
    for gold in running:
        shown = bool(results[gold].rows)
        rows = [sandbox.run(path, gold).rows for path in suite.judged[gold]]
        counts.shown += shown
        counts.shown_by_suite += shown or any(map(bool, rows))
    schema = load_schema(suite.db_path)
    misses = [(gold, miss) for gold in running for miss in make_mutants(gold, schema)]
    known = {gold: Gold(gold, len(results[gold].columns), schema) for gold in running}
    with closing(open_read_only(suite.db_path)) as connection:
        given = Drawn(connection)
        determined = {gold for gold in running if given.answer(known[gold]) is not None}
    differing = count_misses(suite, misses, known, determined, sandbox, options, counts)
    if options.leave_out:
        count_left_out(suite, misses, known, differing, options.seed, counts)
    count_rewrites(
        suite,
        [(g, r) for g in running for r in equivalent_rewrites(g)],
        determined,
        sandbox,
        counts,
    )


def count_misses(
    suite: Suite,
    misses: list[tuple[str, Mutant]],
    known: dict[str, Gold],
    determined: set[str],
    sandbox: Sandbox,
    options: argparse.Namespace,
    counts: Counts,
) -> dict[tuple[str, str], bool]:
    """Return for the near misses that really differ, as (gold, miss), whether EX sees it."""
    left: dict[str, list[Mutant]] = {}
    differing = {}
    for (gold, miss), (ex, variants) in zip(misses, judged(suite, misses, sandbox)):
        counts.misses[miss.kind] += 1
        # What differs where gold's answer is arbitrary need not really differ.
        if not variants or (not ex and gold in determined):
            counts.differ[miss.kind] += 1
            counts.by_ex[miss.kind] += not ex
            counts.by_ts[miss.kind] += 1
            differing[gold, miss.sql] = not ex
        else:
            left.setdefault(gold, []).append((miss, ex))
    blueprint = read_blueprint(suite.db_path, list(known))
    for number, gold in enumerate(known):
        rng = random.Random(f"{OTHER_SEEDS} {options.seed} {gold}")
        open_misses = {miss.sql: (miss, ex) for miss, ex in left.get(gold, ())}
        for _ in range(options.pool if open_misses else 0):
            with closing(draw_database(blueprint, [number], rng)) as connection:
                found = Drawn(connection).told_apart(known[gold], list(open_misses))
            for miss, ex in [open_misses.pop(sql) for sql in found]:
                counts.differ[miss.kind] += 1
                # By chance, EX may see what it has no reason to see: then TS has seen it, too.
                counts.by_ex[miss.kind] += not ex
                counts.by_ts[miss.kind] += not ex
                differing[gold, miss.sql] = not ex
                if ex:
                    counts.missed.append((gold, miss))
        counts.unseen += [(gold, miss) for miss, _ in open_misses.values()]
    return differing


def count_left_out(
    suite: Suite,
    misses: list[tuple[str, Mutant]],
    known: dict[str, Gold],
    differing: dict[tuple[str, str], bool],
    seed: int,
    counts: Counts,
) -> None:
    """Count the near misses of each kind that suites chosen without the kind tell from gold."""
    blueprint = read_blueprint(suite.db_path, list(known))
    for kind in sorted({miss.kind for gold, miss in misses if (gold, miss.sql) in differing}):
        for gold in known.values():
            gold.misses = [m.sql for sql, m in misses if sql == gold.sql and m.kind != kind]
        variants = choose_variants(blueprint, list(known.values()), seed).variants
        for sql, miss in misses:
            if miss.kind == kind and (sql, miss.sql) in differing:
                seen = differing[sql, miss.sql] or any(
                    drawn.told_apart(known[sql], [miss.sql]) for drawn in variants
                )
                counts.by_others[kind] += seen
        for drawn in variants:
            drawn.connection.close()


def count_rewrites(
    suite: Suite,
    cases: list[tuple[str, Rewrite]],
    determined: set[str],
    sandbox: Sandbox,
    counts: Counts,
) -> None:
    for (gold, rewrite), (ex, variants) in zip(cases, judged(suite, cases, sandbox)):
        counts.rewrites[rewrite.kind] += 1
        if gold not in determined:
            counts.arbitrary[rewrite.kind] += 1
            counts.rejected_by_ex[rewrite.kind] += not ex
        if not variants or (not ex and gold in determined):
            counts.rejected.append((gold, rewrite))


def judged(
    suite: Suite, cases: Sequence[tuple[str, Mutant | Rewrite]], sandbox: Sandbox
) -> list[tuple[bool, bool]]:
    """Whether each agrees with gold on the given database (EX), and on the variants alone."""
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
            all(agrees(path, gold, case.sql) for path in suite.judged[gold]),
        )
        for gold, case in cases
    ]


def report_building(
    counts: Counts, variants: list[int], seconds: dict[str, float], cpu_seconds: dict[str, float]
) -> None:
    print(f"\n{len(seconds)} databases, {counts.golds} distinct gold queries that run", end="")
    print(f" ({counts.failing} do not)" if counts.failing else "")
    print(f"gold against gold is right by TS: {counts.gold_against_gold} of {counts.golds}")
    print(f"gold returns rows on the given database: {counts.shown}, ", end="")
    print(f"there or on a variant: {counts.shown_by_suite}")
    mean = sum(variants) / len(variants)
    print(f"variants a database: {mean:.1f} on average, {max(variants)} at most")
    for name, taken in (("wall clock", seconds), ("CPU", cpu_seconds)):
        slowest = max(taken, key=taken.get)
        mean = sum(taken.values()) / len(taken)
        print(f"building, {name}: {mean:.1f} s a database on average, ", end="")
        print(f"{taken[slowest]:.1f} s at most ({slowest})")
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 << (20 if sys.platform == "darwin" else 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"peak memory: {peak:.0f} MiB")


def report(counts: Counts, show: int) -> None:
    columns = [counts.misses, counts.differ, counts.by_ex, counts.by_ts]
    columns += [counts.by_others] if counts.by_others else []
    print(f"\n{'near misses':16}{'made':>7}{'differ':>8}{'EX sees':>9}{'TS sees':>9}", end="")
    print(f"{'EX %':>8}{'TS %':>8}{'left out %' if counts.by_others else '':>12}")
    for kind in MISS_KINDS:
        print_row(kind, *(column[kind] for column in columns))
    print_row("all", *(column.total() for column in columns))
    wrong = Counter(rewrite.kind for _, rewrite in counts.rejected)
    columns = (counts.rewrites, counts.arbitrary, wrong)
    print(f"\n{'equivalent rewrites':25}{'made':>7}{'of arbitrary gold':>19}{'rejected':>10}")
    for kind in REWRITE_KINDS:
        print(f"{kind:25}{'{:7}{:19}{:10}'.format(*(column[kind] for column in columns))}")
    print(f"{'all':25}{'{:7}{:19}{:10}'.format(*(column.total() for column in columns))}")
    print(
        f"EX itself rejects {counts.rejected_by_ex.total()} of the {counts.arbitrary.total()} "
        "rewrites of gold whose answer is arbitrary on the given database"
    )
    examples = {
        "rejected": counts.rejected,
        "missed": counts.missed,
        "told apart by nothing": counts.unseen,
    }
    for title, pairs in examples.items():
        for gold, case in random.Random(0).sample(pairs, min(show, len(pairs))):
            print(f"\n{title} ({case.kind}):\n  {gold}\n  {case.sql}")


def print_row(kind: str, made: int, differ: int, *seen: int) -> None:
    """`seen` by EX, by TS and perhaps by suites chosen without the kind."""
    shares = [f"{100 * n / differ:.1f}" if differ else "-" for n in seen]
    widths = (8, 8, 12)
    shares = "".join(f"{share:>{width}}" for share, width in zip(shares, widths))
    print(f"{kind:16}{made:7}{differ:8}{seen[0]:9}{seen[1]:9}{shares}")


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
