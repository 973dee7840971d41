"""The GRPO loss by hand, value and gradient; the KL estimators against exact enumeration; and that
neither micro-batches nor padding change anything.
"""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.kl import token_kl
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora
from grpo.loss import importance_ratio, policy_loss, surrogate_objective, token_weights
from grpo.sampler import sample_groups

ANY_SPEED = settings(deadline=None)  # a busy machine is not a failure
LN2 = math.log(2)
KL_ESTIMATORS = ("k1", "k2", "k3", "k3iw")
IMPORTANCE_SAMPLING = ("token", "sequence", "cispo")
AGGREGATIONS = ("token", "sequence", "constant")


def summed(stats: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """KL and clip shares of a batch: sums over its tokens, weighted like the loss."""
    return {name: (weights * value).sum() for name, value in stats.items() if name != "ratio"}


def loss_and_gradient(logprobs, old, advantages, weights, reference=None, *, beta=0.0, **options):
    """The loss as a number, its gradient with respect to the log-probs, and the summed statistics.

    Args:
        logprobs, old, advantages, weights: nested lists; ``old`` None means on policy.
        reference: log-probs of the reference, a tensor.
    """
    logprobs, weights = torch.tensor(logprobs, requires_grad=True), torch.tensor(weights)
    old = logprobs.detach() if old is None else torch.tensor(old)
    loss, stats = policy_loss(
        logprobs, old, torch.tensor(advantages), weights, reference, beta=beta, **options
    )
    (gradient,) = torch.autograd.grad(loss, logprobs)
    totals = {name: value.item() for name, value in summed(stats, weights).items()}
    return loss.item(), gradient, totals


def single_token(ratio: float, advantage: float, **options):
    """The same for a single token of weight 1 with this ratio; the gradient is a number."""
    loss, gradient, stats = loss_and_gradient(
        [[[math.log(ratio) - 1.0]]], [[[-1.0]]], [[advantage]], [[[1.0]]], **options
    )
    return loss, gradient.item(), stats


# --------------------------------------------------------------------------------- weights

MASK = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [1, 1, 0]]], dtype=torch.bool)


def test_token_weights_by_hand():
    """Completions of 3, 1, 2 and 2 tokens: 8 tokens, 1/8 each."""
    e = 1 / 8
    expected = [[[e, e, e], [e, 0, 0]], [[e, e, 0], [e, e, 0]]]
    assert torch.equal(token_weights(MASK, aggregation="token"), torch.tensor(expected))
    assert torch.equal(token_weights(MASK), torch.tensor(expected))


def test_sequence_weights_by_hand():
    """Four completions, 1/4 each, spread over their tokens: 1/12, 1/4, 1/8, 1/8."""
    a, b, c = 1 / 12, 1 / 4, 1 / 8
    expected = [[[a, a, a], [b, 0, 0]], [[c, c, 0], [c, c, 0]]]
    assert torch.allclose(token_weights(MASK, aggregation="sequence"), torch.tensor(expected))


def test_constant_weights_by_hand():
    """Four completions that may have 10 tokens: 1/40, however many they have."""
    expected = MASK * (1 / 40)
    assert torch.allclose(token_weights(MASK, aggregation="constant", max_new_tokens=10), expected)


def test_weights_sum_to_one_but_for_constant():
    assert token_weights(MASK, aggregation="token").sum() == pytest.approx(1)
    assert token_weights(MASK, aggregation="sequence").sum() == pytest.approx(1)
    constant = token_weights(MASK, aggregation="constant", max_new_tokens=10)
    assert constant.sum() == pytest.approx(8 / 40)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_completions_without_a_token_weigh_nothing(aggregation):
    """Neither an empty completion nor a step without any token divides by zero."""
    options = {"aggregation": aggregation, "max_new_tokens": 2}
    weights = token_weights(torch.tensor([[[True, True], [False, False]]]), **options)
    assert weights.dtype == torch.float32 and weights.isfinite().all()
    assert weights[0, 1].tolist() == [0, 0] and weights[0, 0, 0] > 0
    empty = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert token_weights(empty, **options).tolist() == [[[0, 0]] * 2]


# ------------------------------------------------------------------------- the policy gradient


def test_on_policy_the_gradient_is_reinforces():
    """Completions of 2 and 1 tokens, advantages 1.5 and -3, weights 1/3. All ratios are 1, so

    loss = -(1/3) (1.5 + 1.5 - 3) = 0, and by each log-prob -w A: -(1/3) 1.5 = -0.5 twice,
    -(1/3) (-3) = 1, and 0 where there is no token.
    """
    third = 1 / 3
    loss, gradient, stats = loss_and_gradient(
        [[[-1.0, -2.0], [-0.5, 0.0]]], None, [[1.5, -3.0]], [[[third, third], [third, 0.0]]]
    )
    assert loss == pytest.approx(0, abs=1e-6)
    assert torch.allclose(gradient, torch.tensor([[[-0.5, -0.5], [1.0, 0.0]]]))
    assert stats == {"clip_ratio/low": 0, "clip_ratio/high": 0}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "low", "high"),
    [
        # inside [0.8, 1.2]: -ratio A, and as d ratio / d logp = ratio, the gradient is the same
        (1.1, 2.0, -2.2, -2.2, 0, 0),
        (1.1, -2.0, 2.2, 2.2, 0, 0),
        # good and already much likelier: min(3, 2.4) = 2.4, a constant, nothing more to gain
        (1.5, 2.0, -2.4, 0.0, 0, 1),
        # good but less likely than before: min(1, 1.6) = 1, still pulled back up
        (0.5, 2.0, -1.0, -1.0, 0, 0),
        # bad and already much less likely: min(-1, -1.6) = -1.6, a constant
        (0.5, -2.0, 1.6, 0.0, 1, 0),
        # bad but likelier than before: min(-3, -2.4) = -3, pushed down with all its weight
        (1.5, -2.0, 3.0, 3.0, 0, 0),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, gradient, low, high):
    """Clipping takes the gradient away on one side only, the one where the step has been made."""
    actual_loss, actual_gradient, stats = single_token(ratio, advantage)
    assert actual_loss == pytest.approx(loss, abs=1e-5)
    assert actual_gradient == pytest.approx(gradient, abs=1e-5)
    assert stats == {"clip_ratio/low": low, "clip_ratio/high": high}


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.3, 2.0, -2.6, -2.6),  # inside 1 + 0.4 still
        (1.5, 2.0, -2.8, 0.0),  # 1.4 * 2
        (0.85, -2.0, 1.8, 0.0),  # 0.9 * 2: outside 1 - 0.1
        (0.95, -2.0, 1.9, 1.9),
    ],
)
def test_the_two_sides_are_clipped_apart(ratio, advantage, loss, gradient):
    """epsilon_low 0.1, epsilon_high 0.4."""
    actual_loss, actual_gradient, _ = single_token(
        ratio, advantage, epsilon_low=0.1, epsilon_high=0.4
    )
    assert actual_loss == pytest.approx(loss, abs=1e-5)
    assert actual_gradient == pytest.approx(gradient, abs=1e-5)


def test_statistics_are_those_of_each_token():
    """Ratios 2 and 1, A = 1: the first is clipped above."""
    new, old = torch.tensor([[[LN2, 0.0]]]), torch.zeros(1, 1, 2)
    _, stats = policy_loss(new, old, torch.ones(1, 1), torch.full((1, 1, 2), 0.5), beta=0)
    assert stats["clip_ratio/high"].tolist() == [[[True, False]]]
    assert stats["clip_ratio/low"].tolist() == [[[False, False]]]
    assert torch.allclose(stats["ratio"], torch.tensor([[[2.0, 1.0]]]))


# ----------------------------------------------------------------- the ratio of a sequence; CISPO


def test_sequence_ratio_by_hand():
    """GSPO, two tokens with log-ratios ln 4 and 0: s = exp((ln 4 + 0) / 2) = 2 for both tokens.

    Inside a wide clip range, A = 3, weights 1/2: loss = -(1/2 + 1/2) 2 * 3 = -6. By each token's
    log-prob ds/dlogp = s / 2 = 1, so the gradient is -3 on either, though only one has moved.
    """
    new, old = [[[2 * LN2 - 2, -1.0]]], [[[-2.0, -1.0]]]
    loss, gradient, _ = loss_and_gradient(
        new, old, [[3.0]], [[[0.5, 0.5]]], importance_sampling="sequence", epsilon_high=5.0
    )
    assert loss == pytest.approx(-6, abs=1e-5)
    assert torch.allclose(gradient, torch.tensor([[[-3.0, -3.0]]]), atol=1e-5)


def test_the_sequence_ratio_is_clipped_as_a_whole():
    """s = 2 as above is outside 1 + 0.2: both tokens lose their gradient, the unmoved one, too.
    Token by token, only the first would (ratio 4), and the second keeps -A w = -1.5.
    """
    arguments = [[[2 * LN2 - 2, -1.0]]], [[[-2.0, -1.0]]], [[3.0]], [[[0.5, 0.5]]]
    loss, gradient, stats = loss_and_gradient(*arguments, importance_sampling="sequence")
    assert loss == pytest.approx(-1.2 * 3, abs=1e-5) and gradient.tolist() == [[[0, 0]]]
    assert stats["clip_ratio/high"] == 1
    _, gradient, stats = loss_and_gradient(*arguments)
    assert (
        torch.allclose(gradient, torch.tensor([[[0.0, -1.5]]])) and stats["clip_ratio/high"] == 0.5
    )


def test_the_sequence_ratio_is_a_mean_over_the_sequences_own_tokens():
    """Padding (weight 0) has no part in it: the first completion has one token, log-ratio ln 2."""
    new, old = torch.tensor([[[LN2 - 1, 9.0], [-1.0, -1.0]]]), torch.tensor([[[-1.0, 0.0]] * 2])
    mask = torch.tensor([[[True, False], [True, True]]])
    ratio = importance_ratio(new, old, mask, kind="sequence")
    assert torch.allclose(ratio, torch.tensor([[[2.0], [math.exp(-0.5)]]]))


def test_sequence_ratio_on_policy_is_reinforce():
    """s = 1, and its gradient by each log-prob 1 / length: with sequence weights (1 / length each)
    the sum over tokens gives -A / length a token, the same as the token ratio's.
    """
    arguments = [[[-1.0, -2.0, -3.0]]], None, [[2.0]], [[[1 / 3, 1 / 3, 1 / 3]]]
    _, gradient, _ = loss_and_gradient(*arguments, importance_sampling="sequence")
    assert torch.allclose(gradient, torch.full((1, 1, 3), -2 / 3))
    assert torch.allclose(gradient, loss_and_gradient(*arguments)[1])


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient", "high"),
    [
        (1.0, 2.0, -2.0, 0),  # on policy: -A, REINFORCE
        (1.5, 2.0, -3.0, 0),  # below the cap 1 + 1: -ratio A
        (4.0, 2.0, -4.0, 1),  # capped at 2: -2 A; a clipped ratio would have no gradient here
        (4.0, -2.0, 4.0, 1),  # the cap does not ask for the sign of A
        (0.1, -2.0, 0.2, 0),  # no lower bound: clipping would have taken this gradient, too
    ],
)
def test_cispo_by_hand(ratio, advantage, gradient, high):
    """-stopgrad(min(ratio, 2)) A log pi, with log pi = ln(ratio) - 1."""
    loss, actual_gradient, stats = single_token(
        ratio, advantage, importance_sampling="cispo", epsilon_high=1.0
    )
    assert actual_gradient == pytest.approx(gradient, abs=1e-5)
    assert loss == pytest.approx(gradient * (math.log(ratio) - 1), abs=1e-4)
    assert stats == {"clip_ratio/low": 0, "clip_ratio/high": high}


def test_the_kl_keeps_its_token_ratio_whatever_the_ratio_of_the_loss():
    """k3iw off policy by ln 2 at one of two tokens, A = 0: only the KL is left, and it is the same
    under each kind of ratio.
    """
    reference = torch.tensor([[[-3.0, -1.5]]])
    arguments = [[[LN2 - 2, -1.0]]], [[[-2.0, -1.0]]], [[0.0]], [[[0.5, 0.5]]], reference
    token, sequence, cispo = (
        loss_and_gradient(*arguments, beta=0.1, importance_sampling=kind)
        for kind in IMPORTANCE_SAMPLING
    )
    assert token[0] == pytest.approx(sequence[0]) == pytest.approx(cispo[0]) != 0
    assert torch.allclose(token[1], sequence[1]) and torch.allclose(token[1], cispo[1])


def test_a_step_down_the_gradient_makes_good_completions_likelier():
    _, gradient, _ = loss_and_gradient(
        [[[-1.0], [-1.0]]], None, [[1.0, -1.0]], [[[0.5], [0.5]]], kl="k1"
    )
    assert gradient[0, 0, 0] < 0 < gradient[0, 1, 0]


# ------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize(
    ("kl", "value", "gradient"),
    [
        ("k1", 0.693147, 1.0),  # d; its derivative is 1
        ("k2", 0.240227, 0.693147),  # d^2 / 2 = 0.480453 / 2; d
        ("k3", 0.193147, 0.5),  # exp(-d) + d - 1 = 0.5 + 0.693147 - 1; 1 - exp(-d)
        ("k3iw", 0.193147, 0.693147),  # ratio 1 times the same; k3 + (1 - exp(-d)) = d
    ],
)
def test_kl_by_hand(kl, value, gradient):
    """pi = 1/2, ref = 1/4: d = ln 2. A = 0, beta = 0.5, and the token weighs 0.8:
    the loss is + 0.8 * 0.5 * KL.
    """
    loss, actual_gradient, stats = loss_and_gradient(
        [[[-LN2]]], None, [[0.0]], [[[0.8]]], torch.tensor([[[-2 * LN2]]]), beta=0.5, kl=kl
    )
    assert loss == pytest.approx(0.4 * value, abs=1e-5)
    assert actual_gradient.item() == pytest.approx(0.4 * gradient, abs=1e-5)
    assert stats["kl"] == pytest.approx(0.8 * 0.193147, abs=1e-5)  # always k3


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
def test_completions_that_were_not_sampled_have_no_kl_term(kl):
    """Gold that the policy finds e^90 times less likely than the reference, where k3 is infinite,
    with A = 2, beside a sampled completion: -0.5 * 2, and a gradient of -0.5 * 2 on gold.
    """
    sampled = torch.tensor([[True, False]])
    reference = torch.tensor([[[-1.0], [-1.0]]])
    loss, gradient, stats = loss_and_gradient(
        [[[-1.0], [-91.0]]], None, [[0.0, 2.0]], [[[0.5], [0.5]]], reference,
        beta=1.0, kl=kl, sampled=sampled,
    )  # fmt: skip
    assert loss == -1 and stats["kl"] == 0
    assert gradient.tolist() == [[[0.5 if kl == "k1" else 0.0], [-1.0]]]


@pytest.mark.parametrize(
    ("kl", "value", "gradient"),
    [("k1", LN2, 1.0), ("k3", 0.193147, 0.5), ("k3iw", 0.386294, 1.386294)],
)
def test_only_k3iw_is_weighted_by_the_ratio(kl, value, gradient):
    """As above, but sampled at 1/4, so the ratio is 2: k3iw = 2 * 0.193147 with gradient
    2 * (0.193147 + 0.5). Neither is clipped, though 2 > 1.2.
    """
    reference = torch.tensor([[[-2 * LN2]]])
    loss, actual_gradient, _ = loss_and_gradient(
        [[[-LN2]]], [[[-2 * LN2]]], [[0.0]], [[[1.0]]], reference, beta=1.0, kl=kl
    )
    assert loss == pytest.approx(value, abs=1e-5)
    assert actual_gradient.item() == pytest.approx(gradient, abs=1e-5)


def test_policy_gradient_and_kl_add_up():
    """A = 2 on policy and beta = 0.1 with k3: loss -2 + 0.1 * 0.193147, gradient -2 + 0.1 * 0.5."""
    loss, gradient, _ = loss_and_gradient(
        [[[-LN2]]], None, [[2.0]], [[[1.0]]], torch.tensor([[[-2 * LN2]]]), beta=0.1, kl="k3"
    )
    assert loss == pytest.approx(-1.9806853, abs=1e-5)
    assert gradient.item() == pytest.approx(-1.95, abs=1e-5)


def test_kl_is_not_clipped_with_the_ratio():
    """Ratio 1.5 with A = 2 is clipped: its gradient is 0. The KL's, 0.1 * 0.5, stays."""
    logprob = -LN2
    loss, gradient, _ = loss_and_gradient(
        [[[logprob]]],
        [[[logprob - math.log(1.5)]]],
        [[2.0]],
        [[[1.0]]],
        torch.tensor([[[-2 * LN2]]]),
        beta=0.1,
        kl="k3",
    )
    assert loss == pytest.approx(-2.4 + 0.0193147, abs=1e-5)
    assert gradient.item() == pytest.approx(0.05, abs=1e-5)


def test_the_default_kl_is_k3iw():
    arguments = [[[-LN2]]], [[[-2 * LN2]]], [[0.5]], [[[1.0]]], torch.tensor([[[-3.0]]])
    default = loss_and_gradient(*arguments, beta=0.3)
    k3iw = loss_and_gradient(*arguments, beta=0.3, kl="k3iw")
    assert default[0] == k3iw[0] and torch.equal(default[1], k3iw[1])


def test_without_beta_the_reference_is_only_measured():
    reference = torch.tensor([[[-2 * LN2]]])
    loss, gradient, stats = loss_and_gradient([[[-LN2]]], None, [[2.0]], [[[1.0]]], reference)
    assert loss == -2 and gradient.item() == -2
    assert stats["kl"] == pytest.approx(0.193147, abs=1e-5)
    assert "kl" not in loss_and_gradient([[[-LN2]]], None, [[2.0]], [[[1.0]]])[2]


def test_a_policy_that_is_its_reference_has_no_kl():
    logprobs = torch.tensor([[[-0.3, -4.0]]])
    for kl in KL_ESTIMATORS:
        assert token_kl(logprobs, logprobs, torch.ones(1, 1, 2), kl=kl).tolist() == [[[0, 0]]]


@ANY_SPEED
@given(st.floats(-1e-3, 1e-3))
def test_k3_stays_accurate_and_positive_where_policies_are_close(delta):
    """exp(-d) + d - 1 is d^2 / 2 - d^3 / 6 + ... : computed naively in float32, noise of 1e-7."""
    delta = torch.tensor([[[delta]]])
    k3 = token_kl(delta, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), kl="k3").item()
    exact = delta.item() ** 2 / 2 - delta.item() ** 3 / 6
    assert k3 == pytest.approx(exact, abs=2e-10)


# ----------------------------------------------------------- exact enumeration of three tokens


def kl_loss_gradient(theta: Tensor, reference: Tensor, behaviour: Tensor, kl: str) -> Tensor:
    """The expected gradient of the loss with beta = 1 and A = 0, sampling from ``behaviour``.

    One group whose three completions are the three tokens, each weighted by its probability:
    so the sum over completions is the expectation itself.
    """
    theta = theta.clone().requires_grad_()
    logprobs = torch.log_softmax(theta, 0)
    loss, _ = policy_loss(
        logprobs[None, :, None],
        behaviour.log()[None, :, None],
        torch.zeros(1, 3, dtype=theta.dtype),
        behaviour[None, :, None],
        reference[None, :, None],
        beta=1.0,
        kl=kl,
    )
    return torch.autograd.grad(loss, theta)[0]


def exact_gradient(theta: Tensor, function) -> Tensor:
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(function(torch.log_softmax(theta, 0)), theta)[0]


logits = st.lists(st.floats(-2, 2), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@ANY_SPEED
@given(logits, logits)
def test_kl_gradients_by_exact_enumeration(theta, reference):
    """pi = softmax(theta) samples, as with one update per batch. E[grad k1] = 0, E[grad k2] and
    E[grad k3iw] = grad KL(pi || ref), E[grad k3] = grad KL(ref || pi).
    """
    policy, reference = torch.softmax(theta, 0), torch.log_softmax(reference, 0)
    to_reference = exact_gradient(theta, lambda new: (new.exp() * (new - reference)).sum())
    from_reference = exact_gradient(theta, lambda new: (reference.exp() * (reference - new)).sum())
    expected = {
        "k1": torch.zeros(3, dtype=torch.float64),
        "k2": to_reference,
        "k3": from_reference,
        "k3iw": to_reference,
    }
    for kl, expected_gradient in expected.items():
        gradient = kl_loss_gradient(theta, reference, policy, kl)
        assert torch.allclose(gradient, expected_gradient, atol=1e-9), kl


def test_the_enumeration_tells_the_two_kl_directions_apart():
    """Otherwise the test above would also hold for the wrong one."""
    theta = torch.tensor([0.0, 2.0, -2.0], dtype=torch.float64)
    reference = torch.log_softmax(torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64), 0)
    policy = torch.softmax(theta, 0)
    k2, k3 = (kl_loss_gradient(theta, reference, policy, kl) for kl in ("k2", "k3"))
    assert (k2 - k3).norm() > 0.1


@ANY_SPEED
@given(logits, logits, logits)
def test_k3iw_is_right_off_policy_too(theta, reference, behaviour):
    """Whatever policy sampled: with the ratio the expectation is pi's; E_pi[k3] = KL(pi || ref)."""
    behaviour, reference = torch.softmax(behaviour, 0), torch.log_softmax(reference, 0)
    expected = exact_gradient(theta, lambda new: (new.exp() * (new - reference)).sum())
    gradient = kl_loss_gradient(theta, reference, behaviour, "k3iw")
    assert torch.allclose(gradient, expected, atol=1e-9)


@ANY_SPEED
@given(logits, logits)
def test_expected_values_by_exact_enumeration(theta, reference):
    """E[k1] = E[k3] = KL(pi || ref); k2 is biased."""
    new, reference = torch.log_softmax(theta, 0), torch.log_softmax(reference, 0)
    exact = (new.exp() * (new - reference)).sum()
    for kl in ("k1", "k3", "k3iw"):
        values = token_kl(new, reference, torch.ones(3, dtype=torch.float64), kl=kl)
        assert torch.allclose((new.exp() * values).sum(), exact, atol=1e-9), kl


@ANY_SPEED
@given(logits, st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_the_policy_gradient_by_exact_enumeration(theta, advantages):
    """On policy the expected gradient is that of -E_pi[A], A held fixed."""
    advantages = torch.tensor(advantages, dtype=torch.float64)
    policy = torch.softmax(theta, 0)
    leaf = theta.clone().requires_grad_()
    logprobs = torch.log_softmax(leaf, 0)[None, :, None]
    weights = policy[None, :, None]
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages[None], weights, beta=0)
    (gradient,) = torch.autograd.grad(loss, leaf)
    expected = exact_gradient(theta, lambda new: -(new.exp() * advantages).sum())
    assert torch.allclose(gradient, expected, atol=1e-9)


# ------------------------------------------------------------------- splits, padding and masks


def random_step(seed: int, prompts: int):
    """Log-probs, old ones, advantages, reference and mask (each completion has 1 to 5 tokens)."""
    generator = torch.Generator().manual_seed(seed)
    shape = prompts, 3, 5
    lengths = torch.randint(1, 6, shape[:2], generator=generator)
    mask = torch.arange(5) < lengths[..., None]
    logprobs, old, reference = (-torch.rand(shape, generator=generator) * 3 for _ in range(3))
    return logprobs * mask, old * mask, torch.randn(shape[:2], generator=generator), reference, mask


def step_loss(logprobs, old, advantages, reference, weights, **options):
    """Loss, its gradient with respect to the log-probs, and the summed statistics."""
    leaf = logprobs.clone().requires_grad_()
    loss, stats = policy_loss(leaf, old, advantages, weights, reference, beta=0.3, **options)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0], summed(stats, weights)


@ANY_SPEED
@given(
    st.integers(0, 999), st.integers(1, 6), st.data(), st.sampled_from(AGGREGATIONS),
    st.sampled_from(KL_ESTIMATORS), st.sampled_from(IMPORTANCE_SAMPLING),
)  # fmt: skip
def test_micro_batches_change_nothing(seed, prompts, data, aggregation, kl, kind):
    """Any split of the prompts, each part cut to its own longest completion as the trainer does:
    losses, gradients and statistics add up to those of the whole step.
    """
    *step, mask = random_step(seed, prompts)
    weights = token_weights(mask, aggregation=aggregation, max_new_tokens=8)
    options = {"kl": kl, "importance_sampling": kind}
    whole_loss, whole_gradient, whole_stats = step_loss(*step, weights, **options)
    cuts = sorted(data.draw(st.sets(st.integers(1, prompts - 1)))) if prompts > 1 else []
    loss, gradient, stats = 0.0, torch.zeros_like(whole_gradient), dict.fromkeys(whole_stats, 0.0)
    for start, end in zip([0, *cuts], [*cuts, prompts]):
        size = mask[start:end].sum(-1).max()
        part = [x[start:end, :, :size] if x.dim() == 3 else x[start:end] for x in (*step, weights)]
        part_loss, part_gradient, part_stats = step_loss(*part, **options)
        loss += part_loss
        gradient[start:end, :, :size] = part_gradient
        for name, value in part_stats.items():
            stats[name] += value
    assert torch.allclose(torch.as_tensor(loss), whole_loss, rtol=0, atol=1e-6)
    assert torch.allclose(gradient, whole_gradient, rtol=0, atol=1e-6)
    for name, value in whole_stats.items():
        assert torch.allclose(torch.as_tensor(stats[name]), value, rtol=0, atol=1e-6), name


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_of_each_micro_batch_alone_would_not_add_up(aggregation):
    """Why ``token_weights`` takes the whole step: parts differ in tokens, or in prompts."""
    *_, mask = random_step(0, 3)
    options = {"aggregation": aggregation, "max_new_tokens": 8}
    whole = token_weights(mask, **options)
    assert not torch.allclose(token_weights(mask[:1], **options), whole[:1])


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("kind", IMPORTANCE_SAMPLING)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_changes_nothing(aggregation, kind, kl):
    """Three more columns, with anything in them."""
    *step, mask = random_step(1, 2)
    options = {"kl": kl, "importance_sampling": kind}
    weights = token_weights(mask, aggregation=aggregation, max_new_tokens=8)
    loss, gradient, stats = step_loss(*step, weights, **options)
    junk = -torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(2))
    wide = [torch.cat([x, junk * (n + 1)], -1) if x.dim() == 3 else x for n, x in enumerate(step)]
    wide_mask = torch.cat([mask, torch.zeros(2, 3, 3, dtype=torch.bool)], -1)
    wide_weights = token_weights(wide_mask, aggregation=aggregation, max_new_tokens=8)
    wide_loss, wide_gradient, wide_stats = step_loss(*wide, wide_weights, **options)
    assert torch.allclose(wide_loss, loss, atol=1e-6)
    assert torch.allclose(wide_gradient[..., :5], gradient, atol=1e-6)
    assert wide_gradient[..., 5:].eq(0).all()
    assert wide_stats.keys() == stats.keys()
    assert all(torch.allclose(wide_stats[name], stats[name], atol=1e-6) for name in stats)


@pytest.mark.parametrize("kl", KL_ESTIMATORS)
@pytest.mark.parametrize("kind", IMPORTANCE_SAMPLING)
def test_masked_tokens_get_no_gradient_and_add_nothing(kind, kl):
    logprobs, old, advantages, reference, mask = random_step(3, 2)
    assert not mask.all()
    rest = old, advantages, reference, token_weights(mask)
    options = {"kl": kl, "importance_sampling": kind}
    loss, gradient, stats = step_loss(logprobs, *rest, **options)
    assert gradient[~mask].eq(0).all() and gradient[mask].ne(0).any()
    other = torch.where(mask, logprobs, torch.tensor(-7.0))
    other_loss, other_gradient, other_stats = step_loss(other, *rest, **options)
    assert torch.equal(other_loss, loss) and torch.equal(other_gradient, gradient)
    assert all(torch.equal(other_stats[name], stats[name]) for name in stats)


def test_statistics_carry_no_gradient():
    leaf = torch.tensor([[[-1.0]]], requires_grad=True)
    _, stats = policy_loss(
        leaf, leaf.detach(), torch.ones(1, 1), torch.ones(1, 1, 1), leaf.detach() - 1, beta=0.1
    )
    assert set(stats) == {"kl", "clip_ratio/low", "clip_ratio/high", "ratio"}
    assert not any(value.requires_grad for value in stats.values())


# ---------------------------------------------------------------------------------- errors

ONE_TOKEN = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.ones(1, 1), torch.ones(1, 1, 1)


def test_unknown_kinds_are_errors_that_list_the_kinds():
    with pytest.raises(ValueError, match="'mean'.*token, sequence or constant"):
        token_weights(MASK, aggregation="mean")
    with pytest.raises(ValueError, match="'k4'.*k1, k2, k3 or k3iw"):
        policy_loss(*ONE_TOKEN, torch.zeros(1, 1, 1), beta=0.1, kl="k4")
    with pytest.raises(ValueError, match="'word'.*token, sequence or cispo"):
        policy_loss(*ONE_TOKEN, beta=0, importance_sampling="word")


def test_the_kl_term_needs_a_reference():
    """With the default beta, too: a forgotten reference must not drop the penalty unnoticed."""
    for options in ({}, {"beta": 0.1}):
        with pytest.raises(ValueError, match="needs ref_logprobs.*beta=0"):
            policy_loss(*ONE_TOKEN, **options)


@pytest.mark.parametrize("index", range(4))
def test_a_list_in_place_of_a_tensor_is_an_error_that_names_it(index):
    names = "logprobs", "old_logprobs", "advantages", "weights"
    arguments = [x.tolist() if i == index else x for i, x in enumerate(ONE_TOKEN)]
    with pytest.raises(TypeError, match=f"^{names[index]} must be a tensor, not a list"):
        policy_loss(*arguments, beta=0)


def test_constant_weights_need_the_longest_length():
    with pytest.raises(ValueError, match="constant.*max_new_tokens"):
        token_weights(MASK, aggregation="constant")


# -------------------------------------------------------------------------------- defaults


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        (group_advantages, {"kind": "advantage"}),
        (policy_loss, ["beta", "kl", "importance_sampling", "epsilon_low", "epsilon_high"]),
        (token_kl, ["kl"]),
        (importance_ratio, {"kind": "importance_sampling"}),
        (surrogate_objective, {"kind": "importance_sampling"}),
        (surrogate_objective, ["epsilon_low", "epsilon_high"]),
        (token_weights, {"aggregation": "loss_aggregation"}),
        (add_lora, {"rank": "lora_rank", "alpha": "lora_alpha", "seed": "seed"}),
        (sample_groups, ["group_size", "max_new_tokens", "temperature"]),
        (completion_logprobs, ["temperature"]),
    ],
)
def test_function_defaults_equal_the_configurations(function, fields):
    """Called without options, a function computes what train.py computes without options. Options
    are keyword-only, so that two numbers cannot be swapped.

    ``fields`` maps parameters to fields of ``Config``, or lists those of the same name.
    """
    fields = fields if isinstance(fields, dict) else dict(zip(fields, fields))
    for name, field in fields.items():
        parameter = inspect.signature(function).parameters[name]
        assert parameter.default == getattr(Config(), field), name
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
