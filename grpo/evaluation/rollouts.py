"""rollouts.jsonl: the sampled groups of a run, one line for each group, for people to read.

    {"step", "lang", "db_id", "question", "gold", "gold_rows", "gold_num_rows", "completions": [
        {"text", "sql", "status", "error", "rows", "num_rows", "terms": {NAME: value}, "reward",
         "advantage", "logprob", "tokens", "finished"}, ...]}

``rows`` are the first rows of the result as text; ``logprob`` is the sum over the completion's
tokens under the policy that sampled it, null for gold that took the place of a completion. A group
that dynamic sampling discarded is there, too.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

from grpo.rollout import Rollout
from sqlenv import Execution, UserError


def group_rows(
    step: int,
    rollout: Rollout,
    advantages: Tensor,
    names: Sequence[str],
    golds: Sequence[Execution | None],
) -> list[dict]:
    """The lines of P groups.

    Args:
        advantages: (P, G) float32, in the order of the rollout's completions.
        names: of the R reward terms.
        golds: the execution of each question's gold SQL; None where there is none.
    """
    rows = []
    for p, (example, gold) in enumerate(zip(rollout.examples, golds)):
        completions = [
            completion_row(rollout, p, g, advantages[p, g].item(), names)
            for g in range(len(rollout.texts[p]))
        ]
        rows.append(
            {
                "step": step,
                "lang": example.lang,
                "db_id": example.db_id,
                "question": example.question,
                "gold": example.gold_sql,
                "gold_rows": gold.head if gold else (),
                "gold_num_rows": gold.num_rows if gold else 0,
                "completions": completions,
            }
        )
    return rows


def completion_row(
    rollout: Rollout, p: int, g: int, advantage: float, names: Sequence[str]
) -> dict:
    """Completion g of group p."""
    verdict, size = rollout.verdicts[p][g], len(rollout.completion_ids[p][g])
    run = verdict.execution or Execution("no SQL")
    logprob = rollout.sampling_logprobs[p][g, :size].sum().item()
    terms = zip(names, rollout.reward_terms[p, g].tolist(), rollout.applicable[p, g].tolist())
    return {
        "text": rollout.texts[p][g],
        "sql": verdict.sql,
        "status": run.status,
        "error": run.error,
        "rows": run.head,
        "num_rows": run.num_rows,
        "terms": {name: round(value, 4) if applies else None for name, value, applies in terms},
        "reward": round(rollout.rewards[p, g].item(), 4),
        "advantage": round(advantage, 4),
        "logprob": None if math.isnan(logprob) else round(logprob, 3),
        "tokens": size,
        "finished": bool(rollout.finished[p, g]),
    }


def append_rollouts(path: Path, rows: list[dict]) -> None:
    """Adds the lines of a step. A kill can leave a part of them, which ``cut_rollouts`` drops."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(lines)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; the last checkpoint is kept") from error


def cut_rollouts(path: Path, steps: int) -> None:
    """Drops the groups of steps after ``steps``, which are sampled again, and half a line."""
    if not path.is_file():
        return
    kept = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n") or json.loads(line)["step"] > steps:
                break
            kept += len(line)
    os.truncate(path, kept)


def read_rollouts(path: Path) -> Iterator[dict]:
    """The groups of a run; nothing where the run keeps none."""
    if path.is_file():
        with open(path, encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))
