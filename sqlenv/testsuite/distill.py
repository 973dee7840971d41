"""Chooses, from many drawn databases, a handful that tell gold queries from their near misses.

Greedy, round by round: of a few candidates, drawn around gold queries that still have near misses
with gold's own result, the one that tells most of them apart is kept. Everything runs in this
process, in memory and within a number of SQLite's steps instead of a time, so that the same
arguments give the same databases on any machine.
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
from sqlenv.testsuite.profile import Blueprint
from sqlenv.text import is_ordered

MAX_VARIANTS = 16
CANDIDATES = 24  # databases drawn for each one that is kept
PATIENCE = 2  # rounds that tell nothing apart, before giving up
FOCUS = (2, 4, 8, 16)  # gold queries that a candidate is drawn around
STEPS = 300_000  # of SQLite's machine that a query may take
INTERVAL = 1000  # of them between two looks at their number
MAX_RESULT = 2000  # rows of a result


class Gold:
    """A gold query, known to run, and texts that it must not be confused with."""

    def __init__(self, sql: str, width: int, schema: Schema, misses: Iterable[str] = ()):
        self.sql, self.ordered, self.misses = sql, is_ordered(sql), list(misses)
        self.perturbed = perturbed_queries(sql, width, schema)


class Drawn:
    """A drawn database, and what the gold queries give on it.

    Only for queries that the sandbox has let through on the given database, and near misses of
    them: they run in this process.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.connection, self.looks = connection, 0
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        connection.set_progress_handler(self.is_over, INTERVAL)
        self.results: dict[str, Execution | None] = {}

    def is_over(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def run(self, sql: str) -> Execution:
        self.looks = STEPS // INTERVAL
        try:
            cursor = self.connection.execute(sql)
            rows = cursor.fetchmany(MAX_RESULT + 1)
        except sqlite3.Error as error:
            return Execution("error", error=str(error))
        if len(rows) > MAX_RESULT:
            return Execution("too_large")
        return Execution("ok", tuple(column[0] for column in cursor.description), rows)

    def answer(self, gold: Gold) -> Execution | None:
        """Gold's result; None if it fails here or its answer is arbitrary."""
        if gold.sql not in self.results:
            result = self.run(gold.sql)
            determined = result.status == "ok" and all(
                results_match(result, self.run(sql), gold.ordered) for sql in gold.perturbed
            )
            self.results[gold.sql] = result if determined else None
        return self.results[gold.sql]

    def told_apart(self, gold: Gold, misses: Iterable[str]) -> set[str]:
        """The near misses that give another result than gold."""
        result = self.answer(gold)
        if result is None:
            return set()
        found = set()
        for miss in misses:
            other = self.run(miss)
            if other.status == "too_large" or (
                other.status == "ok" and not results_match(result, other, gold.ordered)
            ):
                found.add(miss)
        return found


@dataclass
class Choice:
    variants: list[Drawn]
    survivors: list[set[str]]  # for each gold the near misses that none of them tells apart


def choose_variants(blueprint: Blueprint, golds: Sequence[Gold], seed: int) -> Choice:
    """Draw and choose at most MAX_VARIANTS databases. The same arguments, the same choice."""
    rng, idle = random.Random(seed), 0
    choice = Choice([], [set(gold.misses) for gold in golds])
    while idle < PATIENCE and len(choice.variants) < MAX_VARIANTS and any(choice.survivors):
        best, best_told = None, None
        for _ in range(min(4 * len(choice.variants) + 4, CANDIDATES)):
            alive = [number for number, misses in enumerate(choice.survivors) if misses]
            focus = rng.sample(alive, min(rng.choice(FOCUS), len(alive)))
            drawn = Drawn(draw_database(blueprint, focus, random.Random(rng.random())))
            told = {n: drawn.told_apart(golds[n], sorted(choice.survivors[n])) for n in alive}
            if best is None or count(told) > count(best_told):
                best, best_told = drawn, told
        if count(best_told) == 0:
            idle += 1
            continue
        idle = 0
        choice.variants.append(best)
        for number, misses in best_told.items():
            choice.survivors[number] -= misses
    return choice


def count(told: dict[int, set[str]]) -> int:
    return sum(map(len, told.values()))
