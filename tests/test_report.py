"""What a run writes for people and for TensorBoard."""

import builtins
import json

import pytest

import train
from grpo.evaluation.report import (
    add_to_tensorboard,
    append_metrics,
    open_tensorboard,
    read_metrics,
)
from sqlenv import UserError


def test_numbers_that_are_not_finite_are_null_in_the_metrics(tmp_path):
    """NaN is no JSON: other readers would refuse the file."""
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, {"step": 1, "loss": float("nan"), "grad_norm": float("inf"), "kl": 0.5})
    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail) == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "kl": 0.5,
    }
    assert read_metrics(path)[0]["loss"] is None


def test_tensorboard_gets_every_metric_at_its_step(tmp_path):
    """After a resume at step 1, what was written for later steps is taken again."""
    pytest.importorskip("tensorboard", reason="needs tensorboard (pip install tensorboard)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = open_tensorboard(tmp_path, 0)
    for step, reward in ((1, 0.25), (2, 9.0)):
        add_to_tensorboard(board, {"step": step, "reward": reward, "loss": None})
    board.close()
    board = open_tensorboard(tmp_path, 1)
    add_to_tensorboard(board, {"step": 2, "reward": 0.5, "loss": 0.125})
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["reward", "loss"]
    assert [(one.step, one.value) for one in events.Scalars("reward")] == [(1, 0.25), (2, 0.5)]
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(2, 0.125)]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install tensorboard"):
        open_tensorboard(tmp_path, 0)
    with pytest.raises(UserError, match="pip install tensorboard"):  # before anything is measured
        train.parse_arguments(["--tensorboard"])
