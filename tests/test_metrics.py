"""Shares and paired differences, compared with numbers known by hand or by theory."""

import json

import numpy as np
import pytest

from sqlenv import paired_difference, share
from sqlenv.metrics.bootstrap import RESAMPLES, resampled_means, seed_weights, summary


def test_share_of_a_half_has_the_binomial_interval():
    result = share([True, False] * 50)
    assert (result["value"], result["n"]) == (0.5, 100)
    # 1.96 * sqrt(0.5 * 0.5 / 100) = 0.098
    assert result["low"] == pytest.approx(0.402, abs=0.012)
    assert result["high"] == pytest.approx(0.598, abs=0.012)
    assert json.loads(json.dumps(result)) == result


def test_interval_narrows_with_n():
    few, many = share([True, False, False] * 10), share([True, False, False] * 1000)
    assert few["value"] == many["value"] == pytest.approx(1 / 3)
    assert many["high"] - many["low"] < (few["high"] - few["low"]) / 5


def test_unanimous_outcomes():
    """Five wrong answers do not show that all are wrong: with a share of 1 - 0.025 ** (1 / 5) =
    0.5218, five of five are wrong in 2.5 % of the cases. If they share one gold query, they are one
    outcome: 0.975.
    """
    assert share([True] * 5) == pytest.approx(
        {"value": 1, "low": 0.4782, "high": 1, "n": 5}, abs=1e-4
    )
    assert share([False] * 5) == pytest.approx(
        {"value": 0, "low": 0, "high": 0.5218, "n": 5}, abs=1e-4
    )
    alone = share([False] * 5, clusters=["a"] * 5)
    assert alone == pytest.approx({"value": 0, "low": 0, "high": 0.975, "n": 5})


def test_questions_that_share_gold_are_resampled_together():
    """A hundred questions, of which half are right: their standard error is 0.05. In 25 clusters of
    four equal outcomes it is that of 25 questions, 0.1; 13 of the clusters are right.
    """
    outcomes, clusters = [i // 4 % 2 == 0 for i in range(100)], [i // 4 for i in range(100)]
    apart, together = share(outcomes), share(outcomes, clusters=clusters)
    assert apart["value"] == together["value"] == 0.52
    assert apart["high"] - apart["low"] == pytest.approx(2 * 1.96 * 0.05, abs=0.02)
    assert together["high"] - together["low"] == pytest.approx(2 * 1.96 * 0.1, abs=0.04)
    gained = paired_difference([False] * 100, outcomes, clusters=clusters)
    assert gained == together
    assert share(outcomes, clusters=range(100)) == apart


def test_few_seeds_have_an_unbiased_variance():
    """Three seeds with the means 1, 2 and 6: their variance is 7, that of their mean 7 / 3. Two
    draws of three vary by ((-2)^2 + (-1)^2 + 3^2) / 3 / 2 = 7 / 3; three draws would by 14 / 9.
    """
    weights = seed_weights(3, 100_000)
    assert weights.shape == (100_000, 3) and np.allclose(weights.sum(1), 1)
    assert (weights @ np.array([1.0, 2.0, 6.0])).var() == pytest.approx(7 / 3, rel=0.02)
    assert seed_weights(1, 2).tolist() == [[1.0], [1.0]]


def test_nothing_to_measure():
    empty = {"value": None, "low": None, "high": None, "n": 0}
    assert share([]) == empty
    assert paired_difference([], []) == empty


def test_the_seed_decides():
    outcomes = [i % 3 == 0 for i in range(997)]
    assert share(outcomes, seed=1) == share(outcomes, seed=1)
    assert any(share(outcomes, seed=1) != share(outcomes, seed=s) for s in range(2, 12))


def test_paired_difference_counts_gains_and_losses():
    before = [True] * 50 + [False] * 50
    after = [True] * 48 + [False] * 2 + [True] * 12 + [False] * 38  # 12 gained, 2 lost
    result = paired_difference(before, after)
    assert (result["value"], result["n"]) == (0.1, 100)
    # variance of a pair's difference is 0.14 - 0.1 ** 2; 1.96 * sqrt(0.13 / 100) = 0.0707
    assert result["low"] == pytest.approx(0.03, abs=0.011)
    assert result["high"] == pytest.approx(0.17, abs=0.011)
    assert paired_difference(after, before)["value"] == -0.1


def test_what_both_find_hard_does_not_widen_the_interval():
    outcomes = [True, False] * 100
    assert paired_difference(outcomes, outcomes) == {"value": 0, "low": 0, "high": 0, "n": 200}


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="2 outcomes before, but 1 after"):
        paired_difference([True, False], [True])


def test_resampled_means_of_single_questions_are_those_of_share():
    outcomes = [i % 5 == 0 for i in range(200)]
    drawn = resampled_means(np.array(outcomes, float)[:, None], ["en"] * 200, range(200))["en"]
    assert drawn.shape == (RESAMPLES, 1)
    interval, alone = summary(0.2, drawn[:, 0], 200), share(outcomes)
    # 1.96 * sqrt(0.2 * 0.8 / 200) = 0.0554
    assert interval["low"] == pytest.approx(0.2 - 0.0554, abs=0.01)
    assert interval["low"] == pytest.approx(alone["low"], abs=0.006)
    assert interval["high"] == pytest.approx(alone["high"], abs=0.006)


def test_clusters_are_drawn_as_a_whole():
    """Two clusters, one all true and one all false: a resample has the first 0, 1 or 2 times, with
    probabilities 1/4, 1/2, 1/4. Both groups share the resamples, whatever their sizes.
    """
    values = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3)
    drawn = resampled_means(values, ["a", "a", "b"] * 2, [0, 0, 0, 1, 1, 1])
    shares, counts = np.unique(drawn["a"][:, 0], return_counts=True)
    assert shares.tolist() == [0, 0.5, 1]
    assert (counts / RESAMPLES).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert (drawn["a"] == drawn["b"]).all()
    assert (drawn["a"].sum(axis=1) == 1).all()  # the second metric is the first's opposite


def test_a_group_may_be_missing_from_a_resample():
    drawn = resampled_means(np.ones((2, 1)), ["a", "b"], [0, 1])
    assert 0.2 < np.isnan(drawn["a"]).mean() < 0.3  # a quarter of the resamples have b twice
    assert summary(1.0, drawn["a"][:, 0], 1) == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 1}
