"""Log-probabilities and entropies from hidden states, without keeping logits in memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.name_constraint import NEVER


def head_logprobs(
    hidden: Tensor,
    head,
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
    allowed: Tensor | None = None,
):
    """log pi of each target under its hidden state, by the cheapest method that gives the gradients
    that are needed.

    Args:
        hidden: (N, D).
        head: the output layer, D -> V.
        targets: (N,) int64 token ids.
        allowed: (N, K) int64, the token ids that each target was drawn from, in any order and as
            often as it takes to fill the row; None: all.

    Returns:
        A tuple: log-probs (N,) float32, and with ``with_entropy`` the entropies (N,) float32 of
        the distributions, without gradient.
    """
    arguments = hidden, head, targets, temperature, with_entropy, allowed
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return _logprobs(*arguments)
    trained = any(parameter.requires_grad for parameter in head.parameters())
    if trained or not isinstance(head, torch.nn.Linear):
        return checkpoint(_logprobs, *arguments, use_reentrant=False)
    return _FrozenHead.apply(*arguments)


def _distribution(hidden: Tensor, head, temperature: float, allowed: Tensor | None) -> Tensor:
    """log pi of every token, (N, D) -> (N, V), float32 before the softmax."""
    logits = head(hidden).float()
    if allowed is not None:
        others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, allowed, False)
        logits = logits.masked_fill(others, NEVER)
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _entropy(distribution: Tensor) -> Tensor:
    """(N, V) -> (N,), without gradient."""
    distribution = distribution.detach()
    return -torch.linalg.vecdot(distribution.exp(), distribution)


def _logprobs(hidden: Tensor, head, targets: Tensor, temperature, with_entropy, allowed):
    distribution = _distribution(hidden, head, temperature, allowed)
    picked = distribution.gather(1, targets[:, None])[:, 0]
    return (picked, _entropy(distribution)) if with_entropy else (picked,)


class _FrozenHead(torch.autograd.Function):
    """`_logprobs` whose gradient is computed while the logits exist, and stored in their place.
    With rows w of the head's weight and probabilities p over the vocabulary,

        d log pi(target) / d hidden = (w_target - sum_v p_v w_v) / temperature,

    so logits are computed once and never stored.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head, targets: Tensor, temperature, with_entropy, allowed):
        distribution = _distribution(hidden, head, temperature, allowed)
        picked = distribution.gather(1, targets[:, None])[:, 0]
        entropy = (_entropy(distribution),) if with_entropy else ()
        mean = distribution.exp_().to(hidden.dtype) @ head.weight  # (N, D)
        ctx.save_for_backward((head.weight[targets] - mean) / temperature)
        ctx.mark_non_differentiable(*entropy)
        return picked, *entropy

    @staticmethod
    def backward(ctx, weight: Tensor, *_):  # (N,)
        (slope,) = ctx.saved_tensors
        return (weight[:, None] * slope).to(slope.dtype), None, None, None, None, None
