"""What a run shows and writes: metrics.jsonl, curves.png and the before/after table."""

import json
import math
import re
from pathlib import Path

from grpo.checkpoint import write_file
from sqlenv.errors import UserError

LABELS = {"valid": "valid", "execution": "EX", "test_suite": "TS", "semantic": "semantic"}


def append_metrics(path: Path, metrics: dict) -> None:
    """Adds a line to metrics.jsonl; a number that is not finite is written as null. A kill can
    leave half a line, which ``read_metrics`` drops.
    """
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in metrics.items()
    }
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}; the last checkpoint is kept") from error


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last newline is unfinished


def keep_metrics(path: Path, steps: int) -> None:
    """Drops the lines of steps after ``steps``: they are taken again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= steps]
    write_file(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))


def summary_writer() -> type:
    """TensorBoard's writer class. Raises UserError where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("--tensorboard needs TensorBoard: pip install tensorboard") from error
    return SummaryWriter


def open_tensorboard(folder: Path, step: int):
    """A TensorBoard writer for ``folder``; what it has from steps after ``step`` is hidden."""
    return summary_writer()(str(folder / "tensorboard"), purge_step=step + 1)


def add_to_tensorboard(writer, metrics: dict) -> None:
    """One point in each curve."""
    for name, value in metrics.items():
        if name != "step" and value is not None:
            writer.add_scalar(name, value, metrics["step"])
    writer.flush()


def cell(value: dict) -> str:
    """A share with its 95 % interval, in percent: ``61.4 (56.1-66.7)``."""
    if value["value"] is None:
        return "-"
    return f"{100 * value['value']:.1f} ({100 * value['low']:.1f}-{100 * value['high']:.1f})"


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns, the first row being the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def report_table(report: dict) -> str:
    """``report[lang][metric]`` as a table of shares in percent with 95 % intervals."""
    metrics = list(next(iter(report.values())))
    rows = [("lang", "n", *(LABELS[m] for m in metrics))]
    rows += [
        (lang, str(values[metrics[0]]["n"]), *(cell(values[m]) for m in metrics))
        for lang, values in report.items()
    ]
    return table(rows)


def before_after_table(summary: dict) -> str:
    """Before, after and the paired difference of each language and metric."""
    rows = [("lang", "metric", "n", "before", "after", "difference")]
    for lang, metrics in summary["before"].items():
        for metric, before in metrics.items():
            difference = summary["difference"][lang][metric]
            signed = "-"
            if difference["value"] is not None:
                signed = "{value:+.1f} ({low:+.1f} to {high:+.1f})".format(
                    **{key: 100 * difference[key] for key in ("value", "low", "high")}
                )
            rows.append(
                (
                    lang,
                    LABELS[metric],
                    str(before["n"]),
                    cell(before),
                    cell(summary["after"][lang][metric]),
                    signed,
                )
            )
    return table(rows)


def plot_curves(path: Path, metrics: list[dict]) -> None:
    """Draws reward, its parts, KL and entropy over the steps; light lines are steps, bold ones
    running means.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = [
        ("total reward", ["reward"]),
        ("reward terms", [key for key in metrics[0] if re.fullmatch(r"reward/(?!.*_std$).*", key)]),
        ("KL to the reference", ["kl"]),
        ("entropy (nats per token)", ["entropy"]),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True)
    steps = [row["step"] for row in metrics]
    for axis, (title, keys) in zip(axes.flat, panels):
        for color, key in zip(
            ("C0", "C1", "C2", "C3", "C4", "C5"), [key for key in keys if key in metrics[0]]
        ):
            values = [math.nan if row[key] is None else row[key] for row in metrics]
            window = max(1, len(values) // 12)
            mean = [
                sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window)
                for i in range(len(values))
            ]
            axis.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
            axis.plot(steps, mean, color=color, linewidth=1.8, label=key.removeprefix("reward/"))
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.2)
        if len(keys) > 1:
            axis.legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)
