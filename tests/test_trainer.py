"""A training step on a tiny model: what it computes against the plain formula, that nothing depends
on how it is split, and the metrics.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from trainer_kit import (
    ADVANTAGES,
    CLOCKS,
    EOS,
    LOSSES,
    PROMISED,
    QUERIES,
    RATIOS,
    TOKENIZER,
    WordRewards,
    close,
    lora_of,
    make_trainer,
    note_gradients,
    note_passes,
    plain_step,
    replay,
    without_clocks,
)

import grpo.rollout
from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.dynamic_sampling import select_groups
from grpo.logprobs import completion_logprobs
from grpo.recipes import RECIPES
from grpo.rewards import Rewards
from grpo.sampler import Samples

# torch's advice on a step whose only update was skipped
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")

# ------------------------------------------------------------------------------------ a step


@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_what_the_formula_says(examples, loss, mask_truncated):
    """Metrics, gradients and the weights after AdamW's first step, which moves every weight by
    lr g / (|g| + 1e-8), at a temperature other than 1. Everything is computed once more here from
    what was sampled.
    """
    trainer = make_trainer(
        examples,
        loss_aggregation=loss,
        mask_truncated=mask_truncated,
        temperature=0.8,
        max_grad_norm=1e9,
    )
    batch = trainer.sample_and_score(4)
    lengths = {len(ids) for group in batch.completion_ids for ids in group}
    assert len(lengths) > 3 and batch.finished.any() and not batch.finished.all()
    replay(trainer, batch)
    expected, gradients = plain_step(
        trainer.model, batch, group_advantages(batch.rewards), trainer.config
    )
    assert expected["kl"] > 1e-3 and expected["grad_norm"] > 1e-3
    before, noted = lora_of(trainer), note_gradients(trainer)
    metrics = trainer.train_step()
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, tensor in trainer.parameters.items():
        assert close(noted[0][name], gradients[name])
        step = 5e-3 * noted[0][name] / (noted[0][name].abs() + 1e-8)
        assert torch.allclose(before[name] - tensor, step, atol=1e-6)
    assert (metrics["ratio"], metrics["ratio_max"]) == (pytest.approx(1, abs=1e-6), 1)
    assert (metrics["clip_ratio/low"], metrics["clip_ratio/high"], metrics["skipped"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("loss", "ratio", "advantage"), list(itertools.product(LOSSES, RATIOS, ADVANTAGES))
)
def test_micro_batches_change_nothing(examples, sampled, loss, ratio, advantage):
    """Gradients, metrics and weights. Two updates, since in the first all ratios are 1; the clip
    range is so narrow that tokens are clipped.
    """
    settings = dict(
        loss_aggregation=loss,
        importance_sampling=ratio,
        advantage=advantage,
        num_iterations=2,
        lr=1e-4,
    )
    steps = []
    for micro_batch in (1, 2, 4):
        trainer = make_trainer(
            examples, **settings, micro_batch=micro_batch, epsilon_low=1e-4, epsilon_high=1e-4
        )
        replay(trainer, sampled)
        gradients = note_gradients(trainer)
        steps.append((without_clocks(trainer.train_step()), gradients, lora_of(trainer)))
    metrics, gradients, weights = steps[0]
    assert metrics["ratio_max"] > 1 + 1e-4 and metrics["clip_ratio/high"] > 0
    for other_metrics, other_gradients, other_weights in steps[1:]:
        assert other_metrics == pytest.approx(metrics, rel=1e-5, abs=1e-6)
        for name, tensor in weights.items():
            for ours, theirs in zip(gradients, other_gradients):
                assert close(ours[name], theirs[name])
            assert torch.allclose(other_weights[name], tensor, rtol=0, atol=1e-6)


def test_micro_batches_change_nothing_without_a_reference_either(examples, sampled):
    steps = []
    for micro_batch in (1, 3, 4):
        trainer = make_trainer(examples, beta=0.0, micro_batch=micro_batch)
        replay(trainer, sampled)
        steps.append(without_clocks(trainer.train_step()))
    assert steps[1] == pytest.approx(steps[0], rel=1e-5, abs=1e-6)
    assert steps[2] == pytest.approx(steps[0], rel=1e-5, abs=1e-6)


def test_the_gradient_is_clipped_and_its_norm_is_the_one_before(examples, sampled):
    norms = []
    for largest in (1e9, 1e-3):
        trainer = make_trainer(examples, max_grad_norm=largest)
        replay(trainer, sampled)
        noted = note_gradients(trainer)
        norms.append(trainer.train_step()["grad_norm"])
        after = math.sqrt(sum(g.square().sum().item() for g in noted[0].values()))
        assert after == pytest.approx(min(norms[0], largest), rel=1e-3)
    assert norms[0] == norms[1] > 1e-3


def test_only_lora_weights_are_trained(examples):
    """The base weights are the same to the last bit: neither trained, nor merged into."""
    trainer = make_trainer(examples)
    lora = {id(tensor) for tensor in trainer.parameters.values()}
    before = {name: tensor.clone() for name, tensor in trainer.model.named_parameters()}
    trainer.train_step()
    for name, tensor in trainer.model.named_parameters():
        assert torch.equal(tensor, before[name]) == (id(tensor) not in lora), name
        assert tensor.grad is None


def test_the_learning_rate_by_hand(examples):
    """Warm-up over 2 of 6 steps, then down to 0 after the last: (6 - step) / (6 - 2)."""
    trainer = make_trainer(examples, steps=6, warmup_steps=2, lr=0.01, max_new_tokens=2)
    rates = [trainer.train_step()["lr"] for _ in range(6)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.0075, 0.005, 0.0025])


def test_without_a_number_of_steps_it_is_one_pass(examples):
    """5 questions, 2 in a step: 3 steps."""
    assert make_trainer(examples, steps=0, prompts_per_step=2).total_steps == 3
    assert make_trainer(examples, steps=7, prompts_per_step=2).total_steps == 7


# ------------------------------------------------------------------- which reward goes where


def test_rewards_are_asked_about_what_was_sampled(examples):
    """Texts without special tokens, prompts and lengths, all in the order of the questions; an
    answer ends with the first of the three EOS tokens.
    """
    trainer = make_trainer(examples, max_new_tokens=12)
    batch = trainer.sample_and_score(4)
    ((asked, texts, prompts, lengths),) = trainer.rewards.calls
    assert asked == batch.examples and len({example.question for example in asked}) == 4
    for p, example in enumerate(asked):
        assert batch.prompt_ids[p] == trainer.prompts(example)
        assert prompts[p] == TOKENIZER.decode(batch.prompt_ids[p])
        assert prompts[p].startswith("<s>") and prompts[p].endswith(example.question)
        for g, tokens in enumerate(batch.completion_ids[p]):
            assert texts[p][g] == TOKENIZER.decode(tokens, skip_special_tokens=True)
            assert lengths[p][g] == len(tokens)
            assert not EOS & set(tokens[:-1])
            assert batch.finished[p, g] == (tokens[-1] in EOS)
    ends = {ids[-1] for group in batch.completion_ids for ids in group}
    assert len(EOS & ends) > 1 and not batch.finished.all()
    assert torch.allclose(
        batch.rewards, batch.reward_terms[..., 0] + 0.5 * batch.reward_terms[..., 1]
    )


def test_each_prompt_is_trained_with_its_own_rewards(examples, verifier, monkeypatch):
    """Two prompts get the same three answers, of which the first is right for the one about
    singers, the second for the one about shops: advantages of 2/3 for the right one and -1/3 for
    the others. With the two groups exchanged, or in the order AABB, the gradient would be another.
    """
    answers = [TOKENIZER.encode(text) + [1] for text in (QUERIES[0], QUERIES[3], "how many")]

    def scripted(model, prompt_ids, **_):
        completion_ids = [answers] * len(prompt_ids)
        logprobs = completion_logprobs(model, prompt_ids, completion_ids).detach()
        finished = torch.ones(len(prompt_ids), 3, dtype=torch.bool)
        return Samples(completion_ids, logprobs, finished, [None] * len(prompt_ids))

    monkeypatch.setattr(grpo.rollout, "sample_groups", scripted)
    rewards = Rewards(verifier, None, {"execution": 1.0})
    changes = dict(prompts_per_step=2, micro_batch=1, beta=0.0, max_grad_norm=1e9)
    trainer = make_trainer(examples[:2], rewards, **changes)
    batch = trainer.sample_and_score(2)
    right = torch.tensor([[2.0, -1.0, -1.0], [-1.0, 2.0, -1.0]]) / 3
    if batch.examples[0].db_id == "shops":
        right = right.flip(0)
    assert torch.allclose(batch.rewards, right + 1 / 3)
    replay(trainer, batch)
    _, expected = plain_step(trainer.model, batch, right, trainer.config)
    _, exchanged = plain_step(trainer.model, batch, right.flip(0), trainer.config)
    noted = note_gradients(trainer)
    trainer.train_step()
    assert all(close(gradient, expected[name]) for name, gradient in noted[0].items())
    assert not any(close(gradient, exchanged[name], 0.02) for name, gradient in noted[0].items())


# ---------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"beta": 0.0},
        {"num_iterations": 2},
        {"dynamic_sampling": 2},
        {"mask_truncated": True},
        *({"recipe": recipe} for recipe in RECIPES),
    ],
)
def test_every_metric_is_there_and_finite(examples, changes):
    trainer = make_trainer(examples, **changes)
    terms = {f"reward/{name}{std}" for name in ("long", "short") for std in ("", "_std")}
    for step in (1, 2):
        metrics = trainer.train_step()
        assert set(metrics) == PROMISED | terms
        assert all(math.isfinite(value) for value in metrics.values())
        assert metrics["step"] == step and metrics["skipped"] == 0
        assert metrics["kl"] > 0 and metrics["entropy"] > 0 and metrics["grad_norm"] > 0
        assert all(metrics[name] > 0 for name in CLOCKS)
        assert (
            0
            < metrics["sampling_logp_difference"]
            <= metrics["sampling_logp_difference_max"]
            < 1e-4
        )


def test_total_rewards_by_language_in_a_run_of_several(examples):
    """Four groups in two languages: the mean of the languages' means is the mean of all."""
    langs = ["en", "vi", "vi", "en"]
    mixed = [replace(example, lang=lang) for example, lang in zip(examples, langs)]
    metrics = make_trainer(mixed, prompts_per_step=4).train_step()
    mean = (metrics["language/en"] + metrics["language/vi"]) / 2
    assert metrics["reward"] == pytest.approx(mean)
    assert metrics["language/en"] != metrics["language/vi"]
    assert "language/en" not in make_trainer(examples).train_step()


def test_failures_of_custom_rewards_are_metrics(examples):
    trainer = make_trainer(examples)
    trainer.rewards.failures = lambda: {"reward_failures/mine": 3}
    assert trainer.train_step()["reward_failures/mine"] == 3


def test_reward_metrics_by_hand(examples, sampled):
    """Two groups of two. `long` is 1 for one completion of four: mean 1/4, and its std over the
    batch is sqrt((0.75^2 + 3 * 0.25^2) / 3) = 0.5. `short` is 1 throughout. The totals, long +
    short / 2, are (1.5, 0.5) and (0.5, 0.5): mean 0.75; the stds within the groups are
    sqrt(2 * 0.5^2) = 0.7071 and 0, their mean 0.3536.
    """
    batch = select_groups(sampled, [0, 1])
    batch.completion_ids = [group[:2] for group in batch.completion_ids]
    batch.sampling_logprobs = [group[:2] for group in batch.sampling_logprobs]
    batch.finished = torch.tensor([[True, False], [True, True]])
    batch.reward_terms = torch.tensor([[[1.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    batch.rewards = batch.reward_terms @ WordRewards.weights
    trainer = make_trainer(examples, prompts_per_step=2)
    replay(trainer, batch)
    metrics = trainer.train_step()
    expected = {
        "reward": 0.75,
        "reward_std": math.sqrt(0.5) / 2,
        "reward/long": 0.25,
        "reward/long_std": 0.5,
        "reward/short": 1.0,
        "reward/short_std": 0.0,
        "frac_reward_zero_std": 0.5,
        "groups_sampled": 2,
        "truncated": 0.25,
        "completion_length": sum(len(ids) for group in batch.completion_ids for ids in group) / 4,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_tokens_per_second(examples):
    """Every token sampled and rewarded, and every token trained on, by the time that took."""
    trainer = make_trainer(examples)
    metrics = trainer.train_step()
    ((*_, lengths),) = trainer.rewards.calls
    tokens = sum(map(sum, lengths))
    for phase in ("sample", "reward", "train"):
        product = metrics[f"{phase}_seconds"] * metrics[f"{phase}_tokens_per_second"]
        assert product == pytest.approx(tokens)


@pytest.mark.parametrize("masked", [False, True])
def test_without_beta_the_kl_is_that_of_the_first_group(examples, monkeypatch, masked):
    """k3 under the policy that sampled, over the tokens of the first group; the reference sees no
    other prompt. With ``mask_truncated`` a completion without an end does not count.
    """
    trainer = make_trainer(examples, beta=0.0, num_iterations=2, mask_truncated=masked)
    batch = trainer.sample_and_score(4)
    batch.finished[0] = torch.tensor([True, False, True])
    replay(trainer, batch)
    alone = Config(beta=0.0, mask_truncated=masked)
    expected, _ = plain_step(trainer.model, select_groups(batch, [0]), torch.zeros(1, 3), alone)
    passes = note_passes(monkeypatch, trainer.model)
    assert trainer.train_step()["kl"] == pytest.approx(expected["kl"], rel=1e-4)
    assert expected["kl"] > 1e-3
    assert [prompts for with_lora, prompts in passes if not with_lora] == [1]
