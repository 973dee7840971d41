"""A rollout: groups of completions and the rewards that they earned."""

from dataclasses import dataclass

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.lora import lora_merged
from grpo.models import Policy
from grpo.name_constraint import ConstrainedRows
from grpo.prompt import PromptBuilder
from grpo.rewards import Rewards, fill_not_applicable
from grpo.sampler import sample_groups
from grpo.timer import PhaseTimer
from sqlenv import Example
from sqlenv.verifier import Verdict


@dataclass
class Rollout:
    """P groups of G completions.

    Attributes:
        examples: P questions.
        prompt_ids: P lists of token ids.
        completion_ids: P x G lists of token ids, EOS included where it was sampled.
        texts: P x G completions as text, without special tokens.
        verdicts: P x G, what became of the SQL in them.
        sampling_logprobs: P tensors (G, T) float32, of each token under the distribution that it
            was drawn from; T differs between groups. NaN for gold that has joined a group.
        allowed: as in ``Samples``: what each token was drawn from.
        finished: (P, G) bool, whether the completion ended with EOS before the limit.
        reward_terms: (P, G, R) float32.
        applicable: (P, G, R) bool, false where a term is not applicable and was filled in.
        rewards: (P, G) float32, the weighted sum of the terms.
    """

    examples: list[Example]
    prompt_ids: list[list[int]]
    completion_ids: list[list[list[int]]]
    texts: list[list[str]]
    verdicts: list[list[Verdict]]
    sampling_logprobs: list[Tensor]
    allowed: list
    finished: Tensor
    reward_terms: Tensor
    applicable: Tensor
    rewards: Tensor

    def zero_variance(self) -> Tensor:
        """(P,) bool, whether all completions of the group have the same reward, up to rounding."""
        return (group_advantages(self.rewards, kind="centered") == 0).all(1)

    def sampled_mask(self) -> Tensor:
        """(P, G) bool, false for gold that has joined a group (``--gold-completions``)."""
        return torch.stack([~logprobs.isnan().any(1) for logprobs in self.sampling_logprobs])

    def completion_mask(self, *, include_truncated: bool = True) -> Tensor:
        """(P, G, T) bool, the tokens that the loss is taken over. It is built from lengths, never
        from token ids, so that an EOS that doubles as padding token stays in.
        """
        lengths = torch.tensor([[len(ids) for ids in group] for group in self.completion_ids])
        longest = max(1, int(lengths.max()))
        if not include_truncated:
            lengths = lengths * self.finished.cpu()  # (P, G)
        return torch.arange(longest) < lengths[..., None]


def constrained_rows(
    policy: Policy, prompts: PromptBuilder, examples: list[Example], group_size: int
) -> ConstrainedRows | None:
    """What may be drawn for the answers to some questions; None without ``constrain_names``."""
    if not prompts.settings.constrain_names:
        return None
    constraints = [prompts.constraint(e) for e in examples for _ in range(group_size)]
    return ConstrainedRows(constraints, policy.token_text, policy.eos_ids)


def sample_rollout(
    examples: list[Example],
    seeds: list[int],
    *,
    policy: Policy,
    rewards: Rewards,
    prompts: PromptBuilder,
    config: Config,
    timer: PhaseTimer,
) -> Rollout:
    """Samples G completions for each of P questions, with LoRA merged, and scores them.

    Args:
        seeds: P, one for each question's completions.
    """
    prompt_ids = [prompts(example) for example in examples]
    constrained = constrained_rows(policy, prompts, examples, config.group_size)
    with timer.phase("sample"), lora_merged(policy.model):
        samples = sample_groups(
            policy.model, prompt_ids, eos_ids=policy.eos_ids, seeds=seeds,
            group_size=config.group_size, max_new_tokens=config.max_new_tokens,
            temperature=config.temperature, constrained=constrained,
        )  # fmt: skip
    ids = samples.completion_ids
    with timer.phase("reward"):
        texts = [[policy.decode(completion) for completion in group] for group in ids]  # P x G
        lengths = [[len(completion) for completion in group] for group in ids]  # P x G
        asked = policy.tokenizer.batch_decode(prompt_ids)
        scored, verdicts = rewards.score(examples, texts, prompts=asked, lengths=lengths)
    # Clones: of a view, other processes would be sent all that it is a view of.
    logprobs = [group.clone() for group in samples.logprobs.cpu()]  # P of (G, T)
    finished = samples.finished.cpu()
    terms, applicable = fill_not_applicable(scored), ~scored.isnan()  # (P, G, R)
    outputs = {"completion_ids": ids, "texts": texts, "verdicts": verdicts}
    scores = {"reward_terms": terms, "applicable": applicable, "rewards": terms @ rewards.weights}
    drawn = {"sampling_logprobs": logprobs, "allowed": samples.allowed, "finished": finished}
    return Rollout(examples, prompt_ids, **outputs, **drawn, **scores)
