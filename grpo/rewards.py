"""The reward terms: the paper's four (execution, syntax, schema match, semantic agreement),
execution on a test suite, the overlap of results, the consensus of a group, DAPO's length penalty,
and custom rewards.

All terms but the penalty and custom rewards are in [0, 1]; the penalty is in [-1, 0]. No wrong
query may score above a right one, so the terms in which it can be better (``AUXILIARY``) must
together weigh less than execution.
Without any reward that looks at gold SQL, nothing guards that.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from grpo.custom_reward import CustomReward, is_custom
from sqlenv import Example, Execution, ExecutionVerifier, Suite, UserError, extract_sql
from sqlenv.consensus import consensus
from sqlenv.verifier import Verdict

WEIGHTS = {"execution": 1.0, "syntax": 0.1, "schema": 0.2, "semantic": 0.3}
OTHERS = ("test_suite", "overlap", "consensus", "overlong")
TIMEOUT_BUDGET = 5.0  # seconds of CPU time for the completions of a batch that time out
NEED_GOLD = ("execution", "test_suite", "overlap", "schema")
# A wrong query can beat a right one in these. A right one has `syntax`, `schema` and `overlap` in
# full.
AUXILIARY = ("semantic", "consensus", "overlong")


def needs_gold(weights: dict[str, float], semantic_target: str = "question") -> bool:
    """Whether one of the rewards looks at gold SQL; custom rewards get it if there is one."""
    compared = weights.get("semantic") and semantic_target != "question"
    return bool(compared) or any(weights.get(name) for name in NEED_GOLD)


def is_label_free(weights: dict[str, float], semantic_target: str = "question") -> bool:
    """Whether the policy is rewarded by its own agreement or by the encoder, and by no gold SQL."""
    unlabelled = any(weights.get(name) for name in ("consensus", "semantic"))
    return unlabelled and not needs_gold(weights, semantic_target)


def check_weights(weights: dict[str, float], semantic_target: str = "question") -> None:
    """Refuses unknown rewards, and weights under which a wrong query could beat a right one.

    A right query has execution, syntax, schema and overlap in full. At worst it has nothing else,
    and a wrong one has all but execution in full. Custom rewards are not limited: their values and
    weights are the user's decision, and they may be all that there is. With ``test_suite``, right
    means right on the whole suite. Without a reward that looks at gold SQL, what is right is not
    known.

    Raises:
        UserError: a weight is refused.
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
    correctness = "test_suite" if weights.get("test_suite") else "execution"
    others = any(weights.get(name) for name in (*AUXILIARY, "schema", "overlap"))
    only_custom = not others and any(w and is_custom(name) for name, w in weights.items())
    unguarded = only_custom or is_label_free(weights, semantic_target)
    weight = weights.get(correctness, 0)
    if weight <= auxiliary and not unguarded:
        limit = f"{' + '.join(present)} ({auxiliary:g}) must weigh less than {correctness}"
        need = f"{limit} ({weight:g})" if present else f"{correctness} must weigh more than 0"
        raise UserError(f"--reward: {need}, or a wrong query could score above a right one")


def overlong_penalty(length: int, *, max_new_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 up to ``max_new_tokens -
    buffer`` tokens, then falling linearly to -1 at ``max_new_tokens``, where a completion is cut.

    >>> [overlong_penalty(n, max_new_tokens=100, buffer=20) for n in (80, 85, 100)]
    [0.0, -0.25, -1.0]
    """
    return max(-1.0, min(0.0, (max_new_tokens - buffer - length) / buffer))


def fill_not_applicable(terms: Tensor) -> Tensor:
    """Replaces NaN, "not applicable", by the mean of that term over the others of the group, so
    that it neither helps nor hurts; by 0 where the term applies to none. (P, G, R) -> (P, G, R).
    """
    mean = terms.nanmean(dim=1, keepdim=True).nan_to_num(0.0)  # (P, 1, R)
    return torch.where(terms.isnan(), mean, terms)


def schema_match(predicted: frozenset, gold: frozenset) -> float:
    """Jaccard similarity of the sets of (table, column) that two queries read.

    >>> schema_match(frozenset({("a", "x"), ("a", "y")}), frozenset({("a", "x")}))
    0.5
    """
    union = predicted | gold
    return len(predicted & gold) / len(union) if union else 1.0


class Rewards:
    """Scores completions: (P, G, R) reward terms, in the order of ``names``.

    Args:
        verifier: runs completions and compares them with gold.
        semantic: an ``encoder.SemanticReward``; may be None if its weight is 0.
        weights: by name; terms of weight 0 are left out.
        max_new_tokens, overlong_buffer: tokens, for the reward ``overlong``.
        timeout: seconds that a custom reward may take for a batch.
        suites: the test suite of each database, for the reward ``test_suite``.

    Attributes:
        names: R names.
        weights: (R,) float32.
    """

    def __init__(
        self,
        verifier: ExecutionVerifier,
        semantic,
        weights: dict[str, float],
        *,
        max_new_tokens: int = 96,
        overlong_buffer: int = 16,
        timeout: float = 10.0,
        suites: dict[Path, Suite] | None = None,
    ):
        check_weights(weights, semantic.target if semantic else "question")
        self.verifier, self.semantic, self.suites = verifier, semantic, suites
        self.max_new_tokens, self.overlong_buffer = max_new_tokens, overlong_buffer
        self.specs = [name for name, weight in weights.items() if weight]
        self.names = [spec.rpartition(":")[2] for spec in self.specs]
        doubled = [name for name in self.names if self.names.count(name) > 1]
        if doubled:
            raise UserError(f"--reward: two rewards are called {doubled[0]!r}; rename a function")
        self.custom = {spec: CustomReward(spec, timeout) for spec in self.specs if is_custom(spec)}
        self.weights = torch.tensor([float(weights[name]) for name in self.specs])

    def __call__(self, examples: list[Example], texts: list[list[str]], **options) -> Tensor:
        """The reward terms alone, (P, G, R) float32, see ``score``."""
        return self.score(examples, texts, **options)[0]

    def score(
        self,
        examples: list[Example],
        texts: list[list[str]],
        *,
        prompts: list[str] | None = None,
        lengths: list[list[int]] | None = None,
    ) -> tuple[Tensor, list[list[Verdict]]]:
        """P examples, P x G completion texts -> reward terms (P, G, R) float32, NaN where a custom
        reward says that it is not applicable, and P x G verdicts.

        Args:
            prompts: P texts, passed to custom rewards; ``extract_sql`` looks at how they end.
            lengths: P x G numbers of tokens, for ``overlong``.
        """
        flat = [example for example, group in zip(examples, texts) for _ in group]
        asked = prompts or [""] * len(texts)
        sqls = [extract_sql(t, prompt=p) for p, group in zip(asked, texts) for t in group]
        options = {"timeout_budget": TIMEOUT_BUDGET, "with_overlap": "overlap" in self.specs}
        verdicts = self.verifier.verify(flat, sqls, **options)
        columns = []
        for spec in self.specs:
            if spec in self.custom:
                values = self._custom(self.custom[spec], examples, texts, prompts, verdicts)
            elif spec == "overlong":
                values = self._overlong(lengths)
            elif spec == "consensus":
                values = self._consensus(examples, verdicts)
            else:
                values = getattr(self, f"_{spec}")(flat, verdicts)
            columns.append(values)
        terms = torch.tensor(columns, dtype=torch.float32).T  # (P G, R)
        terms = terms.reshape(len(examples), -1, len(self.specs))
        size = terms.shape[1]
        return terms, [verdicts[size * p : size * (p + 1)] for p in range(len(examples))]

    def run_gold(self, examples: list[Example]) -> list[Execution | None]:
        """The execution of each example's gold SQL; None where it has none."""
        runs = iter(self.verifier.run_gold([e for e in examples if e.gold_sql]))
        return [next(runs) if e.gold_sql else None for e in examples]

    def failures(self) -> dict[str, int]:
        """``reward_failures/<name>``: calls of a custom reward that failed, in this process."""
        return {
            f"reward_failures/{custom.name}": custom.failures for custom in self.custom.values()
        }

    def close(self) -> None:
        """Stops the worker processes of custom rewards."""
        for custom in self.custom.values():
            custom.close()

    def _custom(self, custom, examples, texts, prompts, verdicts) -> list[float]:
        """One call for the whole batch; every list has P x G entries."""
        repeated = [(p, e) for p, (e, group) in enumerate(zip(examples, texts)) for _ in group]
        columns = {
            name: [getattr(example, name) for _, example in repeated]
            for name in ("question", "evidence", "lang", "db_id", "gold_sql")
        }
        return custom(
            prompts=[prompts[p] for p, _ in repeated],
            completions=[text for group in texts for text in group],
            db_path=[str(example.db_path) for _, example in repeated],
            sql=[verdict.sql for verdict in verdicts],
            **columns,
        )

    def _overlong(self, lengths: list[list[int]]) -> list[float]:
        limits = {"max_new_tokens": self.max_new_tokens, "buffer": self.overlong_buffer}
        return [overlong_penalty(n, **limits) for group in lengths for n in group]

    def _execution(self, examples, verdicts) -> list[float]:
        return [float(verdict.correct) for verdict in verdicts]

    def _overlap(self, examples, verdicts) -> list[float]:
        return [verdict.overlap for verdict in verdicts]

    def _consensus(self, examples: list[Example], verdicts: list[Verdict]) -> list[float]:
        """Of P examples and P x G verdicts."""
        size, shares = len(verdicts) // max(1, len(examples)), []
        for p, example in enumerate(examples):
            own = verdicts[size * p : size * (p + 1)]
            sqls = [verdict.sql if verdict.valid else None for verdict in own]
            budget = {"timeout_budget": TIMEOUT_BUDGET}
            shares += consensus(self.verifier.sandbox, example.db_path, sqls, **budget)
        return shares

    def _test_suite(self, examples, verdicts) -> list[float]:
        budget = {"timeout_budget": TIMEOUT_BUDGET}
        correct = self.verifier.verify_on_suites(examples, verdicts, self.suites, **budget)
        return [float(value) for value in correct]

    def _syntax(self, examples, verdicts) -> list[float]:
        return [float(verdict.valid) for verdict in verdicts]

    def _schema(self, examples, verdicts) -> list[float]:
        gold, scores = self.verifier.run_gold(examples), []
        for verdict, expected in zip(verdicts, gold):
            score = schema_match(verdict.execution.reads, expected.reads) if verdict.valid else 0.0
            # count(name) may be right where gold is count(*), though they read different columns.
            scores.append(1.0 if verdict.correct else score)
        return scores

    def _semantic(self, examples, verdicts) -> list[float]:
        return self.semantic(
            [example.question for example in examples],
            [example.gold_sql for example in examples],
            [verdict.sql for verdict in verdicts],
            [verdict.valid for verdict in verdicts],
            [example.db_path for example in examples],
        )
