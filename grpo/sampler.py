"""Samples G completions for each prompt. A prompt's keys and values are computed and stored once
per group (grpo/attention.py).

A prefill runs all prompts through the model once. Then each decoding step runs the newest token of
every unfinished completion through it. Finished completions leave the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.attention import Decoding, Groups, hidden_states
from grpo.name_constraint import ConstrainedRows
from sqlenv.errors import UserError


@dataclass
class Samples:
    """P groups of G sampled completions.

    Attributes:
        completion_ids: P x G lists of token ids, EOS included.
        logprobs: (P, G, T) float32, of each token under the distribution that it was drawn from,
            and at temperature 0 under that of temperature 1.
        finished: (P, G) bool, whether the completion ended with EOS before the limit.
        allowed: P x G x T lists of the token ids that each token was drawn from; P times None
            where it was drawn from all.
    """

    completion_ids: list[list[list[int]]]
    logprobs: Tensor
    finished: Tensor
    allowed: list


@torch.no_grad()
def sample_groups(
    model,
    prompt_ids: list[list[int]],
    *,
    eos_ids: set[int],
    group_size: int = 8,
    max_new_tokens: int = 96,
    temperature: float = 1.0,
    seeds: list[int] | None = None,
    constrained: ConstrainedRows | None = None,
) -> Samples:
    """Draws ``group_size`` completions of at most ``max_new_tokens`` tokens for each of P prompts.

    Args:
        model: a Hugging Face decoder in eval mode (dropout would make the samples off-policy).
        prompt_ids: P lists of token ids.
        eos_ids: any of these ends a completion and is its last token.
        temperature: of the softmax; 0 is greedy. There is no top-k and no top-p, so that log-probs
            computed later at this temperature are those of the same distribution.
        seeds: one for each prompt; None: taken from torch's global generator.
        constrained: what may be drawn for each of the P x G completions.

    Raises:
        UserError: the model's logits are not finite.
    """
    if temperature:
        seeds = seeds or torch.randint(2**62, (len(prompt_ids),)).tolist()
        uniforms = _uniforms(seeds, group_size, max_new_tokens, model.device)  # (C, T)
    prompts, logits = prefill(model, prompt_ids)
    decoding = Decoding(prompts, group_size, max_new_tokens - 1)  # nothing sees the last token
    prompts.kv_cache.clear()  # it is in ``decoding``, and shrinks there
    with torch.device(model.device):
        eos = torch.tensor(sorted(eos_ids))
        rows = torch.arange(len(prompt_ids) * group_size)  # the completions still running (C,)
        tokens = torch.zeros(len(rows), max_new_tokens, dtype=torch.long)
        logprobs = torch.zeros(len(rows), max_new_tokens)
        finished = torch.zeros(len(rows), dtype=torch.bool)
    logits = logits.repeat_interleave(group_size, 0)  # (C, V)
    for step in range(max_new_tokens):
        uniform = uniforms[rows, step] if temperature else None
        if constrained:
            logits = constrained.mask(logits, rows.tolist())
        drawn, logprobs[rows, step] = draw_tokens(logits, temperature, uniform)
        tokens[rows, step] = drawn
        if constrained:
            constrained.advance(rows.tolist(), drawn.tolist())
        ended = torch.isin(drawn, eos)
        finished[rows] = ended
        if step + 1 == max_new_tokens or ended.all():
            break
        if ended.any():
            running = (~ended).nonzero()[:, 0]
            rows, drawn = rows[running], drawn[running]
            decoding.keep(running)
        logits = decode_step(model, drawn, decoding)  # (C, V)
    shape = len(prompt_ids), group_size
    samples = _cut(tokens.view(*shape, -1), logprobs.view(*shape, -1), finished.view(shape), eos)
    if constrained:
        flat = constrained.allowed
        samples.allowed = [flat[i : i + group_size] for i in range(0, len(flat), group_size)]
    return samples


def prefill(model, prompt_ids: list[list[int]]) -> tuple[Groups, Tensor]:
    """Runs each prompt through the model once.

    Returns:
        The prompts with their keys and values, and the logits of the first new token (P, V).
    """
    with torch.device(model.device):
        layout = Groups([len(prompt) for prompt in prompt_ids], [])
        ids = torch.tensor([token for prompt in prompt_ids for token in prompt])
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompt_ids])
    hidden = hidden_states(model, ids, positions, layout)  # (N, D)
    ends = layout.prompt_lengths.cumsum(0) - 1
    return layout, model.get_output_embeddings()(hidden[ends])


def decode_step(model, tokens: Tensor, decoding: Decoding) -> Tensor:
    """The newest token of each running completion (C,) -> logits of the next one (C, V)."""
    hidden = hidden_states(model, tokens, decoding.advance(), decoding)  # (C, D)
    return model.get_output_embeddings()(hidden)


def draw_tokens(
    logits: Tensor, temperature: float, uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Draws the next tokens.

    Args:
        logits: (C, V).
        temperature: 0 takes the most probable token.
        uniform: (C,) numbers in [0, 1); not used at temperature 0.

    Returns:
        Token ids (C,) int64, and their log-probs (C,) float32.

    Raises:
        UserError: the logits are not finite.
    """
    logits = logits.float()
    if temperature not in (0, 1):
        logits = logits / temperature
    total = logits.logsumexp(-1, keepdim=True)  # (C, 1)
    if not total.isfinite().all():
        raise UserError(
            "the model's logits are not finite: use --dtype float32 or bfloat16, or a lower --lr"
        )
    if uniform is None:
        tokens = logits.argmax(-1, keepdim=True)  # (C, 1)
    else:
        # Inverse transform sampling: one random number per completion is looked up among the
        # cumulative probabilities. torch.multinomial draws one per vocabulary entry, 10x slower.
        cumulative = (logits - total).exp_().cumsum(-1, dtype=uniform.dtype)
        tokens = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
        tokens.clamp_(max=logits.shape[-1] - 1)  # where the product rounds up to the sum itself
    return tokens[:, 0], (logits.gather(-1, tokens) - total)[:, 0]


def _uniforms(seeds: list[int], group_size: int, count: int, device: torch.device) -> Tensor:
    """Uniform numbers for each token of each completion, (P G, T). Those of a prompt depend on its
    seed alone, not on the other prompts of the batch or on the process.
    """
    # float32 would round the cumulative probabilities of rare tokens away; MPS has no float64.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    drawn = [
        torch.rand(group_size, count, dtype=dtype, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.cat(drawn).to(device)


def _cut(tokens: Tensor, logprobs: Tensor, finished: Tensor, eos: Tensor) -> Samples:
    """Cuts every completion after its EOS: (P, G, T), (P, G, T), (P, G) -> Samples."""
    ends = torch.isin(tokens, eos).int()
    lengths = torch.where(finished, ends.argmax(-1) + 1, tokens.shape[-1])  # (P, G)
    lists = [
        [ids[:length] for ids, length in zip(group, group_lengths)]
        for group, group_lengths in zip(tokens.tolist(), lengths.tolist())
    ]
    return Samples(lists, logprobs[..., : int(lengths.max())], finished, [None] * len(lists))
