"""Samples G completions for each prompt, computing and keeping the prompt's keys and values once
per group (grpo/attention.py).

Two functions do it, as in any decoder: a prefill runs all prompts through the model once, then the
newest tokens of all running completions go through it together, one at a time. Completions that
are finished leave.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.attention import Decoding, Groups, hidden_states
from sqlenv.errors import UserError


@dataclass
class Samples:
    """What was sampled: ``tokens[p][g]`` token ids with EOS, ``logprobs`` (P, G, T) float32 of
    each sampled token under the distribution that it was drawn from, ``finished`` (P, G) bool:
    ended with EOS before the limit.
    """

    tokens: list[list[list[int]]]
    logprobs: Tensor
    finished: Tensor


def _prefill(model, prompts: list[list[int]]) -> tuple[Groups, Tensor]:
    """Runs each prompt once. Returns its keys and values, and the first logits (P, V)."""
    with torch.device(model.device):
        layout = Groups([len(prompt) for prompt in prompts], [])
        ids = torch.tensor([token for prompt in prompts for token in prompt])
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
    hidden = hidden_states(model, ids, positions, layout)  # (N, D)
    ends = layout.prompt_lengths.cumsum(0) - 1
    return layout, model.get_output_embeddings()(hidden[ends])


def _random_numbers(seeds: list[int], group_size: int, count: int, device) -> Tensor:
    """Uniform numbers for each token of each completion, (P G, T): those of a prompt are a function
    of its seed alone, whatever prompts are beside it, in this process or another.
    """
    # In float32 the sums that they are compared with would round rare tokens away (MPS has
    # nothing better).
    wide = torch.float32 if device.type == "mps" else torch.float64
    drawn = [
        torch.rand(group_size, count, dtype=wide, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.cat(drawn).to(device)


def _draw(logits: Tensor, temperature: float, at: Tensor | None) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities: (C, V), numbers from 0 to 1 (C,) -> (C,), (C,).
    Temperature 0 takes the likeliest.
    """
    logits = logits.float()
    if temperature not in (0, 1):
        logits = logits / temperature
    total = logits.logsumexp(-1, keepdim=True)  # (C, 1)
    if not total.isfinite().all():
        raise UserError(
            "the model's logits are not finite: use --dtype float32 or bfloat16, or a lower --lr"
        )
    if temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)  # (C, 1)
    else:
        # One random number a completion, looked up among the cumulative probabilities, in place of
        # torch.multinomial's one for each token of the vocabulary: a tenth of the time.
        cumulative = (logits - total).exp_().cumsum(-1, dtype=at.dtype)
        tokens = torch.searchsorted(cumulative, at[:, None] * cumulative[:, -1:], right=True)
        tokens.clamp_(max=logits.shape[-1] - 1)  # where the product rounds up to the sum itself
    return tokens[:, 0], (logits.gather(-1, tokens) - total)[:, 0]


@torch.no_grad()
def sample_groups(
    model,
    prompts: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    eos_ids: set[int],
    temperature: float = 1.0,
    seeds: list[int] | None = None,
) -> Samples:
    """Draws ``group_size`` completions of at most ``max_new_tokens`` tokens for each of P prompts.

    Args:
        model: a Hugging Face decoder in eval mode (dropout would make the samples off-policy).
        prompts: P lists of token ids.
        eos_ids: any of these ends a completion and is its last token.
        temperature: of the softmax sampled from, with no top-k and no top-p, so that log-
            probabilities computed later at the same temperature are those of this very
            distribution; 0 is greedy decoding.
        seeds: one for each prompt; without, from torch's own generator.

    Raises:
        UserError: the model's logits are not finite.
    """
    numbers = None
    if temperature:
        seeds = seeds or torch.randint(2**62, (len(prompts),)).tolist()
        numbers = _random_numbers(seeds, group_size, max_new_tokens, model.device)  # (C, T)
    prefill, logits = _prefill(model, prompts)
    decoding = Decoding(prefill, group_size, max_new_tokens - 1)  # nothing sees the last token
    with torch.device(model.device):
        eos = torch.tensor(sorted(eos_ids))
        rows = torch.arange(len(prompts) * group_size)  # the completions still running (C,)
        tokens = torch.zeros(len(rows), max_new_tokens, dtype=torch.long)
        logprobs = torch.zeros(len(rows), max_new_tokens)
        finished = torch.zeros(len(rows), dtype=torch.bool)
    logits = logits.repeat_interleave(group_size, 0)  # (C, V)
    for step in range(max_new_tokens):
        at = numbers[rows, step] if temperature else None
        drawn, logprobs[rows, step] = _draw(logits, temperature, at)
        tokens[rows, step] = drawn
        ended = torch.isin(drawn, eos)
        finished[rows] = ended
        if step + 1 == max_new_tokens or ended.all():
            break
        if ended.any():
            running = (~ended).nonzero()[:, 0]
            rows, drawn = rows[running], drawn[running]
            decoding.keep(running)
        hidden = hidden_states(model, drawn, decoding.advance(), decoding)  # (C, D)
        logits = model.get_output_embeddings()(hidden)
    shape = len(prompts), group_size
    tokens, logprobs = tokens.view(*shape, -1), logprobs.view(*shape, -1)
    return _collect(tokens, logprobs, finished.view(shape), eos)


def _collect(tokens: Tensor, logprobs: Tensor, finished: Tensor, eos: Tensor) -> Samples:
    """Cuts every completion after its EOS."""
    ends = torch.isin(tokens, eos).int()
    lengths = torch.where(finished, ends.argmax(-1) + 1, tokens.shape[-1])  # (P, G)
    lists = [
        [one[:size] for one, size in zip(group, sizes)]
        for group, sizes in zip(tokens.tolist(), lengths.tolist())
    ]
    return Samples(lists, logprobs[..., : int(lengths.max())], finished)
