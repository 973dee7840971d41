"""Measures how often execution rewards a wrong answer where the tables have few rows.

    python -m benchmarks.paper_table --experiment poor-3
    python -m benchmarks.poor_databases --run runs/paper/poor-3/GRPO-contrastive-vi-0

The completions that a run sampled are executed on the training databases with N rows in each table
(benchmarks/paper_data.py). Those that return there what gold returns are compared with gold on the
whole database (EX) and on its test suite (TS). If the run had the semantic reward, it is also
counted how often that scores a right completion above a wrong one that execution rewards too, of
all such pairs within a group.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.paper_data import derived
from benchmarks.paper_report import POOR
from grpo.evaluation.measure import load_suites
from grpo.evaluation.rollouts import read_rollouts
from sqlenv import EMBEDDED, Example, ExecutionVerifier, Sandbox, load_dataset
from sqlenv.errors import UserError, exit_code
from sqlenv.metrics.tables import Rows, markdown_table


def asked(dataset: str | Path, groups: list[dict]) -> list[Example]:
    """The question of each group, as it stands in a dataset.

    Raises:
        UserError: a question is not in the dataset.
    """
    examples = {(e.db_id, e.question): e for e in load_dataset(dataset, "vi", "train")}
    for group in groups:
        if (group["db_id"], group["question"]) not in examples:
            raise UserError(f"{dataset}: has no question {group['question']!r}")
    return [examples[group["db_id"], group["question"]] for group in groups]


def right_pairs(scores: np.ndarray, rewarded: np.ndarray, right: np.ndarray) -> tuple[float, int]:
    """In how many pairs of a right and a wrong completion that are both rewarded the right one has
    the higher score, ties counting half, and the number of these pairs. All arguments are (G,).
    """
    difference = scores[rewarded & right][:, None] - scores[rewarded & ~right]
    return float((difference > 0).sum() + 0.5 * (difference == 0).sum()), difference.size


def table(sandbox: Sandbox, groups: list[dict], datasets: Sequence[str] = POOR) -> Rows:
    """A row for each dataset: what execution rewards there of the P x G completions."""
    verifier, count = ExecutionVerifier(sandbox), len(groups[0]["completions"])
    sqls = [completion["sql"] for group in groups for completion in group["completions"]]

    def verify(dataset: str | Path):
        examples = [example for example in asked(dataset, groups) for _ in range(count)]
        return examples, verifier.verify(examples, sqls)

    examples, verdicts = verify(EMBEDDED)
    on_suites = verifier.verify_on_suites(examples, verdicts, load_suites(sandbox, examples))
    right = np.array(on_suites).reshape(-1, count)  # (P, G)
    right_by_ex = np.array([verdict.correct for verdict in verdicts]).reshape(-1, count)
    scores = np.array(
        [[c["terms"].get("semantic", np.nan) for c in group["completions"]] for group in groups]
    )
    rows = [("rows of a table", "rewarded", "right: EX", "right: TS", "pairs", "right one higher")]
    for name in datasets:
        rewarded = np.array([verdict.correct for verdict in verify(derived(name))[1]])
        rewarded = rewarded.reshape(-1, count)
        wins, pairs = np.sum([right_pairs(*each) for each in zip(scores, rewarded, right)], axis=0)
        shares = [rewarded.mean(), right_by_ex[rewarded].mean(), right[rewarded].mean()]
        cells = [f"{100 * share:.1f}" for share in shares]
        higher = f"{100 * wins / pairs:.1f}" if pairs and not np.isnan(scores).any() else ""
        rows.append((name.removeprefix("poor-"), *cells, str(int(pairs)), higher))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="a run of poor-N")

    def run() -> None:
        path = parser.parse_args(argv).run / "rollouts.jsonl"
        groups = list(read_rollouts(path))
        if not groups:
            raise UserError(f"{path}: no completions")
        with Sandbox() as sandbox:
            print(markdown_table(table(sandbox, groups), aligned=True))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
