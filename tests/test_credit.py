"""Blame for the tokens in which a wrong completion differs from its nearest right sibling."""

from dataclasses import replace

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
    note_gradients,
    plain_step,
    replay,
)

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.credit import blamed_tokens, difference_credit
from grpo.dynamic_sampling import select_groups
from sqlenv import UserError
from sqlenv.verifier import Verdict


@pytest.mark.parametrize(
    "wrong, right, expected",
    [
        # one name is wrong
        ([1, 2, 3, 4], [[1, 9, 3, 4]], [0, 1, 0, 0]),
        # the second right one is nearer: 3 of 4 tokens in common, not 1
        ([1, 2, 3, 4], [[1, 8, 8, 8], [1, 2, 3, 9]], [0, 0, 0, 1]),
        # two tokens too many
        ([1, 2, 3, 4], [[1, 4]], [0, 1, 1, 0]),
        # a condition is missing before the end: the end came too early
        ([1, 2, 7], [[1, 2, 3, 4, 7]], [0, 0, 1]),
        # cut off: what is missing has no token
        ([1, 2], [[1, 2, 3]], [0, 0]),
        # nothing in common
        ([1, 2], [[3, 4, 5]], [1, 1]),
        ([], [[3]], []),
    ],
)
def test_by_hand(wrong, right, expected):
    assert blamed_tokens(wrong, right) == [bool(flag) for flag in expected]


TOKENS = st.lists(st.integers(0, 5), max_size=12)


@ANY_SPEED
@given(TOKENS, st.lists(TOKENS, min_size=1, max_size=4))
def test_what_is_not_blamed_stands_in_a_right_one_in_the_same_order(wrong, right):
    blamed = blamed_tokens(wrong, right)
    kept = [token for token, flag in zip(wrong, blamed) if not flag]
    assert len(blamed) == len(wrong) and any(is_subsequence(kept, other) for other in right)


def is_subsequence(part: list[int], whole: list[int]) -> bool:
    rest = iter(whole)
    return all(token in rest for token in part)


@ANY_SPEED
@given(TOKENS.filter(bool), st.lists(TOKENS, max_size=3))
def test_a_copy_of_a_right_one_is_not_blamed(tokens, others):
    assert not any(blamed_tokens(tokens, [*others, tokens]))


@pytest.fixture
def judged(sampled):
    """The batch with verdicts and rewards made up: in groups 0 and 1 the first completion is right
    and the second wrong, in group 2 none is right, in group 3 all are. The wrong one of group 0 is
    the right one but for its second token.
    """
    right, wrong = Verdict("SELECT 1", None, True), Verdict("SELECT 0", None, False)
    verdicts = [[right, wrong, wrong], [right, wrong, right], [wrong] * 3, [right] * 3]
    rewards = torch.tensor([[1.0, 0, 0], [1, 0, 1], [0.3, 0.1, 0], [1, 1, 0.5]])
    groups = [list(group) for group in sampled.completion_ids]
    first, second, *rest = groups[0][0]
    groups[0][1] = [first, second + 1, *rest]
    return replace(sampled, completion_ids=groups, verdicts=verdicts, rewards=rewards)


def test_only_wrong_ones_with_a_right_sibling_are_compared(judged):
    advantages = group_advantages(judged.rewards)
    credited = difference_credit(judged, advantages)
    for p, group in enumerate(judged.completion_ids):
        for g, ids in enumerate(group):
            own = credited[p, g, : len(ids)]
            if p < 2 and not judged.verdicts[p][g].correct:
                right = [group[0]] if p == 0 else [group[0], group[2]]
                expected = torch.tensor(blamed_tokens(ids, right)) * advantages[p, g]
                assert torch.equal(own, expected)
            else:
                assert torch.equal(own, advantages[p, g].expand(len(ids)))
    assert (credited[0, 1] != 0).nonzero()[:, 0].tolist()[:1] == [1]


def test_a_step_is_the_formula_with_advantages_of_tokens(examples, judged):
    trainer = make_trainer(examples, credit="difference", max_grad_norm=1e9)
    replay(trainer, judged)
    noted = note_gradients(trainer)
    metrics = trainer.train_step()
    credited = difference_credit(judged, group_advantages(judged.rewards))
    plain, gradients = plain_step(make_policy().model, judged, credited, trainer.config)
    for name, gradient in gradients.items():
        assert close(noted[0][name], gradient), name
    for name in ("loss", "kl", "grad_norm"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-4)


def test_the_nearest_sibling_is_one_of_the_whole_group(examples, judged):
    """Two of three completions are trained, the first and the second, which is compared with the
    third, a right one that it is equal to but for one token.
    """
    right, wrong = judged.verdicts[1][0], judged.verdicts[1][1]
    ids = [[5, 9, 7], [8, 4, 6], [8, 4, 7]]
    batch = replace(
        select_groups(judged, [1]),
        completion_ids=[ids],
        verdicts=[[right, wrong, right]],
        rewards=torch.tensor([[1.0, 0.0, 0.9]]),
    )
    trainer = make_trainer(examples, credit="difference", train_completions=2)
    rollout, advantages = trainer.what_to_train(batch, trainer.advantages(batch))
    assert rollout.completion_ids == [ids[:2]] and advantages.shape == (1, 2, 3)
    assert (advantages[0, 1] != 0).tolist() == [False, False, True]
    assert (advantages[0, 0] > 0).all()


def test_it_needs_a_reward_that_looks_at_gold():
    weights = dict.fromkeys(("execution", "schema", "semantic"), 0.0) | {"mine.py:f": 1.0}
    Config(reward=weights).check()
    with pytest.raises(UserError, match="--credit difference: not with rewards without gold SQL"):
        Config(credit="difference", reward=weights).check()


def test_without_a_right_one_nothing_changes(examples, sampled):
    wrong = Verdict("SELECT 0", None, False)
    batch = replace(sampled, verdicts=[[wrong] * 3] * 4)
    weights = []
    for credit in ("completion", "difference"):
        trainer = make_trainer(examples, credit=credit)
        replay(trainer, batch)
        trainer.train_step()
        weights.append(lora_of(trainer))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
