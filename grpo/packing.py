"""A batch as one row of tokens without padding: all prompts, then all completions.

    prompt 0 | prompt 1 | completion 0 of 0 | completion 1 of 0 | completion 0 of 1 | ...

("completion 1 of 0" is the second completion of prompt 0.) A group shares its prompt, which is in
the row once instead of G times. The positions of a completion continue from the end of its prompt.
Attention (grpo/attention.py) lets a completion token see its prompt, the earlier tokens of its own
completion and itself. The model computes the same numbers as with G separate rows, for P (L + G T)
tokens instead of P G (L + T), and without padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.attention import Groups


@dataclass
class Packed:
    """A row of N tokens, C of them in completions, and where those are predicted.

    Attributes:
        ids, positions: (N,) int64.
        layout: which token belongs to which sequence, for attention.
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
    prompt_ids: list[list[int]], completion_ids: list[list[list[int]]], device="cpu"
) -> Packed:
    """Packs P prompts with G completions each; lengths may differ, G may not.

    The mask is built from the lengths, never from token ids: an EOS that doubles as padding token
    stays in.
    """
    flat = [ids for group in completion_ids for ids in group]
    with torch.device(device):
        layout = Groups([len(ids) for ids in prompt_ids], [len(ids) for ids in flat])
        targets = torch.tensor([token for ids in flat for token in ids], dtype=torch.long)
        prompts = torch.tensor([token for ids in prompt_ids for token in ids])
        starts, group_size = layout.prompt_lengths, len(completion_ids[0])
        last = (starts.cumsum(0) - 1).repeat_interleave(group_size)[:, None]  # (P G, 1)
        completions = layout.completions
        time = torch.arange(completions.index.shape[1])
        # A completion's first token is predicted by the prompt's last, any other by the one before.
        before = layout.count + completions.index - 1
        predictors = torch.where(time == 0, last, before)[completions.exists]
        positions = [torch.arange(len(ids)) for ids in prompt_ids]
        positions.append((starts.repeat_interleave(group_size)[:, None] + time)[completions.exists])
    mask = completions.exists.unflatten(0, (-1, group_size))
    ids = torch.cat([prompts, targets])
    return Packed(ids, torch.cat(positions), layout, predictors, targets, mask)
