"""Keeps the adapter of the steps with the highest training reward beside the last one. A run can
fall apart after it has learned.
"""

import json
from pathlib import Path

from grpo.checkpoint import save_adapter
from sqlenv.files import write_json

FOLDER, RECORD = "best_adapter", "training_reward.json"
NOISE = 0.02  # of a mean training reward


def mean_reward(rows: list[dict], window: int) -> float:
    """The mean reward of the last ``window`` steps of metrics.jsonl."""
    rewards = [row["reward"] for row in rows[-window:]]
    return sum(rewards) / len(rewards)


def best_record(run: Path) -> dict | None:
    """{"step", "reward"} of the adapter kept so far."""
    path = run / FOLDER / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def keep_best(run: Path, model, base: str, rows: list[dict], window: int) -> None:
    """Writes the adapter if the mean reward of the last ``window`` steps is the highest so far."""
    best, reward = best_record(run), mean_reward(rows, window)
    if best is None or reward > best["reward"]:
        save_adapter(model, run / FOLDER, base)
        write_json(run / FOLDER / RECORD, {"step": rows[-1]["step"], "reward": reward})


def collapse_note(run: Path, rows: list[dict], window: int) -> str | None:
    """A line if the reward has fallen by more than a tenth, and by more than noise, since the best
    adapter.
    """
    best, reward = best_record(run), mean_reward(rows, window)
    if best is None or best["reward"] - reward <= max(0.1 * abs(best["reward"]), NOISE):
        return None
    return (
        f"the training reward fell from {best['reward']:.2f} (up to step {best['step']}) to "
        f"{reward:.2f}: {run / FOLDER} has the weights of that step; evaluate.py --adapter takes it"
    )
