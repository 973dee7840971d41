"""Samples G completions for each prompt, computing and keeping the prompt's keys and values once
per group.

While decoding, a group is one row of the batch, as in training (grpo/packing.py): the row's
queries are the newest tokens of its completions, its keys are the prompt's followed by everything
its completions have written so far, and the mask lets each completion see the prompt and itself.
Finished completions leave the row, finished prompts the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from grpo.packing import PADDING, PROMPT, additive, attention_mask, visible
from sqlenv.errors import UserError


class _Buffer(DynamicLayer):
    """Keys and values of one layer in a buffer allocated once, instead of a tensor that grows by
    concatenation.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length = capacity, 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            rows, heads, _, width = key_states.shape
            self.key_buffer = key_states.new_empty(rows, heads, self.capacity, width)
            self.value_buffer = value_states.new_empty(
                rows, heads, self.capacity, value_states.shape[-1]
            )
            self.is_initialized = True
        end = self.length + key_states.shape[2]
        self.key_buffer[:, :, self.length : end] = key_states
        self.value_buffer[:, :, self.length : end] = value_states
        self.length = end
        return self.key_buffer[:, :, :end], self.value_buffer[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def keep_rows(self, rows: Tensor) -> None:
        self.key_buffer, self.value_buffer = self.key_buffer[rows], self.value_buffer[rows]


@dataclass
class Samples:
    """What was sampled: ``tokens[p][g]`` token ids with EOS, ``logprobs`` (P, G, T) float32 of
    each sampled token under the distribution that it was drawn from, ``finished`` (P, G) bool:
    ended with EOS before the limit.
    """

    tokens: list[list[list[int]]]
    logprobs: Tensor
    finished: Tensor


def _prefill(model, prompts: list[list[int]], capacity: int) -> tuple[Cache, Tensor, Tensor]:
    """Runs each prompt once. Returns the cache, the owners of its slots (P, L) and the first
    logits (P, V).
    """
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    size = int(lengths.max())
    ids = torch.tensor(
        [prompt + [0] * (size - len(prompt)) for prompt in prompts], device=model.device
    )
    index = torch.arange(size, device=model.device)
    owners = torch.where(index[None] < lengths[:, None], PROMPT, PADDING)  # (P, L)
    cache = Cache(layers=[_Buffer(size + capacity) for _ in range(model.config.num_hidden_layers)])
    hidden = model.base_model(
        input_ids=ids,
        position_ids=index[None].expand_as(ids),
        past_key_values=cache,
        use_cache=True,
        attention_mask=attention_mask(owners, model.dtype),
    ).last_hidden_state
    last = hidden[torch.arange(len(prompts), device=model.device), lengths - 1]  # (P, D)
    return cache, owners, model.get_output_embeddings()(last)


def _draw(
    logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Next tokens and their log-probabilities: (..., V) -> (...), (...). Temperature 0 takes the
    likeliest.
    """
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if logprobs.isnan().any():  # multinomial would fail without a word about the cause
        raise UserError(
            "the model's logits are not finite: use --dtype float32 or bfloat16, or a lower --lr"
        )
    if temperature == 0:
        tokens = logprobs.argmax(-1)
    else:
        flat = logprobs.exp().flatten(0, -2)
        tokens = torch.multinomial(flat, 1, generator=generator)[:, 0].view(logprobs.shape[:-1])
    return tokens, logprobs.gather(-1, tokens[..., None])[..., 0]


@torch.no_grad()
def sample_groups(
    model,
    prompts: list[list[int]],
    group_size: int,
    max_new_tokens: int,
    eos_ids: set[int],
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Samples:
    """Draws ``group_size`` completions of at most ``max_new_tokens`` tokens for each of P prompts.

    Args:
        model: a Hugging Face decoder in eval mode (dropout would make the samples off-policy).
        prompts: P lists of token ids.
        eos_ids: any of these ends a completion and is its last token.
        temperature: of the softmax sampled from, with no top-k and no top-p, so that log-
            probabilities computed later at the same temperature are those of this very
            distribution; 0 is greedy decoding.

    Raises:
        UserError: the model's logits are not finite.
    """
    device, count = model.device, len(prompts)
    cache, owners, logits = _prefill(model, prompts, group_size * max_new_tokens)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    eos = torch.tensor(sorted(eos_ids), device=device)
    tokens = torch.zeros(count, group_size, max_new_tokens, dtype=torch.long, device=device)
    logprobs = torch.zeros(count, group_size, max_new_tokens, device=device)
    finished = torch.zeros(count, group_size, dtype=torch.bool, device=device)
    rows = torch.arange(count, device=device)  # the prompts still in the batch (R,)
    active = torch.arange(group_size, device=device).expand(
        count, -1
    )  # (R, A) completions, PADDING where idle
    logits = logits[:, None].expand(-1, group_size, -1)  # (R, A, V)
    for step in range(max_new_tokens):
        drawn, drawn_logprobs = _draw(logits, temperature, generator)  # (R, A)
        r, a = (active != PADDING).nonzero(as_tuple=True)
        tokens[rows[r], active[r, a], step] = drawn[r, a]
        logprobs[rows[r], active[r, a], step] = drawn_logprobs[r, a]
        ended = torch.isin(drawn, eos)
        finished[rows[r], active[r, a]] = ended[r, a]
        active = active.masked_fill(ended, PADDING)
        if step + 1 == max_new_tokens or not (active != PADDING).any():
            break
        rows, active, drawn, owners = _leave(rows, active, drawn, owners, cache)
        owners = torch.cat([owners, active], dim=1)  # the slots that this step's keys go to
        mask = visible(active, owners)
        mask[..., -active.shape[1] :] |= torch.eye(active.shape[1], dtype=torch.bool, device=device)
        hidden = model.base_model(
            input_ids=drawn,
            position_ids=(lengths[rows] + step)[:, None].expand_as(drawn),
            past_key_values=cache,
            use_cache=True,
            attention_mask=additive(mask, model.dtype)[:, None],
        ).last_hidden_state  # (R, A, D)
        logits = model.get_output_embeddings()(hidden)
    return _collect(tokens, logprobs, finished, eos)


def _leave(rows: Tensor, active: Tensor, drawn: Tensor, owners: Tensor, cache: Cache):
    """Takes finished completions out of their rows, and finished prompts out of the batch once a
    quarter is done.
    """
    running = (active != PADDING).sum(1)  # (R,)
    if (running == 0).sum() * 4 >= len(rows):
        keep = running.nonzero()[:, 0]
        for layer in cache.layers:
            layer.keep_rows(keep)
        rows, active, drawn, owners, running = (
            rows[keep],
            active[keep],
            drawn[keep],
            owners[keep],
            running[keep],
        )
    width = int(running.max())
    if width < active.shape[1]:  # the running ones first, in their order
        order = (active == PADDING).to(torch.int8).argsort(dim=1, stable=True)[:, :width]
        active, drawn = active.gather(1, order), drawn.gather(1, order)
    return rows, active, drawn, owners


def _collect(tokens: Tensor, logprobs: Tensor, finished: Tensor, eos: Tensor) -> Samples:
    """Cuts every completion after its EOS."""
    ends = torch.isin(tokens, eos).int()
    lengths = torch.where(finished, ends.argmax(-1) + 1, tokens.shape[-1])  # (P, G)
    lists = [
        [one[:size] for one, size in zip(group, sizes)]
        for group, sizes in zip(tokens.tolist(), lengths.tolist())
    ]
    return Samples(lists, logprobs[..., : int(lengths.max())], finished)
