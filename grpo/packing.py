"""A batch as one row of tokens without padding: all prompts, then all completions.

    prompt 0 | prompt 1 | completion 0 of 0 | completion 1 of 0 | completion 0 of 1 | ...

A group shares its prompt. Instead of G rows that each repeat it, it stands in the row once, and a
completion's positions count on from its prompt's end as if the other completions were not there.
Attention (grpo/attention.py) lets a token see its own prompt and its own completion, up to itself.
The model computes the same numbers as with G separate rows, for P (L + G T) tokens instead of
P G (L + T), and for no padding at all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.attention import Groups


@dataclass
class Packed:
    """N tokens in a row, C of which are of completions, and where those are predicted.

    Attributes:
        ids, positions: (N,) int64.
        layout: whose token is whose, for attention.
        predictors: (C,) int64, index in the row of the token that predicts each completion token.
        targets: (C,) int64, the completion tokens, prompt by prompt, completion by completion.
        mask: (P, G, T) bool, where there is a completion token; True C times.
    """

    ids: Tensor
    positions: Tensor
    layout: Groups
    predictors: Tensor
    targets: Tensor
    mask: Tensor


def pack_groups(
    prompts: list[list[int]], completions: list[list[list[int]]], device="cpu"
) -> Packed:
    """Packs P prompts with G completions each; lengths are free, every group has the same G.

    The masks come from the lengths, never from token ids: an EOS that doubles as padding token
    stays in.
    """
    flat = [one for group in completions for one in group]
    with torch.device(device):
        layout = Groups([len(one) for one in prompts], [len(one) for one in flat])
        targets = torch.tensor([token for one in flat for token in one], dtype=torch.long)
        shared = torch.tensor([token for prompt in prompts for token in prompt])
        starts, group_size = layout.prompt_lengths, len(completions[0])
        last = (starts.cumsum(0) - 1).repeat_interleave(group_size)[:, None]  # (P G, 1)
        time = torch.arange(layout.completions.shape[1])
        # The first token follows the prompt, every other the one before it.
        predictors = torch.where(time == 0, last, layout.completions - 1)[layout.exists]
        positions = [torch.arange(len(prompt)) for prompt in prompts]
        positions.append((starts.repeat_interleave(group_size)[:, None] + time)[layout.exists])
    mask = layout.exists.unflatten(0, (-1, group_size))
    ids = torch.cat([shared, targets])
    return Packed(ids, torch.cat(positions), layout, predictors, targets, mask)
