"""Attention for groups of completions: a group's prompt is computed and stored only once.

The tokens of a whole batch form one row without padding, so that no matrix product of the model
spends work on padding. Only attention needs to know which token belongs to which sequence. There
are two cases, each a *layout* that is passed through the model:

- ``Groups``: prompts and completions at once, with gradients (training, and the prefill)

      prompt 0 | prompt 1 | completion 0 of 0 | completion 1 of 0 | completion 0 of 1 | ...

  where "completion 1 of 0" is the second completion of prompt 0.

- ``Decoding``: the newest token of each running completion, against a KV cache.

transformers has a registry of attention functions, and passes extra keyword arguments of a model's
forward, here ``layout``, to these functions. So any Hugging Face decoder that uses this interface
works unchanged: Llama, Qwen, Mistral, Gemma 3 with its sliding windows.

Shapes: N tokens in the row; P prompts of at most L tokens; C completions of at most T tokens, G for
each prompt; H query heads, K key-value heads, r = H / K query heads for each of them; D the width
of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from grpo.padded_rows import Rows, padded_rows
from sqlenv.errors import UserError

NAME = "shared_prefix"
UNSUPPORTED = ("softcap", "s_aux", "sinks", "position_bias")  # they change the scores
LONG = 2048  # keys
BLOCK = 256  # queries of a prompt


def shared_prefix(
    module,
    query,
    key,
    value,
    attention_mask,
    layout=None,
    scaling=None,
    sliding_window=None,
    **rest,
):
    """What transformers calls in every layer: (1, H, N, D), (1, K, N, D) twice -> (1, N, H, D).

    Without a layout the model is used in the ordinary way: plain SDPA.
    """
    if layout is None:
        rest |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    unsupported = [name for name in UNSUPPORTED if rest.get(name) is not None]
    unsupported += ["dropout"] * bool(rest.get("dropout"))
    unsupported += ["no causal order"] * (not getattr(module, "is_causal", True))
    unsupported += ["a mask of its own"] * (attention_mask is None or attention_mask.numel() != 1)
    if unsupported:
        raise UserError(
            f"{type(module).__name__} has {unsupported[0]} in its attention: not supported"
        )
    layout.calls += 1
    layout.windows.add(sliding_window)
    # Under autocast rotary embeddings make queries and keys float32; the values keep its dtype.
    rows = [x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value)]  # (N, heads, D)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, *rows, scale, sliding_window)[None], None


# cuDNN's kernel plans each new shape anew, and no two batches have the same.
torch.backends.cuda.enable_cudnn_sdp(False)
AttentionInterface.register(NAME, shared_prefix)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for the ordinary use


def hidden_states(model, ids: Tensor, positions: Tensor, layout) -> Tensor:
    """Last hidden states of a row of tokens: (N,), (N,) -> (N, width).

    Raises:
        UserError: a layer of the model mixes tokens otherwise than by this attention.
    """
    if model.config._attn_implementation != NAME:
        model.set_attn_implementation(NAME)
    layout.calls, layout.windows = 0, set()
    hidden = model.get_decoder()(
        input_ids=ids[None],
        position_ids=positions[None],
        use_cache=False,
        attention_mask=ids.new_zeros(1, 1, 1, 1),  # four dimensions: transformers makes none
        layout=layout,
    ).last_hidden_state[0]
    if layout.calls != model.config.get_text_config().num_hidden_layers:
        raise UserError(
            f"{type(model).__name__}: not every layer attends through transformers' attention "
            "interface, so a group cannot share its prompt; choose another model"
        )
    return hidden


def share_keys(query: Tensor, heads: int) -> Tensor:
    """(B, T, H, D) -> (B, K, r T, D): the r query heads of a key-value head in sequence, so that
    keys and values need not be repeated r times.
    """
    return query.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def split_keys(out: Tensor, length: int) -> Tensor:
    """The inverse of ``share_keys``: (B, K, r T, D) -> (B, T, H, D)."""
    return out.unflatten(2, (-1, length)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def fast_products(q: Tensor, keys: int) -> bool:
    """Whether two plain matrix products are faster than PyTorch's SDPA kernel: on a CPU in bfloat16
    they take a third of its time. They store the softmax weights for the backward pass, so long
    sequences use the kernel.
    """
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and keys <= LONG


def weighted_values(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of rows q (B, K, S, D) to keys and values (B, K, L, D), with numbers to add to the
    scores, (B or 1, 1, S, L) or (S, L) -> (B, K, S, D).
    """
    if fast_products(q, k.shape[2]):
        scores = torch.add(mask, q @ k.transpose(2, 3), alpha=scale)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)


class Groups:
    """All tokens of P prompts, then all tokens of their completions, G to each.

    Args:
        prompt_lengths: P numbers of tokens.
        completion_lengths: C = P G numbers, the G completions of a prompt in sequence; empty for
            the prefill, which stores keys and values.

    Attributes:
        count: tokens of all prompts.
        prompts, completions: (P, L) and (C, T) places among the tokens of their own kind.
        kv_cache: for each layer the prompts' keys and values, (P, K, L, D).
        windows: the sliding windows of the layers in the last pass, None for full attention.
    """

    windows: set[int | None]

    def __init__(self, prompt_lengths: list[int], completion_lengths: list[int]):
        self.prompt_lengths = torch.tensor(prompt_lengths)
        self.prompts, self.count = Rows(*padded_rows(self.prompt_lengths)), sum(prompt_lengths)
        self.masks, self.kv_cache = {}, {}
        lengths = torch.tensor(completion_lengths)
        self.completions = Rows(*padded_rows(lengths)) if completion_lengths else None

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """(N, H, D), (N, K, D) twice -> (N, H, D)."""
        sizes = self.count, len(query) - self.count
        prompts, completions = zip(*(x.split(sizes) for x in (query, key, value)))
        q, k, v = map(self.prompts.pad, prompts)  # (P, L, heads, D)
        k, v = (x.transpose(1, 2).contiguous() for x in (k, v))  # (P, K, L, D)
        out = self.prompts.unpad(self._prompts(q, k, v, scale, window))
        if len(query) == self.count:  # no token of a completion
            self.kv_cache[layer] = k, v
            return out
        q, new_k, new_v = map(self.completions.pad, completions)  # (C, T, heads, D)
        new_k, new_v = new_k.transpose(1, 2), new_v.transpose(1, 2)
        completed = self._completions(q, new_k, new_v, k, v, scale, window)  # (C, T, H, D)
        return torch.cat([out, self.completions.unpad(completed)])

    def _prompts(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
        """Each prompt sees itself: (P, L, H, D), (P, K, L, D) twice -> (P, L, H, D). Padding is at
        the end, so the causal mask hides it.
        """
        length = q.shape[1]
        if (window is None or window >= length) and not fast_products(q, length):
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, is_causal=True, scale=scale, enable_gqa=True
            )
            return out.transpose(1, 2)
        parts = []
        for first in range(0, length, BLOCK):  # queries of a block see no key after it
            rows, seen = slice(first, first + BLOCK), slice(0, first + BLOCK)
            mask = self._causal_mask(first, length, window, q.shape[2] // k.shape[1], q.dtype)
            out = share_keys(q[:, rows], k.shape[1])
            out = weighted_values(out, k[:, :, seen], v[:, :, seen], mask, scale)
            parts.append(split_keys(out, min(BLOCK, length - first)))
        return torch.cat(parts, 1)

    def _causal_mask(self, first: int, length: int, window, repeats: int, dtype) -> Tensor:
        """Of the queries of a block to the keys up to its end, (r S, L'); for all layers alike."""
        if (first, window) not in self.masks:
            place = torch.arange(min(first + BLOCK, length), device=self.prompt_lengths.device)
            back = place[first:, None] - place
            seen = (back >= 0) & (back < (window or length))
            self.masks[first, window] = additive(seen.repeat(repeats, 1), dtype)
        return self.masks[first, window]

    def _completions(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        prompt_k: Tensor,
        prompt_v: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Each completion sees its prompt and itself: (C, T, H, D), (C, K, T, D) twice and the
        prompts' (P, K, L, D) twice -> (C, T, H, D).
        """
        count, heads, length = k.shape[:3]
        size = count // len(prompt_k)
        k, v = (
            torch.cat([prompt.repeat_interleave(size, 0), completion], 2)
            for prompt, completion in ((prompt_k, k), (prompt_v, v))
        )  # (C, K, L + T, D)
        if window not in self.masks:
            seen = self._seen(length, size, window).repeat(1, q.shape[2] // heads, 1)
            self.masks[window] = additive(seen, q.dtype)[:, None]
        mask = self.masks[window]  # (C, 1, r T, L + T), the same for all layers with this window
        out = share_keys(q, heads)
        out = weighted_values(out, k, v, mask, scale)
        return split_keys(out, length)

    def _seen(self, length: int, size: int, window: int | None) -> Tensor:
        """Which keys, the prompt's and the completion's, a completion token sees: (C, T, L + T)."""
        start = self.prompt_lengths.repeat_interleave(size)[:, None, None]  # (C, 1, 1)
        t = torch.arange(length, device=start.device)
        place = torch.arange(self.prompts.index.shape[1], device=start.device)
        prompt = (place < start).expand(-1, length, -1)  # (C, T, L)
        completion = t <= t[:, None]  # (T, T)
        if window is not None:
            prompt = prompt & (start + t[:, None] - place < window)
            completion = completion & (t[:, None] - t < window)
        return torch.cat([prompt, completion.expand(len(start), -1, -1)], -1)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to attention scores: 0 or -inf."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, float("-inf"))


class Decoding:
    """The newest token of each running completion. The KV cache holds each prompt once, and the
    completions in buffers that are allocated once.

    Args:
        prefill: the prompts, after their forward pass.
        group_size: G, the completions that start from each prompt.
        capacity: tokens of a completion that the cache has room for.

    Attributes:
        prompt_kv: for each layer the prompts' keys and values, (P, K, L, D).
        completion_kv: for each layer the completions' keys and values, (C, K, capacity, D).
        prompt_index: (C,) int64, the prompt of each completion.
    """

    def __init__(self, prefill: Groups, group_size: int, capacity: int):
        self.lengths, self.prompt_kv = prefill.prompt_lengths, dict(prefill.kv_cache)
        self.completion_kv: dict[int, tuple[Tensor, Tensor]] = {}
        self.capacity, self.length = capacity, 0
        self.prompt_index = torch.arange(len(self.lengths), device=self.lengths.device)
        self.prompt_index = self.prompt_index.repeat_interleave(group_size)
        self._arrange()

    def keep(self, rows: Tensor) -> None:
        """Keeps only these completions, (C',) ascending, and the prompts that still have some."""
        for layer, buffers in self.completion_kv.items():
            for buffer in buffers:  # into their beginning: nothing is allocated for good
                buffer[: len(rows), :, : self.length] = buffer[rows, :, : self.length]
            self.completion_kv[layer] = tuple(buffer[: len(rows)] for buffer in buffers)
        prompts, self.prompt_index = self.prompt_index[rows].unique(return_inverse=True)
        if len(prompts) < len(self.lengths):
            self.lengths = self.lengths[prompts]
            longest = int(self.lengths.max())
            for layer, buffers in self.prompt_kv.items():
                self.prompt_kv[layer] = tuple(x[:, :, :longest][prompts] for x in buffers)
        self._arrange()

    def _arrange(self) -> None:
        """Arranges the completions as a grid of P x A, A being the most of any prompt: ``grid``
        (P A,) holds their indices, 0 for padding, and ``cells`` (C,) each one's place in the grid.
        """
        counts = self.prompt_index.bincount(minlength=len(self.lengths))
        grid, exists = padded_rows(counts)
        self.width, self.grid = grid.shape[1], grid.flatten()
        self.cells = exists.flatten().nonzero()[:, 0]
        self.padded = bool((self.lengths < self.lengths.max()).any())

    def advance(self) -> Tensor:
        """Makes room for one more token; returns its positions (C,)."""
        self.length += 1
        return (self.lengths + self.length - 1)[self.prompt_index]

    def _by_prompt(self, x: Tensor) -> Tensor:
        """All queries of a prompt in one matrix: (C, K, r, E) -> (P, K, A r, E)."""
        x = x.index_select(0, self.grid).unflatten(0, (-1, self.width))  # (P, A, K, r, E)
        return x.transpose(1, 2).flatten(2, 3)

    def _by_completion(self, x: Tensor) -> Tensor:
        """The inverse of ``_by_prompt``: (P, K, A r, E) -> (C, K, r, E)."""
        x = x.unflatten(2, (self.width, -1)).transpose(1, 2)  # (P, A, K, r, E)
        return x.flatten(0, 1).index_select(0, self.cells)

    def attend(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
    ) -> Tensor:
        """(C, H, D), (C, K, D) twice -> (C, H, D): one softmax over the scores with the keys of
        the prompt and with those of the completion itself.
        """
        if layer not in self.completion_kv:
            self.completion_kv[layer] = tuple(
                x.new_empty(*x.shape[:2], self.capacity, x.shape[2]) for x in (key, value)
            )
        first = 0 if window is None else max(0, self.length - window)
        key_cache, value_cache = (
            buffer[:, :, first : self.length] for buffer in self.completion_kv[layer]
        )
        key_cache[:, :, -1], value_cache[:, :, -1] = key, value
        prompt_k, prompt_v = self.prompt_kv[layer]  # (P, K, L, D)
        if query.dtype == torch.float16:  # whose largest number is 65504
            query, scale = query * scale, 1.0
        query = query.unflatten(1, (key.shape[1], -1))  # (C, K, r, D)
        to_prompt = self._by_prompt(query) @ prompt_k.transpose(2, 3)  # (P, K, A r, L)
        to_completion = self._by_prompt(query @ key_cache.transpose(2, 3))  # (P, K, A r, t)
        scores = torch.cat([to_prompt, to_completion], -1).float() * scale
        hidden = self._hidden(prompt_k.shape[2], window)
        if hidden is not None:
            scores[..., : prompt_k.shape[2]].masked_fill_(hidden, float("-inf"))
        weights = scores.softmax(-1).to(value.dtype)
        to_prompt, to_completion = weights.split([prompt_k.shape[2], key_cache.shape[2]], -1)
        out = self._by_completion(to_prompt @ prompt_v)
        out = out + self._by_completion(to_completion) @ value_cache
        return out.flatten(1, 2)  # (C, K, r, D) -> (C, H, D)

    def _hidden(self, size: int, window: int | None) -> Tensor | None:
        """(P, 1, 1, L) bool, the masked keys of prompts: padding, and those outside the window."""
        if not self.padded and window is None:
            return None
        place, ends = torch.arange(size, device=self.lengths.device), self.lengths[:, None]
        hidden = place >= ends
        if window is not None:
            hidden |= place <= ends + self.length - 1 - window
        return hidden[:, None, None]
