"""Shares of questions with 95 % bootstrap intervals, and paired differences between two systems.

A bootstrap resamples the n questions with replacement. For outcomes that are yes or no, the
number of yeses in a resample is a binomial draw, so nothing needs to be resampled one by one.
Where languages are put together or compared, a question and its translations are not independent:
`resampled_means` draws them together, as clusters.
"""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles


def share(outcomes: Sequence[bool], seed: int = 0) -> dict:
    """Return {"value", "low", "high", "n"}: the share of true outcomes, from 0 to 1.

    low and high bound the 95 % percentile-bootstrap interval; the same seed gives the same
    bounds. Without outcomes all but n are None. If all outcomes agree the interval has no width,
    as always with the bootstrap: that says nothing about questions not asked.
    """
    n, hits = len(outcomes), sum(map(bool, outcomes))
    if n == 0:
        return summary(None, None, 0)
    resampled = np.random.default_rng(seed).binomial(n, hits / n, RESAMPLES) / n
    return summary(hits / n, resampled, n)


def paired_difference(before: Sequence[bool], after: Sequence[bool], seed: int = 0) -> dict:
    """Return, in the form of `share`, share(after) - share(before) over the same questions.

    Questions are resampled in pairs, so what both systems find easy or hard does not widen the
    interval. Raises ValueError if there are not as many outcomes before as after.
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
    values: np.ndarray, groups: Sequence, clusters: Sequence, seed: int = 0
) -> dict[object, np.ndarray]:
    """Return {group: (RESAMPLES, M)}: the means of each group, resampling whole clusters.

    What is drawn together for all groups can be averaged over them or subtracted from one another,
    resample by resample, and `summary` gives the interval.

    values    (n, M), of n questions in M metrics
    groups    n, such as each question's language
    clusters  n; questions of one cluster are drawn together, such as translations of each other
    """
    group_of, cluster_of = (
        {name: i for i, name in enumerate(dict.fromkeys(names))} for names in (groups, clusters)
    )
    count = len(cluster_of)
    # For each cluster and group the sum of the values and, last, their number.
    sums = np.zeros((count, len(group_of), values.shape[1] + 1))
    places = [cluster_of[one] for one in clusters], [group_of[one] for one in groups]
    np.add.at(sums, places, np.column_stack([values, np.ones(len(values))]))
    generator, even = np.random.default_rng(seed), np.full(count, 1 / count)
    drawn = np.concatenate(
        [
            generator.multinomial(count, even, size) @ sums.reshape(count, -1)
            for size in [RESAMPLES // 20] * 20  # a part at a time, for the memory's sake
        ]
    ).reshape(RESAMPLES, *sums.shape[1:])
    with np.errstate(invalid="ignore"):  # a small group may be missing from a resample: NaN
        means = drawn[..., :-1] / drawn[..., -1:]
    return {name: means[:, i] for name, i in group_of.items()}


def summary(value: float | None, resampled: np.ndarray | None, n: int) -> dict:
    """Return {"value", "low", "high", "n"}, the interval being that of the resampled values."""
    if resampled is None:
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = np.nanpercentile(resampled, INTERVAL)
    return {"value": value, "low": float(low), "high": float(high), "n": n}
