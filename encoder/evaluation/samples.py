"""Whether cosines tell right from wrong among the answers that a real model gave.

Near misses and other queries are made or chosen; what a reward has to judge in training is what a
policy writes. `evaluate.py --save-predictions` keeps its answers with what execution says of them.
"""

import functools
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from encoder.evaluation.retrieval import Embeddings
from encoder.text import sql_text
from sqlenv import UserError, load_schema
from sqlenv.metrics.bootstrap import RESAMPLES, resampled_means, summary
from sqlenv.metrics.predictions import read_predictions

PARTS = 50  # of the resamples, which would not fit in memory at once


@dataclass(frozen=True)
class Sample:
    """A model's answer to a question, SQL that runs."""

    question: str
    lang: str
    cluster: tuple[str, str]  # database and gold: what translations of the question share
    sql: str  # as the encoder reads it
    right: bool


def read_samples(
    path: str | PathLike,
    data: str | PathLike,
    langs: list[str],
    databases: list[str],
    with_schema: bool,
) -> list[Sample]:
    """The valid answers in a predictions file, in these languages, on these databases (none: all).
    Right is what passes the test suite or, where that was not run, execution.

    Raises:
        UserError: as `read_predictions` does; an answer was not judged; or none
            is valid.
    """
    examples, _ = read_predictions(path, data, langs)
    # That leaves out whether the answers are right.
    lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    rows = [(n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
    rows = [row for lang in langs for row in rows if row[1]["lang"] == lang]
    schema_of, samples = functools.lru_cache(None)(load_schema), []
    for example, (number, row) in zip(examples, rows, strict=True):
        valid, right = row.get("valid"), row.get("test_suite")
        right = row.get("execution") if right is None else right
        if not isinstance(valid, bool) or not isinstance(right, bool):
            raise UserError(
                f"{path}, line {number}: 'valid' and 'execution' must be true or false: write the "
                "file with evaluate.py --save-predictions"
            )
        judged = valid and row.get("gold_ok", True)
        if judged and (not databases or example.db_id in databases):
            schema = schema_of(example.db_path) if with_schema else None
            text = sql_text(row["predicted"] or "", schema)
            cluster = example.db_id, example.gold_sql
            samples.append(Sample(example.question, example.lang, cluster, text, right))
    if not samples:
        raise UserError(f"{path}: no answer is valid SQL, so there is nothing to tell apart")
    return samples


def auc_counts(
    cosines: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Of pairs of a right and a wrong answer, those with the right one above, a tie being half.

    Their ratio is the AUC, the area under the ROC curve. Right answers at 0.9 and 0.4 and wrong
    ones at 0.4 and 0.1, each drawn once: 3.5 of 4.

    Args:
        cosines: float[N].
        right: bool[N].
        weights: [R, N], how often each answer is drawn in each of R resamples.
    Returns:
        How many, and how many pairs there are, both [R].
    """
    order = np.argsort(cosines)
    cosines, right, weights = cosines[order], right[order], weights[:, order]
    wrong = np.pad(np.cumsum(weights * ~right, axis=1), ((0, 0), (1, 0)))  # (R, N + 1)
    below, upto = (np.searchsorted(cosines, cosines, side) for side in ("left", "right"))
    won = (weights * right * (wrong[:, below] + wrong[:, upto]) / 2).sum(axis=1)
    return won, (weights * right).sum(axis=1) * wrong[:, -1]


def auc_report(samples: list[Sample], embeddings: Embeddings, seed: int) -> dict:
    """The chance that a right answer has a higher cosine than a wrong one.

    {lang: of two answers in it, "all": of two answers in the same language, whichever it is,
    "within_questions": of two answers to the same question or its translations, the mean over
    n questions that have both}: each {"value", "low", "high", "n"}, and "right", how many of the n
    answers are right. Translations are resampled together.
    """
    cosines = np.array([embeddings.cosines(one.question, [one.sql]).item() for one in samples])
    right = np.array([sample.right for sample in samples])
    langs = np.array([sample.lang for sample in samples])
    numbers = {c: i for i, c in enumerate(dict.fromkeys(sample.cluster for sample in samples))}
    cluster = np.array([numbers[sample.cluster] for sample in samples])
    rows = {lang: langs == lang for lang in dict.fromkeys(langs.tolist())}

    def counts(draws: np.ndarray) -> dict[str, np.ndarray]:
        """Draws of each cluster, [R, clusters] -> `auc_counts` of each language, [2, R]."""
        weights = draws[:, cluster]  # (R, N)
        found = {
            lang: np.stack(auc_counts(cosines[of], right[of], weights[:, of]))
            for lang, of in rows.items()
        }
        return {**found, "all": sum(found.values())}

    generator, even = np.random.default_rng(seed), np.full(len(numbers), 1 / len(numbers))
    parts = [
        counts(generator.multinomial(len(numbers), even, RESAMPLES // PARTS)) for _ in range(PARTS)
    ]
    report = {}
    for name, once in counts(np.ones((1, len(numbers)))).items():
        drawn = np.concatenate([part[name] for part in parts], axis=1)  # (2, RESAMPLES)
        ones = right[rows[name]] if name in rows else right
        report[name] = {**ratio_interval(once, drawn, len(ones)), "right": int(ones.sum())}
    return {**report, "within_questions": within_questions(cosines, right, cluster, seed)}


def ratio_interval(once: np.ndarray, drawn: np.ndarray, n: int) -> dict:
    """The interval of row 0 over row 1: of the answers themselves, [2, 1], and of resamples."""
    if not once[1, 0]:
        return summary(None, None, n)
    with np.errstate(invalid="ignore"):  # a resample may lack right or wrong answers: NaN
        return summary(float(once[0, 0] / once[1, 0]), drawn[0] / drawn[1], n)


def within_questions(
    cosines: np.ndarray, right: np.ndarray, cluster: np.ndarray, seed: int
) -> dict:
    """The mean of each question's own AUC: what a group in GRPO, all of one question, goes by."""
    found = []
    for number in np.unique(cluster):
        of = cluster == number
        won, pairs = auc_counts(cosines[of], right[of], np.ones((1, of.sum())))
        if pairs[0]:
            found.append(won[0] / pairs[0])
    if not found:
        return summary(None, None, 0)
    drawn = resampled_means(np.array(found)[:, None], [0] * len(found), range(len(found)), seed)
    return summary(float(np.mean(found)), drawn[0][:, 0], len(found))
