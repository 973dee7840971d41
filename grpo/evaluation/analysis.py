"""Analyses predictions: shares with intervals by language, across languages, by hardness and by
kind of error; compares two systems on the same questions.

A question and its translations are not independent. They share their gold query, so the bootstrap
draws all questions of a gold query together.
"""

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from grpo.evaluation.measure import (
    Prediction,
    arbitrary_gold,
    failed_gold,
    gold_query,
    measured,
    stopped_gold,
    summarize,
)
from grpo.evaluation.vote import SURE
from sqlenv import UserError, paired_difference
from sqlenv.metrics.bootstrap import resampled_means, summary
from sqlenv.metrics.hardness import LEVELS, hardness

EXAMPLES = 3  # shown of each class of errors
# Classes of errors that the sandbox calls "error", by what SQLite says.
MESSAGES = {
    "syntax": ('near "', "syntax error", "incomplete input", "unrecognized token", "one statement"),
    "missing column": ("no such column",),
    "missing table": ("no such table",),
}
AGREEMENT = ("half or more", "fewer")
ERROR_CLASSES = (
    "no SQL",
    *MESSAGES,
    "other error",
    "denied",
    "timeout",
    "too large",
    "wrong result",
    "wrong on a variant",
)


def full_report(predictions: list[Prediction]) -> dict:
    """``summarize``, and the results across languages.

    report[lang][metric], report["average"][metric]   {"value", "low", "high", "n"}
    report["gap"][lang][metric]                       the same, of lang minus English
    report["hardness"][level][metric]                 the same, all languages together
    report["difficulty"][level][metric]               the same, where the dataset has levels
    report["parts"][part][metric]                     the same, where the questions have parts
    report["agreement"][level][metric]                the same, where samples voted: at least half
                                                      of them for the answer, or fewer
    report["errors"][class]     {"n", "lang": {lang: n}, "examples": up to three predictions}
    report["failed_gold"]       {lang: n}, questions left out of all of these
    report["stopped_gold"]      {lang: {status: n}}, those whose gold the sandbox refuses or stops
    report["sqlite"]            the version of SQLite that ran the queries
    report["arbitrary_gold"]    {lang: n}, questions whose gold result SQL leaves open
    """
    counted, metrics = [p for p in predictions if p.gold_ok], measured(predictions)
    values = [[getattr(prediction, metric) for metric in metrics] for prediction in counted]
    by_lang = grouped(values, [prediction.lang for prediction in counted], counted)
    by_level = grouped(values, [hardness(prediction.gold) for prediction in counted], counted)
    by_difficulty = grouped(values, [prediction.difficulty for prediction in counted], counted)
    by_part = grouped(values, [prediction.part for prediction in counted], counted)
    by_agreement = grouped(values, [agreement(prediction) for prediction in counted], counted)
    english = by_lang.get("en")
    gaps = {lang: mean.minus(english) for lang, mean in by_lang.items() if english and lang != "en"}
    report = summarize(predictions)
    return {
        **report,
        "average": average(report, by_lang),
        "gap": {lang: gap.intervals(metrics) for lang, gap in gaps.items()},
        "hardness": {
            level: by_level.get(level, NO_QUESTIONS).intervals(metrics) for level in LEVELS
        },
        "difficulty": {
            level: mean.intervals(metrics) for level, mean in by_difficulty.items() if level
        },
        "parts": {part: mean.intervals(metrics) for part, mean in by_part.items() if part},
        "agreement": {
            level: by_agreement[level].intervals(metrics)
            for level in AGREEMENT
            if level in by_agreement
        },
        "errors": errors(counted),
        "failed_gold": failed_gold(predictions),
        "stopped_gold": stopped_gold(predictions),
        "sqlite": sqlite3.sqlite_version,
        "arbitrary_gold": arbitrary_gold(predictions),
    }


@dataclass(frozen=True)
class Means:
    """The means of M metrics over n questions, (M,), and of resamples of them, (RESAMPLES, M).

    ``independent`` is the number of gold queries; 0 for differences.
    """

    value: np.ndarray | None
    resampled: np.ndarray | None
    n: int
    independent: int = 0

    def minus(self, other: "Means") -> "Means":
        return Means(self.value - other.value, self.resampled - other.resampled, self.n)

    def intervals(self, metrics: list[str]) -> dict:
        """``{metric: {"value", "low", "high", "n"}}``"""
        if not self.n:
            return {metric: summary(None, None, 0) for metric in metrics}
        more = {"independent": self.independent}
        return {
            metric: summary(float(self.value[i]), self.resampled[:, i], self.n, **more)
            for i, metric in enumerate(metrics)
        }


NO_QUESTIONS = Means(None, None, 0)


def grouped(values: list[list], groups: list[str], counted: list[Prediction]) -> dict[str, Means]:
    """The means of each group of questions, of (n, M) values; resampled by gold query."""
    if not counted:
        return {}
    array = np.array(values, float)  # (n, M)
    clusters = [gold_query(prediction) for prediction in counted]
    means = {}
    for group, resampled in resampled_means(array, groups, clusters).items():
        rows = [i for i, name in enumerate(groups) if name == group]
        queries = {clusters[i] for i in rows}
        means[group] = Means(array[rows].mean(axis=0), resampled, len(rows), len(queries))
    return means


def average(report: dict, by_lang: dict[str, Means]) -> dict:
    """The mean over languages, in which each counts alike; ``report`` has their intervals."""
    if len(report) == 1:
        return dict(next(iter(report.values())))
    metrics, means = list(next(iter(report.values()))), list(by_lang.values())
    if not means:
        return NO_QUESTIONS.intervals(metrics)
    value = np.mean([mean.value for mean in means], axis=0)  # pyright: ignore[reportCallIssue]
    resampled = np.mean([mean.resampled for mean in means], axis=0)  # pyright: ignore[reportCallIssue]
    queries = max(mean.independent for mean in means)  # languages may share them
    return Means(value, resampled, sum(mean.n for mean in means), queries).intervals(metrics)


def agreement(prediction: Prediction) -> str:
    """Which share of the samples voted for the answer, in AGREEMENT; "" if there was no vote."""
    if prediction.agreement is None:
        return ""
    return AGREEMENT[prediction.agreement < SURE]


def error_class(prediction: Prediction) -> str | None:
    """The class in ERROR_CLASSES of a wrong prediction; None for a right one."""
    if prediction.valid:
        if prediction.execution and prediction.test_suite is not False:
            return None
        return "wrong on a variant" if prediction.execution else "wrong result"
    if prediction.status != "error":
        return prediction.status.replace("_", " ")
    for name, parts in MESSAGES.items():
        if any(part in (prediction.error or "") for part in parts):
            return name
    return "other error"


def errors(counted: list[Prediction]) -> dict:
    """How often each class of errors occurs, in total and by language, with examples."""
    by_class: dict[str, list[Prediction]] = {name: [] for name in ERROR_CLASSES}
    for prediction in counted:
        name = error_class(prediction)
        if name:
            by_class[name].append(prediction)
    return {
        name: {
            "n": len(wrong),
            "lang": Counter(prediction.lang for prediction in wrong),
            "examples": [asdict(prediction) for prediction in wrong[:EXAMPLES]],
        }
        for name, wrong in by_class.items()
        if wrong
    }


def compare(first: list[Prediction], second: list[Prediction], names: Sequence[str]) -> dict:
    """Two systems on the same questions: {"first", "second": their reports, "difference":
    {lang or "average": {metric: second minus first, paired over the questions}}}.

    Raises:
        UserError: they do not cover the same questions, or not with the same gold.
    """
    pairs = [(a, b) for a, b in paired(first, second, names) if a.gold_ok]
    metrics = [metric for metric in measured(first) if metric in measured(second)]
    difference = {}
    for lang in dict.fromkeys(prediction.lang for prediction in first):
        both = [pair for pair in pairs if pair[0].lang == lang]
        clusters = [gold_query(a) for a, _ in both]
        difference[lang] = {
            metric: paired_difference(
                [getattr(a, metric) for a, _ in both],
                [getattr(b, metric) for _, b in both],
                clusters=clusters,
            )
            for metric in metrics
        }
    gains = [[getattr(b, metric) - getattr(a, metric) for metric in metrics] for a, b in pairs]
    by_lang = grouped(gains, [a.lang for a, _ in pairs], [a for a, _ in pairs])
    by_lang = {lang: replace(mean, independent=0) for lang, mean in by_lang.items()}
    difference["average"] = average(difference, by_lang)
    return {"first": full_report(first), "second": full_report(second), "difference": difference}


def paired(
    first: list[Prediction], second: list[Prediction], names: Sequence[str]
) -> list[tuple[Prediction, Prediction]]:
    """The predictions of both for each question."""
    sides = [{}, {}]
    for side, predictions in zip(sides, (first, second)):
        for p in predictions:
            side.setdefault((p.lang, p.db_id, p.question, p.gold), []).append(p)
    keys = [[key for key, asked in side.items() for _ in asked] for side in sides]
    check_same_questions(keys[0], keys[1], names)
    return [pair for key, ours in sides[0].items() for pair in zip(ours, sides[1][key])]


def check_same_questions(first: list[tuple], second: list[tuple], names: Sequence[str]) -> None:
    """Two lists of (lang, db_id, question, gold).

    Raises:
        UserError: a question is not in both as often, or has different golds; says of how many.
    """
    for length, what in ((3, "do not cover the same questions"), (4, "have different gold")):
        keys = [Counter(key[:length] for key in side) for side in (first, second)]
        only = keys[0] - keys[1], keys[1] - keys[0]
        if any(only):
            lang, db_id, question, *_ = next(iter(only[0] or only[1]))
            raise UserError(
                f"{names[0]} and {names[1]} {what}: {only[0].total()} of the first's {len(first)} "
                f"are not in the second, {only[1].total()} of the second's {len(second)} are not "
                f"in the first, such as {question!r} ({lang}, {db_id})"
            )
