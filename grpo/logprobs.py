"""Log-probabilities of completions under the model, with the prompt computed once per group."""

from itertools import repeat

import torch
from torch import Tensor

from grpo.attention import hidden_states
from grpo.head import head_logprobs
from grpo.packing import pack_groups

CHUNK = 256  # tokens whose logits exist at a time on a CPU: 256 x 128k in float32 take 1/8 GB
GPU_LOGITS = 2**25  # that exist at a time on a GPU, of as many tokens as fit: 1/8 GB, too


def chunk_size(device: str, vocab: int) -> int:
    """Of how many tokens logits exist at a time."""
    return CHUNK if device == "cpu" else max(CHUNK, GPU_LOGITS // vocab)


def completion_logprobs(
    model,
    prompt_ids: list[list[int]],
    completion_ids: list[list[list[int]]],
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    skipped: Tensor | None = None,
    allowed: list | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """log pi(o_t | q, o_<t) of every completion token, at the temperature that it was sampled with.

    Logits are computed only where a completion token is predicted, a chunk of tokens at a time.

    Args:
        model: a Hugging Face causal language model.
        prompt_ids: P lists of token ids.
        completion_ids: P groups of G lists of token ids, EOS included where it was sampled.
        skipped: (P, G) int64, how many tokens at the start of each completion need no log-prob.
        allowed: as in ``Samples``: what each token was drawn from.

    Returns:
        (P, G, T) float32, 0 for skipped tokens and where there is none; with ``with_entropy`` also
        the entropy of each next-token distribution, (P, G, T) float32 without gradient.
    """
    packed = pack_groups(prompt_ids, completion_ids, model.device)
    hidden = hidden_states(model, packed.ids, packed.positions, packed.layout)  # (N, D)
    predictors, targets, mask = packed.predictors, packed.targets, packed.mask
    if skipped is not None:
        mask = mask & (torch.arange(mask.shape[-1], device=mask.device) >= skipped[..., None])
        predictors, targets = (x[mask[packed.mask]] for x in (predictors, targets))
    states = hidden.index_select(0, predictors)  # (C, D), C = completion tokens
    head = model.get_output_embeddings()
    drawn_from = allowed_rows(allowed, model.device) if allowed and allowed[0] else None  # (C, K)
    chunk = chunk_size(states.device.type, model.config.get_text_config().vocab_size)
    sets = drawn_from.split(chunk) if drawn_from is not None else repeat(None)
    chunks = [
        head_logprobs(part, head, tokens, temperature, with_entropy, ids)
        for part, tokens, ids in zip(states.split(chunk), targets.split(chunk), sets)
    ]
    unpack = lambda values: values.new_zeros(mask.shape).masked_scatter(mask, values)  # noqa: E731
    logprobs, *entropy = (unpack(torch.cat(parts)) for parts in zip(*chunks))  # (P, G, T)
    return (logprobs, entropy[0]) if with_entropy else logprobs


def allowed_rows(allowed: list, device) -> Tensor:
    """(C, K) int64, what each of C completion tokens was drawn from; shorter rows repeat an id."""
    rows = [ids for group in allowed for completion in group for ids in completion]
    longest = max(map(len, rows))
    return torch.tensor([ids + ids[:1] * (longest - len(ids)) for ids in rows], device=device)
