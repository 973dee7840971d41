"""What runs and evaluations write and print: metrics.jsonl, curves.png, tables, CSV, Markdown."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

from grpo.timer import PHASES
from sqlenv import UserError, format_sql
from sqlenv.dataset import is_language
from sqlenv.files import write_file
from sqlenv.metrics.tables import Rows, markdown_table, share_cell, signed_cell, text_table

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


def seconds_of_steps(rows: list[dict]) -> float:
    """The time that the steps with these metrics took."""
    return sum(row[f"{phase}_seconds"] for row in rows for phase in PHASES)


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


def sections(reports: dict[str, dict], difference: dict | None = None) -> dict[str, Rows]:
    """The tables of one ``full_report``, or of two and their difference, by title; shares in
    percent with 95 % intervals.
    """
    if difference:
        (name_a, first), (name_b, second) = reports.items()
        return {
            f"A: {name_a}": share_table(first),
            f"B: {name_b}": share_table(second),
            "B minus A": difference_table(first, second, difference, ("A", "B")),
        }
    (report,) = reports.values()
    tables = {
        "Languages": share_table(report),
        "Hardness": group_table("hardness", report, report["hardness"]),
        "Difficulty": group_table("difficulty", report, report["difficulty"]),
        "Parts": group_table("part", report, report["parts"]),
        "Votes": group_table("samples for the answer", report, report["agreement"]),
        "Errors": error_table(report),
    }
    return {title: rows for title, rows in tables.items() if len(rows) > 1}


def share_table(report: dict) -> Rows:
    """Languages and their average by metric, with the gap to English in right answers, EX and TS;
    a report has it for every metric.
    """
    metrics = list(report["average"])
    gaps = [m for m in metrics if m in ("execution", "test_suite") and report["gap"]]
    rows = [("lang", "n", *(LABELS[m] for m in metrics), *(f"{LABELS[m]} - en" for m in gaps))]
    for lang in [*languages(report), "average"]:
        gap = report["gap"].get(lang)
        signed = (signed_cell(gap[m]) if gap else "" for m in gaps)
        rows.append((*share_row(lang, report[lang]), *signed))
    return rows


def group_table(name: str, report: dict, groups: dict) -> Rows:
    """The shares of groups of questions, such as levels of hardness."""
    rows = [(name, "n", *(LABELS[metric] for metric in report["average"]))]
    return rows + [share_row(group, values) for group, values in groups.items()]


def error_table(report: dict) -> Rows:
    rows = [("error", "n", *languages(report))]
    for name, error in report["errors"].items():
        by_lang = (str(error["lang"].get(lang, 0)) for lang in languages(report))
        rows.append((name, str(error["n"]), *by_lang))
    return rows


def languages(report: dict) -> list[str]:
    return [key for key in report if is_language(key)]


def share_row(name: str, values: dict) -> tuple[str, ...]:
    return (
        name,
        str(next(iter(values.values()))["n"]),
        *(share_cell(value) for value in values.values()),
    )


def difference_table(first: dict, second: dict, difference: dict, names: tuple[str, str]) -> Rows:
    """The paired difference of each language and metric, beside what it is the difference of."""
    rows = [("questions", "metric", "n", *names, "difference")]
    for lang, metrics in difference.items():
        for metric, value in metrics.items():
            shares = share_cell(first[lang][metric]), share_cell(second[lang][metric])
            rows.append((lang, LABELS[metric], str(value["n"]), *shares, signed_cell(value)))
    return rows


def before_after_rows(summary: dict) -> Rows:
    """Before, after and the paired difference of each language and metric, and of each part of the
    questions; ``summary`` is a run's summary.json.
    """
    before, after, difference = (summary[key] for key in ("before", "after", "difference"))
    names = ("before", "after")
    rows = difference_table(before, after, difference, names)
    if parts := summary.get("parts"):  # not in runs of earlier versions
        header, *more = difference_table(
            parts["before"], parts["after"], parts["difference"], names
        )
        rows += [("",) * len(header), *more]
    return rows


def before_after_table(summary: dict) -> str:
    """``before_after_rows`` for the terminal."""
    return text_table(before_after_rows(summary))


def notes(reports: dict[str, dict]) -> Iterator[str]:
    """What the shares leave out, where they depend on chance, and what ran the SQL."""
    for name, report in reports.items():
        for lang, count in report["failed_gold"].items():
            stopped = report["stopped_gold"].get(lang, {})
            parts = ", ".join(f"{n} {status}" for status, n in stopped.items())
            limits = f" (refused or stopped by the sandbox: {parts})" if parts else ""
            yield f"{name}: {lang}: left out {count} questions whose gold query fails{limits}"
        for lang, count in report["arbitrary_gold"].items():
            yield (
                f"{name}: {lang}: {count} questions whose gold result is arbitrary (tied rows, or "
                "a column that is not grouped): other right answers count as wrong"
            )
        if check := report["semantic_of_gold"]:
            yield (
                f"{name}: gold SQL itself has {100 * check['accepted']:.1f} semantic "
                f"({check['count']} questions); that of another question scores lower for "
                f"{100 * check['higher']:.1f} %"
            )
    yield f"the SQL ran on SQLite {next(iter(reports.values()))['sqlite']}"


def markdown(reports: dict[str, dict], difference: dict | None = None) -> str:
    """The tables and notes, and examples of errors."""
    parts = [
        f"## {title}\n\n{markdown_table(rows)}"
        for title, rows in sections(reports, difference).items()
    ]
    parts += notes(reports)
    for name, report in reports.items():
        lines = "\n".join(f"    {line}" for line in example_lines(report))
        parts += [f"## Examples of errors: {name}\n\n{lines}"] if lines else []
    return "\n\n".join(parts) + "\n"


def example_lines(report: dict) -> Iterator[str]:
    for name, error in report["errors"].items():
        for example in error["examples"]:
            yield f"{name}: {example['question']} ({example['lang']}, {example['db_id']})"
            yield from labelled("gold", format_sql(example["gold"]))
            if example["predicted"] is not None:
                yield from labelled("predicted", format_sql(example["predicted"]))
            if example["error"]:
                yield from labelled("error", example["error"])


def labelled(label: str, text: str) -> Iterator[str]:
    """The lines of a text, indented, the first with a label."""
    for number, line in enumerate(text.splitlines()):
        yield f"    {label if number == 0 else '':<11}{line}"


def csv_text(reports: dict[str, dict], difference: dict | None = None) -> str:
    """Everything that is counted, one number a line, under the reports' names."""
    rows = []
    for name, report in reports.items():
        sections = {
            "language": {key: report[key] for key in [*languages(report), "average"]},
            "gap to en": report["gap"],
            "hardness": report["hardness"],
            "difficulty": report["difficulty"],
            "part": report["parts"],
            "votes": report["agreement"],
        }
        rows += [(name, *row) for key, part in sections.items() for row in csv_rows(key, part)]
        for key, error in report["errors"].items():
            rows += [(name, "error", lang, key, n, "", "", "") for lang, n in error["lang"].items()]
        for lang, n in report["failed_gold"].items():
            rows.append((name, "failed gold", lang, "questions", n, "", "", ""))
        for lang, stopped in report["stopped_gold"].items():
            rows += [(name, "stopped gold", lang, key, n, "", "", "") for key, n in stopped.items()]
        for lang, n in report["arbitrary_gold"].items():
            rows.append((name, "arbitrary gold", lang, "questions", n, "", "", ""))
        for database, n in report["skipped"].items():
            rows.append((name, "missing database", database, "questions", n, "", "", ""))
        rows.append((name, "sqlite", "", "version", report["sqlite"], "", "", ""))
    rows += [("difference", *row) for row in csv_rows("language", difference or {})]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("report", "section", "name", "metric", "value", "low", "high", "n"))
    writer.writerows(rows)
    return text.getvalue()


def csv_rows(section: str, part: dict) -> Iterator[tuple]:
    for name, metrics in part.items():
        for metric, value in metrics.items():
            yield section, name, metric, *(value[key] for key in ("value", "low", "high", "n"))


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
        for number, key in enumerate(key for key in keys if key in metrics[0]):
            values = [math.nan if row[key] is None else row[key] for row in metrics]
            window = max(1, len(values) // 12)
            mean = [
                sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window)
                for i in range(len(values))
            ]
            axis.plot(steps, values, color=f"C{number}", alpha=0.25, linewidth=0.8)
            label = key.removeprefix("reward/")
            axis.plot(steps, mean, color=f"C{number}", linewidth=1.8, label=label)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.2)
        if len(keys) > 1:
            axis.legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("step")
    figure.tight_layout()
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)
