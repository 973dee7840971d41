"""Log-probabilities of completions under the model, with the prompt computed once per group."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.attention import hidden_states
from grpo.packing import pack_groups

CHUNK = 512  # tokens whose logits exist at a time: 512 x 128k in float32 are a quarter gigabyte


def _chunk_logprobs(hidden: Tensor, head, targets: Tensor, temperature: float, with_entropy: bool):
    """(N, D), (N,) -> log-probability of the targets (N,) and perhaps the entropy (N,), float32."""
    logits = head(hidden).float()  # (N, V); float32 before the softmax
    if temperature != 1:
        logits = logits / temperature
    total = logits.logsumexp(dim=-1)  # (N,)
    picked = logits.gather(1, targets[:, None])[:, 0] - total
    if not with_entropy:
        return (picked,)
    logits, total = logits.detach(), total.detach()
    probabilities = (logits - total[:, None]).exp_()
    return picked, total - torch.linalg.vecdot(probabilities, logits)


class _FrozenHead(torch.autograd.Function):
    """`_chunk_logprobs` whose gradient is taken while the logits are there, and kept in their
    place: a token's log-probability depends on its own hidden state alone, so the gradient of their
    sum is that of each. Logits are computed once and never stored.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, *rest):
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            found = _chunk_logprobs(hidden, *rest)
            (slope,) = torch.autograd.grad(found[0].sum(), hidden)  # (N, D)
        ctx.save_for_backward(slope)
        ctx.mark_non_differentiable(*found[1:])
        return tuple(one.detach() for one in found)

    @staticmethod
    def backward(ctx, weight: Tensor, *_):  # (N,)
        (slope,) = ctx.saved_tensors
        return (weight[:, None] * slope).to(slope.dtype), None, None, None, None


def _head_logprobs(hidden: Tensor, head, *rest):
    """`_chunk_logprobs`, in the cheapest way that has the gradients asked for."""
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return _chunk_logprobs(hidden, head, *rest)
    if any(parameter.requires_grad for parameter in head.parameters()):
        return checkpoint(_chunk_logprobs, hidden, head, *rest, use_reentrant=False)
    return _FrozenHead.apply(hidden, head, *rest)


def completion_logprobs(
    model,
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    temperature: float = 1.0,
    with_entropy: bool = False,
):
    """log pi(o_t | q, o_<t) of every completion token, at the temperature that it was sampled with.

    Logits are computed only where a completion token is predicted, a chunk at a time.

    Args:
        model: a Hugging Face causal language model.
        prompts: P lists of token ids.
        completions: P groups of G lists of token ids, EOS included where it was sampled.

    Returns:
        Tensor (P, G, T) float32, 0 where a completion has no token; with ``with_entropy`` also the
        entropy of each next-token distribution, (P, G, T) float32 without gradient.
    """
    packed = pack_groups(prompts, completions, model.device)
    hidden = hidden_states(model, packed.ids, packed.positions, packed.layout)  # (N, D)
    picked = hidden.index_select(0, packed.predictors)  # (C, D), C = completion tokens
    head = model.get_output_embeddings()
    parts = [
        _head_logprobs(states, head, targets, temperature, with_entropy)
        for states, targets in zip(picked.split(CHUNK), packed.targets.split(CHUNK))
    ]
    spread = [
        torch.zeros(packed.mask.shape, device=model.device).masked_scatter(
            packed.mask, torch.cat(part)
        )
        for part in zip(*parts)
    ]  # (P, G, T) each
    return tuple(spread) if with_entropy else spread[0]
