"""The four rewards of the paper: execution, syntax, schema match and semantic agreement; execution
on a test suite; DAPO's length penalty; and rewards of one's own.

The paper's are in [0, 1], the penalty in [-1, 0]. Their weights must keep the order that matters:
no wrong SQL may ever score above a right one, so what the auxiliary terms can make up for stays
below what execution adds to a right one.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grpo.custom_reward import CustomReward, is_custom
from sqlenv import (
    Example,
    Execution,
    Sandbox,
    Suite,
    UserError,
    extract_sql,
    is_ordered,
    results_match,
    suite_matches,
)

WEIGHTS = {"execution": 1.0, "syntax": 0.1, "schema": 0.2, "semantic": 0.3}
OTHERS = ("test_suite", "overlong")
AUXILIARY = ("schema", "semantic", "overlong")  # what a right answer can lack and a wrong one have


def check_weights(weights: dict[str, float]) -> None:
    """Refuses weights under which a wrong answer could beat a right one, or that name an unknown
    reward.

    A right answer runs, so it has execution and syntax in full. A wrong one can have at most all
    the others. What a reward from a file returns is its author's business, and so is its weight.
    With ``test_suite``, right means right on the whole suite.
    """
    for name, weight in weights.items():
        if name not in (*WEIGHTS, *OTHERS) and not is_custom(name):
            raise UserError(
                f"--reward {name}: unknown reward; choose from {', '.join((*WEIGHTS, *OTHERS))}, "
                "or FILE.py:FUNCTION"
            )
        if not math.isfinite(weight) or (weight < 0 and not is_custom(name)):
            raise UserError(f"--reward {name}={weight:g}: a weight must be a number from 0 up")
    present = [name for name in AUXILIARY if weights.get(name)]
    auxiliary = sum(weights[name] for name in present)
    judge = "test_suite" if weights.get("test_suite") else "execution"
    if weights.get(judge, 0) <= auxiliary:
        raise UserError(
            f"--reward: {' + '.join(present) or 'the others'} ({auxiliary:g}) must weigh less than "
            f"{judge} ({weights.get(judge, 0):g}), or a wrong query could score above a right one"
        )


def overlong_penalty(length: int, longest: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to ``longest - buffer``
    tokens, then falling linearly to -1 at ``longest``, where a completion is cut.

    >>> [overlong_penalty(n, longest=100, buffer=20) for n in (80, 85, 100)]
    [0.0, -0.25, -1.0]
    """
    return max(-1.0, min(0.0, (longest - buffer - length) / buffer))


def neutral_gaps(terms: Tensor) -> Tensor:
    """Fills NaN, "not applicable", with the mean of that term over the others of the group, so
    that it neither helps nor hurts; with 0 where it applies to nobody. (P, G, R) -> (P, G, R).
    """
    mean = terms.nanmean(dim=1, keepdim=True).nan_to_num(0.0)  # (P, 1, R)
    return torch.where(terms.isnan(), mean, terms)


def schema_match(predicted: frozenset, gold: frozenset) -> float:
    """Jaccard overlap of the columns that two queries read: |both| / |either|.

    >>> schema_match(frozenset({("a", "x"), ("a", "y")}), frozenset({("a", "x")}))
    0.5
    """
    either = predicted | gold
    return len(predicted & gold) / len(either) if either else 1.0


@dataclass
class Judged:
    """A completion's SQL, how it ran, and whether the result is gold's."""

    sql: str | None
    execution: Execution | None
    correct: bool

    @property
    def valid(self) -> bool:
        return self.execution is not None and self.execution.status == "ok"


class Judge:
    """Runs completions in the sandbox and compares them with gold, whose results are kept."""

    def __init__(self, sandbox: Sandbox):
        self.sandbox = sandbox
        self.gold: dict[tuple, Execution] = {}

    def run_gold(self, examples: list[Example]) -> list[Execution]:
        """Gold's results, each query run once."""
        keys = [(example.db_path, example.gold_sql) for example in examples]
        missing = list(dict.fromkeys(key for key in keys if key not in self.gold))
        self.gold.update(zip(missing, self.sandbox.run_many(missing)))
        return [self.gold[key] for key in keys]

    def judge(self, examples: list[Example], texts: list[str]) -> list[Judged]:
        """Judges one completion text for each example."""
        gold = self.run_gold(examples)
        sqls = [extract_sql(text) for text in texts]
        jobs = {
            (example.db_path, sql): None for example, sql in zip(examples, sqls) if sql is not None
        }
        jobs.update(zip(jobs, self.sandbox.run_many(list(jobs))))  # equal completions run once
        judged = []
        for example, expected, sql in zip(examples, gold, sqls):
            found = jobs.get((example.db_path, sql))
            correct = (
                found is not None
                and found.status == "ok"
                and expected.status == "ok"
                and results_match(expected, found, is_ordered(example.gold_sql))
            )
            judged.append(Judged(sql, found, correct))
        return judged


class Rewards:
    """Scores completions: (P, G, R) reward terms in the order of ``names``.

    Args:
        semantic: an ``encoder.reward.SemanticReward``; may be None if that weighs 0.
        weights: by name; those of 0 are left out.
        longest, buffer: tokens, of the reward ``overlong``.
        timeout: seconds that a custom reward may take for a batch.
        suites: of each database, for ``test_suite``.
    """

    def __init__(
        self,
        judge: Judge,
        semantic,
        weights: dict[str, float],
        longest: int = 0,
        buffer: int = 0,
        timeout: float = 10.0,
        suites: dict[Path, Suite] | None = None,
    ):
        check_weights(weights)
        self.suites = suites
        self.judge, self.semantic, self.longest, self.buffer = judge, semantic, longest, buffer
        self.specs = [name for name, weight in weights.items() if weight]
        self.names = [spec.rpartition(":")[2] for spec in self.specs]
        doubled = [name for name in self.names if self.names.count(name) > 1]
        if doubled:
            raise UserError(f"--reward: two rewards are called {doubled[0]!r}; rename a function")
        self.custom = {name: CustomReward(name, timeout) for name in self.specs if is_custom(name)}
        self.weights = torch.tensor([weights[name] for name in self.specs])

    def __call__(
        self,
        examples: list[Example],
        texts: list[list[str]],
        prompts: list[str] | None = None,
        lengths: list[list[int]] | None = None,
    ) -> Tensor:
        """P examples, P x G completion texts -> (P, G, R) float32.

        Args:
            prompts: P texts, handed to custom rewards.
            lengths: P x G numbers of tokens, for ``overlong``.
        """
        flat = [example for example, group in zip(examples, texts) for _ in group]
        judged = self.judge.judge(flat, [text for group in texts for text in group])
        columns = []
        for spec in self.specs:
            if spec in self.custom:
                columns.append(self._custom(self.custom[spec], examples, texts, prompts, judged))
            elif spec == "overlong":
                columns.append(
                    [
                        overlong_penalty(n, self.longest, self.buffer)
                        for group in lengths
                        for n in group
                    ]
                )
            else:
                columns.append(getattr(self, f"_{spec}")(flat, judged))
        terms = torch.tensor(columns, dtype=torch.float32).T
        return neutral_gaps(terms.reshape(len(examples), -1, len(self.specs)))

    def failures(self) -> dict[str, int]:
        """``reward_failures/<name>``: calls of a custom reward that failed, in this process."""
        return {f"reward_failures/{one.name}": one.failures for one in self.custom.values()}

    def close(self) -> None:
        """Stops the worker processes of custom rewards."""
        for one in self.custom.values():
            one.close()

    def _custom(self, reward, examples, texts, prompts, judged) -> list[float]:
        """One call for the whole batch; every list has P x G entries."""
        repeated = [(i, e) for i, (e, group) in enumerate(zip(examples, texts)) for _ in group]
        columns = {
            name: [getattr(example, name) for _, example in repeated]
            for name in ("question", "lang", "db_id", "gold_sql")
        }
        return reward(
            prompts=[prompts[i] for i, _ in repeated],
            completions=[text for group in texts for text in group],
            db_path=[str(example.db_path) for _, example in repeated],
            sql=[one.sql for one in judged],
            **columns,
        )

    def _execution(self, examples, judged) -> list[float]:
        return [float(one.correct) for one in judged]

    def _test_suite(self, examples, judged) -> list[float]:
        right = [i for i, one in enumerate(judged) if one.correct]
        cases = [
            (self.suites[examples[i].db_path], examples[i].gold_sql, judged[i].sql) for i in right
        ]
        found = dict(zip(right, suite_matches(self.judge.sandbox, cases)))
        return [float(found.get(i, False)) for i in range(len(judged))]

    def _syntax(self, examples, judged) -> list[float]:
        return [float(one.valid) for one in judged]

    def _schema(self, examples, judged) -> list[float]:
        gold = self.judge.run_gold(examples)
        return [
            schema_match(one.execution.reads, expected.reads) if one.valid else 0.0
            for one, expected in zip(judged, gold)
        ]

    def _semantic(self, examples, judged) -> list[float]:
        return self.semantic(
            [example.question for example in examples],
            [example.gold_sql for example in examples],
            [one.sql for one in judged],
            [one.valid for one in judged],
            [example.db_path for example in examples],
        )
