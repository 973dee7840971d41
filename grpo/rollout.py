"""What a policy did with a batch of questions: its completions, and what they were worth.

With dynamic sampling (DAPO, arXiv 2503.14476, section 3.2) groups without signal, whose
completions all score the same and thus teach nothing, are replaced by groups of further questions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from sqlenv import Example


@dataclass
class Rollout:
    """P groups of G completions.

    Attributes:
        examples: P questions.
        prompts: P lists of token ids.
        tokens: P x G lists of token ids, EOS included where it was sampled.
        logprobs: P tensors (G, T) float32, of each token under what it was drawn from; T differs.
        finished: (P, G) bool, ended with EOS before the limit.
        terms: (P, G, R) float32, the reward terms.
        total: (P, G) float32, their weighted sum.
    """

    examples: list[Example]
    prompts: list[list[int]]
    tokens: list[list[list[int]]]
    logprobs: list[Tensor]
    finished: Tensor
    terms: Tensor
    total: Tensor

    def has_signal(self) -> Tensor:
        """(P,) bool: whether the completions of a group differ in reward, by more than noise."""
        return (group_advantages(self.total, "centered") != 0).any(1)

    def select(self, groups: list[int]) -> "Rollout":
        """The rollout of some of the groups."""
        pick = lambda values: [values[p] for p in groups]  # noqa: E731
        return Rollout(
            *(pick(x) for x in (self.examples, self.prompts, self.tokens, self.logprobs)),
            *(x[groups] for x in (self.finished, self.terms, self.total)),
        )

    def joined(self, other: "Rollout") -> "Rollout":
        """The groups of both."""
        return Rollout(
            self.examples + other.examples,
            self.prompts + other.prompts,
            self.tokens + other.tokens,
            self.logprobs + other.logprobs,
            *(
                torch.cat([getattr(self, name), getattr(other, name)])
                for name in ("finished", "terms", "total")
            ),
        )

    def token_mask(self, keep_truncated: bool = True) -> Tensor:
        """(P, G, T) bool: the tokens that the loss is taken over."""
        lengths = torch.tensor([[len(one) for one in group] for group in self.tokens])  # (P, G)
        if not keep_truncated:
            lengths = lengths * self.finished.cpu()
        return torch.arange(self.longest()) < lengths[..., None]

    def longest(self) -> int:
        return max(1, max(len(one) for group in self.tokens for one in group))


def collect(
    rollout: Callable[[int], Rollout], prompts: int, rounds: int
) -> tuple[Rollout, dict[str, float]]:
    """``prompts`` groups; with ``rounds`` above 0, those without signal are replaced at most that
    often. What is still missing then is left out, so that a step may have fewer groups, but never
    none: if no group at all has signal, the first batch is returned as it is.

    Args:
        rollout: samples and scores the given number of further questions.

    Returns:
        The groups, and ``groups_without_signal`` (share of all that were sampled) and
        ``groups_sampled``.
    """
    first = batch = rollout(prompts)
    sampled, silent = prompts, int((~batch.has_signal()).sum())
    if rounds:
        batch = batch.select(batch.has_signal().nonzero()[:, 0].tolist())
    for _ in range(rounds):
        missing = prompts - len(batch.examples)
        if not missing:
            break
        more = rollout(missing)
        sampled, silent = sampled + missing, silent + int((~more.has_signal()).sum())
        batch = batch.joined(more.select(more.has_signal().nonzero()[:, 0].tolist()))
    stats = {"groups_without_signal": silent / sampled, "groups_sampled": sampled}
    return batch if batch.examples else first, stats
