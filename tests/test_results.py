"""Comparing results: hand-made cases and properties that hold for any table of values."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlenv import Execution, results_match


def result(rows, width=None):
    width = width if width is not None else len(rows[0])
    return Execution("ok", tuple(f"c{i}" for i in range(width)), rows)


def match(gold, predicted, ordered=False):
    return results_match(result(gold), result(predicted), ordered)


EQUAL = [
    ([(1,), (2,)], [(2,), (1,)]),
    ([(1, "a"), (2, "b")], [("b", 2), ("a", 1)]),
    ([(1,)], [(1.0,)]),
    ([(0.3,)], [(0.1 + 0.2,)]),
    ([(0,)], [(0.1 + 0.2 - 0.3,)]),
    ([(0.15,), (0.15 + 1e-15,)], [(0.15 - 1e-15,), (0.15,)]),
    ([(1e15, 1)], [(1e15 + 0.25, 1)]),
    ([(None, b"x", math.inf)], [(math.inf, None, b"x")]),
    ([(math.nan,)], [(math.nan * 1,)]),
    ([(1, 1, 2), (2, 1, 1)], [(1, 2, 1), (2, 1, 1)]),
]
DIFFERENT = [
    ([(1,), (1,)], [(1,), (2,)]),
    ([(1,), (1,), (2,)], [(1,), (2,), (2,)]),
    ([(1,), (1,)], [(1,)]),
    ([(1,)], [(1, 1)]),
    ([(1, 2), (3, 4)], [(1, 4), (3, 2)]),
    (  # the same rows, and the same cells in each column, but other rows twice
        [(1, "a"), (1, "a"), (1, "b"), (2, "a"), (2, "b"), (2, "b")],
        [(1, "a"), (1, "b"), (1, "b"), (2, "a"), (2, "a"), (2, "b")],
    ),
    ([(1, 2), (2, 1)], [(1, 1), (2, 2)]),  # alike column by column, not row by row
    ([("a",)], [("A",)]),
    ([("1",)], [(1,)]),
    ([("x",)], [(b"x",)]),
    ([(None,)], [(0,)]),
    ([(None,)], [("",)]),
    ([(math.inf,)], [(-math.inf,)]),
    ([(math.inf,)], [(1.5,)]),
    ([(math.nan,)], [(None,)]),
    ([(1.0,)], [(1.00001,)]),
    ([(10_000_000_001, 0.5)], [(10_000_000_002, 0.5)]),
    ([(2**53 + 1, 0.5)], [(2**53, 0.5)]),
    ([(10_000_000_001.0, 0.5)], [(10_000_000_002.0, 0.5)]),
]


@pytest.mark.parametrize(("gold", "predicted"), EQUAL)
def test_equal(gold, predicted):
    assert match(gold, predicted)
    assert match(predicted, gold)


@pytest.mark.parametrize(("gold", "predicted"), DIFFERENT)
def test_different(gold, predicted):
    assert not match(gold, predicted)
    assert not match(predicted, gold)
    assert not match(gold, predicted, ordered=True)


def test_order_counts_only_if_asked():
    rows, swapped = [(1, "a"), (2, "b")], [("b", 2), ("a", 1)]
    assert match(rows, swapped)
    assert not match(rows, swapped, ordered=True)
    assert match(rows, [("a", 1), ("b", 2)], ordered=True)


def test_empty_results_need_the_same_number_of_columns():
    assert results_match(result([], 2), result([], 2), False)
    assert not results_match(result([], 2), result([], 1), True)
    assert not results_match(result([], 1), result([(None,)]), False)


def test_only_executions_that_are_ok_match():
    failed = Execution("error", error="no such table")
    assert not results_match(failed, failed, False)
    assert not results_match(result([], 0), failed, False)
    assert not results_match(failed, result([], 0), False)


def test_many_identical_columns_are_no_puzzle():
    rows = [(i % 3,) * 20 for i in range(50)]
    assert match(rows, rows[::-1])
    wrong = [(*row[:-1], (row[-1] + 1) % 3) for row in rows]  # the last column does not align
    wrong = [(*row[:-1], w) for row, w in zip(rows, sorted(r[-1] for r in wrong), strict=True)]
    assert not match(rows, wrong)


def test_many_alike_columns_end_in_time():
    # Each column holds one 1: alike in every column, and rows are permuted between the two.
    size = 40
    rows = [tuple(int(i == j) for j in range(size)) for i in range(size)]
    columns = random.Random(0).sample(range(size), size)
    assert match(rows, [tuple(row[j] for j in columns) for row in rows])
    # A 6-cycle and two triangles look the same locally, ten copies of each: a true puzzle.
    ring = [(i, (i + 1) % 6) for i in range(6)]
    triangles = [(i, (i + 1) % 3) for i in range(3)] + [(3 + i, 3 + (i + 1) % 3) for i in range(3)]

    def incidence(edges):
        return [
            tuple(int(column in (6 * k + a, 6 * k + b)) for column in range(60))
            for k in range(10)
            for a, b in edges
        ]

    assert not match(incidence(ring), incidence(triangles))


def test_the_search_gives_up_but_not_over_identical_columns(monkeypatch):
    monkeypatch.setattr("sqlenv.results.MAX_PLACEMENTS", 100)
    a, b = (0, 0, 1), (0, 1, 0)
    gold, predicted = zip(a, *[b] * 15, strict=True), zip(*[b] * 15, a, strict=True)
    assert match(list(gold), list(predicted))
    identity = [tuple(int(i == j) for j in range(40)) for i in range(40)]
    monkeypatch.setattr("sqlenv.results.MAX_PLACEMENTS", 39)
    assert not match(identity, identity)


CELLS = st.one_of(
    st.none(),
    st.integers(-2, 2),
    st.floats(allow_nan=False, width=16),
    st.sampled_from(["", "a", "A", "1"]),
    st.sampled_from([b"", b"a"]),
)
TABLES = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.tuples(*[CELLS] * width), min_size=1, max_size=8)
)


@settings(max_examples=200, deadline=None)
@given(TABLES, st.randoms())
def test_shuffled_rows_and_columns_match(rows, rng):
    columns = list(range(len(rows[0])))
    rng.shuffle(columns)
    permuted = [tuple(row[j] for j in columns) for row in rows]
    assert match(rows, permuted, ordered=True)
    rng.shuffle(permuted)
    assert match(rows, permuted)


@settings(max_examples=200, deadline=None)
@given(TABLES, st.data())
def test_a_changed_cell_or_a_row_more_never_matches(rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    j = data.draw(st.integers(0, len(rows[0]) - 1))
    changed = [list(row) for row in rows]
    changed[i][j] = "something else"
    assert not match(rows, [tuple(row) for row in changed])
    assert not match(rows, [*rows, rows[i]])
