"""Shares of questions with 95 % bootstrap intervals, and paired differences between two systems.

The bootstrap resamples the n questions with replacement. Questions that share their gold query,
such as translations of each other, are not independent: they are resampled together, as a cluster.
The databases and the training run are taken as fixed.
"""

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles

Group = TypeVar("Group", bound=Hashable)


def share(
    outcomes: Sequence[bool], *, clusters: Sequence[Hashable] | None = None, seed: int = 0
) -> dict:
    """Returns {"value", "low", "high", "n"}: the share of true outcomes, from 0 to 1.

    low and high bound the 95 % percentile bootstrap interval. The same seed gives the same bounds.
    Without outcomes all values but n are None. See ``summary`` if all outcomes are equal.

    Args:
        outcomes: of n questions.
        clusters: the cluster of each question; None: each is one of its own.
    """
    n, hits = len(outcomes), sum(map(bool, outcomes))
    if n == 0:
        return summary(None, None, 0)
    count = n if clusters is None else len(set(clusters))
    if clusters is None or count == n:  # the number of hits in a resample is binomial
        resampled = np.random.default_rng(seed).binomial(n, hits / n, RESAMPLES) / n
    else:
        resampled = _resampled_mean(list(map(bool, outcomes)), clusters, seed)
    return summary(hits / n, resampled, n, independent=count)


def paired_difference(
    before: Sequence[bool],
    after: Sequence[bool],
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict:
    """Returns share(after) - share(before) over the same questions, in the form of ``share``.

    The outcomes of a question are resampled together, so the difficulty that a question has for
    both systems does not widen the interval.

    Raises:
        ValueError: the numbers of outcomes differ.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} outcomes before, but {len(after)} after")
    n, gains = len(before), [bool(a) - bool(b) for b, a in zip(before, after)]
    if n == 0:
        return summary(None, None, 0)
    if clusters is None or len(set(clusters)) == n:
        shares = [gains.count(1) / n, gains.count(-1) / n, gains.count(0) / n]
        counts = np.random.default_rng(seed).multinomial(n, shares, RESAMPLES)  # (RESAMPLES, 3)
        resampled = (counts[:, 0] - counts[:, 1]) / n
    else:
        resampled = _resampled_mean(gains, clusters, seed)
    return summary(sum(gains) / n, resampled, n)


def _resampled_mean(values: Sequence[float], clusters: Sequence, seed: int) -> np.ndarray:
    """(RESAMPLES,), the mean of the values in each resample of whole clusters."""
    column = np.array(values, float)[:, None]
    return resampled_means(column, [0] * len(values), clusters, seed=seed)[0][:, 0]


def seed_weights(seeds: int, resamples: int) -> np.ndarray:
    """(resamples, seeds) float: the weight of each training seed in each resample; rows sum to 1.

    S - 1 of the S seeds are drawn with replacement, which makes the variance of a mean over few
    seeds unbiased (Rao and Wu, 1988); drawing S underestimates it by the factor (S - 1) / S. One
    seed has the weight 1: what varies from seed to seed is then unknown, and not in the interval.
    """
    if seeds == 1:
        return np.ones((resamples, 1))
    even = np.full(seeds, 1 / seeds)
    return np.random.default_rng(seeds).multinomial(seeds - 1, even, resamples) / (seeds - 1)


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


def summary(
    value: float | None, resampled: np.ndarray | None, n: int, *, independent: int = 0
) -> dict:
    """Returns {"value", "low", "high", "n"} with the 95 % interval of the resampled values.

    If a share is 0 or 1, all resamples are equal and say nothing of its uncertainty. Its interval
    is then that of Clopper and Pearson (1934): of 200 outcomes, 0 to 1.8 %.

    Args:
        value: the statistic on all n questions.
        resampled: (RESAMPLES,) its values on the resamples; None if n is 0.
        independent: the number of clusters whose share the value is; 0 if it is another statistic.
    """
    if resampled is None:
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = np.nanpercentile(resampled, INTERVAL)
    if independent and low == high and value in (0, 1):
        bound = (INTERVAL[0] / 100) ** (1 / independent)
        low, high = (0, 1 - bound) if value == 0 else (bound, 1)
    return {"value": value, "low": float(low), "high": float(high), "n": n}
