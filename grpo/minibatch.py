"""The groups that one update is made of (``--minibatches``, which is 1 by default: all of them)."""

from dataclasses import dataclass, field

from torch import Tensor

from grpo.rollout import Rollout


@dataclass
class Minibatch:
    """P groups, and what their loss needs.

    Attributes:
        rollout: the groups.
        advantages: (P, G, 1) float32, or (P, G, T), of tokens.
        mask: (P, G, T) bool, the tokens that the loss is taken over.
        weights: (P, G, T) float32, of the tokens in the loss (``token_weights``).
        parts: this process's micro-batches, slices of P.
        ref_logprobs: (p, G, T) float32 of each part under the reference; None if ``beta`` is 0.
        old_logprobs: (p, G, T) float32 of each part under the policy that sampled. It is empty
            before the first update if that policy makes it: then they come from that update.
    """

    rollout: Rollout
    advantages: Tensor
    mask: Tensor
    weights: Tensor
    parts: list[slice]
    ref_logprobs: list[Tensor | None] = field(default_factory=list)
    old_logprobs: list[Tensor] = field(default_factory=list)


def split_evenly(count: int, minibatches: int) -> list[list[int]]:
    """The indices of ``count`` groups in at most ``minibatches`` parts, which differ by at most one
    group.

    >>> split_evenly(5, 2), split_evenly(1, 2)
    ([[0, 1], [2, 3, 4]], [[0]])
    """
    parts = min(count, minibatches)
    return [list(range(count * i // parts, count * (i + 1) // parts)) for i in range(parts)]
