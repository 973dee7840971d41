"""Shares of questions with 95 % bootstrap intervals, and paired differences between two systems.

A bootstrap resamples the n questions with replacement. For outcomes that are yes or no, the
number of yeses in a resample is a binomial draw, so nothing needs to be resampled one by one.
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


def summary(value: float | None, resampled: np.ndarray | None, n: int) -> dict:
    if resampled is None:
        return {"value": None, "low": None, "high": None, "n": n}
    low, high = np.percentile(resampled, INTERVAL)
    return {"value": value, "low": float(low), "high": float(high), "n": n}
