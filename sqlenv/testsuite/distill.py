"""Chooses from many drawn databases a few that distinguish gold queries from their mutants.

The choice is greedy: in each round, candidates are drawn around gold queries that still have live
mutants (mutants with the result of gold on all chosen databases), and the candidate that kills most
of them is kept. All queries run in this process, in memory and within a number of SQLite's steps
instead of a time, so that the same arguments give the same databases on any machine.
"""

import functools
import random
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution
from sqlenv.schema import Schema
from sqlenv.testsuite.determinism import perturbed_queries
from sqlenv.testsuite.populate import draw_database
from sqlenv.testsuite.profile import DatabaseProfile
from sqlenv.text import is_ordered

MAX_VARIANTS = 16
CANDIDATES = 24  # databases drawn at most in a round
PATIENCE = 2  # rounds without a killed mutant after which the search ends
FOCUS_SIZES = (2, 4, 8, 16)  # gold queries that a candidate is drawn around
MAX_STEPS = 300_000  # of SQLite's virtual machine for a query
CHECK_INTERVAL = 1000  # steps between two checks of their number
MAX_RESULT = 2000  # rows of a result


class GoldQuery:
    """A gold query that runs, with its mutants and its rewrites from ``perturbed_queries``."""

    def __init__(self, sql: str, width: int, schema: Schema, mutants: Iterable[str] = ()):
        self.sql, self.ordered, self.mutants = sql, is_ordered(sql), list(mutants)
        self.perturbed = perturbed_queries(sql, width, schema)


class DrawnDatabase:
    """A drawn database and the results of the gold queries on it.

    Queries run in this process, so they must be gold queries that the sandbox has allowed on the
    given database, or mutants of these.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.connection, self.checks_left = connection, 0
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        connection.set_progress_handler(self.exceeds_steps, CHECK_INTERVAL)
        self.gold_results: dict[str, Execution | None] = {}

    def exceeds_steps(self) -> bool:
        """SQLite's progress handler: whether to stop the query."""
        self.checks_left -= 1
        return self.checks_left < 0

    def run(self, sql: str) -> Execution:
        """Runs a query within the limits."""
        self.checks_left = MAX_STEPS // CHECK_INTERVAL
        try:
            cursor = self.connection.execute(sql)
            rows = cursor.fetchmany(MAX_RESULT + 1)
        except sqlite3.Error as error:
            return Execution("error", error=str(error))
        if len(rows) > MAX_RESULT:
            return Execution("too_large")
        return Execution("ok", tuple(column[0] for column in cursor.description), rows)

    def gold_result(self, gold: GoldQuery) -> Execution | None:
        """The result of gold; None if it fails or is not deterministic on this database."""
        if gold.sql not in self.gold_results:
            result = self.run(gold.sql)
            deterministic = result.status == "ok" and all(
                results_match(result, self.run(sql), gold.ordered) for sql in gold.perturbed
            )
            self.gold_results[gold.sql] = result if deterministic else None
        return self.gold_results[gold.sql]

    def killed(self, gold: GoldQuery, mutants: Iterable[str]) -> set[str]:
        """The mutants whose result differs from that of gold."""
        expected = self.gold_result(gold)
        if expected is None:
            return set()
        killed = set()
        for mutant in mutants:
            result = self.run(mutant)
            if result.status == "too_large" or (
                result.status == "ok" and not results_match(expected, result, gold.ordered)
            ):
                killed.add(mutant)
        return killed


@dataclass
class ChosenVariants:
    """The chosen databases, and for each gold query the mutants that none of them kills."""

    variants: list[DrawnDatabase]
    survivors: list[set[str]]


def choose_variants(
    profile: DatabaseProfile, golds: Sequence[GoldQuery], *, seed: int
) -> ChosenVariants:
    """Draws and chooses at most MAX_VARIANTS databases.

    Args:
        profile: of the given database, with the same gold queries.
        golds: the gold queries and their mutants.
        seed: the same seed gives the same databases.
    """
    rng, idle = random.Random(seed), 0
    chosen = ChosenVariants([], [set(gold.mutants) for gold in golds])
    while idle < PATIENCE and len(chosen.variants) < MAX_VARIANTS and any(chosen.survivors):
        best, best_killed = None, {}
        for _ in range(min(4 * len(chosen.variants) + 4, CANDIDATES)):
            alive = [number for number, mutants in enumerate(chosen.survivors) if mutants]
            focus = rng.sample(alive, min(rng.choice(FOCUS_SIZES), len(alive)))
            drawn = DrawnDatabase(draw_database(profile, focus, random.Random(rng.random())))
            killed = {n: drawn.killed(golds[n], sorted(chosen.survivors[n])) for n in alive}
            if best is None or total(killed) > total(best_killed):
                best, best_killed = drawn, killed
        if total(best_killed) == 0:
            idle += 1
            continue
        idle = 0
        chosen.variants.append(best)
        for number, mutants in best_killed.items():
            chosen.survivors[number] -= mutants
    return chosen


def total(killed: dict[int, set[str]]) -> int:
    """The number of killed mutants of all gold queries."""
    return sum(map(len, killed.values()))
