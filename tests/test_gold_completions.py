"""Gold SQL as a member of groups without a right completion."""

from dataclasses import replace

import pytest
import torch
from trainer_kit import (
    QUERIES,
    TOKENIZER,
    WordRewards,
    close,
    make_policy,
    make_trainer,
    note_gradients,
    plain_step,
    replay,
)

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.evaluation.rollouts import group_rows
from grpo.gold_completions import add_gold
from grpo.rewards import Rewards
from sqlenv import UserError

GOLD = TOKENIZER.convert_tokens_to_ids(QUERIES)
WEIGHTS = {"execution": 1.0, "syntax": 0.1}


@pytest.fixture
def rewards(verifier):
    return Rewards(verifier, None, WEIGHTS, max_new_tokens=8)


@pytest.fixture
def batch(examples, rewards):
    """Three groups of three, scored: the first has a right completion, the second a wrong one that
    runs, the third nothing that runs. Lengths are 2, 2 and 1 tokens.
    """
    trainer = make_trainer(examples, rewards)
    rollout = trainer.sample_and_score(3)
    texts = [
        [rollout.examples[0].gold_sql, "who", "singer"],
        ["SELECT 99", "who", "singer"],
        ["all", "who", "old"],
    ]
    ids = [[TOKENIZER.encode(text) + [1] for text in group] for group in texts]
    prompts, lengths = ["", "", ""], [[len(own) for own in group] for group in ids]
    terms, verdicts = rewards.score(rollout.examples, texts, prompts=prompts, lengths=lengths)
    longest = max(length for group in lengths for length in group)
    return replace(
        rollout,
        completion_ids=ids,
        texts=texts,
        verdicts=verdicts,
        sampling_logprobs=[torch.full((3, longest), -1.0) for _ in range(3)],
        finished=torch.tensor([[True, True, False]] * 3),
        reward_terms=terms,
        applicable=~terms.isnan(),
        rewards=terms @ rewards.weights,
    )


def test_gold_takes_the_last_place_where_nothing_is_right(batch, rewards):
    """Rewards: execution 1, syntax 0.1. Groups 1 and 2 get gold, which has both; all else stays."""
    with_gold = add_gold(batch, make_policy(), rewards, max_new_tokens=8)
    assert batch.rewards.tolist() == [
        pytest.approx(row) for row in ([1.1, 0, 0], [0.1, 0, 0], [0, 0, 0])
    ]
    assert with_gold.rewards.tolist() == [
        pytest.approx(row) for row in ([1.1, 0, 0], [0.1, 0, 1.1], [0, 0, 1.1])
    ]
    for p, example in enumerate(batch.examples):
        same = 3 if p == 0 else 2
        for name in ("completion_ids", "texts", "verdicts"):
            assert getattr(with_gold, name)[p][:same] == getattr(batch, name)[p][:same]
        if p:
            assert with_gold.completion_ids[p][-1] == TOKENIZER.encode(example.gold_sql) + [1]
            assert with_gold.texts[p][-1] == example.gold_sql and with_gold.verdicts[p][-1].correct
            assert with_gold.sampling_logprobs[p][-1].isnan().all()
            assert not with_gold.sampling_logprobs[p][:-1].isnan().any()
    assert with_gold.finished.tolist() == [[True, True, False], [True] * 3, [True] * 3]


def test_nothing_is_changed_in_place(batch, rewards):
    before = batch.rewards.clone(), [list(group) for group in batch.texts]
    logprobs = [tensor.clone() for tensor in batch.sampling_logprobs]
    add_gold(batch, make_policy(), rewards, max_new_tokens=8)
    assert torch.equal(batch.rewards, before[0]) and batch.texts == before[1]
    assert all(map(torch.equal, batch.sampling_logprobs, logprobs))


def test_gold_that_is_too_long_or_missing_is_left_out(batch, rewards):
    policy = make_policy()
    assert add_gold(batch, policy, rewards, max_new_tokens=1) is batch
    without = replace(batch, examples=[replace(e, gold_sql="") for e in batch.examples])
    assert add_gold(without, policy, rewards, max_new_tokens=8) is without


def test_a_step_is_the_formula_on_the_groups_with_gold(examples, batch, rewards, monkeypatch):
    """The gap between sampler and trainer is that of sampled tokens; metrics of rewards are those
    of what was sampled.
    """
    trainer = make_trainer(examples, rewards, gold_completions=True, max_grad_norm=1e9)
    replay(trainer, batch)
    noted = note_gradients(trainer)
    metrics = trainer.train_step()
    with_gold = add_gold(batch, make_policy(), rewards, max_new_tokens=8)
    advantages = group_advantages(with_gold.rewards)
    plain, gradients = plain_step(make_policy().model, with_gold, advantages, trainer.config)
    assert with_gold.sampled_mask().tolist() == [
        [True] * 3,
        [True, True, False],
        [True, True, False],
    ]
    for name, gradient in gradients.items():
        assert close(noted[0][name], gradient), name
    for name in ("loss", "kl", "entropy", "grad_norm"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-4)
    assert metrics["reward"] == pytest.approx(batch.rewards.mean().item())
    assert metrics["groups_trained"] == 3 and 0 < metrics["sampling_logp_difference"] < 100
    assert metrics["frac_reward_zero_std"] == 0  # a third without gold
    (kept,) = trainer.last_rollouts
    lines = group_rows(1, kept, advantages, rewards.names, [None] * 3)
    drawn = [[c["logprob"] is not None for c in line["completions"]] for line in lines]
    assert drawn == [[True] * 3, [True, True, False], [True, True, False]]
    assert [line["completions"][-1]["text"] == line["gold"] for line in lines] == [
        False, True, True,
    ]  # fmt: skip


def test_without_the_option_zero_variance_groups_are_left_out(examples, batch, rewards):
    trainer = make_trainer(examples, rewards)
    replay(trainer, batch)
    assert trainer.train_step()["groups_trained"] == 2


def test_a_batch_in_which_all_groups_are_right_is_the_same(examples):
    """The stand-in rewards' verdicts are all wrong, so they are replaced."""
    rollout = make_trainer(examples, WordRewards()).sample_and_score(2)
    verdicts = [[replace(v, correct=True) for v in group] for group in rollout.verdicts]
    right = replace(rollout, verdicts=verdicts)
    assert add_gold(right, make_policy(), WordRewards(), max_new_tokens=8) is right


@pytest.mark.parametrize(
    "others",
    [
        {"constrain_names": True},
        {"dynamic_sampling": 2},
        {"ask_again": 0.5},
        {"reward": WEIGHTS | {"consensus": 0.1}},
        {"reward": WEIGHTS | {"test_suite": 1.0}},
    ],
)
def test_options_about_sampled_sql_are_refused_beside_gold(others):
    Config(**others).check()
    name = next(iter(others)).replace("_", "-")
    with pytest.raises(UserError, match=f"--gold-completions: not with --{name}"):
        Config(gold_completions=True, **others).check()
