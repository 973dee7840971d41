"""Evaluation while a run trains, on questions that it is neither trained on nor evaluated on at the
end: what is chosen by it, such as the best step, must not be chosen on the dev questions.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from grpo.config import Config
from grpo.distributed.parallel import Distributed
from grpo.evaluation.measure import evaluate_policy, generate
from grpo.lora import lora_merged
from grpo.models import Policy
from grpo.prompt import PromptBuilder, PromptSettings
from sqlenv import Example, ExecutionVerifier, Suite, extract_sql

METRICS = ("valid", "execution", "test_suite")


@dataclass
class Validation:
    """The validation questions, and what measuring on them takes."""

    examples: list[Example]
    policy: Policy
    verifier: ExecutionVerifier
    suites: dict[Path, Suite]
    config: Config
    distributed: Distributed
    settings: PromptSettings = field(init=False)

    def __post_init__(self):
        self.settings = PromptSettings.of(vars(self.config))

    def measure(self) -> dict[str, float]:
        """Shares of the questions: ``eval/valid``, ``eval/execution``, ``eval/test_suite`` of the
        greedy answers; ``eval/pass@G``, that one of G samples is right (EX). And the seconds.
        """
        start, config = time.perf_counter(), self.config
        places = self.distributed.split(len(self.examples))
        own = self.examples[places.start : places.stop]
        limit = {"max_new_tokens": config.max_new_tokens}
        with lora_merged(self.policy.model):
            options = limit | {"settings": self.settings, "suites": self.suites}
            options["batch_size"] = config.evaluated_together(self.distributed.size)
            answers = evaluate_policy(self.policy, self.verifier, None, own, **options)
            passed = self.one_is_right(own, first=places.start, **limit)
        rows = [
            (*(float(getattr(answer, metric)) for metric in METRICS), float(right))
            for answer, right in zip(answers, passed)
            if answer.gold_ok
        ]
        rows = self.distributed.all_gather_list(rows)
        names = (*METRICS, f"pass@{config.group_size}")
        means = {f"eval/{n}": sum(c) / len(rows) for n, c in zip(names, zip(*rows))}
        return means | {"eval_seconds": time.perf_counter() - start}

    def one_is_right(
        self, examples: list[Example], *, first: int, max_new_tokens: int
    ) -> list[bool]:
        """Whether one of G samples of each question is right; ``first`` is the place of the first
        one among the questions of all processes.
        """
        prompts = PromptBuilder(self.policy.tokenizer, self.settings)
        size = self.config.group_size
        options = {"max_new_tokens": max_new_tokens, "group_size": size, "first": first}
        options["temperature"] = self.config.temperature
        batch = self.config.evaluated_together(self.distributed.size) // 2 * size
        texts = generate(self.policy, prompts, examples, batch_size=batch, **options)  # P x G
        asked = self.policy.tokenizer.decode(prompts(examples[0])) if examples else ""
        sqls = [extract_sql(text, prompt=asked) for group in texts for text in group]
        flat = [example for example in examples for _ in range(size)]
        verdicts = iter(self.verifier.verify(flat, sqls))
        return [any([next(verdicts).correct for _ in range(size)]) for _ in examples]


def best_step(rows: list[dict]) -> tuple[int, float] | None:
    """The step with the highest TS on the validation questions, the first of several, and its TS;
    None before the first evaluation.

    Args:
        rows: of metrics.jsonl.
    """
    measured = [row for row in rows if "eval/test_suite" in row]
    if not measured:
        return None
    best = max(measured, key=lambda row: row["eval/test_suite"])
    return best["step"], best["eval/test_suite"]


def evaluations_since_best(rows: list[dict]) -> int:
    """How many evaluations there were since the best one."""
    best = best_step(rows)
    return sum(row["step"] > best[0] for row in rows if "eval/test_suite" in row) if best else 0
