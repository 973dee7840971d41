"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): replaces zero-variance groups with
groups for further questions. In a zero-variance group all completions have the same reward, so the
group has no policy gradient.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from torch import Tensor

from grpo.rollout import Rollout


def select_groups(rollout: Rollout, groups: list[int]) -> Rollout:
    """The rollout of some of the P groups, given by index."""
    values = [getattr(rollout, field.name) for field in fields(rollout)]
    return Rollout(
        *(v[groups] if isinstance(v, Tensor) else [v[p] for p in groups] for v in values)
    )


def concatenate(rollouts: list[Rollout]) -> Rollout:
    """The groups of all rollouts."""
    if len(rollouts) == 1:
        return rollouts[0]
    columns = [[getattr(r, field.name) for r in rollouts] for field in fields(Rollout)]
    return Rollout(*(torch.cat(c) if isinstance(c[0], Tensor) else sum(c, []) for c in columns))


def collect_groups(
    sample: Callable[[int], Rollout], prompts: int, *, rounds: int = 0
) -> tuple[Rollout, dict[str, float]]:
    """Samples ``prompts`` groups and, with dynamic sampling, replaces zero-variance groups.

    Args:
        sample: samples and scores groups for the given number of further questions.
        rounds: how often zero-variance groups are replaced, 0 for never. Groups that are still
            missing then are left out. If every group has zero variance, the first batch is
            returned as it is.

    Returns:
        The groups, and the metrics ``frac_reward_zero_std`` (share of all sampled groups) and
        ``groups_sampled``.
    """
    first = batch = sample(prompts)
    sampled, zero_variance = prompts, int(batch.zero_variance().sum())
    if rounds:
        batch = select_groups(batch, (~batch.zero_variance()).nonzero()[:, 0].tolist())
    for _ in range(rounds):
        missing = prompts - len(batch.examples)
        if not missing:
            break
        more = sample(missing)
        sampled, zero_variance = sampled + missing, zero_variance + int(more.zero_variance().sum())
        useful = (~more.zero_variance()).nonzero()[:, 0].tolist()
        batch = concatenate([batch, select_groups(more, useful)])
    stats = {"frac_reward_zero_std": zero_variance / sampled, "groups_sampled": sampled}
    return batch if batch.examples else first, stats
