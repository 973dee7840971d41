"""Log-probabilities of completions under the model, with the prompt computed once per group."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from grpo.packing import attention_mask, pack_groups

CHUNK = 1024  # tokens whose logits exist at a time: 1024 x 128k in float32 are half a gigabyte


def _chunk_logprobs(hidden: Tensor, head, targets: Tensor, temperature: float, with_entropy: bool):
    """(N, D), (N,) -> log-probability of the targets (N,) and perhaps the entropy (N,), float32."""
    logits = head(hidden).float() / temperature  # (N, V); float32 before the softmax
    logprobs = torch.log_softmax(logits, dim=-1)
    picked = logprobs.gather(1, targets[:, None])[:, 0]
    if not with_entropy:
        return (picked,)
    return picked, -(logprobs.detach().exp() * logprobs.detach()).sum(-1)


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
    hidden = model.base_model(
        input_ids=packed.ids,
        position_ids=packed.positions,
        use_cache=False,
        attention_mask=attention_mask(packed.owners, model.dtype),
    ).last_hidden_state  # (P, S, D)
    rows, groups, times = packed.mask.nonzero(as_tuple=True)
    picked = hidden[rows, packed.predictors[rows, groups, times]]  # (N, D), N = completion tokens
    targets = packed.targets[rows, groups, times]
    head = model.get_output_embeddings()
    parts = [
        checkpoint(
            _chunk_logprobs,
            picked[i : i + CHUNK],
            head,
            targets[i : i + CHUNK],
            temperature,
            with_entropy,
            use_reentrant=False,
        )
        for i in range(0, len(targets), CHUNK)
    ]
    spread = [
        torch.zeros(packed.mask.shape, device=model.device).masked_scatter(
            packed.mask, torch.cat(part)
        )
        for part in zip(*parts)
    ]  # (P, G, T) each
    return tuple(spread) if with_entropy else spread[0]
