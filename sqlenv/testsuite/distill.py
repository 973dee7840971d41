"""Chooses from many drawn databases a few that distinguish gold queries from their mutants.

The choice is greedy: in each round, candidates are drawn around a few gold queries that still have
live mutants (mutants with the result of gold on all chosen databases), and the candidate that kills
most mutants of these is kept. First come databases of many rows, for the mutants with a LIMIT. All
queries run in this process, in memory. Each query and the whole search stop after a number of steps
instead of a time, so that the same arguments give the same databases on any machine.
"""

import functools
import math
import random
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution
from sqlenv.sandbox.worker import ENDING
from sqlenv.schema import Schema
from sqlenv.testsuite.determinism import perturbed_queries
from sqlenv.testsuite.mutants import Mutant
from sqlenv.testsuite.populate import draw_database
from sqlenv.testsuite.profile import DatabaseProfile
from sqlenv.text import is_ordered

MAX_VARIANTS = 36
CANDIDATES = 16  # databases drawn at most in a round
MANY_ROWS = 300  # of each table of a database of many rows
MAX_LARGE = 6  # variants of many rows
LARGE_CANDIDATES = 3  # databases of many rows drawn in a round
PATIENCE = 4  # rounds in a row with at most one killed mutant after which the search ends
FOCUS_SIZES = (2, 4, 8, 16, 32)  # gold queries that a candidate is drawn around
LARGE_FOCUS_SIZES = (1, 1, 2, 4)  # those of many rows: each query needs many of them
# Units of work for a suite, each some 50 microseconds: a query, 1000 steps of it, a drawn column,
# or 8 drawn cells.
MAX_WORK = 200_000
MAX_STEPS = 300_000  # of SQLite's virtual machine for a query
CHECK_INTERVAL = 1000  # steps between two checks of their number
MAX_RESULT = 2000  # rows of a result


class GoldQuery:
    """A gold query that runs, with its mutants and its rewrites from ``perturbed_queries``."""

    def __init__(self, sql: str, width: int, schema: Schema, mutants: Iterable[Mutant] = ()):
        self.sql, self.ordered, self.mutants = sql, is_ordered(sql), list(mutants)
        self.perturbed = perturbed_queries(sql, width, schema)


class DrawnDatabase:
    """A drawn database and the results of the gold queries on it.

    Queries run in this process, so they must be gold queries that the sandbox has allowed on the
    given database, or mutants of these.

    Attributes:
        work: units of work of the queries that have run.
    """

    def __init__(self, connection: sqlite3.Connection):
        self.connection, self.checks_left, self.work = connection, 0, 0
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
        connection.set_progress_handler(self.exceeds_steps, CHECK_INTERVAL)
        self.gold_results: dict[str, Execution] = {}
        self.deterministic: dict[str, bool] = {}

    def exceeds_steps(self) -> bool:
        """SQLite's progress handler: whether to stop the query."""
        self.checks_left -= 1
        self.work += 1
        return self.checks_left < 0

    def run(self, sql: str) -> Execution:
        """Runs a query within the limits."""
        self.checks_left = MAX_STEPS // CHECK_INTERVAL
        self.work += 1
        try:
            cursor = self.connection.execute(sql.rstrip(ENDING))
            rows = cursor.fetchmany(MAX_RESULT + 1)
        except sqlite3.Error as error:
            status = "timeout" if self.checks_left < 0 else "error"
            return Execution(status, error=str(error))
        if len(rows) > MAX_RESULT:
            return Execution("too_large")
        return Execution("ok", tuple(column[0] for column in cursor.description), rows)

    def write(self, path: Path) -> None:
        """Writes the database to a new file, which may take more steps than a query."""
        self.connection.set_progress_handler(None, 0)
        self.connection.execute("VACUUM INTO ?", [str(path)])
        self.connection.set_progress_handler(self.exceeds_steps, CHECK_INTERVAL)

    def first_result(self, gold: GoldQuery) -> Execution:
        """The result of gold, which may not be deterministic."""
        if gold.sql not in self.gold_results:
            self.gold_results[gold.sql] = self.run(gold.sql)
        return self.gold_results[gold.sql]

    def gold_result(self, gold: GoldQuery) -> Execution | None:
        """The result of gold; None if it fails or is not deterministic on this database."""
        result = self.first_result(gold)
        if gold.sql not in self.deterministic:
            others = (self.run(sql) for sql in gold.perturbed)
            # A rewrite that SQLite rejects says nothing.
            self.deterministic[gold.sql] = result.status == "ok" and all(
                other.status == "error" or results_match(result, other, gold.ordered)
                for other in others
            )
        return result if self.deterministic[gold.sql] else None

    def killed(
        self, gold: GoldQuery, mutants: Iterable[str], max_work: float = math.inf
    ) -> set[str]:
        """The mutants whose result differs from that of gold; no mutant if gold fails or is not
        deterministic. The latter is looked at last: most mutants that are still alive differ on few
        databases, and on the others it does not matter.

        Args:
            max_work: units of work of this database after which no further mutant runs.
        """
        expected, killed = self.first_result(gold), set()
        if expected.status != "ok" or self.deterministic.get(gold.sql) is False:
            return set()
        for mutant in mutants:
            if self.work > max_work:
                break
            result = self.run(mutant)
            if result.status == "too_large" or (
                result.status == "ok" and not results_match(expected, result, gold.ordered)
            ):
                killed.add(mutant)
        return killed if killed and self.gold_result(gold) is not None else set()


class Search:
    """The greedy search for the variants of a suite.

    Attributes:
        variants: the chosen databases.
        survivors: for each gold query the mutants that none of them kills.
        work: units of work so far.
    """

    def __init__(self, profile: DatabaseProfile, golds: Sequence[GoldQuery], seed: int):
        self.profile, self.golds, self.rng = profile, golds, random.Random(seed)
        self.variants: list[DrawnDatabase] = []
        self.survivors = [{mutant.sql for mutant in gold.mutants} for gold in golds]
        self.work = 0

    def choose_large(self) -> None:
        """Chooses databases of many rows, for the mutants with a LIMIT."""
        limited = [{m.sql for m in gold.mutants if m.kind == "row_limit"} for gold in self.golds]
        idle = 0
        while idle < PATIENCE and len(self.variants) < MAX_LARGE:
            targets = [left & mutants for left, mutants in zip(self.survivors, limited)]
            alive = [number for number, mutants in enumerate(targets) if mutants]
            count = LARGE_CANDIDATES if alive else 0
            drawn = (self.draw(alive, LARGE_FOCUS_SIZES, MANY_ROWS)[0] for _ in range(count))
            killed = self.keep_best(((database, alive) for database in drawn), targets)
            idle = 0 if killed > 1 else idle + 1

    def choose(self) -> None:
        """Chooses databases of few rows until they kill hardly any further mutants."""
        idle = 0
        while idle < PATIENCE and len(self.variants) < MAX_VARIANTS:
            alive = [number for number, mutants in enumerate(self.survivors) if mutants]
            count = min(2 * len(self.variants) + 4, CANDIDATES) if alive else 0
            drawn = (self.draw(alive, FOCUS_SIZES) for _ in range(count))
            idle = 0 if self.keep_best(drawn, self.survivors) > 1 else idle + 1

    def draw(
        self, alive: list[int], focus_sizes: Sequence[int], rows: int | None = None
    ) -> tuple[DrawnDatabase, list[int]]:
        """Draws a database around some of the gold queries; returns it with these."""
        rng = self.rng
        focus = rng.sample(alive, min(rng.choice(focus_sizes), len(alive)))
        connection = draw_database(self.profile, focus, random.Random(rng.random()), rows)
        columns = sum(len(table.columns) for table in self.profile.tables.values())
        self.work += columns * (1 + (rows or 8) // 8)
        return DrawnDatabase(connection), focus

    def keep_best(
        self, drawn: Iterable[tuple[DrawnDatabase, list[int]]], targets: Sequence[set[str]]
    ) -> int:
        """Adds the database that kills most of the targets, if any, to the variants.

        Args:
            drawn: databases, each with the gold queries whose targets it is measured on.
            targets: mutants of each gold query.

        Returns:
            The number of targets that it kills of the gold queries it was measured on.
        """
        best, most, measured = None, 0, []
        for database, golds in drawn:
            if self.work > MAX_WORK:
                break
            killed = sum(len(self.kill(database, number, targets[number])) for number in golds)
            if killed > most:
                best, most, measured = database, killed, golds
        for number, mutants in enumerate(targets if best else ()):
            # Without a result of gold, mutants rarely have one.
            if number in measured or has_values(best.first_result(self.golds[number])):
                self.survivors[number] -= self.kill(best, number, mutants)
        self.variants += [best] if best else []
        return most

    def kill(self, database: DrawnDatabase, number: int, mutants: set[str]) -> set[str]:
        """The mutants of a gold query that a database kills."""
        if not mutants:
            return set()
        before = database.work
        max_work = before + max(MAX_WORK - self.work, 0)
        killed = database.killed(self.golds[number], sorted(mutants), max_work)
        self.work += database.work - before
        return killed


def has_values(result: Execution) -> bool:
    """Whether a result has a value other than NULL and 0."""
    return any(cell for row in result.rows for cell in row)


def choose_variants(
    profile: DatabaseProfile, golds: Sequence[GoldQuery], *, seed: int
) -> list[DrawnDatabase]:
    """Draws and chooses at most MAX_VARIANTS databases, within MAX_WORK.

    Args:
        profile: of the given database, with the same gold queries.
        golds: the gold queries and their mutants.
        seed: the same seed gives the same databases.
    """
    search = Search(profile, golds, seed)
    search.choose_large()
    search.choose()
    return search.variants
