"""Verifies SQL by execution: runs a query and the gold query in the sandbox and compares the
results. This is the only place that defines when a query is correct.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlenv.dataset import Example
from sqlenv.gold import GoldResults
from sqlenv.sandbox import Execution, Sandbox
from sqlenv.schema import load_schema
from sqlenv.testsuite.determinism import tie_broken_queries
from sqlenv.testsuite.suite import Suite, variants_match


@dataclass(frozen=True)
class Verdict:
    """A query, its execution, and whether its result equals gold's.

    Attributes:
        sql: None where a completion contains no query.
        execution: without its rows, only their number; None where there is no query.
        correct: the result equals gold's on the given database (EX); False if gold fails.
        overlap: how much of the result is right, from 0 to 1 (``result_overlap``), where it was
            asked for; otherwise 1 if it is correct and 0 if not.
    """

    sql: str | None
    execution: Execution | None
    correct: bool
    overlap: float = 0.0

    @property
    def valid(self) -> bool:
        """Whether the query runs."""
        return self.execution is not None and self.execution.status == "ok"


class ExecutionVerifier:
    """Verifies queries against gold; the results of gold queries are kept, up to a limit."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self._gold = GoldResults(sandbox)
        self._arbitrary: dict[tuple[Path, str], bool] = {}

    def run_gold(self, examples: Sequence[Example]) -> list[Execution]:
        """The execution of each example's gold query, without its rows, only their number."""
        return self._gold.run([(example.db_path, example.gold_sql) for example in examples])

    def verify(
        self,
        examples: Sequence[Example],
        sqls: Sequence[str | None],
        *,
        timeout_budget: float | None = None,
        with_overlap: bool = False,
    ) -> list[Verdict]:
        """The verdict on one query for each example; equal queries run once.

        Args:
            timeout_budget: seconds for the queries that time out, see ``Sandbox.run_each``.
            with_overlap: also say how much of a wrong result is right.
        """
        cases = [
            (example.db_path, example.gold_sql, sql)
            for example, sql in zip(examples, sqls)
            if sql is not None
        ]
        options = {"timeout_budget": timeout_budget, "with_overlap": with_overlap}
        compared = iter(self._gold.compare(cases, **options))
        return [
            Verdict(sql, None, False) if sql is None else Verdict(sql, *next(compared))
            for sql in sqls
        ]

    def verify_on_suites(
        self,
        examples: Sequence[Example],
        verdicts: Sequence[Verdict],
        suites: Mapping[Path, Suite],
        *,
        timeout_budget: float | None = None,
    ) -> list[bool]:
        """Whether each query is correct on the given database and on every variant of it (TS).

        Args:
            verdicts: from ``verify``; nothing runs on the given database again.
            suites: the test suite of each example's database.
            timeout_budget: as for ``verify``.
        """
        correct = [i for i, verdict in enumerate(verdicts) if verdict.correct]
        cases = [
            (suites[examples[i].db_path], examples[i].gold_sql, verdicts[i].sql) for i in correct
        ]
        matches = variants_match(self.sandbox, cases, timeout_budget=timeout_budget)
        by_index = dict(zip(correct, matches))
        return [by_index.get(i, False) for i in range(len(verdicts))]

    def gold_is_arbitrary(self, examples: Sequence[Example]) -> list[bool]:
        """Whether SQL leaves open the result of each gold query on the given database: rows tied at
        a LIMIT or in the order of the result, or a bare column of a group.

        A right prediction may then count as wrong. False where gold, or gold with its ties broken,
        fails or exceeds a limit.
        """
        golds = dict.fromkeys((example.db_path, example.gold_sql) for example in examples)
        cases = []
        for gold, execution in zip(golds, self._gold.run(list(golds))):
            if gold not in self._arbitrary and execution.status == "ok":
                self._arbitrary[gold] = False
                schema, width = load_schema(gold[0]), len(execution.columns)
                cases += [(*gold, sql) for sql in tie_broken_queries(gold[1], width, schema)]
        for case, (execution, equal, _) in zip(cases, self._gold.compare(cases)):
            if execution.status == "ok" and not equal:
                self._arbitrary[case[:2]] = True
        return [self._arbitrary.get((e.db_path, e.gold_sql), False) for e in examples]
