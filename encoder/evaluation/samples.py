"""Whether cosines separate right from wrong answers of a real model.

Hard negatives and other queries of the database are constructed; in training, the reward scores
what a policy writes. `evaluate.py --save-predictions` saves a policy's answers together with the
results of executing them.
"""

import functools
import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np

from encoder.evaluation.retrieval import Embeddings
from encoder.text import sql_text
from sqlenv import Dataset, UserError, load_schema
from sqlenv.dataset import language_tag
from sqlenv.metrics.bootstrap import RESAMPLES, resampled_means, summary
from sqlenv.metrics.predictions import read_predictions

PARTS = 50  # of the resamples, which do not fit in memory at once


@dataclass(frozen=True)
class Sample:
    """A model's answer to a question, SQL that runs.

    Attributes:
        cluster: database and gold SQL, equal for translations of the question.
        sql: as the encoder reads it.
    """

    question: str
    lang: str
    cluster: tuple[str, str]
    sql: str
    right: bool


def read_samples(
    path: str | PathLike,
    dataset: Dataset,
    *,
    langs: list[str],
    databases: list[str],
    with_schema: bool,
) -> list[Sample]:
    """The valid answers in a predictions file.

    An answer is right if it passes the test suite or, where that was not run, execution.

    Args:
        path: the file, a JSON object a line.
        dataset: has the databases.
        langs: languages to keep.
        databases: databases to keep; an empty list keeps all.
        with_schema: whether the encoder reads the SQL's tables beside it.
    Raises:
        UserError: `read_predictions` refuses the file, an answer was never executed, or no answer
            is valid.
    """
    examples, _, absent = read_predictions(path, dataset, langs=langs)
    # The examples do not say whether the answers are right: read the lines once more.
    lines = Path(path).read_bytes().decode("utf-8-sig").split("\n")
    rows = [(n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
    rows = [
        (n, row)
        for lang in langs
        for n, row in rows
        if language_tag(row["lang"]) == lang and row["db_id"] not in absent[lang]
    ]
    schema_of, samples = functools.lru_cache(None)(load_schema), []
    for example, (number, row) in zip(examples, rows, strict=True):
        valid, right = row.get("valid"), row.get("test_suite")
        right = row.get("execution") if right is None else right
        if not isinstance(valid, bool) or not isinstance(right, bool):
            raise UserError(
                f"{path}, line {number}: 'valid' and 'execution' must be true or false: write the "
                "file with evaluate.py --save-predictions"
            )
        usable = valid and row.get("gold_ok", True)
        if usable and (not databases or example.db_id in databases):
            schema = schema_of(example.db_path)
            text = sql_text(row["predicted"] or "", schema, with_schema=with_schema)
            cluster = example.db_id, example.gold_sql
            samples.append(Sample(example.question, example.lang, cluster, text, right))
    if not samples:
        raise UserError(f"{path}: no answer is valid SQL, so there is nothing to tell apart")
    return samples


def auc_counts(
    cosines: np.ndarray, right: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts pairs of a right and a wrong answer, and those with the right one above the wrong.

    A tie counts as half. The ratio is the AUC, the area under the ROC curve. Right answers at 0.9
    and 0.4 and wrong ones at 0.4 and 0.1, each drawn once: 3.5 of 4.

    Args:
        cosines: float[N].
        right: bool[N].
        weights: [R, N], how often each answer is drawn in each of R resamples.
    Returns:
        Number of pairs with the right answer above, and number of pairs, both [R].
    """
    order = np.argsort(cosines)
    cosines, right, weights = cosines[order], right[order], weights[:, order]
    wrong = np.pad(np.cumsum(weights * ~right, axis=1), ((0, 0), (1, 0)))  # (R, N + 1)
    below, upto = (np.searchsorted(cosines, cosines, side) for side in ("left", "right"))
    above = (weights * right * (wrong[:, below] + wrong[:, upto]) / 2).sum(axis=1)
    return above, (weights * right).sum(axis=1) * wrong[:, -1]


def auc_report(samples: list[Sample], embeddings: Embeddings, seed: int) -> dict:
    """The AUC: the probability that a right answer has a higher cosine than a wrong one.

    The bootstrap resamples translations together.

    Returns:
        {lang: of two answers in that language, "all": of two answers in the same language}, each
        {"value", "low", "high", "n", "right": how many of the n answers are right}, and
        {"within_questions": of two answers to the same question, {"value", "low", "high", "n"}}
    """
    cosines = np.array(
        [embeddings.cosines(sample.question, [sample.sql]).item() for sample in samples]
    )
    right = np.array([sample.right for sample in samples])
    langs = np.array([sample.lang for sample in samples])
    keys = dict.fromkeys(sample.cluster for sample in samples)
    numbers = {key: number for number, key in enumerate(keys)}
    cluster = np.array([numbers[sample.cluster] for sample in samples])
    rows = {lang: langs == lang for lang in dict.fromkeys(langs.tolist())}

    def counts(draws: np.ndarray) -> dict[str, np.ndarray]:
        """Draws of each cluster, [R, clusters] -> `auc_counts` of each language, [2, R]."""
        weights = draws[:, cluster]  # (R, N)
        by_lang = {
            lang: np.stack(auc_counts(cosines[mask], right[mask], weights[:, mask]))
            for lang, mask in rows.items()
        }
        return {**by_lang, "all": functools.reduce(np.add, by_lang.values())}

    generator, even = np.random.default_rng(seed), np.full(len(numbers), 1 / len(numbers))
    parts = [
        counts(generator.multinomial(len(numbers), even, RESAMPLES // PARTS)) for _ in range(PARTS)
    ]
    report = {}
    for name, once in counts(np.ones((1, len(numbers)))).items():
        drawn = np.concatenate([part[name] for part in parts], axis=1)  # (2, RESAMPLES)
        outcomes = right[rows[name]] if name in rows else right
        interval = ratio_interval(once, drawn, len(outcomes))
        report[name] = {**interval, "right": int(outcomes.sum())}
    return {**report, "within_questions": within_questions(cosines, right, cluster, seed)}


def ratio_interval(once: np.ndarray, drawn: np.ndarray, n: int) -> dict:
    """Row 0 divided by row 1, with its interval.

    Args:
        once: [2, 1], of the answers themselves.
        drawn: [2, RESAMPLES], of resamples.
        n: number of answers.
    """
    if not once[1, 0]:
        return summary(None, None, n)
    with np.errstate(invalid="ignore"):  # a resample may lack right or wrong answers: NaN
        return summary(float(once[0, 0] / once[1, 0]), drawn[0] / drawn[1], n)


def within_questions(
    cosines: np.ndarray, right: np.ndarray, cluster: np.ndarray, seed: int
) -> dict:
    """The mean over questions of the AUC of each, translations counting as the same question.

    A question counts if it has right and wrong answers. This is what matters to GRPO: a group
    consists of answers to the same question.
    """
    values = []
    for number in np.unique(cluster):
        mask = cluster == number
        above, pairs = auc_counts(cosines[mask], right[mask], np.ones((1, mask.sum())))
        if pairs[0]:
            values.append(above[0] / pairs[0])
    if not values:
        return summary(None, None, 0)
    n = len(values)
    drawn = resampled_means(np.array(values)[:, None], [0] * n, range(n), seed=seed)
    return summary(float(np.mean(values)), drawn[0][:, 0], n)
