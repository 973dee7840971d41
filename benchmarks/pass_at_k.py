"""How often one of k sampled answers is right: what there is for GRPO to sharpen.

    python -m benchmarks.pass_at_k                                        # the shipped policy
    python -m benchmarks.pass_at_k --adapter runs/all-1/adapter           # after a run

GRPO learns from groups in which some completions are right and some are not. A question that the
policy never gets right in k samples gives no such group. Questions of the dev split, drawn over all
languages; pass@k without bias from n >= k samples (Chen et al. 2021, arXiv 2107.03374, eq. 1).
"""

import argparse
import math
import random
import sys
from pathlib import Path

from tqdm import tqdm

from grpo.checkpoint import load_adapter
from grpo.config import ASSETS
from grpo.lora import lora_folded
from grpo.models import Policy, load_policy
from grpo.prompt import PromptBuilder
from grpo.report import markdown_table
from grpo.rewards import WEIGHTS, Judge, Rewards
from grpo.sampler import sample_groups
from sqlenv import EMBEDDED, LANGUAGES, Example, Sandbox, load_dataset
from sqlenv.errors import exit_code

SAMPLES, BATCH, LONGEST = 16, 16, 96


def pass_at_k(right: int, samples: int, k: int) -> float:
    """The chance that k of the samples, drawn without replacement, hold a right one.

    >>> pass_at_k(1, 4, 2), pass_at_k(0, 4, 2), pass_at_k(3, 4, 2)
    (0.5, 0.0, 1.0)
    """
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def count_right(policy: Policy, rewards: Rewards, examples: list[Example]) -> list[int]:
    """Of ``SAMPLES`` answers to each question, how many are right by execution."""
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
        found += rewards(batch, texts)[..., 0].sum(1).int().tolist()
    return found


def run(arguments: argparse.Namespace) -> None:
    known = {example.db_id for example in load_dataset(EMBEDDED, "en", "train")}
    dev = [example for lang in LANGUAGES for example in load_dataset(EMBEDDED, lang, "dev")]
    random.Random(0).shuffle(dev)
    dev = dev[: arguments.questions]
    policy = load_policy(arguments.model, "cpu", "float32")
    if arguments.adapter:
        load_adapter(policy.model, arguments.adapter)
    with Sandbox() as sandbox, lora_folded(policy.model):
        rewards = Rewards(Judge(sandbox), None, WEIGHTS | {"semantic": 0})
        right = count_right(policy, rewards, dev)
        rewards.close()
    counts = (1, 2, 4, 8, 16)
    rows = [("questions about", "n", *(f"pass@{k}" for k in counts))]
    for label, mine in (("known databases", True), ("unseen databases", False)):
        some = [n for example, n in zip(dev, right) if (example.db_id in known) == mine]
        shares = (sum(pass_at_k(n, SAMPLES, k) for n in some) / len(some) for k in counts)
        rows.append((label, str(len(some)), *(f"{100 * one:.1f}" for one in shares)))
    print(markdown_table(rows))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ASSETS / "policy"))
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--questions", type=int, default=400)
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
