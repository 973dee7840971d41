"""Whether the calibrated score is the share of SQL that is right."""

import random

import numpy as np

from encoder.batches import draw_negatives
from encoder.calibration import Calibration
from encoder.evaluation.retrieval import Embeddings, Question
from sqlenv.metrics.bootstrap import resampled_means, summary

BINS = 10


def calibration_report(
    questions: list[Question], embeddings: Embeddings, calibration: Calibration, seed: int
) -> dict:
    """Compares scores with the share of SQL that is right, if right and wrong are equally many.

    The wrong SQL is a hard negative for every other question, and other SQL of the database for the
    rest. Scores of 0.92 and 0.72 for right SQL and of 0.78 and 0.22 for wrong SQL give an expected
    calibration error (ECE) of (|0.08| + |0.28 - 0.78| + |-0.22|) / 4 = 0.2.

    Returns:
        {"bins": [{"low", "high": bounds of the scores, "score": their mean, "right": share}, ...],
        "ece": {lang or "all": the sum over bins of |sum of (right - score)|, divided by the number
        of scores}}. The interval of the ECE is biased upwards: resampling adds noise to each bin.
    """
    rows = scored_pairs(questions, embeddings, calibration, seed)
    if not rows:
        return {"bins": [], "ece": {}}
    scores, right, langs, clusters = zip(*rows)
    scores, right, langs = np.array(scores), np.array(right), np.array(langs)  # (N,) each
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)  # (N,)
    gaps = np.zeros((len(rows), BINS))
    gaps[np.arange(len(rows)), bins] = right - scores
    everything = np.full(len(rows), "all")
    return {
        "bins": observed_shares(scores, right, bins, clusters, seed),
        "ece": {
            **calibration_errors(gaps, langs, clusters, seed),
            **calibration_errors(gaps, everything, clusters, seed),
        },
    }


def scored_pairs(
    questions: list[Question], embeddings: Embeddings, calibration: Calibration, seed: int
) -> list[tuple[float, float, str, tuple[str, str]]]:
    """For each question that has wrong SQL, gold and one wrong SQL: (score, right, lang, cluster).

    `right` is 1.0 for gold and 0.0 for the wrong SQL.
    """
    rng, rows = random.Random(seed), []
    for number, question in enumerate(questions):
        wrong = draw_wrong(question, number % 2 == 0, rng)
        if wrong is not None:
            cosines = embeddings.cosines(question.text, [question.gold, wrong])
            for score, right in zip(calibration.score(cosines).tolist(), (1.0, 0.0)):
                rows.append((score, right, question.lang, question.cluster))
    return rows


def draw_wrong(question: Question, hard: bool, rng: random.Random) -> str | None:
    """A hard negative or, if not `hard`, another SQL query of the database.

    If there is none of the kind asked for, the other kind is drawn; None if there is neither.
    """
    negatives = draw_negatives(question.hard_negatives, 1, rng)
    if negatives and (hard or not question.others):
        return negatives[0].sql
    return rng.choice(question.others) if question.others else None


def calibration_errors(
    gaps: np.ndarray, groups: np.ndarray, clusters: tuple, seed: int
) -> dict[str, dict]:
    """The expected calibration error of each group.

    Args:
        gaps: float[N, BINS], right - score in the column of the score's bin, 0 elsewhere.
        groups: str[N].
        clusters: N keys; what has the same key is resampled together.
        seed: of the bootstrap.
    """
    errors = {}
    for name, resampled in resampled_means(gaps, groups.tolist(), clusters, seed=seed).items():
        members = gaps[groups == name]  # (n, BINS)
        error = float(np.abs(members.mean(axis=0)).sum())
        errors[name] = summary(error, np.abs(resampled).sum(1), len(members))
    return errors


def observed_shares(
    scores: np.ndarray, right: np.ndarray, bins: np.ndarray, clusters: tuple, seed: int
) -> list[dict]:
    """For each bin that has scores its bounds, its mean score and the share that is right."""
    rows = {}
    for number, resampled in resampled_means(
        right[:, None], bins.tolist(), clusters, seed=seed
    ).items():
        members = bins == number  # (N,)
        rows[number] = {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "score": float(scores[members].mean()),
            "right": summary(float(right[members].mean()), resampled[:, 0], int(members.sum())),
        }
    return [rows[number] for number in sorted(rows)]
