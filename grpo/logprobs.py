"""Log-probabilities of completions under the model, with the prompt computed once per group."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.attention import hidden_states
from grpo.packing import pack_groups

CHUNK = 1024  # tokens whose logits exist at a time: 1024 x 128k in float32 are half a gigabyte


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


def completion_logprobs(
    model,
    prompts: list[list[int]],
    completions: list[list[list[int]]],
    temperature: float = 1.0,
    with_entropy: bool = False,
):
    """log pi(o_t | q, o_<t) of every completion token, at the temperature that it was sampled with.

    Logits are computed only where a completion token is predicted, a chunk at a time, and
    recomputed in the backward pass instead of kept.

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
        checkpoint(
            _chunk_logprobs,
            picked[i : i + CHUNK],
            head,
            packed.targets[i : i + CHUNK],
            temperature,
            with_entropy,
            use_reentrant=False,
        )
        for i in range(0, max(1, len(picked)), CHUNK)
    ]
    spread = [
        torch.zeros(packed.mask.shape, device=model.device).masked_scatter(
            packed.mask, torch.cat(part)
        )
        for part in zip(*parts)
    ]  # (P, G, T) each
    return tuple(spread) if with_entropy else spread[0]
