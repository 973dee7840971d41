"""Training on some completions of each group (PODS)."""

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_kit import (
    ANY_SPEED,
    close,
    lora_of,
    make_policy,
    make_trainer,
    note_calls,
    note_gradients,
    note_passes,
    plain_step,
    replay,
)

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.downsampling import select_completions, spread_most
from sqlenv import UserError


@pytest.mark.parametrize(
    "values, count, expected",
    [
        ([0.5, 1.0, 0.0, 0.6], 2, [1, 2]),
        # {0, .5, .6}: variance .069; {0, 1, .6}: .169; {0, .5, 1}: .167
        ([0.5, 1.0, 0.0, 0.6], 3, [1, 2, 3]),
        # one right, seven wrong: the right one and the first wrong ones
        ([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 4, [0, 1, 2, 3]),
        # as many right as wrong
        ([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0], 4, [3, 4, 5, 6]),
        ([0.3, 0.1], 2, [0, 1]),
    ],
)
def test_by_hand(values, count, expected):
    """In the case of as many right as wrong, the lowest are the first zeros (5, 6), the highest the
    last ones in ascending order (3, 4).
    """
    assert spread_most(torch.tensor([values]), count).tolist() == [expected]


@ANY_SPEED
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8), st.data())
def test_no_other_choice_has_a_larger_variance(values, data):
    """All choices are compared; sixteenths, so that variances of equal choices are equal."""
    count = data.draw(st.integers(2, len(values)))
    rewards = torch.tensor(values, dtype=torch.float64) / 16
    (chosen,) = spread_most(rewards[None], count)
    assert chosen.tolist() == sorted(set(chosen.tolist())) and len(chosen) == count
    best = max(rewards[list(c)].var(correction=0) for c in combinations(range(len(values)), count))
    assert rewards[chosen].var(correction=0).item() == pytest.approx(best.item(), abs=1e-12)


def test_groups_do_not_mix():
    rewards = torch.tensor([[0.0, 1.0, 0.5], [0.5, 0.0, 1.0]])
    assert spread_most(rewards, 2).tolist() == [[0, 1], [1, 2]]


def test_a_step_trains_on_the_chosen_alone(examples, sampled, monkeypatch):
    """The update is that of the formula on two of three completions of each group, with the
    advantages of all three; the metrics of rewards and lengths are those of all three.
    """
    trainer = make_trainer(examples, train_completions=2, max_grad_norm=1e9)
    replay(trainer, sampled)
    noted, losses = note_gradients(trainer), note_calls(monkeypatch, "policy_loss")
    passes = note_passes(monkeypatch, trainer.model)
    metrics = trainer.train_step()
    advantages = group_advantages(sampled.rewards)
    chosen = torch.tensor(
        [
            max(combinations(range(3), 2), key=lambda pair: abs(row[pair[0]] - row[pair[1]]))
            for row in sampled.rewards
        ]
    )
    batch, expected = select_completions(sampled, chosen), advantages.gather(1, chosen)
    assert torch.equal(torch.cat([arguments[2] for arguments, _ in losses])[..., 0], expected)
    assert expected.sum(1).abs().max() > 0.01  # not centered: the third one is missing
    assert passes == [(False, 2), (False, 2), (True, 2), (True, 2)]
    plain, gradients = plain_step(make_policy().model, batch, expected, trainer.config)
    for name, gradient in gradients.items():
        assert close(noted[0][name], gradient), name
    for name in ("loss", "kl", "entropy", "grad_norm"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-4)
    assert metrics["reward"] == pytest.approx(sampled.rewards.mean().item())
    lengths = [len(ids) for group in batch.completion_ids for ids in group]
    assert metrics["train_seconds"] * metrics["train_tokens_per_second"] == pytest.approx(
        sum(lengths)
    )


def test_to_train_on_all_is_to_choose_nothing(examples, sampled):
    weights = []
    for count in (0, 3):
        trainer = make_trainer(examples, train_completions=count)
        replay(trainer, sampled)
        trainer.train_step()
        weights.append(lora_of(trainer))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_completion_without_one_of_its_terms_counts_in_the_std(examples, sampled):
    """[1.2, 1.2, 0.2], where the second term of the last two is missing and was filled in: the std
    of all three is 0.577350. Of the completions with all terms there is one.
    """
    applicable = torch.ones(4, 3, 2, dtype=torch.bool)
    applicable[:, 1:, 1] = False
    rewards = torch.tensor([[1.2, 1.2, 0.2]]).expand(4, 3)
    batch = replace(sampled, applicable=applicable, rewards=rewards)
    ours = make_trainer(examples, advantage="group").advantages(batch)
    assert close(ours, torch.tensor([[0.57725, 0.57725, -1.15450]]).expand(4, 3))
    applicable[:, 1] = False  # nothing is known of the second, for which the mean 0.7 stands in
    batch = replace(batch, rewards=torch.tensor([[1.2, 0.7, 0.2]]).expand(4, 3))
    ours = make_trainer(examples, advantage="group").advantages(batch)
    assert close(ours, torch.tensor([[0.70701, 0.0, -0.70701]]).expand(4, 3))


@pytest.mark.parametrize("count", [1, 9])
def test_a_number_that_no_group_can_have_is_refused(count):
    with pytest.raises(UserError, match=rf"--train-completions: .*\(8\), not {count}"):
        Config(train_completions=count).check()
