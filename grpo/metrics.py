"""The metrics of a training step: means over its tokens, rewards, lengths and speed."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from grpo.distributed.parallel import Distributed
from grpo.kl import token_kl
from grpo.loss import token_weights
from grpo.rollout import Rollout
from grpo.timer import PHASES
from sqlenv import Example


def reduce_metrics(parts: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of all processes as those of one: sums of their shares, maxima of ``*_max``."""
    names = dict.fromkeys(name for part in parts for name in part)
    values = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: (max if name.endswith("_max") else sum)(values[name]) for name in names}


class UpdateMetrics:
    """Adds up, over the micro-batches of one update, the loss and means over its tokens.

    Args:
        mask: (P, G, T) bool, all tokens of the update.
    """

    def __init__(self, mask: Tensor):
        self.shares = token_weights(mask, aggregation="token")  # of a plain mean over tokens
        self.values = {"loss": 0.0, "entropy": 0.0, "sampling_logp_difference": 0.0}

    def add(self, part: slice, loss: Tensor, token_stats: dict[str, Tensor]) -> None:
        """Adds a micro-batch: prompts ``part``, their loss, and (p, G, T) values per token."""
        self.values["loss"] += loss.item()
        shares = self.shares[part, :, : token_stats["ratio"].shape[-1]]  # (p, G, T)
        for name, value in token_stats.items():
            self.values[name] = self.values.get(name, 0.0) + (shares * value).sum().item()
        for name in ("ratio", "sampling_logp_difference"):
            largest = (token_stats[name] * (shares > 0)).max().item()
            self.values[f"{name}_max"] = max(self.values.get(f"{name}_max", 0.0), largest)


def mean_over_updates(updates: list[dict[str, float]], tokens: list[int]) -> dict[str, float]:
    """Means over the updates of a step, weighted by their tokens; maxima of ``*_max``."""
    result = {}
    for name in updates[0]:
        values = [(u[name], max(1, n)) for u, n in zip(updates, tokens) if name in u]
        if name.endswith("_max"):
            result[name] = max(value for value, _ in values)
        else:
            result[name] = sum(v * n for v, n in values) / sum(n for _, n in values)
    return result


def sampler_gap(logprobs: Tensor, sampling_logprobs: list[Tensor]) -> Tensor:
    """|trainer - sampler| of the sampled tokens' log-probs, (P, G, T): how on-policy they are.

    Args:
        logprobs: (P, G, T) float32.
        sampling_logprobs: P tensors (G, T'), T' differs between groups; NaN for tokens that were
            not sampled (``--gold-completions``), whose gap is 0.
    """
    gap = torch.zeros_like(logprobs)
    for p, sampled in enumerate(sampling_logprobs):
        size = min(sampled.shape[-1], gap.shape[-1])
        sampled = sampled[:, :size].to(gap.device)
        difference = (logprobs[p, :, :size] - sampled).abs()
        gap[p, :, :size] = torch.where(sampled.isnan(), 0.0, difference)
    return gap


def first_group_kl(
    rollout: Rollout,
    parts: list[slice],
    logprobs: list[Tensor],
    reference: Callable[[Rollout, slice], Tensor],
    distributed: Distributed,
    *,
    include_truncated: bool = True,
) -> float:
    """The metric ``kl`` where no reference pass is made (``beta`` is 0): the mean of k3 over the
    tokens of the step's first group, which costs one P-th of a pass. A noisy figure: look at its
    mean over steps. The process that has the first group computes it.

    Args:
        parts: this process's micro-batches.
        logprobs: (p, G, T) float32 of each, under the policy that sampled.
        reference: gives the log-probs of some prompts' completions under the reference.
        include_truncated: whether completions without an end count, as in the loss.
    """
    values = []
    if parts and parts[0].start == 0:
        ref_logprobs = reference(rollout, slice(0, 1))  # (1, G, T)
        size = ref_logprobs.shape[-1]  # T of the micro-batch may be that of a longer group
        kl = token_kl(logprobs[0][:1, :, :size], ref_logprobs, torch.ones(()), kl="k3")
        mask = rollout.completion_mask(include_truncated=include_truncated)[:1, :, :size]
        counted = mask & rollout.sampled_mask()[:1, :, None]
        values.append((kl.cpu() * counted).sum().item() / max(1, int(mask.sum())))
    return distributed.all_gather_list(values)[0]


def reward_metrics(rollout: Rollout, names: list[str]) -> dict[str, float]:
    """Mean and std of the reward and of each term. The reward's std is the mean over groups of the
    std within a group; a term's is over the whole batch.
    """
    metrics = {
        "reward": rollout.rewards.mean().item(),
        "reward_std": rollout.rewards.std(1).mean().item(),
    }
    for r, name in enumerate(names):
        metrics[f"reward/{name}"] = rollout.reward_terms[..., r].mean().item()
        metrics[f"reward/{name}_std"] = rollout.reward_terms[..., r].std().item()
    return metrics


def language_metrics(rollout: Rollout, examples: list[Example]) -> dict[str, float]:
    """``language/<lang>``: the mean reward of each language in the batch, if the training questions
    ``examples`` are in several languages.
    """
    if len({example.lang for example in examples}) < 2:
        return {}
    langs = [example.lang for example in rollout.examples]
    groups = {
        lang: [p for p, own in enumerate(langs) if own == lang] for lang in sorted(set(langs))
    }
    return {f"language/{lang}": rollout.rewards[ps].mean().item() for lang, ps in groups.items()}


def completion_lengths(rollout: Rollout) -> Tensor:
    """(P G,) float32 numbers of tokens."""
    return torch.tensor([float(len(ids)) for group in rollout.completion_ids for ids in group])


def rollout_metrics(
    rollout: Rollout, names: list[str], examples: list[Example]
) -> dict[str, float]:
    """Rewards, completion lengths in tokens, and the share of completions that hit the limit."""
    return {
        **reward_metrics(rollout, names),
        **language_metrics(rollout, examples),
        "completion_length": completion_lengths(rollout).mean().item(),
        "truncated": 1 - rollout.finished.float().mean().item(),
        "repeated_answers": repeated_answers(rollout),
    }


def repeated_answers(rollout: Rollout) -> float:
    """The share of groups whose commonest SQL is that of a group for another question, too: a
    policy that answers everything alike agrees with itself, and has learned nothing. Questions with
    the same gold SQL, such as translations, are one.
    """
    asked_by: dict[str, set[tuple[str, str]]] = {}
    answers = []
    for example, verdicts in zip(rollout.examples, rollout.verdicts):
        ((sql, _),) = Counter(verdict.sql for verdict in verdicts).most_common(1)
        answers.append(sql)
        if sql is not None:
            asked = example.db_id, example.gold_sql or example.question
            asked_by.setdefault(sql, set()).add(asked)
    return sum(len(asked_by.get(sql, ())) > 1 for sql in answers) / len(answers)


def speed_metrics(
    sampled: Rollout, trained: Rollout, groups_sampled: int, clocks: list[dict[str, float]]
) -> dict[str, float]:
    """Seconds and tokens per second of each phase.

    Args:
        trained: the groups of ``sampled`` that the update is made of.
        groups_sampled: with those that dynamic sampling discarded, which cost time, too.
        clocks: seconds of each phase, for each process; the slowest counts.
    """
    drawn = completion_lengths(sampled).sum().item() * groups_sampled / len(sampled.examples)
    metrics = {}
    for name, tokens in zip(PHASES, (drawn, drawn, completion_lengths(trained).sum().item())):
        seconds = max(clock[name] for clock in clocks)
        metrics[f"{name}_seconds"] = seconds
        metrics[f"{name}_tokens_per_second"] = tokens / seconds
    return metrics
