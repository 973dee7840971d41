"""The baseline of GRPO by hand: each kind of advantage in a few numbers, and what always holds."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo.advantages import group_advantages
from grpo.custom_reward import LARGEST

ANY_SPEED = settings(deadline=None)  # a busy machine is not a failure
KINDS = ("group", "centered", "rloo", "maxrl")
EIGHTHS = st.integers(-16, 16).map(lambda n: n / 8)  # rewards that float32 holds exactly


@st.composite
def groups(draw, terms: int | None = None):
    """Rewards (P, G), or (P, G, R) with ``terms``: up to 3 groups of 2 to 6 completions."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(2, 6)), *([terms] if terms else []))
    count = torch.Size(shape).numel()
    return torch.tensor(draw(st.lists(EIGHTHS, min_size=count, max_size=count))).reshape(shape)


def close(actual: torch.Tensor, expected, atol: float = 1e-5) -> bool:
    expected = torch.as_tensor(expected)
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=0, atol=atol)


# --------------------------------------------------------------------------------- by hand


def test_group_by_hand():
    """[3, 1, 2]: mean 2, deviations 1, -1, 0, std sqrt((1 + 1 + 0) / 2) = 1, so 1 / 1.0001.
    [0, 0, 6]: mean 2, deviations -2, -2, 4, std sqrt((4 + 4 + 16) / 2) = 3.464102,
    so -2 / 3.464202 = -0.577334 and 4 / 3.464202 = 1.154667.

    With the population's std (divided by 3, not 2) the first would be 1.2246.
    """
    advantages = group_advantages(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 6.0]]), kind="group")
    assert close(advantages, [[0.99990, -0.99990, 0.0], [-0.577334, -0.577334, 1.154667]])


def test_the_kind_is_centered_if_none_is_named():
    rewards = torch.tensor([[3.0, 1.0, 2.0]])
    assert torch.equal(group_advantages(rewards), group_advantages(rewards, kind="centered"))
    assert not close(group_advantages(rewards), group_advantages(rewards, kind="group"))


def test_group_of_two_is_plus_minus_one_over_root_two_whatever_the_rewards():
    """[1, 0]: deviations +-0.5, std sqrt(0.5 / 1) = 0.707107, 0.5 / 0.707207 = 0.707007.
    [0.51, 0.5] differ a hundred times less, and only epsilon tells:
    0.005 / (0.00707107 + 0.0001) = 0.697246. That is the bias that ``centered`` is without.
    """
    advantages = group_advantages(torch.tensor([[1.0, 0.0], [0.51, 0.5]]), kind="group")
    assert close(advantages, [[0.707007, -0.707007], [0.697246, -0.697246]], atol=2e-5)


def test_centered_by_hand():
    """[3, 1, 2] has mean 2; [0, 0, 6] has mean 2; [1, 0, 0] has mean 1/3."""
    rewards = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 6.0], [1.0, 0.0, 0.0]])
    expected = [[1.0, -1.0, 0.0], [-2.0, -2.0, 4.0], [2 / 3, -1 / 3, -1 / 3]]
    assert close(group_advantages(rewards, kind="centered"), expected)


def test_rloo_by_hand():
    """[3, 1, 2]: 3 - (1 + 2) / 2 = 1.5, 1 - (3 + 2) / 2 = -1.5, 2 - (3 + 1) / 2 = 0.
    [0, 0, 6]: 0 - (0 + 6) / 2 = -3, the same, 6 - 0 = 6.
    """
    advantages = group_advantages(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 6.0]]), kind="rloo")
    assert close(advantages, [[1.5, -1.5, 0.0], [-3.0, -3.0, 6.0]])


def test_maxrl_by_hand():
    """One of four right: mean 1/4, so (1 - 1/4) / (1/4) = 3 and -1 for the others; three of four:
    (1 - 3/4) / (3/4) = 1/3, and -1. The right one of a hard question counts nine times as much.
    [2, -1, -1]: the mean is 0 and that of |r| is 4/3, so 3/2 and -3/4. None right: 0.
    """
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    expected = [[3.0, -1.0, -1.0, -1.0], [1 / 3, 1 / 3, 1 / 3, -1.0], [0.0, 0.0, 0.0, 0.0]]
    assert close(group_advantages(torch.tensor(rewards), kind="maxrl"), expected)
    mixed = group_advantages(torch.tensor([[2.0, -1.0, -1.0]]), kind="maxrl")
    assert close(mixed, [[1.5, -0.75, -0.75]])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_maxrl_is_the_log_likelihood_up_to_order_of_the_group_less_one(size):
    """Each of G completions is right with p. Over all outcomes, the expected gradient is that of
    -sum over k = 1 ... G - 1 of (1 - p)^k / k, the beginning of log p; for G = 2 that of p.
    """
    p = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        right = torch.tensor([outcome])
        logprobs = torch.where(right == 1, p.log(), (1 - p).log())  # (1, G)
        advantages = group_advantages(right, kind="maxrl")
        total = total + logprobs.sum().exp().detach() * (advantages * logprobs).mean()
    expected = -sum((1 - p) ** k / k for k in range(1, size))
    gradients = [torch.autograd.grad(value, p)[0].item() for value in (total, expected)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_custom_rewards_have_advantages(kind):
    """Squares of values such as 1e20 are infinite in float32."""
    advantages = group_advantages(torch.tensor([[0.0, 0.0, -LARGEST, 0.0]]), kind=kind)
    assert advantages.isfinite().all() and advantages[0, 2] < -0.5 < 0 < advantages[0, 0]


def test_a_reward_that_stands_in_does_not_count_by_hand():
    """[1, 0, 1] and a fourth reward that is missing, for which the mean 2/3 stands in: deviations
    1/3, -2/3, 1/3, 0. group: the std of the three is sqrt((1/9 + 4/9 + 1/9) / 2) = 0.577350, so
    1/3 / 0.577450 = 0.577250 (of four it would be 0.471405: 22 % more). rloo: 3/2 of the
    deviations (of four 4/3).
    """
    rewards = torch.tensor([[1.0, 0.0, 1.0, 2 / 3]])
    applicable = torch.tensor([[True, True, True, False]])
    options = {"applicable": applicable}
    expected = [[0.577250, -1.154501, 0.577250, 0.0]]
    assert close(group_advantages(rewards, kind="group", **options), expected)
    assert close(group_advantages(rewards, kind="rloo", **options), [[0.5, -1.0, 0.5, 0.0]])
    assert close(group_advantages(rewards, **options), [[1 / 3, -2 / 3, 1 / 3, 0.0]])
    terms = torch.stack([rewards, torch.zeros(1, 4)], -1)  # (1, 4, 2)
    both = torch.stack([applicable, torch.ones(1, 4, dtype=torch.bool)], -1)
    weights = torch.tensor([1.0, 1.0])
    ours = group_advantages(terms, kind="per_reward", weights=weights, applicable=both)
    total = torch.tensor(expected)
    assert close(ours, (total - total.mean()) / (total.std() + 1e-4))


def test_per_reward_can_prefer_a_wrong_completion():
    """With the default weights 1, 0.2 and 0.3: 16 of 32 are right, +-0.5 / 0.508 = +-0.98. One
    wrong completion has 1.0 in schema and semantics, the others 0.9: it is 31 / 32 * sqrt(32) = 5.5
    standard deviations above its group's mean, the others 0.18 below. So the wrong one gets
    -0.98 + 0.5 * 5.5 = 1.7 and a right one 0.98 - 0.5 * 0.18 = 0.9; their rewards are 0.5 and 1.45.
    """
    terms, weights = torch.full((1, 32, 3), 0.9), torch.tensor([1.0, 0.2, 0.3])
    terms[..., 0] = torch.arange(32) < 16
    terms[0, 31, 1:] = 1.0
    advantages = group_advantages(terms, kind="per_reward", weights=weights)[0]
    assert advantages[31] > advantages[0] > advantages[30]
    plain = group_advantages(terms @ weights)[0]
    assert plain[0] > plain[31] > plain[30]


def test_where_fewer_than_two_rewards_count_all_do():
    rewards = torch.tensor([[3.0, 1.0, 2.0]])
    for kind in KINDS:
        for applicable in ([[True, False, False]], [[False, False, False]]):
            ours = group_advantages(rewards, kind=kind, applicable=torch.tensor(applicable))
            assert torch.equal(ours, group_advantages(rewards, kind=kind))


def test_per_reward_by_hand():
    """Two groups of two completions with two terms, weights 1 and 0.5.

    Each term within its group (in a group of two: half the difference / (difference / sqrt 2)):

                  term 0                            term 1
        group 0   [1, 0]: +-0.5 / 0.707207          [0.2, 0.4]: -+0.1 / 0.141521
                  = +-0.707007                      = -+0.706608
        group 1   [0, 0]: 0                         [0.5, 0.1]: +-0.2 / 0.282943 = +-0.706857

    Weighted: group 0 +-(0.707007 - 0.353304) = +-0.353703, group 1 +-0.353428.
    Over the batch: mean 0, std sqrt(2 (0.353703^2 + 0.353428^2) / 3) = 0.408262, so the first
    is 0.353703 / 0.408362 = 0.866150 and the second 0.353428 / 0.408362 = 0.865477.

    Weighted first and normalised after, as ``group`` does it, term 1 would weigh next to nothing
    in group 0: there its spread is 0.2 against 1.
    """
    rewards = torch.tensor([[[1.0, 0.2], [0.0, 0.4]], [[0.0, 0.5], [0.0, 0.1]]])
    advantages = group_advantages(rewards, kind="per_reward", weights=torch.tensor([1.0, 0.5]))
    assert close(advantages, [[0.866150, -0.866150], [0.865477, -0.865477]])


def test_per_reward_lets_weights_decide_whatever_the_spread():
    """Completion 0 is better by 1 in term 0, completion 1 by 0.01 in term 1. Both are worth one
    standard deviation, so the larger weight decides: 1 against 2.
    """
    rewards = torch.tensor([[[1.0, 0.50], [0.0, 0.51]]])
    advantages = group_advantages(rewards, kind="per_reward", weights=torch.tensor([1.0, 2.0]))
    assert advantages[0, 0] < -0.5 and advantages[0, 1] > 0.5
    summed = group_advantages(rewards @ torch.tensor([1.0, 2.0]), kind="group")
    assert summed[0, 0] > 0.5


# -------------------------------------------------------------------------- zero variance


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_give_exact_zeros(kind):
    """The mean of six times 1.6 in float32 is not 1.6: that must not become an advantage."""
    advantages = group_advantages(torch.full((1, 6), 1.6), kind=kind)
    assert torch.equal(advantages, torch.zeros(1, 6))


@pytest.mark.parametrize("kind", KINDS)
def test_float_noise_gives_exact_zeros_and_signal_in_the_next_group_stays(kind):
    """1.6 and the next float32, 1.6000001: the same four terms, weighted and added, may give either
    in another order.
    """
    reward = torch.tensor(1.6)
    noisy = torch.stack([reward, torch.nextafter(reward, torch.tensor(2.0)), reward])
    assert noisy.max() > noisy.min()
    advantages = group_advantages(torch.stack([noisy, torch.tensor([1.0, 0.0, 0.0])]), kind=kind)
    assert torch.equal(advantages[0], torch.zeros(3))
    assert advantages[1, 0] > 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_float_noise_of_large_rewards_is_noise_too(kind):
    """Weights may be large, such as 100 for execution: the next float32 after 130.3 is 1.5e-5 away,
    which ``group`` would make an advantage of 0.14.
    """
    reward = torch.tensor(130.3)
    rewards = torch.stack([reward, reward, torch.nextafter(reward, torch.tensor(200.0))])[None]
    assert rewards.max() > rewards.min()
    assert torch.equal(group_advantages(rewards, kind=kind), torch.zeros(1, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_difference_is_not_noise(kind):
    """One thousandth of a reward is signal: it is what a schema or semantic score differs by."""
    advantages = group_advantages(torch.tensor([[1.0, 1.001]]), kind=kind)
    assert advantages[0, 0] < 0 < advantages[0, 1]


def test_per_reward_without_any_signal_is_exactly_zero():
    rewards = torch.tensor([[[0.3, 1.0]] * 3, [[0.7, 0.1]] * 3])
    advantages = group_advantages(rewards, kind="per_reward", weights=torch.tensor([1.0, 0.5]))
    assert torch.equal(advantages, torch.zeros(2, 3))


def test_per_reward_ignores_a_term_that_is_float_noise():
    """Term 1 differs by one ulp; a third of its weight in noise would be an advantage of 1/3."""
    noise = torch.nextafter(torch.tensor(0.3), torch.tensor(1.0)).item()
    quiet = torch.tensor([[[1.0, 0.3], [0.0, 0.3], [0.0, 0.3]]])
    noisy = torch.tensor([[[1.0, 0.3], [0.0, noise], [0.0, 0.3]]])
    weights = torch.tensor([1.0, 0.5])
    assert torch.equal(
        group_advantages(noisy, kind="per_reward", weights=weights),
        group_advantages(quiet, kind="per_reward", weights=weights),
    )


def test_per_reward_gives_a_tied_group_exact_zeros_beside_groups_with_signal():
    """The first group is tied in every term. Centring over the batch must leave it at zero,
    although the mean over the batch is zero only up to float noise.
    """
    rewards = torch.tensor([[[0.3]] * 3, [[1.0], [0.0], [0.2]], [[0.7], [0.1], [0.2]]])
    advantages = group_advantages(rewards, kind="per_reward", weights=torch.tensor([1.0]))
    assert torch.equal(advantages[0], torch.zeros(3))
    assert advantages[1, 0] > 0.5 and advantages[2, 0] > 0.5


# --------------------------------------------------------------------------- what always holds


@ANY_SPEED
@given(groups(), st.data())
def test_permuting_a_group_permutes_its_advantages(rewards, data):
    order = data.draw(st.permutations(range(rewards.shape[1])))
    for kind in KINDS:
        advantages = group_advantages(rewards[:, order], kind=kind)
        assert close(advantages, group_advantages(rewards, kind=kind)[:, order])


@ANY_SPEED
@given(groups(), EIGHTHS)
def test_adding_a_constant_changes_nothing(rewards, shift):
    for kind in ("group", "centered", "rloo"):
        advantages = group_advantages(rewards + shift, kind=kind)
        assert close(advantages, group_advantages(rewards, kind=kind))


@ANY_SPEED
@given(groups(), st.sampled_from([0.5, 2.0, 4.0, 16.0]))
def test_a_factor_goes_through_or_is_divided_out(rewards, factor):
    """``group`` and ``maxrl`` divide by what has the factor, too, ``group`` up to epsilon: std is
    at least 0.05 here, epsilon 1e-4.
    """
    for kind in ("centered", "rloo"):
        expected = group_advantages(rewards, kind=kind) * factor
        assert close(group_advantages(rewards * factor, kind=kind), expected, atol=1e-4)
    for kind in ("group", "maxrl"):
        advantages = group_advantages(rewards * factor, kind=kind)
        expected = group_advantages(rewards, kind=kind)
        assert torch.allclose(advantages, expected, rtol=0.01, atol=1e-5)


@ANY_SPEED
@given(groups(), EIGHTHS)
def test_a_negative_factor_turns_the_signs(rewards, shift):
    for kind in KINDS:
        assert close(group_advantages(-rewards, kind=kind), -group_advantages(rewards, kind=kind))


@ANY_SPEED
@given(groups(), groups())
def test_advantages_do_not_cross_groups(rewards, others):
    """Alone, or with whatever other groups before and after it, a group gets the same."""
    size = min(rewards.shape[1], others.shape[1])
    rewards, others = rewards[:, :size], others[:, :size]
    for kind in KINDS:
        alone = torch.cat([group_advantages(row[None], kind=kind) for row in rewards])
        together = group_advantages(torch.cat([others, rewards, 3 - others]), kind=kind)
        assert close(together[len(others) : len(others) + len(rewards)], alone)


@ANY_SPEED
@given(groups())
def test_advantages_of_a_group_sum_to_zero(rewards):
    for kind in KINDS:
        assert group_advantages(rewards, kind=kind).sum(dim=1).abs().max() < 1e-4


@ANY_SPEED
@given(groups())
def test_better_rewards_have_larger_advantages(rewards):
    for kind in KINDS:
        advantages = group_advantages(rewards, kind=kind)
        for group_rewards, group in zip(rewards.tolist(), advantages.tolist()):
            pairs = list(zip(group_rewards, group))
            assert all(a > b for r, a in pairs for s, b in pairs if r > s)


@ANY_SPEED
@given(groups())
def test_rloo_is_the_reward_minus_the_mean_of_the_others(rewards):
    naive = [
        [reward - sum(row[:i] + row[i + 1 :]) / (len(row) - 1) for i, reward in enumerate(row)]
        for row in rewards.tolist()
    ]
    assert close(group_advantages(rewards, kind="rloo"), naive)


@ANY_SPEED
@given(groups(terms=2), st.data())
def test_per_reward_invariants(rewards, data):
    """Within a group: permuting it permutes, the sum is 0; over the batch: the std is 1 where
    there is signal at all; a shift of any term of any group changes nothing.
    """
    options = {"kind": "per_reward", "weights": torch.tensor([1.0, 0.5])}
    advantages = group_advantages(rewards, **options)
    assert advantages.sum(dim=1).abs().max() < 1e-4
    assert advantages.abs().max() < 1e-6 or abs(advantages.std() - 1) < 1e-2
    order = data.draw(st.permutations(range(rewards.shape[1])))
    assert close(group_advantages(rewards[:, order], **options), advantages[:, order], 1e-4)
    shift = torch.tensor(data.draw(st.lists(EIGHTHS, min_size=2, max_size=2)))
    assert close(group_advantages(rewards + shift, **options), advantages, 1e-4)


# ---------------------------------------------------------------------------- types and errors


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_any_type_of_rewards_gives_float32(dtype):
    advantages = group_advantages(torch.tensor([[1, 0]], dtype=dtype), kind="centered")
    assert advantages.dtype == torch.float32 and advantages.tolist() == [[0.5, -0.5]]


def test_the_rewards_are_left_as_they_are():
    rewards = torch.tensor([[1.0, 0.0], [0.3, 0.3]])
    for kind in KINDS:
        group_advantages(rewards, kind=kind)
    assert rewards.tolist() == torch.tensor([[1.0, 0.0], [0.3, 0.3]]).tolist()


@pytest.mark.parametrize("kind", ["group", "rloo"])
def test_a_group_of_one_has_nothing_to_compare_with(kind):
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.tensor([[1.0], [0.0]]), kind=kind)


def test_a_group_of_one_is_an_error_for_per_reward_too():
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages(torch.ones(2, 1, 2), kind="per_reward", weights=torch.ones(2))


def test_an_unknown_kind_is_an_error_that_lists_the_kinds():
    with pytest.raises(ValueError, match="gruop.*centered, group, rloo, maxrl or per_reward"):
        group_advantages(torch.tensor([[1.0, 0.0]]), kind="gruop")


def test_a_list_in_place_of_a_tensor_is_an_error_that_names_it():
    with pytest.raises(TypeError, match="^rewards must be a tensor, not a list"):
        group_advantages([[1.0, 0.0]])


@pytest.mark.parametrize("weights", [None, torch.ones(1), torch.ones(3)])
def test_per_reward_needs_a_weight_for_each_term(weights):
    with pytest.raises(ValueError, match="`weights`, one for each reward term"):
        group_advantages(torch.ones(2, 4, 2), kind="per_reward", weights=weights)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        *((kind, shape, r"\(P, G\)") for kind in KINDS for shape in [(6,), (2, 3, 2)]),
        *(("per_reward", shape, r"\(P, G, R\)") for shape in [(6,), (2, 3), (1, 2, 3, 4)]),
    ],
)
def test_rewards_of_another_shape_are_an_error_that_names_both(kind, shape, expected):
    actual = re.escape(str(shape))
    with pytest.raises(ValueError, match=f"^{kind} .* take rewards {expected}, not {actual}"):
        group_advantages(torch.ones(shape), kind=kind, weights=torch.ones(2))
