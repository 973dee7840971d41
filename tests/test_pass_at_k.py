"""pass@k against the count of all ways to draw k samples."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pass_at_k import pass_at_k


@given(samples=st.integers(1, 8), data=st.data())
def test_pass_at_k_counts_the_draws_with_a_right_one(samples, data):
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    draws = [any(one) for one in combinations([True] * right + [False] * (samples - right), k)]
    assert pass_at_k(right, samples, k) == pytest.approx(sum(draws) / len(draws))
