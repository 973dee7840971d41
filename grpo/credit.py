"""Credit for the tokens that differ: a wrong completion is blamed only where it leaves its nearest
right sibling.

In GRPO every token of a completion has the completion's advantage. A wrong query is often right but
for one name or value, so most of the tokens that a negative advantage makes less likely are right.
EXPO-SQL (arXiv 2606.23693) and CAPER (arXiv 2606.03327) find the wrong parts in other ways; here
siblings are compared, which needs gold SQL to tell the right ones by execution. Advantages then no
longer sum to 0 over a group: right tokens are made more likely on balance.
"""

from collections.abc import Sequence
from difflib import SequenceMatcher

import torch
from torch import Tensor

from grpo.rollout import Rollout


def blamed_tokens(wrong: Sequence[int], right: Sequence[Sequence[int]]) -> list[bool]:
    """Which tokens of a completion are not also in the nearest of the right ones, that with the
    most tokens in common. Where tokens are missing, it is the token that stands in their place.

    >>> blamed_tokens([5, 6, 7, 2], [[5, 8, 7, 2], [9, 9]]), blamed_tokens([5, 2], [[5, 6, 2]])
    ([False, True, False, False], [False, True])
    """
    matchers = [SequenceMatcher(None, wrong, other, autojunk=False) for other in right]
    nearest = max(matchers, key=lambda matcher: matcher.ratio())
    blamed = [False] * len(wrong)
    for kind, start, end, _, _ in nearest.get_opcodes():
        if kind != "equal":
            for index in range(start, min(max(end, start + 1), len(wrong))):
                blamed[index] = True
    return blamed


def difference_credit(rollout: Rollout, advantages: Tensor) -> Tensor:
    """Advantages of tokens, (P, G) -> (P, G, T): 0 for those tokens of a wrong completion with a
    negative advantage that it has in common with its nearest right sibling. All tokens of other
    completions, and of groups without a right one, have the completion's advantage.
    """
    longest = rollout.completion_mask().shape[-1]
    credit = torch.ones(*advantages.shape, longest)  # (P, G, T)
    for p, (group, verdicts) in enumerate(zip(rollout.completion_ids, rollout.verdicts)):
        right = [ids for ids, verdict in zip(group, verdicts) if verdict.correct]
        for g, (ids, verdict) in enumerate(zip(group, verdicts)):
            if right and not verdict.correct and advantages[p, g] < 0:
                credit[p, g, : len(ids)] = torch.tensor(blamed_tokens(ids, right)).float()
    return advantages[..., None] * credit.to(advantages.device)
