"""Verifies SQL by execution: runs a query and the gold query in the sandbox and compares the
results. This is the only place that defines when a query is correct.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlenv.dataset import Example
from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox import Execution, Sandbox
from sqlenv.schema import load_schema
from sqlenv.testsuite.determinism import tie_broken_queries
from sqlenv.testsuite.suite import Suite, suite_matches
from sqlenv.text import is_ordered


@dataclass(frozen=True)
class Verdict:
    """A query, its execution, and whether its result equals gold's.

    Attributes:
        sql: None where a completion contains no query.
        execution: None where there is no query.
        correct: the result equals gold's on the given database (EX); False if gold fails.
    """

    sql: str | None
    execution: Execution | None
    correct: bool

    @property
    def valid(self) -> bool:
        """Whether the query runs."""
        return self.execution is not None and self.execution.status == "ok"


class ExecutionVerifier:
    """Verifies queries against gold; the results of gold queries are kept."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self._gold: dict[tuple[Path, str], Execution] = {}
        self._arbitrary: dict[tuple[Path, str], bool] = {}

    def run_gold(self, examples: Sequence[Example]) -> list[Execution]:
        """The result of each example's gold query, each distinct query run once."""
        keys = [(example.db_path, example.gold_sql) for example in examples]
        missing = list(dict.fromkeys(key for key in keys if key not in self._gold))
        self._gold.update(zip(missing, self.sandbox.run_many(missing)))
        return [self._gold[key] for key in keys]

    def verify(self, examples: Sequence[Example], sqls: Sequence[str | None]) -> list[Verdict]:
        """The verdict on one query for each example; equal queries run once."""
        gold = self.run_gold(examples)
        keys = [(example.db_path, sql) for example, sql in zip(examples, sqls) if sql is not None]
        distinct = list(dict.fromkeys(keys))
        executions = dict(zip(distinct, self.sandbox.run_many(distinct)))
        verdicts = []
        for example, expected, sql in zip(examples, gold, sqls):
            execution = executions.get((example.db_path, sql))
            correct = execution is not None and results_match(
                expected, execution, ordered=is_ordered(example.gold_sql)
            )
            verdicts.append(Verdict(sql, execution, correct))
        return verdicts

    def verify_on_suites(
        self,
        examples: Sequence[Example],
        verdicts: Sequence[Verdict],
        suites: Mapping[Path, Suite],
    ) -> list[bool]:
        """Whether each query is correct on the given database and on every variant of it (TS).

        Args:
            verdicts: from ``verify``; what is wrong on the given database is not run again.
            suites: the test suite of each example's database.
        """
        correct = [i for i, verdict in enumerate(verdicts) if verdict.correct]
        cases = [
            (suites[examples[i].db_path], examples[i].gold_sql, verdicts[i].sql) for i in correct
        ]
        matches = dict(zip(correct, suite_matches(self.sandbox, cases)))
        return [matches.get(i, False) for i in range(len(verdicts))]

    def gold_is_arbitrary(self, examples: Sequence[Example]) -> list[bool]:
        """Whether SQL leaves open the result of each gold query on the given database: rows tied at
        a LIMIT or in the order of the result, or a bare column of a group.

        A right prediction may then count as wrong. False where gold, or gold with its ties broken,
        fails or exceeds a limit.
        """
        for example, gold in zip(examples, self.run_gold(examples)):
            key = example.db_path, example.gold_sql
            if key not in self._arbitrary and gold.status == "ok":
                schema, width = load_schema(example.db_path), len(gold.columns)
                rewrites = tie_broken_queries(example.gold_sql, width, schema)
                results = self.sandbox.run_many((example.db_path, sql) for sql in rewrites)
                self._arbitrary[key] = any(
                    result.status == "ok"
                    and not results_match(gold, result, is_ordered(example.gold_sql))
                    for result in results
                )
        return [self._arbitrary.get((e.db_path, e.gold_sql), False) for e in examples]
