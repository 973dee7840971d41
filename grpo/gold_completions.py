"""Gold as a member of groups that are all wrong, from which a policy learns nothing otherwise.

In LUFFY (arXiv 2504.14945) an answer of a better policy joins every group; in HPT (arXiv
2509.04419) a question that is answered right too rarely is learned by supervised fine-tuning. Here
gold SQL takes the place of the last completion of a group without a right one, and advantages are
those within this group. Gold was not sampled: its importance ratio is taken as 1 in the
first update of a batch, so that the gradient on it is that of supervised fine-tuning, weighted by
its advantage, and it has no KL term, which is a mean over samples. (LUFFY's ratio is the policy's
probability, reshaped.)
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from grpo.models import Policy
from grpo.prompt import answer_end
from grpo.rewards import Rewards, fill_not_applicable
from grpo.rollout import Rollout


def add_gold(rollout: Rollout, policy: Policy, rewards: Rewards, max_new_tokens: int) -> Rollout:
    """The rollout with gold in its groups that have no right completion, where gold is no longer
    than a completion may be. Log-probs of gold under the sampler are NaN: it was not sampled.
    """
    end = answer_end(policy.tokenizer, policy.eos_ids)
    encode = lambda sql: policy.tokenizer.encode(sql, add_special_tokens=False) + [end]  # noqa: E731
    golds = {
        p: ids
        for p, example in enumerate(rollout.examples)
        if example.gold_sql and not any(verdict.correct for verdict in rollout.verdicts[p])
        if len(ids := encode(example.gold_sql)) <= max_new_tokens
    }
    if not golds:
        return rollout
    groups = list(golds)
    asked = [rollout.examples[p] for p in groups]
    texts = [[example.gold_sql] for example in asked]
    prompts = policy.tokenizer.batch_decode([rollout.prompt_ids[p] for p in groups])
    lengths = [[len(golds[p])] for p in groups]
    scored, verdicts = rewards.score(asked, texts, prompts=prompts, lengths=lengths)  # (P', 1, R)
    lists = {name: list(getattr(rollout, name)) for name in ("completion_ids", "texts", "verdicts")}
    logprobs, finished = list(rollout.sampling_logprobs), rollout.finished.clone()
    terms, applicable = rollout.reward_terms.clone(), rollout.applicable.clone()  # (P, G, R)
    for n, p in enumerate(groups):
        own = {"completion_ids": golds[p], "texts": texts[n][0], "verdicts": verdicts[n][0]}
        for name, last in own.items():
            lists[name][p] = [*lists[name][p][:-1], last]
        logprobs[p] = not_sampled(logprobs[p], len(golds[p]))
        finished[p, -1] = True
        terms[p, -1], applicable[p, -1] = scored[n, 0], ~scored[n, 0].isnan()
    terms = fill_not_applicable(torch.where(applicable, terms, torch.nan))
    return replace(
        rollout, **lists, sampling_logprobs=logprobs, finished=finished, reward_terms=terms,
        applicable=applicable, rewards=terms @ rewards.weights,
    )  # fmt: skip


def not_sampled(logprobs: Tensor, length: int) -> Tensor:
    """(G, T) -> (G, max(T, length)): the last row is NaN."""
    logprobs = F.pad(logprobs, (0, max(0, length - logprobs.shape[1])))
    logprobs[-1] = torch.nan
    return logprobs
