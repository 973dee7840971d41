"""A resumed run equals an uninterrupted one; recipes."""

import copy
import math
from dataclasses import fields

import pytest
import torch
from trainer_kit import (
    RareRewards,
    WordRewards,
    lora_of,
    make_policy,
    make_trainer,
    same,
    without_clocks,
)

from encoder.checkpoint import load_state, save_state
from grpo.checkpoint import load_training_state, training_state
from grpo.config import Config
from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS, Rewards
from grpo.trainer import Trainer

# torch warns when a step's only update is skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

# ------------------------------------------------------------------------------------ resume


def test_settings_that_change_no_result_may_differ_on_resume():
    """Settings that save memory, since a run may have stopped without it; and ``save_every``."""
    saved = Config()
    other = dict(micro_batch=1, checkpoint_activations=True, shard=True, save_every=3)
    assert Config(**other, tensorboard=True).differences(saved) == []
    assert Config(**other, group_size=4).differences(saved) == ["group_size: 8 -> 4"]


@pytest.mark.parametrize(
    ("changes", "questions"),
    [
        ({}, 5),
        ({"num_iterations": 2, "minibatches": 2}, 5),
        ({"dynamic_sampling": 2}, 5),
        ({"recipe": "gspo"}, 5),
        ({"recipe": "dapo"}, 5),
        ({"prompts_per_step": 2, "mask_truncated": True}, 3),  # resumes in the middle of an epoch
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(examples, tmp_path, changes, questions):
    """Four steps, against two steps, a checkpoint, and two more in a trainer whose model has other
    LoRA weights: metrics and weights are the same bit for bit, wherever an epoch ends.
    """
    rewards = RareRewards if "dynamic_sampling" in changes else WordRewards

    def trainer(seed: int = 0) -> Trainer:
        return make_trainer(examples[:questions], rewards(), make_policy(seed), **changes)

    whole, first, second = trainer(), trainer(), trainer(seed=1)
    expected = [without_clocks(whole.train_step()) for _ in range(4)]
    steps = [without_clocks(first.train_step()) for _ in range(2)]
    save_state(tmp_path / "state.pt", training_state(first))
    torch.manual_seed(123)  # the global generator does not matter
    load_training_state(second, load_state(tmp_path / "state.pt"))
    steps += [without_clocks(second.train_step()) for _ in range(2)]
    assert steps == expected
    assert same(lora_of(second), lora_of(whole))
    assert same(training_state(second), training_state(whole))
    if questions == 3:
        assert first.questions.cursor % 3 and whole.questions.cursor > 6


def test_a_resumed_run_warns_at_the_same_step(examples):
    """Three steps in a row with a sign of collapse before the checkpoint, and two after it."""
    first, second = make_trainer(examples), make_trainer(examples)
    sign = {"frac_reward_zero_std": 0.0, "kl": 9.0, "entropy": 0.5, "grad_norm": 1.0}
    sign |= {"reward": 0.5, "repeated_answers": 0.0}
    for step in (1, 2, 3):
        assert not first.collapse.check(sign | {"step": step})
    load_training_state(second, training_state(first))
    assert [second.collapse.check(sign | {"step": step}) for step in (4, 5)] == [False, True]


def test_an_extended_run_has_the_learning_rate_of_the_longer_one(examples):
    """Two steps, then two more of four in all, without warm-up: the rate falls by a quarter of
    --lr a step. A run of two has 1 and 1/2, and 0 after them; the third of four has 1/2, and its
    optimizer takes it, too: another rate would be another update.
    """
    options = {"warmup_steps": 0, "lr": 8e-4}
    first = make_trainer(examples, **options, steps=2)
    rates = [first.train_step()["lr"] for _ in range(2)]
    state = training_state(first)
    assert state["optimizer"]["param_groups"][0]["lr"] == 0
    longer = make_trainer(examples, policy=make_policy(1), **options, steps=4)
    load_training_state(longer, state)
    assert longer.optimizer.param_groups[0]["lr"] == 4e-4
    before = copy.deepcopy(lora_of(longer))
    rates += [longer.train_step()["lr"] for _ in range(2)]
    assert rates == pytest.approx([8e-4, 4e-4, 4e-4, 2e-4])
    assert not same(lora_of(longer), before)


def test_a_state_is_a_snapshot(examples):
    """Further training does not change it, neither in the trainer that it was taken from nor in one
    that it was loaded into: it can be loaded any number of times.
    """
    trainer, other = make_trainer(examples), make_trainer(examples, policy=make_policy(1))
    trainer.train_step()
    state = training_state(trainer)
    before = copy.deepcopy(state)
    expected = without_clocks(trainer.train_step()), lora_of(trainer)
    assert same(state, before)
    for resumed in (other, trainer, trainer):
        load_training_state(resumed, state)
        assert same((without_clocks(resumed.train_step()), lora_of(resumed)), expected)
        assert same(state, before)


# ------------------------------------------------------------------------------------ recipes


def test_without_a_recipe_all_settings_are_the_defaults():
    assert Config.with_recipe() == Config() and Config().recipe == ""


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_applied(recipe):
    """All of its settings, and no others."""
    names = {f.name for f in fields(Config)}
    preset = RECIPES[recipe]
    before = copy.deepcopy(RECIPES)
    assert set(preset) <= names - {"recipe"}
    config = Config.with_recipe(recipe)
    assert config.recipe == recipe and config.reward == WEIGHTS | preset.get("reward", {})
    for name in names - {"recipe", "reward"}:
        assert getattr(config, name) == preset.get(name, getattr(Config(), name))
    config.reward["execution"] = 9.0
    assert before == RECIPES and Config().reward == WEIGHTS  # the presets are copied


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_given_setting_overrides_the_recipe(recipe):
    preset = RECIPES[recipe]
    changed = 0
    for name in set(preset) - {"reward"}:
        default = getattr(Config(), name)
        assert getattr(Config.with_recipe(recipe, **{name: default}), name) == default
        changed += preset[name] != default
    assert changed or set(preset) == {"reward"}  # or the loop above would show nothing


def test_rewards_are_merged_by_name():
    config = Config.with_recipe("dapo", reward={"schema": 0.0, "mine.py:words": 2.0})
    assert config.reward == WEIGHTS | {"overlong": 0.5, "schema": 0.0, "mine.py:words": 2.0}
    assert Config.with_recipe("dapo", reward={"overlong": 0.1}).reward["overlong"] == 0.1
    assert Config.with_recipe(reward={"syntax": 0.2}).reward == WEIGHTS | {"syntax": 0.2}


@pytest.mark.parametrize("recipe", ["", *RECIPES])
def test_every_recipe_trains_with_real_rewards(examples, verifier, recipe):
    """Its rewards are accepted, too, except those that need an encoder, which are left out."""
    config = Config.with_recipe(recipe, reward={"semantic": 0.0})
    rewards = Rewards(verifier, None, config.reward, max_new_tokens=4, overlong_buffer=2)
    trainer = make_trainer(examples, rewards, recipe=recipe, max_new_tokens=4)
    metrics = trainer.train_step()
    assert metrics["skipped"] == 0 and all(map(math.isfinite, metrics.values()))
    assert ("reward/overlong" in metrics) == (recipe in ("dapo", "cispo"))
