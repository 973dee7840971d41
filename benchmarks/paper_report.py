"""docs/results.md from the cells of `paper_table`: tables with intervals, curves, examples.

The text of docs/results.md is written by hand; what stands between `<!-- NAME -->` and
`<!-- end -->` is made here. Intervals are bootstrap intervals over gold queries (a question and its
translations are drawn together) and, where there are several, over seeds. Rows are compared
resample by resample, on the same questions.
"""

import itertools
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from encoder import ContrastiveEncoder, SemanticReward
from grpo.config import ASSETS
from grpo.evaluation.report import Rows, cell, markdown_table, read_metrics, signed_cell
from grpo.rewards import WEIGHTS, Judge, Rewards
from sqlenv import EMBEDDED, LANGUAGES, Sandbox, UserError, canonical_sql, load_dataset
from sqlenv.files import write_file
from sqlenv.metrics.bootstrap import summary

METRICS = {"valid": "valid", "execution": "EX", "test_suite": "TS", "semantic": "semantic"}
RESAMPLES = 2000
EXAMPLES = 24  # questions of each language whose answers are kept, others in each
CURVE = ("reward", "reward/execution", "reward/semantic", "kl")
LANGUAGE_CURVES = tuple(f"language/{lang}" for lang in LANGUAGES)  # not every step has all
MAIN = ("zero-shot", "warm start", "larger warm start", "GRPO", "GRPO + contrastive")
VARIANTS = (  # of the contrastive reward
    "semantic weight 0.7",
    "target gold",
    "semantic raw",
    "semantic ungated",
    "weaker encoder",
)
AMOUNTS = ("300 examples", "1000 examples", "GRPO + contrastive", "three passes")
PAPER = {  # averages over seven languages, arXiv 2510.13827: "execution" / "semantic" accuracy
    "warm start": "61.4 / 19.4",
    "larger warm start": "81.4 / 68.6",
    "GRPO": "87.4 / 52.3",
    "GRPO + contrastive": "88.9 / 59.1",
}


def outcomes(predictions: Path) -> dict:
    """What a cell keeps of its answers: for each question the number of its gold query; for each
    language and metric a text of 0 and 1, one for each question; and the SQL of a few. Questions
    whose gold fails in a language are left out in all.
    """
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row["lang"], []).append(row)
    first = next(iter(found.values()))
    if any(len(ones) != len(first) for ones in found.values()):
        raise UserError(f"{predictions}: the languages do not have the same questions")
    kept = [i for i in range(len(first)) if all(ones[i]["gold_ok"] for ones in found.values())]
    golds = [(first[i]["db_id"], canonical_sql(first[i]["gold"])) for i in kept]
    number = {gold: i for i, gold in enumerate(dict.fromkeys(golds))}
    every = max(1, len(kept) // EXAMPLES)
    return {
        "golds": [number[gold] for gold in golds],
        "outcomes": {
            lang: {m: "".join(str(int(ones[i][m])) for i in kept) for m in METRICS}
            for lang, ones in found.items()
        },
        "answers": {
            lang: {str(i): ones[i]["predicted"] for i in kept[number % every :: every]}
            for number, (lang, ones) in enumerate(found.items())
        },
    }


def curve(metrics: Path, points: int = 24) -> dict[str, list[float]]:
    """Means over equal parts of training, of what `CURVE` names, and of each language that every
    part has.
    """
    rows = read_metrics(metrics)
    parts = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    found = {}
    for name in CURVE + LANGUAGE_CURVES:
        values = [[rows[i][name] for i in part if name in rows[i]] for part in parts]
        if all(values):
            found[name] = [round(float(np.mean(part)), 4) for part in values]
    return found


@dataclass
class Means:
    """Of a row: (L, M) shares by language and metric, and (RESAMPLES, L, M) of resamples."""

    value: np.ndarray
    resampled: np.ndarray
    langs: list[str]
    seeds: int
    n: int

    def minus(self, other: "Means") -> "Means":
        value, resampled = self.value - other.value, self.resampled - other.resampled
        return Means(value, resampled, self.langs, self.seeds, self.n)

    def only(self, lang: str) -> "Means":
        """Of one language."""
        i = self.langs.index(lang)
        value, resampled = self.value[i : i + 1], self.resampled[:, i : i + 1]
        return Means(value, resampled, [lang], self.seeds, self.n // len(self.langs))

    def average(self, metric: str) -> dict:
        m = list(METRICS).index(metric)
        return summary(self.value[:, m].mean(), self.resampled[:, :, m].mean(1), self.n)

    def of(self, lang: str, metric: str) -> dict:
        i, m = self.langs.index(lang), list(METRICS).index(metric)
        return summary(self.value[i, m], self.resampled[:, i, m], self.n)


@cache
def known_questions() -> np.ndarray:
    """Which of the embedded dev questions are about a database that training has."""
    known = {one.db_id for one in load_dataset(EMBEDDED, "en", "train")}
    return np.array([one.db_id in known for one in load_dataset(EMBEDDED, "en", "dev")])


@cache
def draws(count: int) -> np.ndarray:
    """How often each of ``count`` things is drawn, (RESAMPLES, count): the same for every row, so
    that differences are paired.
    """
    even = np.full(count, 1 / count)
    return np.random.default_rng(count).multinomial(count, even, RESAMPLES)


def means(cells: list[dict], questions: np.ndarray | None = None) -> Means:
    """The mean over seeds of the cells of a row, of all dev questions or those of a mask."""
    clusters = np.array(cells[0]["golds"])
    kept = np.ones(len(clusters), bool) if questions is None else questions
    langs = [lang for lang in LANGUAGES if all(lang in one["outcomes"] for one in cells)]
    bits = np.array(
        [
            [[list(map(int, one["outcomes"][lang][m])) for m in METRICS] for lang in langs]
            for one in cells
        ],
        dtype=float,
    )[..., kept]  # (S, L, M, Q)
    numbers = np.unique(clusters[kept], return_inverse=True)[1]
    count = numbers.max() + 1
    sums = np.zeros((count, *bits.shape[:3]))
    np.add.at(sums, numbers, bits.transpose(3, 0, 1, 2))  # (C, S, L, M)
    sizes = np.bincount(numbers)
    drawn = draws(count)  # (R, C)
    shares = np.tensordot(drawn, sums, 1) / (drawn @ sizes)[:, None, None, None]  # (R, S, L, M)
    seeds = len(cells)
    resampled = np.einsum("rs,rslm->rlm", draws(seeds) / seeds, shares)
    return Means(bits.mean((0, 3)), resampled, langs, seeds, int(kept.sum()) * len(langs))


class Results:
    """All cells that are there, by row; ``joint``, trained on all languages (if no cell is: on the
    languages of the first), or, for each language, on its own.
    """

    def __init__(self, folder: Path):
        found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        langs = [one["lang"] for one in found]
        together = "all" if "all" in langs or not found else langs[0]
        self.joint, self.single = {}, {}
        for one in found:
            if one["lang"] == together:
                self.joint.setdefault(one["row"], []).append(one)
            else:
                self.single.setdefault((one["row"], one["lang"]), []).append(one)


def main_table(results: Results) -> Rows:
    rows = [("row", "seeds", *METRICS.values(), "the paper's execution / semantic")]
    for name in MAIN:
        if name in results.joint:
            one = means(results.joint[name])
            shares = (cell(one.average(metric)) for metric in METRICS)
            rows.append((name, str(one.seeds), *shares, PAPER.get(name, "")))
    return rows


def known_table(results: Results) -> Rows:
    """TS on databases that training has, and on the others."""
    known = known_questions()
    rows = [("row", "EX, known databases", "TS", "EX, unseen databases", "TS")]
    for name in MAIN:
        if name in results.joint:
            sides = [means(results.joint[name], mask) for mask in (known, ~known)]
            shares = [cell(side.average(m)) for side in sides for m in ("execution", "test_suite")]
            rows.append((name, *shares))
    return rows


def same_seeds(one: list[dict], other: list[dict]) -> tuple[list[dict], list[dict]]:
    """The cells of two rows to compare: with the seeds that both have, the same questions in the
    same order; all of them if one is a policy that was only measured and has no seed.
    """
    shared = {cell["seed"] for cell in one} & {cell["seed"] for cell in other}
    if not shared or not all(cell["curve"] for cell in one + other):
        return one, other
    return tuple([cell for cell in row if cell["seed"] in shared] for row in (one, other))


def gain(results: Results, after: str, before: str) -> Means:
    """The paired difference of two rows."""
    one, other = same_seeds(results.joint[after], results.joint[before])
    return means(one).minus(means(other))


def difference_table(results: Results, pairs: list[tuple[str, str]]) -> Rows:
    """Differences between rows, the mean over languages; pairs that are not there are left out."""
    rows = [("difference", *METRICS.values())]
    for after, before in pairs:
        if after in results.joint and before in results.joint:
            gained = gain(results, after, before)
            shares = (signed_cell(gained.average(metric)) for metric in METRICS)
            rows.append((f"{after} - {before}", *shares))
    return rows


def language_table(results: Results, metric: str) -> Rows:
    """One metric of the main rows in each language."""
    rows = []
    for name in MAIN:
        if name in results.joint:
            one = means(results.joint[name])
            rows = rows or [(METRICS[metric], *one.langs)]
            rows.append((name, *(cell(one.of(lang, metric)) for lang in one.langs)))
    return rows


def gap_table(results: Results) -> Rows:
    """How far the EX of each language is from the first's, English, on the same questions."""
    rows = []
    for name in MAIN:
        if name in results.joint:
            one = means(results.joint[name])
            first, *others = one.langs
            rows = rows or [(f"EX - EX of {first}", *others)]
            gap = one.minus(one.only(first))
            rows.append((name, *(signed_cell(gap.of(lang, "execution")) for lang in others)))
    return rows


def gain_table(results: Results, pairs: list[tuple[str, str]], metric: str) -> Rows:
    """Differences between rows, one metric in each language."""
    rows = []
    for after, before in pairs:
        gained = gain(results, after, before)
        rows = rows or [(f"{METRICS[metric]}, difference", *gained.langs)]
        shares = (signed_cell(gained.of(lang, metric)) for lang in gained.langs)
        rows.append((f"{after} - {before}", *shares))
    return rows


def single_table(results: Results) -> Rows:
    """Trained on one language at a time, and jointly: EX on that language."""
    rows = [("lang", "row", "alone", "jointly", "difference")]
    for (name, lang), cells in sorted(results.single.items()):
        if name in results.joint and cells[0]["curve"]:
            alone, joint = map(means, same_seeds(cells, results.joint[name]))
            same = joint.only(lang)
            shares = (one.of(lang, "execution") for one in (alone, same))
            gained = signed_cell(same.minus(alone).of(lang, "execution"))
            rows.append((lang, name, *map(cell, shares), gained))
    return rows


def example_text(results: Results) -> str:
    """A question of each language with gold and the answers of the main rows, of the first seed,
    each with its rewards: of those that are kept the first whose execution rewards, and then whose
    answers, differ most.
    """
    rows = {name: results.joint[name][0] for name in MAIN if name in results.joint}
    lines = []
    with Sandbox() as sandbox:
        semantic = SemanticReward(ContrastiveEncoder.load(ASSETS / "encoder"))
        rewards = Rewards(Judge(sandbox), semantic, WEIGHTS)
        for lang, places in next(iter(rows.values()))["answers"].items():
            questions = load_dataset(EMBEDDED, lang, "dev")
            asked = [questions[int(place)] for place in places]
            answers = [[one["answers"][lang][p] or "" for one in rows.values()] for p in places]
            terms = rewards(asked, answers)  # (P, G, R)
            execution = terms[..., rewards.names.index("execution")].tolist()
            differs = [(len(set(r)), len(set(sql))) for r, sql in zip(execution, answers)]
            shown = differs.index(max(differs))
            lines += [f"    {lang}, {asked[shown].db_id}: {asked[shown].question}"]
            lines += [f"    gold: {asked[shown].gold_sql}"]
            for name, sql, values in zip(rows, answers[shown], terms[shown].tolist()):
                parts = ", ".join(f"{one} {value:.2f}" for one, value in zip(rewards.names, values))
                lines += [f"    {name}: {sql}", f"        {parts}"]
            lines.append("")
        rewards.close()
    return "\n".join(lines).rstrip()


def plot(results: Results, path: Path) -> None:
    """Rewards over training, for each row and seed; and the total by language, smoothed over a
    quarter of training and averaged over seeds.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    for axis, key in zip(axes, ("reward/execution", "reward/semantic")):
        for number, name in enumerate(MAIN):
            for one in results.joint.get(name, []):
                values = one["curve"].get(key, [])
                label = name if one["seed"] == 0 and values else None
                place = [(i + 0.5) / len(values) for i in range(len(values))]
                axis.plot(place, values, color=f"C{number}", label=label, linewidth=1.2)
        axis.set_title(key, fontsize=10)
    for lang, key in zip(LANGUAGES, LANGUAGE_CURVES):
        curves = [
            one["curve"][key] for one in results.joint.get(MAIN[-1], []) if key in one["curve"]
        ]
        if curves:
            values = np.convolve(np.mean(curves, 0), np.ones(6) / 6, "valid")
            place = (np.arange(len(values)) + 3) / (len(values) + 5)
            axes[2].plot(place, values, label=lang, linewidth=1.2)
    axes[2].set_title(f"total reward by language, {MAIN[-1]}", fontsize=10)
    for axis in axes:
        axis.set_xlabel("share of training")
        axis.grid(alpha=0.2)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=7, ncols=2)
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
    plt.close(figure)


def experiment_tables(results: Results) -> str:
    """The tables of an experiment on other models and data."""
    names = [name for name in MAIN if name in results.joint]
    pairs = [(after, before) for before, after in itertools.pairwise(names)]
    if "warm start" in names[:-2]:
        pairs.append((names[-1], "warm start"))
    tables = [[row[:-1] for row in main_table(results)], difference_table(results, pairs)]
    langs = {lang for name in names for one in results.joint[name] for lang in one["outcomes"]}
    if len(langs) > 1:
        for metric in ("execution", "test_suite"):
            tables += [language_table(results, metric), gain_table(results, pairs, metric)]
    return "\n\n".join(map(markdown_table, filter(None, tables)))


def write(folder: Path, path: Path) -> None:
    """Puts the tables into their places in ``path``. Raises UserError if a place has no table."""
    results = Results(folder)
    others = [name for name in results.joint if name not in MAIN + AMOUNTS]
    best, larger = "GRPO + contrastive", "larger warm start"
    pairs = [(best, "warm start"), ("GRPO", "warm start"), (best, "GRPO"), (best, larger)]
    tables = {
        "main": markdown_table(main_table(results)),
        "known": markdown_table(known_table(results)),
        "differences": markdown_table(difference_table(results, pairs)),
        "languages": markdown_table(language_table(results, "execution")),
        "gaps": markdown_table(gap_table(results)),
        "ablations": markdown_table(difference_table(results, [(name, best) for name in others])),
        "contrastive": markdown_table(difference_table(results, [(n, "GRPO") for n in VARIANTS])),
        "amounts": markdown_table(difference_table(results, [(n, "warm start") for n in AMOUNTS])),
        "single": markdown_table(single_table(results)),
        "examples": example_text(results),
        "curves": "![Rewards over training](results-curves.png)",
    }
    named = (one for one in sorted(folder.iterdir()) if one.is_dir())
    tables |= {one.name: experiment_tables(Results(one)) for one in named}

    def filled(found: re.Match) -> str:
        if found[1] not in tables:
            raise UserError(f"{path}: there is no table {found[1]!r}; of {', '.join(tables)}")
        return f"<!-- {found[1]} -->\n\n{tables[found[1]]}\n\n<!-- end -->"

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL)
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    plot(results, path.with_name("results-curves.png"))
