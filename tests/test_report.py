"""What a run writes for people and for TensorBoard."""

import builtins
import json

import pytest

import train
from grpo.evaluation.measure import Prediction
from grpo.evaluation.report import (
    add_to_tensorboard,
    append_metrics,
    before_after_table,
    open_tensorboard,
    read_metrics,
)
from grpo.run import summary_of
from sqlenv import UserError


def test_numbers_that_are_not_finite_are_null_in_the_metrics(tmp_path):
    """NaN is not valid JSON: other readers would refuse the file."""
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
    """After a resume at step 1, the values of later steps are replaced."""
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
    points = {
        name: [(point.step, point.value) for point in events.Scalars(name)]
        for name in ("reward", "loss")
    }
    assert points == {"reward": [(1, 0.25), (2, 0.5)], "loss": [(2, 0.125)]}


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def without(name, *arguments):
        if name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install tensorboard"):
        open_tensorboard(tmp_path, 0)
    monkeypatch.setattr(train, "train", pytest.fail)  # the error comes before anything is measured
    assert train.main(["--tensorboard", "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "pip install tensorboard" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_parts_stand_below_the_languages():
    """Two questions of part a, of which training makes the second right, and one of part b."""
    before = [asked("a", False), asked("a", False), asked("b", True), asked("", True)]
    after = [asked("a", False), asked("a", True), asked("b", True), asked("", True)]
    summary = summary_of(before, after, 1.0)
    assert {part: m["execution"]["n"] for part, m in summary["parts"]["before"].items()} == {
        "a": 2,
        "b": 1,
    }
    assert summary["parts"]["difference"]["a"]["execution"]["value"] == 0.5
    lines = before_after_table(summary).splitlines()
    starts = [line.split("  ")[0] for line in lines]
    assert starts == ["questions", "---------", "en", "en", "", "a", "a", "b", "b"]
    without = summary_of([asked("", True)], [asked("", True)], 1.0)
    assert without["parts"] == {} and len(before_after_table(without).splitlines()) == 4
    del without["parts"]  # of a run of an earlier version
    assert len(before_after_table(without).splitlines()) == 4


def test_translations_do_not_narrow_the_intervals_of_parts():
    """Forty questions, half of them right before and ten more after, in one language and in four:
    the intervals of the part are the same.
    """
    sides = []
    for count in (20, 30):
        sides.append([asked("a", n < count) for n in range(40)])
        for n, prediction in enumerate(sides[-1]):
            prediction.gold = f"SELECT {n}"
    once = summary_of(*sides, 1.0)["parts"]
    four = summary_of(*(4 * side for side in sides), 1.0)["parts"]
    for name in ("before", "after", "difference"):
        single, several = once[name]["a"]["execution"], four[name]["a"]["execution"]
        assert (single.pop("n"), several.pop("n")) == (40, 160)
        assert single["low"] < single["value"] < single["high"]
        assert several == pytest.approx(single)


def asked(part: str, right: bool) -> Prediction:
    return Prediction(
        *("shop", f"How many {part}?", "en", "SELECT 1", "SELECT 1"),
        gold_ok=True,
        valid=True,
        execution=right,
        semantic=None,
        status="ok",
        part=part,
    )
