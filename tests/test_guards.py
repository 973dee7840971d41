"""What happens when numbers are not finite, or sampler and trainer disagree."""

import copy
import logging
import math
from dataclasses import replace

import pytest
import torch
from trainer_kit import (
    WordRewards,
    lora_of,
    make_policy,
    make_trainer,
    note_gradients,
    replay,
    same,
)

import grpo.rollout
import grpo.trainer
from grpo.checkpoint import load_training_state, training_state
from grpo.trainer import Trainer
from sqlenv import UserError

# torch's advice on a step whose only update was skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

# ------------------------------------------------------------------------------------ guards


def spoil(monkeypatch, *bad: bool) -> None:
    """Makes the advantages of these steps NaN."""
    waiting, function = list(bad), grpo.trainer.group_advantages

    def spoilt(*arguments, **options):
        return function(*arguments, **options) * (math.nan if waiting.pop(0) else 1)

    monkeypatch.setattr(grpo.trainer, "group_advantages", spoilt)


def trained_state(trainer: Trainer) -> dict:
    state = copy.deepcopy(training_state(trainer))
    return {name: state[name] for name in ("lora", "optimizer")}


def test_an_update_with_a_nan_is_skipped(examples, monkeypatch, caplog):
    """Weights and optimizer stay as they were, and the run goes on: data, schedule and all."""
    trainer = make_trainer(examples)
    spoil(monkeypatch, False, True, False)
    trainer.train_step()
    before = trained_state(trainer)
    assert not caplog.records
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and not math.isfinite(metrics["loss"])
    assert same(trained_state(trainer)["lora"], before["lora"])
    states = trained_state(trainer)["optimizer"]["state"], before["optimizer"]["state"]
    assert same(*states)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "step 2" in record.getMessage()
    assert (trainer.step, trainer.questions.cursor, trainer.non_finite.bad_updates) == (2, 8, 1)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 0 and all(map(math.isfinite, metrics.values()))
    assert not same(trained_state(trainer)["lora"], before["lora"])
    assert trainer.non_finite.bad_updates == 0 and metrics["lr"] == pytest.approx(5e-3 * 2 / 3)


def test_an_infinite_loss_is_skipped_whatever_its_gradient(examples, monkeypatch):
    function = grpo.trainer.policy_loss

    def infinite(*arguments, **options):
        loss, stats = function(*arguments, **options)
        return loss + math.inf, stats

    monkeypatch.setattr(grpo.trainer, "policy_loss", infinite)
    trainer = make_trainer(examples)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 1 and math.isfinite(metrics["grad_norm"])
    assert same(lora_of(trainer), before)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_bad_gradient_of_a_finite_loss_is_skipped(examples, value):
    trainer = make_trainer(examples)
    before = lora_of(trainer)
    first = next(iter(trainer.parameters.values()))
    handle = first.register_hook(lambda gradient: torch.full_like(gradient, value))
    metrics = trainer.train_step()
    assert math.isfinite(metrics["loss"]) and not math.isfinite(metrics["grad_norm"])
    assert metrics["skipped"] == 1 and same(lora_of(trainer), before)
    handle.remove()
    assert trainer.train_step()["skipped"] == 0


def test_an_infinite_weight_is_noticed(examples):
    """It turns up between sampling and training."""

    def damage():
        list(trainer.parameters.values())[1].data[0, 0] = math.inf

    trainer = make_trainer(examples, WordRewards(damage))
    before = lora_of(trainer)
    assert trainer.train_step()["skipped"] == 1
    changed = [n for n, t in trainer.parameters.items() if not torch.equal(t, before[n])]
    assert changed == [list(trainer.parameters)[1]]


def test_three_bad_updates_in_a_row_end_a_run(examples, monkeypatch):
    trainer = make_trainer(examples)
    spoil(monkeypatch, True, True, True)
    assert [trainer.train_step()["skipped"] for _ in range(2)] == [1, 1]
    before = lora_of(trainer)
    with pytest.raises(UserError, match="step 3.*3 updates in a row.*--lr"):
        trainer.train_step()
    assert same(lora_of(trainer), before)


def test_a_good_update_in_between_resets_the_count(examples, monkeypatch):
    trainer = make_trainer(examples)
    bad = [True, True, False, True, True, False]
    spoil(monkeypatch, *bad)
    assert [trainer.train_step()["skipped"] for _ in bad] == list(map(int, bad))


def test_bad_updates_are_counted_across_a_resume(examples, monkeypatch):
    trainer = make_trainer(examples)
    spoil(monkeypatch, True, True, True)
    trainer.train_step(), trainer.train_step()
    resumed = make_trainer(examples)
    load_training_state(resumed, training_state(trainer))
    with pytest.raises(UserError, match="step 3"):
        resumed.train_step()


def test_one_bad_batch_does_not_end_a_run_of_many_updates(examples, monkeypatch, caplog):
    """With the same weights, the other updates on it could only fail in the same way; they are
    left out, and it is one in a row.
    """
    trainer = make_trainer(examples, num_iterations=4)
    spoil(monkeypatch, True, False)
    before = lora_of(trainer)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 4 and trainer.non_finite.bad_updates == 1
    assert same(lora_of(trainer), before) and len(caplog.records) == 1
    assert trainer.train_step()["skipped"] == 0


def test_updates_before_a_bad_one_are_kept(examples, sampled):
    """The second of three fails: the first is made, and the metrics are its own and the second's
    but not the third's, which is not made.
    """
    trainer = make_trainer(examples, num_iterations=3)
    replay(trainer, sampled)
    single = make_trainer(examples)
    replay(single, sampled)
    expected = single.train_step()
    noted, first = note_gradients(trainer), next(iter(trainer.parameters.values()))
    trainer.optimizer.register_step_post_hook(
        lambda *_: first.register_hook(lambda gradient: gradient * math.nan)
    )
    metrics = trainer.train_step()
    assert metrics["skipped"] == 2 and len(noted) == 1
    assert same(lora_of(trainer), lora_of(single))
    assert not math.isfinite(metrics["grad_norm"])
    assert metrics["entropy"] == pytest.approx(expected["entropy"], rel=0.05)


# ------------------------------------------------------------- do sampler and trainer agree?


def gap_warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "sampler and trainer" in r.getMessage()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampler_and_trainer_agree(examples, dtype, caplog):
    trainer = make_trainer(examples, policy=make_policy(dtype=dtype))
    limit = 1e-4 if dtype == torch.float32 else 1e-2
    assert all(trainer.train_step()["sampling_logp_difference"] < limit for _ in range(2))
    assert not gap_warnings(caplog)
    assert {tensor.dtype for tensor in trainer.parameters.values()} == {torch.float32}


def falsify(monkeypatch, by: float) -> None:
    """The sampler says log-probs that are off by this much."""
    function = grpo.rollout.sample_groups

    def wrong(*arguments, **options):
        samples = function(*arguments, **options)
        return replace(samples, logprobs=samples.logprobs + by)

    monkeypatch.setattr(grpo.rollout, "sample_groups", wrong)


def test_a_sampler_that_is_wrong_is_reported_once(examples, monkeypatch, caplog):
    """By how much, too: mean and maximum are what the log-probs are off by."""
    falsify(monkeypatch, 0.01)
    trainer = make_trainer(examples)
    for _ in range(2):
        metrics = trainer.train_step()
        assert metrics["sampling_logp_difference"] == pytest.approx(0.01, abs=1e-5)
        assert metrics["sampling_logp_difference_max"] == pytest.approx(0.01, abs=1e-4)
    (message,) = gap_warnings(caplog)
    assert "0.01" in message and "1e-04 in float32" in message


def test_half_precision_is_given_more_room(examples, monkeypatch, caplog):
    falsify(monkeypatch, 0.1)
    make_trainer(examples, policy=make_policy(dtype=torch.bfloat16)).train_step()
    (message,) = gap_warnings(caplog)
    assert "1e-02 in bfloat16" in message


def test_a_model_that_changes_after_sampling_is_reported(examples, caplog):
    def perturb():
        with torch.no_grad():
            for tensor in trainer.parameters.values():
                tensor.add_(0.02)

    trainer = make_trainer(examples, WordRewards(perturb))
    gaps = [trainer.train_step()["sampling_logp_difference"] for _ in range(2)]
    assert min(gaps) > 1e-4 and len(gap_warnings(caplog)) == 1


def test_the_gap_is_checked_in_every_step(examples, monkeypatch, caplog):
    """Two steps agree; from the third on the sampler is off by 0.01."""
    trainer = make_trainer(examples)
    trainer.train_step(), trainer.train_step()
    assert not gap_warnings(caplog)
    falsify(monkeypatch, 0.01)
    trainer.train_step(), trainer.train_step()
    (message,) = gap_warnings(caplog)
    assert message.startswith("step 3:")
