"""The output of an encoder's evaluation: Markdown tables and a plot."""

from pathlib import Path

from encoder.batches import KINDS
from sqlenv.dataset import is_language
from sqlenv.files import write_file
from sqlenv.metrics.tables import Rows, markdown_table, share_cell

LABELS = {
    "mean_over_kinds": "mean over kinds",
    "all_hard_negatives": "all hard negatives",
    "other_sql": "other SQL of the database",
    "mrr": "MRR",
    "recall@1": "recall@1",
    "english_recall@1": "recall@1 of the English question",
    "gold_too_long": "gold too long to be read",
    "and_or": "AND / OR",
    "set_operation": "set operation",
}
SHARES = (*KINDS, "mean_over_kinds", "all_hard_negatives", "other_sql")
RETRIEVAL = ("mrr", "recall@1", "english_recall@1", "gold_too_long")


def cell(share: dict | None) -> str:
    """The share with its interval in whole percent: the many columns leave no room for more."""
    return share_cell(share, digits=0)


def languages(report: dict) -> list[str]:
    """The languages that a report has."""
    return [key for key in report if is_language(key)]


def text_of(report: dict) -> str:
    """The report as Markdown tables."""
    tables = {
        "Gold above": metric_table(report, SHARES),
        "Retrieval": metric_table(report, RETRIEVAL),
        "Calibration": calibration_table(report.get("calibration")),
        "Calibration error": row_table("ECE", (report.get("calibration") or {}).get("ece")),
        "Attacks above gold": gaming_table(report["gaming"]),
        "Right above wrong answers": row_table("AUC", report.get("auc")),
    }
    parts = [
        f"{title}\n\n{markdown_table(rows, aligned=True)}\n"
        for title, rows in tables.items()
        if rows
    ]
    return "\n".join(
        [*parts, "shares in percent with 95 % intervals; n: how many they are shares of"]
    )


def metric_table(report: dict, metrics: tuple[str, ...]) -> Rows:
    """Metrics by language; n is over all languages."""
    columns = [*languages(report), "average"]
    rows = []
    for metric in metrics:
        if metric in report.get("average", {}):
            cells = (cell(report[column].get(metric)) for column in columns)
            n = report["average"][metric]["n"]
            rows.append((LABELS.get(metric, metric), *cells, str(n)))
    return [("", *columns, "n"), *rows] if rows else []


def calibration_table(calibration: dict | None) -> Rows:
    """A row for each bin of scores."""
    if not calibration:
        return []
    rows = [
        (
            f"{scores['low']:.1f}-{scores['high']:.1f}",
            f"{100 * scores['score']:.1f}",
            cell(scores["right"]),
            str(scores["right"]["n"]),
        )
        for scores in calibration["bins"]
    ]
    return [("score", "mean score", "right", "pairs"), *rows]


def row_table(name: str, values: dict | None) -> Rows:
    """A row of shares, and a row of their n."""
    if not values:
        return []
    heading = ("", *(key.replace("_", " ") for key in values))
    ns = (str(share["n"]) for share in values.values())
    return [heading, (name, *map(cell, values.values())), ("n", *ns)]


def gaming_table(gaming: dict) -> Rows:
    """A row for each attack, then the shares of questions where none succeeds."""
    rows = [
        (
            name.replace("_", " "),
            "yes" if share["trained"] else "no",
            cell(share),
            str(share["n"]),
        )
        for name, share in gaming["attacks"].items()
    ]
    for label, key in (("none of them", "none_above"), ("none held out", "none_held_out_above")):
        rows.append((label, "", cell(gaming[key]), str(gaming[key]["n"])))
    return [("attack", "in training", "above gold", "n"), *rows]


def plot(path: Path, report: dict) -> None:
    """Plots the shares of gold above its rivals and, if there is one, the calibration curve."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    calibration = report.get("calibration")
    figure, axes = plt.subplots(
        1,
        1 + bool(calibration),
        figsize=(7.5 + 4.5 * bool(calibration), 5.6),
        squeeze=False,
        width_ratios=[1.6, 1][: 1 + bool(calibration)],
    )
    plot_shares(axes[0, 0], report)
    if calibration:
        plot_calibration(axes[0, 1], calibration)
    figure.tight_layout()
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def plot_shares(axis, report: dict) -> None:
    """A bar with its interval for the average of the languages, and a dot for each language."""
    average = report.get("average", {})
    metrics = [metric for metric in SHARES if metric in average]
    for place, metric in enumerate(metrics):
        value, low, high = (100 * average[metric][key] for key in ("value", "low", "high"))
        color = "C0" if metric in KINDS else "0.45"
        axis.barh(place, value, color=color, alpha=0.35, height=0.7)
        axis.plot([low, high], [place, place], color=color, linewidth=2.5)
    langs = languages(report)
    for number, lang in enumerate(langs):
        shown = [i for i, metric in enumerate(metrics) if metric in report[lang]]
        # Each language has its own height within a bar, so that equal values do not overlap.
        places = [i + 0.5 * ((number + 0.5) / len(langs) - 0.5) for i in shown]
        shares = [100 * report[lang][metrics[i]]["value"] for i in shown]
        axis.scatter(shares, places, s=16, color=f"C{number + 1}", label=lang, zorder=3)
    labels = [f"{LABELS.get(metric, metric)} ({average[metric]['n']})" for metric in metrics]
    axis.set_yticks(range(len(metrics)), labels)
    axis.invert_yaxis()
    axis.axvline(50, color="0.3", linewidth=0.8, linestyle=":")
    axis.set_xlim(0, 101)
    axis.set_xlabel("gold above, % of (n) questions; bar: average, line: its 95 % interval")
    axis.grid(axis="x", alpha=0.2)
    axis.legend(
        fontsize=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=max(1, len(langs)),
        frameon=False,
    )


def plot_calibration(axis, calibration: dict) -> None:
    """The share that is right in each bin of scores, and the diagonal."""
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle="--")
    scores = [row["score"] for row in calibration["bins"]]
    right = [row["right"] for row in calibration["bins"]]
    values = [share["value"] for share in right]
    errors = [
        [share["value"] - share["low"] for share in right],
        [share["high"] - share["value"] for share in right],
    ]
    axis.errorbar(scores, values, yerr=errors, marker="o", markersize=4, capsize=2, color="C0")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlabel("calibrated score")
    axis.set_ylabel("share that is right")
    if "all" in calibration["ece"]:
        axis.set_title(
            f"expected calibration error {cell(calibration['ece']['all'])} %",
            fontsize=9,
        )
    axis.grid(alpha=0.2)
