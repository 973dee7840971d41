"""Down-sampling of rollouts (PODS, arXiv 2504.13818): sample many completions, train on few.

Sampling is cheap, because a group shares its prompt and needs no gradient; training is not. PODS
samples G completions for each prompt and trains on the m of them that spread the rewards most,
which are the best and the worst.

Two things differ from the plain mean over G completions. Advantages are those of the whole group
(the paper takes the group's statistics after the choice): its mean is the better baseline. And the
loss is a mean over the chosen completions, which have larger advantages than the others: the
gradient is not that of the expected reward, but a sharper one in nearly the same direction.
"""

from dataclasses import replace

import torch
from torch import Tensor

from grpo.rollout import Rollout


def spread_most(values: Tensor, count: int) -> Tensor:
    """Which ``count`` of the G values of a group have the largest variance.

    These are the k highest and the ``count`` - k lowest for some k (PODS, arXiv 2504.13818), so
    that all k are tried.

    Args:
        values: (P, G) float, such as advantages.

    Returns:
        (P, count) int64, indices in ascending order.

    >>> spread_most(torch.tensor([[0.5, 1.0, 0.0, 0.6, 0.4]]), 2).tolist()
    [[1, 2]]
    """
    order = values.argsort(dim=1, stable=True)  # (P, G)
    size = values.shape[1]
    choices = torch.stack(
        [torch.cat([order[:, : count - k], order[:, size - k :]], 1) for k in range(count + 1)]
    )  # (count + 1, P, count)
    spread = values.expand(len(choices), -1, -1).gather(2, choices).var(2, correction=0)
    best = spread.argmax(0)  # (P,)
    return choices[best, torch.arange(len(values))].sort(1).values


def select_completions(rollout: Rollout, chosen: Tensor) -> Rollout:
    """The rollout of m completions of each group.

    Args:
        chosen: (P, m) int64, indices of the completions.
    """
    groups = torch.arange(len(chosen))[:, None]  # (P, 1)
    pick = lambda lists: [[own[g] for g in ids] for own, ids in zip(lists, chosen.tolist())]  # noqa: E731
    return replace(
        rollout,
        completion_ids=pick(rollout.completion_ids),
        texts=pick(rollout.texts),
        verdicts=pick(rollout.verdicts),
        allowed=pick(rollout.allowed) if rollout.allowed[0] else rollout.allowed,
        sampling_logprobs=[group[own] for group, own in zip(rollout.sampling_logprobs, chosen)],
        finished=rollout.finished[groups, chosen],
        reward_terms=rollout.reward_terms[groups, chosen],
        applicable=rollout.applicable[groups, chosen],
        rewards=rollout.rewards[groups, chosen],
    )
