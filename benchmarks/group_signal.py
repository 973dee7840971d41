"""What a group of samples has to teach: how often one of k is right, and what the semantic reward
says that the others do not.

    python -m benchmarks.group_signal                                     # the shipped policy
    python -m benchmarks.group_signal --adapter runs/all-1/adapter        # after a run

GRPO learns from groups in which some completions are better than others. A question that the policy
never gets right in k samples has nothing right to prefer; pass@k without bias from n >= k samples
(Chen et al. 2021, arXiv 2107.03374, eq. 1). Questions of the dev split, drawn over all languages.
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
from grpo.evaluation.report import markdown_table
from grpo.lora import lora_folded
from grpo.models import Policy, load_policy
from grpo.prompt import PromptBuilder
from grpo.rewards import WEIGHTS, Judge, Rewards
from grpo.sampler import sample_groups
from sqlenv import EMBEDDED, LANGUAGES, Example, Sandbox, load_dataset
from sqlenv.errors import exit_code

SAMPLES, GROUP, BATCH, LONGEST = 16, 8, 16, 96
EXECUTION, SEMANTIC = (list(WEIGHTS).index(name) for name in ("execution", "semantic"))


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a right one.

    >>> pass_at_k(1, 4, 2), pass_at_k(0, 4, 2), pass_at_k(3, 4, 2)
    (0.5, 0.0, 1.0)
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def sample_rewards(policy: Policy, rewards: Rewards, examples: list[Example]) -> Tensor:
    """The rewards of ``SAMPLES`` answers to each of Q questions, (Q, SAMPLES, R)."""
    prompts, found = PromptBuilder(policy.tokenizer), []
    for start in tqdm(range(0, len(examples), BATCH), unit="batch"):
        batch = examples[start : start + BATCH]
        samples = sample_groups(
            policy.model,
            [prompts(example) for example in batch],
            SAMPLES,
            LONGEST,
            policy.eos_ids,
            seeds=list(range(start, start + len(batch))),
        )
        decode = policy.tokenizer.batch_decode
        texts = [decode(group, skip_special_tokens=True) for group in samples.tokens]
        found.append(rewards(batch, texts))
    return torch.cat(found)


def semantic_signal(terms: Tensor, weights: Tensor) -> dict[str, float]:
    """What the semantic reward changes in P groups; (P, G, R) rewards and their (R,) weights.

    Returns shares of the groups and, of those of both kinds of answers, ``right above wrong``: how
    often it gives the right one of two more, a tie counting half. ``cosine``: how alike the
    advantages with and without it are, where both are there.
    """
    right = terms[..., EXECUTION] > 0  # (P, G)
    mixed = right.any(1) & ~right.all(1)
    others = weights.clone()
    others[SEMANTIC] = 0
    both, without = (group_advantages(terms @ one, "centered") for one in (weights, others))
    speaks, spoke = (one.abs().amax(1) > 0 for one in (both, without))
    alike = torch.cosine_similarity(both, without)[speaks & spoke]
    score = terms[mixed][..., SEMANTIC]
    pairs = right[mixed][:, :, None] & ~right[mixed][:, None, :]  # (P', G, G)
    order = (score[:, :, None] - score[:, None, :]).sign()[pairs]
    return {
        "none right": (~right.any(1)).float().mean().item(),
        "some right": mixed.float().mean().item(),
        "all right": right.all(1).float().mean().item(),
        "only semantic differs": (speaks & ~spoke).float().mean().item(),
        "cosine": alike.mean().item(),
        "right above wrong": (order.mean().item() + 1) / 2,
    }


def report(terms: Tensor, known: Tensor) -> None:
    """Prints the two tables; known (Q,) bool, whether training has the question's database."""
    counts, weights = (1, 2, 4, 8, 16), torch.tensor(list(WEIGHTS.values()))
    passes, signals = [("questions about", "n", *(f"pass@{k}" for k in counts))], []
    for label, mine in (("known databases", known), ("unseen databases", ~known)):
        rights = terms[mine][..., EXECUTION].sum(1).int().tolist()
        shares = (sum(pass_at_k(n, SAMPLES, k) for n in rights) / len(rights) for k in counts)
        passes.append((label, str(len(rights)), *(f"{100 * one:.1f}" for one in shares)))
        groups = terms[mine].unflatten(1, (-1, GROUP)).flatten(0, 1)  # (P, G, R)
        found = semantic_signal(groups, weights)
        signals = signals or [(f"groups of {GROUP} about", "n", *found)]
        signals.append((label, str(len(groups)), *(f"{100 * one:.1f}" for one in found.values())))
    print(markdown_table(passes), markdown_table(signals), sep="\n\n")


def run(arguments: argparse.Namespace) -> None:
    trained = {example.db_id for example in load_dataset(EMBEDDED, "en", "train")}
    dev = [example for lang in LANGUAGES for example in load_dataset(EMBEDDED, lang, "dev")]
    random.Random(0).shuffle(dev)
    dev = dev[: arguments.questions]
    policy = load_policy(arguments.model, "cpu", "float32")
    if arguments.adapter:
        load_adapter(policy.model, arguments.adapter)
    semantic = SemanticReward(ContrastiveEncoder.load(arguments.encoder))
    with Sandbox() as sandbox, lora_folded(policy.model):
        terms = sample_rewards(policy, Rewards(Judge(sandbox), semantic, WEIGHTS), dev)
    report(terms, torch.tensor([example.db_id in trained for example in dev]))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ASSETS / "policy"))
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--encoder", type=Path, default=ASSETS / "encoder")
    parser.add_argument("--questions", type=int, default=400)
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
