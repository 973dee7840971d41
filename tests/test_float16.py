"""Training in float16: the loss is scaled, so that the gradients of large steps are not 0."""

import logging

import pytest
import torch
from trainer_kit import lora_of, make_policy, make_trainer, note_gradients, replay, same

import grpo.trainer
from grpo.checkpoint import load_training_state, training_state
from grpo.guards import NonFiniteGuard
from grpo.loss import token_weights
from sqlenv import UserError

# torch warns when a step's only update is skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")


def half(examples, **changes):
    return make_trainer(examples, policy=make_policy(dtype=torch.float16), **changes)


def gradient(trainer, batch) -> torch.Tensor:
    """The gradient of a step on a batch, as the optimizer gets it."""
    replay(trainer, batch)
    noted = note_gradients(trainer)
    trainer.train_step()
    return torch.cat([part.flatten() for part in noted[0].values()])


def test_the_gradient_of_a_large_step_is_that_of_float32(examples, sampled, monkeypatch):
    """Each token weighs as in a step of 12 x 4,096 completions. Without scaling, more than
    a quarter of the gradient is 0.
    """

    def lighter(mask, **options):
        return token_weights(mask, **options) / 4096

    monkeypatch.setattr(grpo.trainer, "token_weights", lighter)
    wanted = gradient(make_trainer(examples), sampled)
    ours = gradient(half(examples), sampled)
    assert (ours - wanted).norm() < 0.02 * wanted.norm()
    unscaled = half(examples)
    unscaled.scaler = torch.amp.GradScaler("cpu", enabled=False)
    lost = gradient(unscaled, sampled)
    assert ((lost == 0) & (wanted != 0)).float().mean() > 0.25
    assert ((ours == 0) & (wanted != 0)).float().mean() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_float16_is_scaled(examples, dtype):
    trainer = make_trainer(examples, policy=make_policy(dtype=dtype))
    assert trainer.scaler.get_scale() == 1
    assert half(examples).scaler.get_scale() == 2**16


def test_a_scale_that_is_too_large_is_halved(examples, sampled, caplog):
    """The updates are skipped until the gradient is finite. It is no error, and no one is warned,
    however many there are in a row.
    """
    trainer = half(examples, steps=40)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before, skipped = lora_of(trainer), 0
    while True:
        replay(trainer, sampled)
        if not trainer.train_step()["skipped"]:
            break
        skipped += 1
        assert same(lora_of(trainer), before)
    assert trainer.scaler.get_scale() == 2.0 ** (40 - skipped) and skipped > 3
    assert trainer.non_finite.bad_updates == 0 and not same(lora_of(trainer), before)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_not_finite_at_scale_1_is_an_error():
    guard = NonFiniteGuard()
    assert not guard.allows(1, 0.5, float("inf"), scale=2.0) and guard.bad_updates == 0
    assert not guard.allows(2, float("nan"), 1.0, scale=2.0) and guard.bad_updates == 1
    assert not guard.allows(3, 0.5, float("inf"), scale=1.0) and guard.bad_updates == 2
    with pytest.raises(UserError, match="step 4"):
        guard.allows(4, 0.5, float("nan"))


def test_the_scale_is_part_of_a_checkpoint(examples):
    trainer, resumed = half(examples), half(examples)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    trainer.train_step()
    load_training_state(resumed, training_state(trainer))
    for each in (trainer, resumed):
        each.train_step()
        assert each.scaler.get_scale() == 16
    assert same(training_state(resumed), training_state(trainer))
