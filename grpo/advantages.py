"""How much better a completion did than its group: the critic-free baseline of GRPO."""

import torch
from torch import Tensor

EPSILON = 1e-4  # in the divisor; DeepSeekMath gives none, this is the value in common use
NOISE = 1e-6  # relative spread of a group below which its rewards differ by float noise only


def group_advantages(rewards: Tensor, kind: str = "group", weights: Tensor | None = None) -> Tensor:
    """Advantages of P groups of G completions. They never cross groups, but for the last step of
    ``per_reward``.

    Args:
        rewards: (P, G) float, one scalar each; for ``per_reward`` (P, G, R), the R terms before
            weighting.
        kind: one of

            - ``group``: (r - mean) / (std + 1e-4), std with Bessel's correction (DeepSeekMath,
              arXiv 2402.03300, section 4.1.2: outcome supervision)
            - ``centered``: r - mean (Dr. GRPO, arXiv 2503.20783: dividing by the std favours
              groups that are nearly all right or all wrong)
            - ``rloo``: r minus the mean of the others = G / (G - 1) * (r - mean) (arXiv 2402.14740)
            - ``per_reward``: each term as in ``group``, weighted and summed, then normalised over
              the batch (GDPO, arXiv 2601.05242): a term with a small spread still counts by its
              weight
        weights: (R,) for ``per_reward``.

    Returns:
        (P, G) float32. Groups that differ by float noise only get exact zeros.

    >>> group_advantages(torch.tensor([[1., 0.], [2., 2.]]), "centered").tolist()
    [[0.5, -0.5], [0.0, 0.0]]
    """
    rewards = rewards.float()
    if kind == "per_reward":
        terms = rewards.movedim(-1, 0)  # (R, P, G)
        total = torch.stack([w * group_advantages(term) for w, term in zip(weights, terms)]).sum(0)
        silent = (total == 0).all(dim=1, keepdim=True)  # (P, 1)
        normalised = (total - total.mean()) / (total.std() + EPSILON)
        return torch.where(silent, 0.0, normalised)
    centered = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    spread = rewards.amax(1, keepdim=True) - rewards.amin(1, keepdim=True)
    noise = NOISE * rewards.abs().amax(1, keepdim=True).clamp(min=1)
    centered = torch.where(spread < noise, 0.0, centered)
    if kind == "centered":
        return centered
    size = rewards.shape[1]
    if size < 2:
        raise ValueError(f"advantages of kind {kind} need at least 2 completions in a group")
    if kind == "rloo":
        return centered * size / (size - 1)
    if kind == "group":
        return centered / (rewards.std(dim=1, keepdim=True) + EPSILON)
    raise ValueError(f"unknown advantage {kind!r}: group, centered, rloo or per_reward")
