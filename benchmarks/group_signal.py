"""Measures what a group of samples can teach: how often one of k samples is right, and how the
semantic reward changes the advantages.

    python -m benchmarks.group_signal                                     # the shipped policy
    python -m benchmarks.group_signal --adapter runs/all-1/adapter        # after a run
    python -m benchmarks.group_signal --runs runs/all-1 runs/all-2        # what runs have sampled

GRPO learns from groups in which some completions are better than others. A question that the policy
never gets right in k samples has no right answer to prefer. pass@k is the unbiased estimate from
n >= k samples (Chen et al. 2021, arXiv 2107.03374, eq. 1). Questions are drawn from the dev split
of all languages; with --runs the groups are those in the runs' rollouts.jsonl.
"""

import argparse
import math
import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from encoder import ContrastiveEncoder, SemanticReward
from grpo.advantages import group_advantages
from grpo.checkpoint import load_adapter
from grpo.config import ASSETS
from grpo.evaluation.rollouts import read_rollouts
from grpo.lora import lora_merged
from grpo.models import Policy, load_policy
from grpo.prompt import PromptBuilder
from grpo.rewards import WEIGHTS, ExecutionVerifier, Rewards
from grpo.sampler import sample_groups
from sqlenv import EMBEDDED, Example, Sandbox, load_dataset
from sqlenv.embedded import LANGUAGES
from sqlenv.errors import UserError, exit_code
from sqlenv.metrics.tables import markdown_table

SAMPLES, GROUP_SIZE, BATCH, MAX_NEW_TOKENS = 16, 8, 16, 96
EXECUTION, SEMANTIC = (list(WEIGHTS).index(name) for name in ("execution", "semantic"))


def pass_at_k(right: int, *, samples: int, k: int) -> float:
    """The probability that k of the samples, drawn without replacement, include a right one.

    >>> [pass_at_k(right, samples=4, k=2) for right in (1, 0, 3)]
    [0.5, 0.0, 1.0]
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def sample_rewards(policy: Policy, rewards: Rewards, examples: list[Example]) -> Tensor:
    """The rewards of ``SAMPLES`` answers to each of Q questions, (Q, SAMPLES, R)."""
    build_prompt, terms = PromptBuilder(policy.tokenizer), []
    for start in tqdm(range(0, len(examples), BATCH), unit="batch"):
        batch = examples[start : start + BATCH]
        samples = sample_groups(
            policy.model,
            [build_prompt(example) for example in batch],
            group_size=SAMPLES,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_ids=policy.eos_ids,
            seeds=list(range(start, start + len(batch))),
        )
        decode = policy.tokenizer.batch_decode
        texts = [decode(group, skip_special_tokens=True) for group in samples.completion_ids]
        terms.append(rewards(batch, texts))
    return torch.cat(terms)


def semantic_signal(terms: Tensor, weights: Tensor) -> dict[str, float]:
    """How the semantic reward changes the advantages.

    Args:
        terms: (P, G, R), the reward terms of P groups.
        weights: (R,), their weights.

    Returns:
        Shares from 0 to 1: ``none right``, ``some right`` and ``all right`` of the groups; ``only
        semantic differs``, of groups with zero variance without the semantic reward and some with
        it. ``cosine``, the mean similarity of the advantages with and without it, over groups that
        have variance both ways. ``right above wrong``, of the pairs of a right and a wrong answer
        in a group those in which it scores the right one higher (a tie counts half).
    """
    right = terms[..., EXECUTION] > 0  # (P, G)
    mixed = right.any(1) & ~right.all(1)
    without_semantic = weights.clone()
    without_semantic[SEMANTIC] = 0
    full = group_advantages(terms @ weights, kind="centered")  # (P, G)
    partial = group_advantages(terms @ without_semantic, kind="centered")
    full_differs, partial_differs = (values.abs().amax(1) > 0 for values in (full, partial))
    cosine = torch.cosine_similarity(full, partial)[full_differs & partial_differs]
    score = terms[mixed][..., SEMANTIC]
    pairs = right[mixed][:, :, None] & ~right[mixed][:, None, :]  # (P', G, G)
    order = (score[:, :, None] - score[:, None, :]).sign()[pairs]
    return {
        "none right": (~right.any(1)).float().mean().item(),
        "some right": mixed.float().mean().item(),
        "all right": right.all(1).float().mean().item(),
        "only semantic differs": (full_differs & ~partial_differs).float().mean().item(),
        "cosine": cosine.mean().item(),
        "right above wrong": (order.mean().item() + 1) / 2,
    }


def sampled_terms(run: Path) -> Tensor:
    """(P, G, R), the reward terms of the groups that a run has kept.

    Raises:
        UserError: it has none, or not with the default rewards.
    """
    groups = [
        [[answer["terms"].get(name) for name in WEIGHTS] for answer in group["completions"]]
        for group in read_rollouts(run / "rollouts.jsonl")
    ]
    if not groups or any(None in terms for group in groups for terms in group):
        raise UserError(f"{run}: has no groups with the rewards {', '.join(WEIGHTS)}")
    return torch.tensor(groups)


def report_runs(runs: list[Path]) -> None:
    """Prints a row for each run, and one for all of them."""
    terms, weights, rows = [sampled_terms(run) for run in runs], list(WEIGHTS.values()), []
    for label, groups in zip([*(run.name for run in runs), "all"], [*terms, torch.cat(terms)]):
        signal = semantic_signal(groups, torch.tensor(weights))
        rows = rows or [("groups of", "n", *signal)]
        shares = (f"{100 * share:.1f}" for share in signal.values())
        rows.append((label, str(len(groups)), *shares))
    print(markdown_table(rows))


def report(terms: Tensor, parts: list[str]) -> None:
    """Prints the two tables.

    Args:
        terms: (Q, SAMPLES, R), the reward terms of the samples of each question.
        parts: the part of dev that each question belongs to.
    """
    counts, weights = (1, 2, 4, 8, 16), torch.tensor(list(WEIGHTS.values()))
    passes, signals = [("questions", "n", *(f"pass@{k}" for k in counts))], []
    for label in sorted(set(parts)):
        mask = torch.tensor([part == label for part in parts])
        rights = terms[mask][..., EXECUTION].sum(1).int().tolist()
        totals = [sum(pass_at_k(n, samples=SAMPLES, k=k) for n in rights) for k in counts]
        shares = (f"{100 * total / len(rights):.1f}" for total in totals)
        passes.append((label, str(len(rights)), *shares))
        groups = terms[mask].unflatten(1, (-1, GROUP_SIZE)).flatten(0, 1)  # (P, G, R)
        signal = semantic_signal(groups, weights)
        signals = signals or [(f"groups of {GROUP_SIZE}", "n", *signal)]
        shares = (f"{100 * share:.1f}" for share in signal.values())
        signals.append((label, str(len(groups)), *shares))
    print(markdown_table(passes), markdown_table(signals), sep="\n\n")


def run(arguments: argparse.Namespace) -> None:
    if arguments.runs:
        report_runs(arguments.runs)
        return
    dev = [example for lang in LANGUAGES for example in load_dataset(EMBEDDED, lang, "dev")]
    random.Random(0).shuffle(dev)
    dev = dev[: arguments.questions]
    policy = load_policy(arguments.model, "cpu", "float32")
    if arguments.adapter:
        load_adapter(policy.model, arguments.adapter)
    semantic = SemanticReward(ContrastiveEncoder.load(arguments.encoder))
    with Sandbox() as sandbox, lora_merged(policy.model):
        rewards = Rewards(ExecutionVerifier(sandbox), semantic, WEIGHTS)
        terms = sample_rewards(policy, rewards, dev)
    report(terms, [example.part for example in dev])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ASSETS / "policy"))
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--encoder", type=Path, default=ASSETS / "encoder")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--runs", type=Path, nargs="+", help="instead of sampling")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
