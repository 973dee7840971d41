"""Keeps the adapter of the best step so far beside the last one: a run can fall apart after it has
learned. Best by TS on the validation questions where they are measured, otherwise by the mean
training reward of the last steps.
"""

import json
from pathlib import Path

from grpo.checkpoint import save_adapter
from sqlenv.files import write_json

FOLDER, RECORD = "best_adapter", "best.json"
NOISE = 0.02  # of a mean training reward
TS, REWARD = "eval/test_suite", "training reward"


def mean_reward(rows: list[dict], window: int) -> float:
    """The mean reward of the last ``window`` steps of metrics.jsonl."""
    rewards = [row["reward"] for row in rows[-window:]]
    return sum(rewards) / len(rewards)


def best_record(run: Path) -> dict | None:
    """{"step", "by", "value"} of the adapter kept so far."""
    path = run / FOLDER / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def keep_best(run: Path, model, base: str, rows: list[dict], window: int) -> None:
    """Writes the adapter if its value is the highest so far.

    Args:
        rows: of metrics.jsonl, the last one of the step that has just ended.
        window: steps that the training reward is a mean over.
    """
    by = TS if any(TS in row for row in rows) else REWARD
    value = rows[-1].get(TS) if by == TS else mean_reward(rows, window)
    best = best_record(run)
    if value is None or best and best["by"] == by and value <= best["value"]:
        return
    save_adapter(model, run / FOLDER, base)
    write_json(run / FOLDER / RECORD, {"step": rows[-1]["step"], "by": by, "value": value})


def collapse_note(run: Path, rows: list[dict], window: int) -> str | None:
    """A line if the training reward has fallen by more than a tenth, and by more than noise, since
    the best adapter. None where that was chosen by TS.
    """
    best, reward = best_record(run), mean_reward(rows, window)
    if best is None or best["by"] != REWARD:
        return None
    if best["value"] - reward <= max(0.1 * abs(best["value"]), NOISE):
        return None
    return (
        f"the training reward fell from {best['value']:.2f} (up to step {best['step']}) to "
        f"{reward:.2f}: {run / FOLDER} has the weights of that step; evaluate.py --adapter takes it"
    )
