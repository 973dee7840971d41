"""A run that learns nothing, or falls apart, says so; the best adapter is kept."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainer_kit import WordRewards, make_policy, make_trainer

from grpo.best_adapter import collapse_note, keep_best
from grpo.guards import CollapseGuard
from grpo.metrics import repeated_answers
from sqlenv.verifier import Verdict

HEALTHY = {"frac_reward_zero_std": 0.3, "kl": 0.1, "entropy": 0.5, "grad_norm": 1.0, "reward": 0.5}
HEALTHY["repeated_answers"] = 0.1


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def steps(guard: CollapseGuard, first: int, count: int, **sign) -> None:
    for step in range(first, first + count):
        guard.check(HEALTHY | {"step": step} | sign)


@pytest.mark.parametrize(
    "sign, message",
    [
        ({"frac_reward_zero_std": 1.0}, "same reward.*mean reward 0.50.*grpo.sft"),
        ({"kl": 18.0}, "KL divergence from the reference is 18 per token.*lower --lr"),
        ({"repeated_answers": 0.75}, "75 % of the questions got the same SQL as another"),
        ({"grad_norm": 162467.0}, "3.25e.05 times --max-grad-norm.*lower --lr"),
    ],
)
def test_each_sign_is_told_once(sign, message, caplog):
    """Steps 1 and 2 are well, 3 to 6 have the sign, 7 is well: four in a row are not enough. Steps
    8 to 19 have it: the fifth is 12. ``--max-grad-norm`` is 0.5.
    """
    guard = CollapseGuard(0.5)
    steps(guard, 1, 2), steps(guard, 3, 4, **sign), steps(guard, 7, 1)
    assert not warnings(caplog)
    steps(guard, 8, 12, **sign)
    (line,) = warnings(caplog)
    assert line.startswith("steps 8 to 12: ")
    assert re.search(message, line)


def test_values_at_the_limit_are_well(caplog):
    steps(CollapseGuard(1.0), 1, 10, frac_reward_zero_std=0.99, kl=1.0, grad_norm=100.0)
    steps(CollapseGuard(1.0), 1, 10, repeated_answers=0.5)
    assert not warnings(caplog)


class SameRewards(WordRewards):
    def terms(self, question, text, length):
        return [0.0, 0.0]


def test_a_run_without_signal_says_so(examples, caplog):
    trainer = make_trainer(examples, SameRewards(), steps=6)
    for _ in range(6):
        trainer.train_step()
    (line,) = warnings(caplog)
    assert line.startswith("steps 1 to 5: ") and "grpo.sft" in line


def rows_of(*rewards: float) -> list[dict]:
    return [{"step": n, "reward": reward} for n, reward in enumerate(rewards, 1)]


def kept(folder: Path) -> dict:
    return json.loads((folder / "best_adapter" / "best.json").read_text())


def test_the_adapter_of_the_best_steps_is_kept(tmp_path):
    """Means over two steps: 0.2 and 0.4 are 0.3; 0.9 and 0.7 are 0.8; 0.6 and 0.2 are 0.4."""
    rows = rows_of(0.2, 0.4, 0.9, 0.7, 0.6, 0.2)
    models = [make_policy(seed).model for seed in (1, 2, 3)]
    for model, count, step, reward in zip(models, (2, 4, 6), (2, 4, 4), (0.3, 0.8, 0.8)):
        keep_best(tmp_path, model, "base", rows[:count], 2)
        assert kept(tmp_path) == {
            "step": step,
            "by": "training reward",
            "value": pytest.approx(reward),
        }
    best = load_file(tmp_path / "best_adapter" / "adapter_model.safetensors")
    for name, tensor in best.items():
        name = name.removeprefix("base_model.model.").removesuffix(".weight")
        assert torch.equal(tensor, models[1].get_parameter(name))
    note = collapse_note(tmp_path, rows, 2)
    assert "fell from 0.80 (up to step 4) to 0.40" in note and "best_adapter" in note


@pytest.mark.parametrize("last, told", [(0.75, False), (0.7, True), (-0.5, True), (0.9, False)])
def test_a_reward_that_fell_by_a_tenth_is_told(tmp_path, last, told):
    """The best is 0.8: below 0.72 it has fallen."""
    keep_best(tmp_path, make_policy().model, "base", rows_of(0.8), 1)
    assert (collapse_note(tmp_path, rows_of(0.8, last), 1) is not None) == told


def test_a_shorter_run_than_the_window(tmp_path):
    keep_best(tmp_path, make_policy().model, "base", rows_of(0.2, 0.4), 20)
    assert kept(tmp_path) == {"step": 2, "by": "training reward", "value": pytest.approx(0.3)}
    assert collapse_note(tmp_path, rows_of(0.2, 0.4), 20) is None


def test_a_reward_near_0_does_not_fall(tmp_path):
    """Of a model that gets no reward, a fall from 0 to 0, or by a fiftieth, is no news."""
    keep_best(tmp_path, make_policy().model, "base", rows_of(0.0), 1)
    assert collapse_note(tmp_path, rows_of(0.0), 1) is None
    keep_best(tmp_path, make_policy().model, "base", rows_of(0.015), 1)
    assert collapse_note(tmp_path, rows_of(0.015, -0.004), 1) is None
    assert collapse_note(tmp_path, rows_of(0.015, -0.006), 1) is not None


def test_repeated_answers_by_hand(sampled):
    """Four groups. The commonest SQL of the first two is A, about two questions, that of the third
    B, of the fourth none: two of four. About one question, A is no repetition.
    """
    answers = [["A", "A", "B"], ["A", "C", "A"], ["B", "B", "C"], [None, None, "A"]]
    verdicts = [[Verdict(sql, None, False) for sql in group] for group in answers]
    asked = [replace(e, question=q) for e, q in zip(sampled.examples, "abcd")]
    assert repeated_answers(replace(sampled, verdicts=verdicts, examples=asked)) == 0.5
    for same in ({"question": "a"}, {"gold_sql": "SELECT 1"}):  # asked again, or translated
        examples = [replace(e, db_id="zoo", **same) for e in asked]
        expected = 0 if "gold_sql" in same else 0.5
        assert repeated_answers(replace(sampled, verdicts=verdicts, examples=examples)) == expected
