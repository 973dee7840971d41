"""The results of gold queries, and the comparison of predictions with them.

A result can have megabytes, so those of all predictions, or of all gold queries, need not fit into
memory. The result of a prediction is compared when it arrives and then dropped. The rows of gold
queries are kept up to a limit. Gold queries beyond it run again, a few at a time, just before the
predictions that are compared with them.
"""

import marshal
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from pathlib import Path

from sqlenv.metrics.execution_match import result_overlap, results_match
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.text import is_ordered

KEPT_BYTES = 64 << 20  # of the rows of gold queries, as marshal writes them
BATCH_BYTES = 32 << 20  # of the rows of gold queries that run again together

Gold = tuple[Path, str]  # database and gold query
Case = tuple[Path, str, str]  # database, gold query and the SQL to compare with it
# The execution of the SQL, without its rows; whether its result equals gold's; ``result_overlap``.
Compared = tuple[Execution, bool, float]


class GoldResults:
    """Runs gold queries and compares SQL with them, in bounded memory."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self._executions: dict[Gold, Execution] = {}  # without rows
        self._sizes: dict[Gold, int] = {}  # bytes of their rows
        self._rows: dict[Gold, bytes] = {}  # the rows that are kept

    def run(self, golds: Sequence[Gold]) -> list[Execution]:
        """The execution of each gold query, without its rows. A query runs once, unless its rows
        are needed and were not kept; then its last execution is returned.
        """
        missing = [gold for gold in dict.fromkeys(golds) if gold not in self._executions]
        self._run(missing, self._rows, KEPT_BYTES)
        return [self._executions[gold] for gold in golds]

    def compare(
        self,
        cases: Sequence[Case],
        *,
        timeout_budget: float | None = None,
        with_overlap: bool = False,
    ) -> list[Compared]:
        """Runs the SQL of the cases and compares the results with gold's.

        Args:
            timeout_budget: of the SQL, not of gold; see ``Sandbox.run_each``.
            with_overlap: also say how much of a wrong result is right.
        """
        by_gold: dict[Gold, list[Case]] = {}
        for case in dict.fromkeys(cases):
            by_gold.setdefault(case[:2], []).append(case)
        self.run(list(by_gold))
        compared: dict[Case, Compared] = {}
        for rows in self._batches(list(by_gold)):
            batch = [case for gold in rows for case in by_gold[gold]]
            self._compare_batch(batch, rows, compared, timeout_budget, with_overlap)
        return [compared[case] for case in cases]

    def _run(self, golds: list[Gold], rows: dict[Gold, bytes], limit: float) -> None:
        """Runs gold queries; adds what they return to ``rows``, up to ``limit`` bytes in all."""
        left = limit - sum(map(len, rows.values()))

        def keep(index: int, execution: Execution) -> None:
            nonlocal left
            gold, packed = golds[index], marshal.dumps(execution.rows) if execution.rows else b""
            self._executions[gold], self._sizes[gold] = execution.without_rows(), len(packed)
            if len(packed) <= left:
                rows[gold] = packed
                left -= len(packed)

        self.sandbox.run_each(golds, keep)

    def _batches(self, golds: list[Gold]) -> Iterator[dict[Gold, bytes]]:
        """The rows of gold queries: those that are kept, then those of queries that run again."""
        yield {gold: self._rows[gold] for gold in golds if gold in self._rows}
        others = [gold for gold in golds if gold not in self._rows]
        while others:
            sizes = accumulate(self._sizes[gold] for gold in others)
            count = len(list(takewhile(lambda size: size <= BATCH_BYTES, sizes))) or 1
            rows: dict[Gold, bytes] = {}
            self._run(others[:count], rows, math.inf)
            yield rows
            del others[:count]

    def _compare_batch(
        self,
        cases: list[Case],
        rows: dict[Gold, bytes],
        compared: dict[Case, Compared],
        timeout_budget: float | None,
        with_overlap: bool,
    ) -> None:
        """Runs the SQL of the cases, equal SQL once, and adds what becomes of them."""
        by_query: dict[tuple[Path, str], list[Case]] = {}
        for case in cases:
            by_query.setdefault((case[0], case[2]), []).append(case)
        queries = list(by_query)

        def use(index: int, execution: Execution) -> None:
            light = execution.without_rows()
            for case in by_query[queries[index]]:
                gold = case[:2]
                equal = self._equals(gold, rows[gold], execution)
                overlap = 1.0 if equal else 0.0
                if with_overlap and not equal and execution.num_rows:
                    overlap = result_overlap(self._with_rows(gold, rows[gold]), execution)
                compared[case] = light, equal, overlap

        self.sandbox.run_each(queries, use, timeout_budget=timeout_budget)

    def _equals(self, gold: Gold, packed: bytes, execution: Execution) -> bool:
        """Whether a result equals gold's; gold's rows are unpacked only if that is possible."""
        if self._executions[gold].num_rows != execution.num_rows:
            return False
        expected = self._with_rows(gold, packed)
        return results_match(expected, execution, ordered=is_ordered(gold[1]))

    def _with_rows(self, gold: Gold, packed: bytes) -> Execution:
        return replace(self._executions[gold], rows=marshal.loads(packed) if packed else [])
