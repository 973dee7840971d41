"""Groups of completions as they are selected, joined and masked, and dynamic sampling: which groups
are kept, how many are asked for, and what is counted.
"""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo.advantages import group_advantages
from grpo.dynamic_sampling import collect_groups, concatenate, select_groups
from grpo.rollout import Rollout
from sqlenv.verifier import Verdict

ANY_SPEED = settings(deadline=None)  # a busy machine is no failure


def groups(*totals: list[float], first: int = 0) -> Rollout:
    """A rollout with these rewards; group n has n in every field, so that each can be told."""
    size = len(totals[0]) if totals else 2
    numbers = range(first, first + len(totals))
    total = torch.tensor(totals).reshape(-1, size)
    return Rollout(
        examples=[f"question {n}" for n in numbers],
        prompt_ids=[[n] for n in numbers],
        completion_ids=[[[n] * (g + 1) for g in range(size)] for n in numbers],
        texts=[[str(n)] * size for n in numbers],
        verdicts=[[Verdict(str(n), None, False)] * size for n in numbers],
        allowed=[None] * len(numbers),
        sampling_logprobs=[torch.full((size, n % 3 + 1), -float(n)) for n in numbers],
        finished=torch.tensor([[n % 2 == g % 2 for g in range(size)] for n in numbers]),
        reward_terms=total[..., None].clone(),
        applicable=torch.ones(*total.shape, 1, dtype=torch.bool),
        rewards=total,
    )


def numbers(rollout: Rollout) -> list[int]:
    """Which groups of ``groups`` a rollout has; all of its fields must agree."""
    indices = [n for (n,) in rollout.prompt_ids]
    assert rollout.examples == [f"question {n}" for n in indices]
    for p, n in enumerate(indices):
        assert all(set(ids) == {n} for ids in rollout.completion_ids[p])
        assert set(rollout.texts[p]) == {v.sql for v in rollout.verdicts[p]} == {str(n)}
        expected = groups([0.0, 1.0], first=n)
        assert torch.equal(rollout.sampling_logprobs[p], expected.sampling_logprobs[0])
        assert torch.equal(rollout.finished[p], expected.finished[0])
    assert torch.equal(rollout.reward_terms[..., 0], rollout.rewards)
    counts = map(
        len, (rollout.completion_ids, rollout.sampling_logprobs, rollout.finished, rollout.rewards)
    )
    assert set(counts) == {len(indices)}
    return indices


class Script:
    """A rollout function whose groups have signal, or not, one after the other as written; after
    its end none has. It notes how many groups it is asked for.
    """

    def __init__(self, *signals: bool):
        self.signals, self.calls = signals, []

    def signal(self, n: int) -> bool:
        return n < len(self.signals) and bool(self.signals[n])

    def __call__(self, count: int) -> Rollout:
        first = sum(self.calls)
        self.calls.append(count)
        drawn = range(first, first + count)
        return groups(*([float(self.signal(n)), 0.0] for n in drawn), first=first)


# ------------------------------------------------------------------------------------ groups


def test_select_and_concatenate_keep_every_field_together():
    whole = groups([1.0, 0.0], [2.0, 2.0], [3.0, 0.0])
    assert numbers(whole) == [0, 1, 2]
    assert numbers(select_groups(whole, [2, 0])) == [2, 0]
    assert select_groups(whole, [2, 0]).rewards.tolist() == [[3, 0], [1, 0]]
    assert numbers(concatenate([select_groups(whole, [1]), groups([4.0, 5.0], first=7)])) == [1, 7]
    assert concatenate(
        [select_groups(whole, [1]), groups([4.0, 5.0], first=7)]
    ).rewards.tolist() == [[2, 2], [4, 5]]


def test_no_group_is_a_rollout_too():
    whole = groups([1.0, 0.0], [2.0, 2.0])
    empty = select_groups(whole, [])
    assert numbers(empty) == [] and empty.rewards.shape == (0, 2)
    assert numbers(concatenate([empty, whole])) == numbers(concatenate([whole, empty])) == [0, 1]


def test_token_mask_by_hand():
    """Two prompts with completions of 1 and 3, 2 and 0 tokens; the longest has 3."""
    rollout = groups([0.0, 1.0], [0.0, 1.0])
    rollout.completion_ids = [[[5], [5, 6, 7]], [[8, 9], []]]
    rollout.finished = torch.tensor([[True, False], [False, True]])
    assert rollout.completion_mask().int().tolist() == [
        [[1, 0, 0], [1, 1, 1]],
        [[1, 1, 0], [0, 0, 0]],
    ]
    assert rollout.completion_mask(include_truncated=False).int().tolist() == [
        [[1, 0, 0], [0, 0, 0]],  # 3 tokens, but no EOS
        [[0, 0, 0], [0, 0, 0]],
    ]


def test_completions_without_tokens_have_a_mask_of_one_column():
    rollout = groups([0.0, 1.0])
    rollout.completion_ids = [[[], []]]
    assert rollout.completion_mask().tolist() == [[[False], [False]]]


def test_zero_variance_by_hand():
    """Rewards that differ in the last bit only are equal: 0.1 + 0.2 in float32 is not 0.3."""
    totals = [[1.0, 0.0], [0.5, 0.5], [0.1 + 0.2, 0.3], [0.0, 1e-3], [-1.0, -1.0]]
    assert groups(*totals).zero_variance().tolist() == [False, True, True, False, True]


@ANY_SPEED
@given(
    st.floats(-1e4, 1e4, width=32),
    st.lists(st.sampled_from([0.0, 1e-7, 1e-5, 1e-2, 1.0]), min_size=3, max_size=3),
    st.sampled_from(["centered", "group", "rloo"]),
)
@example(100.0, [0.0, 1e-5, 0.0], "centered")  # float noise of a reward that weighs 100
def test_a_group_has_variance_if_it_has_advantages(level, differences, kind):
    """Whatever the scale of the rewards: what dynamic sampling keeps must teach something, and
    what it throws away must not.
    """
    rollout = groups([level + difference for difference in differences])
    advantages = group_advantages(rollout.rewards, kind=kind)
    assert rollout.zero_variance().tolist() == (advantages == 0).all(1).tolist()


# -------------------------------------------------------------------------- dynamic sampling


def test_without_rounds_everything_is_kept():
    script = Script(True, False, False, True)
    batch, stats = collect_groups(script, 4)
    assert numbers(batch) == [0, 1, 2, 3] and script.calls == [4]
    assert stats == {"frac_reward_zero_std": 0.5, "groups_sampled": 4}


def test_dynamic_sampling_by_hand():
    """Of 4 groups the first two have zero variance, so 2 more are drawn, of which one has none,
    and then 1 more: 7 drawn, 3 of them with zero variance, and the 4 others in the order in which
    they were drawn.
    """
    script = Script(False, False, True, True, False, True, True)
    batch, stats = collect_groups(script, 4, rounds=5)
    assert numbers(batch) == [2, 3, 5, 6] and script.calls == [4, 2, 1]
    assert stats == {"frac_reward_zero_std": pytest.approx(3 / 7), "groups_sampled": 7}


def test_when_the_rounds_are_over_the_batch_stays_smaller():
    """4 groups, 1 with signal; 3 more, none; 3 more, 1. The next one would have had some."""
    script = Script(False, True, False, False, False, False, False, True, False, False, True)
    batch, stats = collect_groups(script, 4, rounds=2)
    assert numbers(batch) == [1, 7] and script.calls == [4, 3, 3]
    assert stats == {"frac_reward_zero_std": pytest.approx(8 / 10), "groups_sampled": 10}


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_without_any_signal_the_first_batch_is_returned_as_it_is(rounds):
    script = Script()
    batch, stats = collect_groups(script, 3, rounds=rounds)
    assert numbers(batch) == [0, 1, 2] and script.calls == [3] * (rounds + 1)
    assert stats == {"frac_reward_zero_std": 1.0, "groups_sampled": 3 * (rounds + 1)}


@ANY_SPEED
@given(st.lists(st.booleans(), max_size=30), st.integers(1, 5), st.integers(1, 5))
def test_dynamic_sampling_in_general(signals, prompts, rounds):
    script = Script(*signals)
    batch, stats = collect_groups(script, prompts, rounds=rounds)
    drawn = sum(script.calls)
    kept = [n for n in range(drawn) if script.signal(n)]
    assert numbers(batch) == (kept or list(range(prompts)))  # all that have signal, in order
    assert len(kept) <= prompts  # and no more than there is room for
    assert script.calls[0] == prompts and 1 <= len(script.calls) <= 1 + rounds
    for i, count in enumerate(script.calls[1:], start=1):  # only what is missing is drawn
        before = sum(script.calls[:i])
        assert count == prompts - sum(script.signal(n) for n in range(before)) > 0
    if len(kept) < prompts:  # it gave up only because the rounds were over
        assert len(script.calls) == 1 + rounds
    assert stats["groups_sampled"] == drawn
    assert stats["frac_reward_zero_std"] == pytest.approx((drawn - len(kept)) / drawn)
