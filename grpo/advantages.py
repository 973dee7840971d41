"""Group-relative advantages: how much better a completion is than the others in its group."""

import torch
from torch import Tensor

from grpo.checks import check_rewards

EPSILON = 1e-4  # added to the divisor; DeepSeekMath gives no value, this one is in common use
NOISE = 1e-6  # times the largest |reward|, or 1: rewards closer than this differ by rounding only


def group_advantages(
    rewards: Tensor,
    *,
    kind: str = "centered",
    weights: Tensor | None = None,
    applicable: Tensor | None = None,
) -> Tensor:
    """Advantages of P groups of G completions, without a critic: the baseline is the group's mean.

    Args:
        rewards: (P, G) float, the reward of each completion; for ``per_reward`` (P, G, R), the R
            reward terms before weighting.
        kind: one of

            - ``centered``: r - mean (Dr. GRPO, arXiv 2503.20783: dividing by the std favours
              groups that are nearly all right or all wrong)
            - ``group``: (r - mean) / (std + 1e-4), std with Bessel's correction (DeepSeekMath,
              arXiv 2402.03300, section 4.1.2: outcome supervision)
            - ``rloo``: r minus the mean of the others = G / (G - 1) * (r - mean) (arXiv 2402.14740)
            - ``maxrl``: (r - mean) / mean |r|, up to order G - 1 the gradient of the log-likelihood
              of being right rather than of the probability, so that hard questions count more
              (MaxRL, arXiv 2602.02710, where rewards are 0 or 1 and the divisor is the mean)
            - ``per_reward``: each term as in ``group``, weighted and summed, then normalised over
              the batch (GDPO, arXiv 2601.05242), so that a term with a small spread still counts
              by its weight. This last normalisation is the only operation that crosses groups.
        weights: (R,), the weights of the terms, for ``per_reward`` only.
        applicable: as ``rewards``, bool; false where a reward stands in for one that is missing. It
            does not count in the std of its group nor in G. By default all count.

    Returns:
        (P, G) float32. Exactly 0 in groups whose rewards differ by rounding only.

    Raises:
        TypeError, ValueError: not a tensor; unknown ``kind``, wrong shape, groups of one (but for
            ``centered``), or ``weights`` missing.

    >>> group_advantages(torch.tensor([[1., 0.], [2., 2.]])).tolist()
    [[0.5, -0.5], [0.0, 0.0]]
    """
    check_rewards(rewards, kind, weights)
    rewards = rewards.float()
    counted = torch.ones_like(rewards, dtype=torch.bool) if applicable is None else applicable
    if kind == "per_reward":
        terms = zip(weights, rewards.movedim(-1, 0), counted.movedim(-1, 0))  # R of (), (P, G) x 2
        parts = [w * group_advantages(r, kind="group", applicable=c) for w, r, c in terms]
        total = torch.stack(parts).sum(0)  # (P, G)
        zero_variance = (total == 0).all(dim=1, keepdim=True)  # (P, 1)
        return torch.where(zero_variance, 0.0, (total - total.mean()) / (total.std() + EPSILON))
    centered = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    spread = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True)
    noise = NOISE * rewards.abs().amax(1, keepdim=True).clamp(min=1)
    centered = torch.where(spread < noise, 0.0, centered)
    if kind == "centered":
        return centered
    if kind == "maxrl":  # of |r|: a mean of negative and positive rewards may be next to 0
        return centered / rewards.abs().mean(dim=1, keepdim=True).clamp(min=NOISE)
    counted = counted | (counted.sum(1, keepdim=True) < 2)  # of fewer there is no std
    size = counted.sum(1, keepdim=True)  # (P, 1)
    if kind == "rloo":
        return centered * size / (size - 1)
    mean = (rewards * counted).sum(1, keepdim=True) / size
    squares = ((rewards - mean) ** 2 * counted).sum(1, keepdim=True)
    return centered / ((squares / (size - 1)).sqrt() + EPSILON)
