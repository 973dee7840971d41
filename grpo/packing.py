"""One row per prompt: the prompt once, then all of its completions, told apart by a mask.

A group shares its prompt. Instead of G rows that each repeat it, a group is one row

    prompt ........ | completion 0 ... | completion 1 ... | padding

in which every token knows its owner: PROMPT, a completion's number, or PADDING. A token attends
to the prompt and to its own completion, up to itself; its position counts as if the other
completions were not there. The model computes the same numbers as with G separate rows, for
P (L + G T) tokens instead of P G (L + T). Any Hugging Face decoder that takes a four-dimensional
attention mask and position ids can do this.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PROMPT, PADDING = -1, -2


@dataclass
class Packed:
    """P rows of S tokens, and where each completion token is predicted.

    Attributes:
        ids, positions, owners: (P, S) int64.
        predictors: (P, G, T) int64, index in the row of the token that predicts completion token t.
        targets: (P, G, T) int64, the completion tokens, 0 where there is none.
        mask: (P, G, T) bool, where there is a completion token.
    """

    ids: Tensor
    positions: Tensor
    owners: Tensor
    predictors: Tensor
    targets: Tensor
    mask: Tensor


def visible(query_owners: Tensor, key_owners: Tensor) -> Tensor:
    """Which key a query may see by ownership: the prompt's and its own.

    (P, Q), (P, K) -> (P, Q, K) bool.
    """
    keys = key_owners[:, None, :]
    return (keys == PROMPT) | ((keys == query_owners[:, :, None]) & (keys != PADDING))


def attention_mask(owners: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask of packed rows: 0 where a token may look, -inf elsewhere.

    (P, S) -> (P, 1, S, S).
    """
    size = owners.shape[1]
    index = torch.arange(size, device=owners.device)
    allowed = visible(owners, owners) & (index[None, :] <= index[:, None])
    allowed |= torch.eye(
        size, dtype=torch.bool, device=owners.device
    )  # padding sees itself: no empty softmax
    return additive(allowed, dtype)[:, None]


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as the numbers to add to attention scores."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )


def pack_groups(
    prompts: list[list[int]], completions: list[list[list[int]]], device="cpu"
) -> Packed:
    """Packs P prompts with G completions each; lengths are free, every group has the same G.

    The masks come from the lengths, never from token ids: an EOS that doubles as padding token
    stays in.
    """
    rows = [
        prompt + [token for one in group for token in one]
        for prompt, group in zip(prompts, completions)
    ]
    count, size = len(rows), max(map(len, rows))
    group_size = len(completions[0])
    longest = max(1, max(len(one) for group in completions for one in group))
    ids = torch.zeros(count, size, dtype=torch.long)
    positions = torch.zeros(count, size, dtype=torch.long)
    owners = torch.full((count, size), PADDING)
    predictors = torch.zeros(count, group_size, longest, dtype=torch.long)
    targets = torch.zeros(count, group_size, longest, dtype=torch.long)
    mask = torch.zeros(count, group_size, longest, dtype=torch.bool)
    for p, (prompt, group) in enumerate(zip(prompts, completions)):
        start = len(prompt)
        ids[p, : len(rows[p])] = torch.tensor(rows[p])
        positions[p, :start] = torch.arange(start)
        owners[p, :start] = PROMPT
        at = start
        for g, one in enumerate(group):
            size = len(one)
            positions[p, at : at + size] = torch.arange(start, start + size)
            owners[p, at : at + size] = g
            if size:
                predictors[p, g, 0] = start - 1  # the first token follows the prompt
                predictors[p, g, 1:size] = torch.arange(at, at + size - 1)
                targets[p, g, :size] = torch.tensor(one)
                mask[p, g, :size] = True
            at += size
    return Packed(*(x.to(device) for x in (ids, positions, owners, predictors, targets, mask)))
