"""Shares of questions with 95 % bootstrap intervals, and paired differences between two systems.

The bootstrap resamples the n questions with replacement. The number of true outcomes in a resample
of binary outcomes is binomially distributed, so it is drawn directly. A question and its
translations are not independent, so ``resampled_means`` resamples them together, as clusters.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles

Group = TypeVar("Group", bound=Hashable)


def share(outcomes: Sequence[bool], *, seed: int = 0) -> dict:
    """Returns {"value", "low", "high", "n"}: the share of true outcomes, from 0 to 1.

    low and high bound the 95 % percentile bootstrap interval. The same seed gives the same bounds.
    Without outcomes all values but n are None. If all outcomes are equal, the interval has zero
    width: the bootstrap cannot estimate the uncertainty in this case.
    """
    n, hits = len(outcomes), sum(map(bool, outcomes))
    if n == 0:
        return summary(None, None, 0)
    resampled = np.random.default_rng(seed).binomial(n, hits / n, RESAMPLES) / n
    return summary(hits / n, resampled, n)


def paired_difference(before: Sequence[bool], after: Sequence[bool], *, seed: int = 0) -> dict:
    """Returns share(after) - share(before) over the same questions, in the form of ``share``.

    The outcomes of a question are resampled together, so the difficulty that a question has for
    both systems does not widen the interval.

    Raises:
        ValueError: the numbers of outcomes differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} outcomes before, but {len(after)} after")
    n = len(before)
    if n == 0:
        return summary(None, None, 0)
    gained = sum(bool(a) and not b for b, a in zip(before, after, strict=True))
    lost = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    counts = np.random.default_rng(seed).multinomial(
        n, [gained / n, lost / n, (n - gained - lost) / n], RESAMPLES
    )  # (RESAMPLES, 3)
    return summary((gained - lost) / n, (counts[:, 0] - counts[:, 1]) / n, n)


def resampled_means(
    values: np.ndarray, groups: Sequence[Group], clusters: Sequence, *, seed: int = 0
) -> dict[Group, np.ndarray]:
    """Returns {group: (RESAMPLES, M)}: the means of each group, resampling whole clusters.

    All groups share the resamples, so their means can be averaged or subtracted resample by
    resample; ``summary`` then gives the interval.

    Args:
        values: (n, M) float, of n questions in M metrics.
        groups: the group of each question, such as its language.
        clusters: the cluster of each question. Questions of a cluster, such as translations of each
            other, are resampled together.
    """
    group_of, cluster_of = (
        {name: i for i, name in enumerate(dict.fromkeys(names))} for names in (groups, clusters)
    )
    count = len(cluster_of)
    # For each cluster and group the sums of the values and, last, their number.
    sums = np.zeros((count, len(group_of), values.shape[1] + 1))
    cells = [cluster_of[cluster] for cluster in clusters], [group_of[group] for group in groups]
    np.add.at(sums, cells, np.column_stack([values, np.ones(len(values))]))
    generator, even = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = np.concatenate(
        [
            generator.multinomial(count, even, size) @ sums.reshape(count, -1)
            for size in [RESAMPLES // 20] * 20  # in parts, to limit memory
        ]
    ).reshape(RESAMPLES, *sums.shape[1:])
    with np.errstate(invalid="ignore"):  # NaN where a resample has no question of a group
        means = drawn[..., :-1] / drawn[..., -1:]
    return {name: means[:, i] for name, i in group_of.items()}


def summary(value: float | None, resampled: np.ndarray | None, n: int) -> dict:
    """Returns {"value", "low", "high", "n"} with the 95 % interval of the resampled values.

    Args:
        value: the statistic on all n questions.
        resampled: (RESAMPLES,) its values on the resamples; None if n is 0.
    """
    if resampled is None:
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = np.nanpercentile(resampled, INTERVAL)
    return {"value": value, "low": float(low), "high": float(high), "n": n}
