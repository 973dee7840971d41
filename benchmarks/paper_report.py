"""Fills docs/results.md from the measured cells: tables with intervals, and curves.

    python -m benchmarks.paper_table --report

The text of docs/results.md is written by hand; what stands between `<!-- NAME -->` and
`<!-- end -->` is generated here. Intervals are bootstrap intervals over gold queries (a question
and its translations are drawn together) and, where there are several, over seeds. Rows are compared
resample by resample, on the same questions.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.fill import fill
from benchmarks.paper_cells import LANGUAGE_CURVES, METRICS, is_current, read_cells
from sqlenv import EMBEDDED, UserError, load_dataset
from sqlenv.embedded import LANGUAGES
from sqlenv.files import write_file
from sqlenv.metrics.bootstrap import seed_weights, summary
from sqlenv.metrics.tables import Rows, markdown_table
from sqlenv.metrics.tables import share_cell as share_text
from sqlenv.metrics.tables import signed_cell as difference_text

RESAMPLES = 2000
MAIN = ("zero-shot", "SFT policy", "larger SFT policy", "GRPO", "GRPO + contrastive")
PARTS = ("known schema", "new schema", "new words")  # of the embedded dev questions
AMOUNTS = ("300 examples", "1000 examples", "GRPO + contrastive", "three passes", "five passes")
POOR = ("poor-3", "poor-10", "poor-30", "poor-all")
PAPER = {  # averages over seven languages, arXiv 2510.13827: "execution" / "semantic" accuracy
    "SFT policy": "61.4 / 19.4 (zero-shot)",
    "larger SFT policy": "81.4 / 68.6 (zero-shot)",
    "GRPO": "87.4 / 52.3",
    "GRPO + contrastive": "88.9 / 59.1",
}


@dataclass
class Means:
    """The shares of a row of the table.

    Attributes:
        value: (L, M), by language and metric, from 0 to 1.
        resampled: (RESAMPLES, L, M), the same of each bootstrap resample.
        langs: the L languages.
        seeds: number of seeds that the shares are the mean of.
        n: number of questions, over all languages.
        golds: number of their gold queries; 0 for differences.
    """

    value: np.ndarray
    resampled: np.ndarray
    langs: list[str]
    seeds: int
    n: int
    golds: int = 0

    def minus(self, other: "Means") -> "Means":
        """The difference, resample by resample, of two rows over the same questions."""
        value, resampled = self.value - other.value, self.resampled - other.resampled
        return Means(value, resampled, self.langs, self.seeds, self.n)

    def select(self, lang: str) -> "Means":
        """The same for one language."""
        i = self.langs.index(lang)
        value, resampled = self.value[i : i + 1], self.resampled[:, i : i + 1]
        return Means(value, resampled, [lang], self.seeds, self.n // len(self.langs), self.golds)

    def average(self, metric: str) -> dict:
        """{"value", "low", "high", "n"} of the mean over languages."""
        m, resampled = list(METRICS).index(metric), self.resampled.mean(1)
        more = {"independent": self.golds}
        return summary(self.value[:, m].mean(), resampled[:, m], self.n, **more)

    def share(self, lang: str, metric: str) -> dict:
        """{"value", "low", "high", "n"} in one language."""
        i, m = self.langs.index(lang), list(METRICS).index(metric)
        return summary(self.value[i, m], self.resampled[:, i, m], self.n, independent=self.golds)


@cache
def parts() -> dict[str, np.ndarray]:
    """Which of the Q embedded dev questions are in each part of dev: part -> (Q,) bool."""
    names = np.array([example.part for example in load_dataset(EMBEDDED, "en", "dev")])
    return {name: names == name for name in PARTS}


@cache
def draws(count: int) -> np.ndarray:
    """How often each of ``count`` gold queries is drawn in each resample, (RESAMPLES, count) int.
    All rows of the table get the same draws, so that differences are paired.
    """
    even = np.full(count, 1 / count)
    return np.random.default_rng(count).multinomial(count, even, RESAMPLES)


def means(cells: list[dict], questions: np.ndarray | None = None) -> Means:
    """The mean over the seeds of a row.

    Args:
        cells: the S cells of the row, measured on the same Q questions.
        questions: (Q,) bool, the questions to count; all without it.
    """
    clusters = np.array(cells[0]["golds"])
    counted = np.ones(len(clusters), bool) if questions is None else questions
    langs = [lang for lang in LANGUAGES if all(lang in cell["outcomes"] for cell in cells)]
    bits = np.array(
        [
            [[list(map(int, cell["outcomes"][lang][m])) for m in METRICS] for lang in langs]
            for cell in cells
        ],
        dtype=float,
    )[..., counted]  # (S, L, M, Q)
    numbers = np.unique(clusters[counted], return_inverse=True)[1]
    count = numbers.max() + 1
    sums = np.zeros((count, *bits.shape[:3]))
    np.add.at(sums, numbers, bits.transpose(3, 0, 1, 2))  # (C, S, L, M)
    sizes = np.bincount(numbers)
    drawn = draws(count)  # (R, C)
    shares = np.tensordot(drawn, sums, 1) / (drawn @ sizes)[:, None, None, None]  # (R, S, L, M)
    seeds = len(cells)
    resampled = np.einsum("rs,rslm->rlm", seed_weights(seeds, RESAMPLES), shares)
    return Means(bits.mean((0, 3)), resampled, langs, seeds, int(counted.sum()) * len(langs), count)


class Results:
    """The cells of an experiment, by row.

    Raises:
        UserError: the cells are of different questions or languages.
    """

    def __init__(self, folder: Path):
        self.rows: dict[str, list[dict]] = {}
        cells = read_cells(folder)
        if len({tuple(cell["golds"]) for cell in cells}) > 1:
            raise UserError(f"{folder}: has cells of different questions; measure one or the other")
        if len(kinds := {cell["lang"] for cell in cells}) > 1:
            kinds = " and of ".join(sorted(kinds))
            raise UserError(f"{folder}: has cells of {kinds} languages; measure one or the other")
        if len({frozenset(cell["outcomes"]) for cell in cells}) > 1:
            raise UserError(
                f"{folder}: has cells measured in different languages; give all the same --measure"
            )
        for cell in cells:
            self.rows.setdefault(cell["row"], []).append(cell)

    def main(self, questions: np.ndarray | None = None) -> Iterator[tuple[str, Means]]:
        """Yields name and shares of each main row that was measured."""
        for name in MAIN:
            if name in self.rows:
                yield name, means(self.rows[name], questions)


def main_table(results: Results) -> Rows:
    """All metrics of the main rows, the mean over languages, beside the paper's."""
    names = [name for name in MAIN if name in results.rows]
    head, *rows = shares_table(results, names)
    paper = [(*row, PAPER.get(row[0], "")) for row in rows]
    return [(*head, "the paper's execution / semantic"), *paper]


def shares_table(results: Results, names: list[str]) -> Rows:
    """All metrics of rows, the mean over languages."""
    rows = [("row", "seeds", *METRICS.values())]
    for name in names:
        row = means(results.rows[name])
        shares = (share_text(row.average(metric)) for metric in METRICS)
        rows.append((name, str(row.seeds), *shares))
    return rows


def part_table(results: Results, pairs: list[tuple[str, str]], metric: str) -> Rows:
    """One metric of the main rows on each part of dev, and differences of (after, before); no row
    if other questions than those of dev were measured.
    """
    dev = len(next(iter(parts().values())))
    if any(len(cell["golds"]) != dev for cells in results.rows.values() for cell in cells):
        return []
    rows = [(METRICS[metric], *parts())]
    by_part = [dict(results.main(questions)) for questions in parts().values()]
    for name in by_part[0]:
        rows.append((name, *(share_text(part[name].average(metric)) for part in by_part)))
    for after, before in pairs:
        gained = (gain(results, after=after, before=before, questions=q) for q in parts().values())
        shares = (difference_text(each.average(metric)) for each in gained)
        rows.append((f"{after} - {before}", *shares))
    return rows


def same_seeds(first: list[dict], second: list[dict]) -> tuple[list[dict], list[dict]]:
    """The cells of two rows to compare: those with the seeds that both have, which saw the same
    questions in the same order; all cells if a row is a policy that was only measured.
    """
    shared = {cell["seed"] for cell in first} & {cell["seed"] for cell in second}
    if not shared or not all(cell["curve"] for cell in first + second):
        return first, second
    return tuple([cell for cell in row if cell["seed"] in shared] for row in (first, second))


def gain(
    results: Results, *, after: str, before: str, questions: np.ndarray | None = None
) -> Means:
    """The paired difference of two rows, on all or some of the (Q,) questions."""
    cells_after, cells_before = same_seeds(results.rows[after], results.rows[before])
    return means(cells_after, questions).minus(means(cells_before, questions))


def difference_table(results: Results, pairs: list[tuple[str, str]]) -> Rows:
    """Differences between the rows of each (after, before), the mean over languages. Pairs with a
    row that was not measured are left out.
    """
    rows = [("difference", *METRICS.values())]
    for after, before in pairs:
        if after in results.rows and before in results.rows:
            gained = gain(results, after=after, before=before)
            shares = (difference_text(gained.average(metric)) for metric in METRICS)
            rows.append((f"{after} - {before}", *shares))
    return rows


def language_table(results: Results, metric: str) -> Rows:
    """One metric of the main rows in each language."""
    rows = []
    for name, row in results.main():
        rows = rows or [(METRICS[metric], *row.langs)]
        rows.append((name, *(share_text(row.share(lang, metric)) for lang in row.langs)))
    return rows


def gap_table(results: Results) -> Rows:
    """EX of each language minus EX of the first, English, on the same questions."""
    rows = []
    for name, row in results.main():
        first, *others = row.langs
        rows = rows or [(f"EX - EX of {first}", *others)]
        gap = row.minus(row.select(first))
        rows.append((name, *(difference_text(gap.share(lang, "execution")) for lang in others)))
    return rows


def gain_table(results: Results, pairs: list[tuple[str, str]], metric: str) -> Rows:
    """Differences between the rows of each (after, before), one metric in each language."""
    rows = []
    for after, before in pairs:
        gained = gain(results, after=after, before=before)
        rows = rows or [(f"{METRICS[metric]}, difference", *gained.langs)]
        shares = (difference_text(gained.share(lang, metric)) for lang in gained.langs)
        rows.append((f"{after} - {before}", *shares))
    return rows


def plot(results: Results, path: Path) -> None:
    """Draws rewards over training, for each row and seed; and the total by language."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, key in zip(axes, ("reward/execution", "reward/semantic")):
        for number, name in enumerate(MAIN):
            for cell in results.rows.get(name, []):
                values = cell["curve"].get(key, [])
                label = name if cell["seed"] == 0 and values else None
                place = [(i + 0.5) / len(values) for i in range(len(values))]
                axis.plot(place, values, color=f"C{number}", label=label, linewidth=1.2)
        axis.set_title(key, fontsize=10)
    plot_languages(results.rows.get(MAIN[-1], []), axes[2])
    for axis in axes:
        axis.set_xlabel("share of training")
        axis.grid(alpha=0.2)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, ncols=2)
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def plot_languages(cells: list[dict], axis) -> None:
    """Draws the total reward by language: means over seeds, smoothed over a quarter of training."""
    for lang, key in zip(LANGUAGES, LANGUAGE_CURVES):
        curves = [cell["curve"][key] for cell in cells if key in cell["curve"]]
        if curves:
            values = np.convolve(np.mean(curves, 0), np.ones(6) / 6, "valid")
            place = (np.arange(len(values)) + 3) / (len(values) + 5)
            axis.plot(place, values, label=lang, linewidth=1.2)
    axis.set_title(f"total reward by language, {MAIN[-1]}", fontsize=10)


def experiment_tables(results: Results) -> str:
    """The tables of an experiment of its own: its rows, and what each gains over the one before, or
    over the SFT policy where there are other rows than those of the main table.
    """
    names = [name for name in MAIN if name in results.rows]
    others = [name for name in results.rows if name not in MAIN]
    if others:
        names += others
        rest = [name for name in names if name != "SFT policy"]
        pairs = [(name, "SFT policy") for name in rest] if len(rest) < len(names) else []
    else:
        pairs = [(after, before) for before, after in itertools.pairwise(names)]
        if "SFT policy" in names[:-2]:
            pairs.append((names[-1], "SFT policy"))
    tables = [shares_table(results, names), difference_table(results, pairs)]
    langs = {lang for name in names for cell in results.rows[name] for lang in cell["outcomes"]}
    if len(langs) > 1:
        for metric in ("execution", "test_suite"):
            tables += [language_table(results, metric), gain_table(results, pairs, metric)]
    return "\n\n".join(map(markdown_table, filter(None, tables)))


def poor_table(folders: dict[str, Results]) -> Rows:
    """Training on databases with fewer rows: what TS the rewards give, what the contrastive and the
    test-suite reward add, and how much of what execution rewards is right on the whole database.
    """
    rows = [
        ("rows of a table", "GRPO: TS", "+ contrastive", "+ test suite", "right: EX", "right: TS")
    ]
    for name, results in folders.items():
        cells = results.rows
        if "GRPO" not in cells:
            continue
        added = (
            difference_text(gain(results, after=after, before="GRPO").average("test_suite"))
            if after in cells
            else ""
            for after in ("GRPO + contrastive", "GRPO + test suite")
        )
        right = np.mean([list(cell["rewarded"].values()) for cell in cells["GRPO"]], axis=0)
        start = share_text(means(cells["GRPO"]).average("test_suite"))
        right = (f"{100 * share:.1f}" for share in right)
        rows.append((name.removeprefix("poor-"), start, *added, *right))
    return rows


def no_gold_table(results: Results) -> Rows:
    """Adaptation to new databases: what each row gains over the SFT policy, and as a share of what
    GRPO with gold SQL gains with the same seeds; and how much of what its rewards preferred in
    training is right.
    """
    metrics = ("execution", "test_suite")
    rows = [("rewards", "seeds", "EX", "EX gained", "TS gained", "of gold's TS gain", "top answer")]
    start = means(results.rows["SFT policy"])
    names = [name for name in MAIN if name in results.rows]
    for name in names + [name for name in results.rows if name not in MAIN]:
        row = means(cells := results.rows[name])
        share = share_text(row.average("execution"))
        if not cells[0]["curve"]:
            rows.append((name, "", share, *[""] * 4))
            continue
        pair = same_seeds(cells, results.rows["GRPO"])
        gained, ceiling = (means(each).minus(start) for each in pair)
        differences = (difference_text(row.minus(start).average(metric)) for metric in metrics)
        ratio = share_text(part_of(gained, ceiling, "test_suite"))
        right = 100 * np.mean([cell["rewarded"]["test_suite"] for cell in cells])
        rows.append((name, str(row.seeds), share, *differences, ratio, f"{right:.1f}"))
    return rows


def no_gold_tables(results: Results) -> list[Rows]:
    """The table of all rows, and the differences between those that a reader compares."""
    pairs = [
        ("semantic", "consensus"),
        ("consensus + semantic", "semantic"),
        ("semantic", "GRPO"),
        ("semantic", "gold of 10 %"),
        ("GRPO + contrastive", "GRPO"),
    ]
    tables = (no_gold_table(results), difference_table(results, pairs))
    return [rows for rows in tables if rows[1:]]


def part_of(gained: Means, whole: Means, metric: str) -> dict:
    """{"value", "low", "high", "n"} of the ratio of two gains, each the mean over languages."""
    m = list(METRICS).index(metric)
    value = gained.value[:, m].mean() / whole.value[:, m].mean()
    resampled = gained.resampled[:, :, m].mean(1) / whole.resampled[:, :, m].mean(1)
    return summary(value, resampled, gained.n)


def main_sections(results: Results) -> dict[str, str]:
    """What stands in docs/results.md about the main experiment, by the name of its place."""
    best, sft, larger = "GRPO + contrastive", "SFT policy", "larger SFT policy"
    pairs = [(best, sft), ("GRPO", sft), (best, "GRPO"), (best, larger)]
    pairs = [pair for pair in pairs if set(pair) <= results.rows.keys()]
    amounts = AMOUNTS if (set(AMOUNTS) - {best}) & results.rows.keys() else ()
    ablations = [(name, best) for name in results.rows if name not in MAIN + AMOUNTS]
    tables = {
        "main": main_table(results),
        "differences": difference_table(results, pairs),
        "parts": part_table(results, pairs, "execution"),
        "languages": language_table(results, "execution")
        + gain_table(results, pairs, "execution")[1:],
        "gaps": gap_table(results),
        "ablations": difference_table(results, ablations),
        "amounts": difference_table(results, [(name, sft) for name in amounts]),
    }
    curves = {"curves": "![Rewards over training](results-curves.png)"}
    return {name: markdown_table(rows) for name, rows in tables.items() if rows[1:]} | curves


def write(folder: Path, path: Path) -> None:
    """Puts the tables into their places in ``path`` and draws results-curves.png beside it. What
    shows the main experiment stays as it is if it has no cells, or cells of another version of the
    dataset.

    Args:
        folder: of the experiments' folders of cells.
        path: the Markdown file.
    """
    folders = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in POOR]
    experiments = {path.name: Results(path) for path in folders}
    results, sections = experiments.pop("main", None), {}
    if results and results.rows.keys() & set(MAIN) and is_current(folder / "main"):
        sections = main_sections(results)
        plot(results, path.with_name("results-curves.png"))
    sections |= {name: experiment_tables(cells) for name, cells in experiments.items()}
    no_gold = experiments.get("no-gold")
    if no_gold and {"SFT policy", "GRPO"} <= no_gold.rows.keys():
        sections["no-gold"] = "\n\n".join(map(markdown_table, no_gold_tables(no_gold)))
    poor = poor_table({name: Results(folder / name) for name in POOR})
    sections |= {"poor": markdown_table(poor)} if poor[1:] else {}
    for name in sorted(sections.keys() - fill(path, sections)):
        print(f"\n{path} has no place for {name!r}:\n\n{sections[name]}")
