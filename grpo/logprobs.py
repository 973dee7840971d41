"""Log-probabilities of completions under the model, with the prompt computed once per group."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.attention import hidden_states
from grpo.packing import pack_groups

CHUNK = 256  # tokens whose logits exist at a time: 256 x 128k in float32 are an eighth gigabyte


def _distribution(hidden: Tensor, head, temperature: float) -> Tensor:
    """log pi of every token, (N, D) -> (N, V), float32 before the softmax."""
    logits = head(hidden).float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(-1)


def _entropy(distribution: Tensor) -> Tensor:
    """(N, V) -> (N,), without gradient."""
    distribution = distribution.detach()
    return -torch.linalg.vecdot(distribution.exp(), distribution)


def _chunk_logprobs(hidden: Tensor, head, targets: Tensor, temperature: float, with_entropy: bool):
    """(N, D), (N,) -> log-probability of the targets (N,) and perhaps the entropy (N,), float32."""
    distribution = _distribution(hidden, head, temperature)
    picked = distribution.gather(1, targets[:, None])[:, 0]
    return (picked, _entropy(distribution)) if with_entropy else (picked,)


class _FrozenHead(torch.autograd.Function):
    """`_chunk_logprobs` whose gradient is taken while the logits are there, and kept in their
    place: with rows w of the head's weight and probabilities p of the vocabulary,

        d log pi(target) / d hidden = (w_target - sum_v p_v w_v) / temperature,

    so logits are computed once and never stored.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, head, targets: Tensor, temperature: float, with_entropy: bool):
        distribution = _distribution(hidden, head, temperature)
        picked = distribution.gather(1, targets[:, None])[:, 0]
        found = (picked, _entropy(distribution)) if with_entropy else (picked,)
        mean = distribution.exp_().to(hidden.dtype) @ head.weight  # (N, D)
        ctx.save_for_backward((head.weight[targets] - mean) / temperature)
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    def backward(ctx, weight: Tensor, *_):  # (N,)
        (slope,) = ctx.saved_tensors
        return (weight[:, None] * slope).to(slope.dtype), None, None, None, None


def _head_logprobs(hidden: Tensor, head, *rest):
    """`_chunk_logprobs`, in the cheapest way that has the gradients asked for."""
    if not (torch.is_grad_enabled() and hidden.requires_grad):
        return _chunk_logprobs(hidden, head, *rest)
    trained = any(parameter.requires_grad for parameter in head.parameters())
    if trained or not isinstance(head, torch.nn.Linear):
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
