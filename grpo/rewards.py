"""The four rewards of the paper: execution, syntax, schema match and semantic agreement.

All are in [0, 1]. The weights must keep the order that matters: no wrong SQL may ever score above
a right one, so what the auxiliary terms can add to a wrong answer stays below what execution adds
to a right one.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sqlenv import (
    Example,
    Execution,
    Sandbox,
    UserError,
    canonical_sql,
    extract_sql,
    is_ordered,
    results_match,
)

WEIGHTS = {"execution": 1.0, "syntax": 0.1, "schema": 0.2, "semantic": 0.3}


def check_weights(weights: dict[str, float]) -> None:
    """Refuses weights under which a wrong answer could beat a right one, or that name an unknown
    reward.

    A right answer runs, so it has execution and syntax in full. A wrong one can have at most all
    the others.
    """
    unknown = sorted(set(weights) - set(WEIGHTS))
    if unknown:
        raise UserError(f"--reward {unknown[0]}: unknown reward; choose from {', '.join(WEIGHTS)}")
    for name, weight in weights.items():
        if not (0 <= weight < math.inf):
            raise UserError(f"--reward {name}={weight:g}: a weight must be a number from 0 up")
    auxiliary = weights.get("schema", 0) + weights.get("semantic", 0)
    if weights.get("execution", 0) <= auxiliary:
        raise UserError(
            f"--reward: schema + semantic ({auxiliary:g}) must weigh less than execution "
            f"({weights.get('execution', 0):g}), or a wrong query could score above a right one"
        )


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
    """Scores completions: (P, G, R) reward terms in the order of ``names``."""

    def __init__(self, judge: Judge, encoder, weights: dict[str, float]):
        check_weights(weights)
        self.judge, self.encoder = judge, encoder
        self.names = [name for name, weight in weights.items() if weight]
        self.weights = torch.tensor([weights[name] for name in self.names])

    def __call__(self, examples: list[Example], texts: list[list[str]]) -> Tensor:
        """P examples, P x G completion texts -> (P, G, R) float32 in [0, 1]."""
        flat_examples = [example for example, group in zip(examples, texts) for _ in group]
        judged = self.judge.judge(flat_examples, [text for group in texts for text in group])
        columns = [getattr(self, f"_{name}")(flat_examples, judged) for name in self.names]
        return torch.tensor(columns).T.reshape(len(examples), -1, len(self.names))

    def _execution(self, examples, judged) -> list[float]:
        return [float(one.correct) for one in judged]

    def _syntax(self, examples, judged) -> list[float]:
        return [float(one.valid) for one in judged]

    def _schema(self, examples, judged) -> list[float]:
        gold = self.judge.run_gold(examples)
        return [
            schema_match(one.execution.reads, expected.reads) if one.valid else 0.0
            for one, expected in zip(judged, gold)
        ]

    def _semantic(self, examples, judged) -> list[float]:
        """Only SQL that runs is looked at, and only the SQL: prose around it cannot please the
        encoder.
        """
        scores = [0.0] * len(judged)
        valid = [i for i, one in enumerate(judged) if one.valid]
        if valid:
            found = self.encoder.score(
                [examples[i].question for i in valid], [canonical_sql(judged[i].sql) for i in valid]
            )
            for i, score in zip(valid, found.tolist()):
                scores[i] = score
        return scores
