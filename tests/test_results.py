"""Comparison of results: cases by hand, properties that hold for any table of values, and the
differences from other evaluations (docs/evaluation.md has a table of them).
"""

import math
import random
import re
import sqlite3
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlenv import Execution, Sandbox, is_ordered, results_match
from sqlenv.metrics.execution_match import result_overlap


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
    (  # each within the tolerance of the next, 1.7: times a second apart
        [(1.7e9 + 0.9 * i + 0.25,) for i in range(300)],
        [(1.7e9 + 0.25,)] * 300,
    ),
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


def test_column_names_do_not_matter_even_if_they_repeat():
    gold = Execution("ok", ("name", "name"), [("a", "b"), ("c", "d")])
    swapped = Execution("ok", ("x", "count(*)"), [("d", "c"), ("b", "a")])
    assert results_match(gold, swapped, False)
    mixed = Execution("ok", ("name", "name"), [("a", "d"), ("c", "b")])
    assert not results_match(gold, mixed, False)


def test_overlap_has_the_tolerance_of_equality():
    """One of two rows has a partner: 2 of 4. Whole numbers are different, however close."""
    gold, predicted = [(0.3,), (1.0,)], [(0.1 + 0.2,), (2.0,)]
    assert result_overlap(result(gold), result(predicted)) == 0.5
    gold, predicted = [(0.5, 10_000_000_001)], [(0.5, 10_000_000_002)]
    assert result_overlap(result(gold), result(predicted)) == 0


def test_twenty_identical_columns_at_once():
    """Spider's test-suite evaluation goes through up to 20! orders of them."""
    rows = [(i % 3,) * 20 for i in range(50)]
    assert match(rows, rows[::-1])
    wrong = [(*row[:-1], (row[-1] + 1) % 3) for row in rows]  # the last column does not align
    wrong = [(*row[:-1], w) for row, w in zip(rows, sorted(r[-1] for r in wrong), strict=True)]
    assert not match(rows, wrong)


def test_twenty_alike_columns_in_another_order_at_once():
    rng = random.Random(0)
    columns = [rng.sample([i % 7 for i in range(700)], 700) for _ in range(20)]
    rows, mixed = list(zip(*columns)), list(zip(*rng.sample(columns, 20)))
    assert match(rows, rng.sample(mixed, 700))
    columns[-1] = columns[-1][::-1]
    assert not match(rows, list(zip(*columns)))


def incidence(edges, order, copies=1):
    """Rows are edges, columns the nodes in some order: 1 where an edge has that node."""
    return [
        tuple(int(column in (6 * k + a, 6 * k + b)) for column in order)
        for k in range(copies)
        for a, b in edges
    ]


RING = [(i, (i + 1) % 6) for i in range(6)]
TRIANGLES = [(i, (i + 1) % 3) for i in range(3)] + [(3 + i, 3 + (i + 1) % 3) for i in range(3)]


def test_columns_that_only_a_search_tells_apart():
    # Each column has a single 1, so all columns have the same cells; rows are permuted.
    size = 40
    rows = [tuple(int(i == j) for j in range(size)) for i in range(size)]
    columns = random.Random(0).sample(range(size), size)
    assert match(rows, [tuple(row[j] for j in columns) for row in rows])
    # Every node of a 6-cycle and of two triangles has the same degree; ten copies of each.
    order = random.Random(0).sample(range(60), 60)
    assert match(incidence(RING, range(60), 10), incidence(RING, order, 10))
    assert not match(incidence(RING, range(60), 10), incidence(TRIANGLES, order, 10))


def test_the_search_gives_up_in_the_end(monkeypatch):
    gold, predicted = incidence(RING, range(6)), incidence(RING, (0, 2, 4, 1, 3, 5))
    assert match(gold, predicted)
    monkeypatch.setattr("sqlenv.metrics.execution_match.MAX_CELLS", 35)  # of 36 cells
    assert match(gold, gold[::-1])  # needs no search
    assert not match(gold, predicted)


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


def tables(width):
    rows = st.lists(st.tuples(*[st.integers(0, 1)] * width), min_size=3, max_size=3)
    return st.tuples(rows, rows)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4).flatmap(tables))
def test_the_same_as_trying_every_order_of_columns(tables):
    gold, predicted = tables
    by_hand = any(
        Counter(gold) == Counter(tuple(row[j] for j in order) for row in predicted)
        for order in permutations(range(len(gold[0])))
    )
    assert match(gold, predicted) == by_hand


# Differences from Spider's test-suite evaluation, BIRD's and Spider's first one.


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def same(sandbox, tmp_path_factory):
    """same(gold, predicted): whether two queries give the same result by EX."""
    path = tmp_path_factory.mktemp("singers") / "singers.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """
        CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INTEGER);
        INSERT INTO singer VALUES (1, 'Ann', 'France', 30), (2, 'Bob', 'France', 40),
                                  (3, 'Cid', 'Japan', 40), (4, 'Dee', 'Peru', 50);
        CREATE TABLE raw (text TEXT, cut TEXT);
        INSERT INTO raw VALUES (CAST(X'61FF' AS TEXT), 'a');
        """
    )
    connection.close()

    def same(gold, predicted, sandbox=sandbox):
        executions = sandbox.run_many([(path, gold), (path, predicted)])
        assert executions[0].status == "ok", executions[0].error
        return results_match(*executions, is_ordered(gold))

    return same


def test_differs_rows_count_as_often_as_they_occur(same):
    assert not same("SELECT country FROM singer", "SELECT DISTINCT country FROM singer")
    ages = "SELECT age FROM singer WHERE id < 4"  # 30, 40, 40
    assert not same(ages, "SELECT 30 UNION ALL SELECT 30 UNION ALL SELECT 40")


def test_differs_distinct_is_part_of_the_query(same):
    gold = "SELECT count(DISTINCT country) FROM singer"
    assert not same(gold, "SELECT count(country) FROM singer")


def test_differs_order_counts_if_the_outermost_gold_query_orders(same):
    by_name, by_age = "ORDER BY name", "ORDER BY age DESC, name DESC"
    assert same("SELECT name FROM singer", f"SELECT name FROM singer {by_age}")
    assert not same(f"SELECT name FROM singer {by_name}", f"SELECT name FROM singer {by_age}")
    inner = f"SELECT name FROM (SELECT * FROM singer {by_name} LIMIT 3)"
    assert same(inner, f"SELECT name FROM singer WHERE id < 4 {by_age}")


def test_differs_columns_may_stand_in_any_order(same):
    assert same("SELECT name, age FROM singer", "SELECT age, name FROM singer")
    assert same(
        "SELECT name, age FROM singer ORDER BY id", "SELECT age, name FROM singer ORDER BY id"
    )


def test_differs_all_columns_are_compared(same):
    gold = "SELECT avg(age), min(age), max(age) FROM singer"
    assert same(gold, "SELECT max(age), avg(age), min(age) FROM singer")
    assert not same(gold, "SELECT sum(age), count(age), max(age) FROM singer")
    assert not same(gold, "SELECT max(age) FROM singer")


def test_differs_only_values_count_not_the_column_they_come_from(same):
    assert same("SELECT count(*) FROM singer", "SELECT count(name) FROM singer")
    assert same("SELECT max(id) FROM singer", "SELECT count(*) FROM singer")  # by chance: see TS


def test_differs_whatever_sqlite_runs_is_compared(same):
    gold = "SELECT name FROM singer WHERE age > (SELECT avg(age) FROM singer)"
    with_table = "WITH mean AS (SELECT avg(age) AS age FROM singer) "
    assert same(gold, with_table + "SELECT name FROM singer, mean WHERE singer.age > mean.age")


def test_differs_empty_results_need_as_many_columns(same):
    no_rows = "FROM singer WHERE age > 99"
    assert not same(f"SELECT name {no_rows}", f"SELECT name, age {no_rows}")
    assert same(f"SELECT name {no_rows}", f"SELECT country {no_rows}")


def test_differs_numbers_within_the_tolerance_are_equal(same):
    assert same("SELECT 0.3", "SELECT 0.1 + 0.2")
    assert not same("SELECT 0.3", "SELECT 0.3000001")


def test_differs_whole_floats_are_integers_beside_other_numbers_too(same):
    assert same("SELECT 1, 1.5", "SELECT 1.0, 1.5")


def test_differs_invalid_utf8_is_replaced_not_dropped(same):
    assert same("SELECT text FROM raw", "SELECT text FROM raw")
    assert not same("SELECT text FROM raw", "SELECT cut FROM raw")


def test_differs_a_prediction_that_writes_is_wrong_and_changes_nothing(same):
    gold = "SELECT name FROM singer"
    empty = "CREATE TEMP TABLE singer AS SELECT 'x' AS name WHERE 0"
    for predicted in ("DELETE FROM singer", "DROP TABLE singer", empty):
        assert not same(gold, predicted)
        assert same(gold, gold)


def test_differs_a_prediction_that_depends_on_chance_or_clock_is_wrong(same):
    assert not same("SELECT 1", "SELECT random() IS NOT NULL")
    assert not same("SELECT 1", "SELECT date('now') > '2000-01-01'")


def test_differs_a_slow_prediction_is_stopped_and_wrong(same):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    with Sandbox(workers=1, timeout=0.3) as impatient:
        assert not same("SELECT 1", endless, impatient)
        assert same("SELECT 1", "SELECT 1", impatient)


def test_differs_a_result_too_large_to_compare_is_wrong(same):
    with Sandbox(workers=1, max_rows=3) as small:
        assert not same("SELECT 1", "SELECT name FROM singer", small)


def test_differs_text_is_run_as_it_stands(same):
    assert not same(
        "SELECT name FROM singer WHERE age >= 40", "SELECT name FROM singer WHERE age > = 40"
    )
    assert not same("SELECT 2020", "SELECT YEAR(CURDATE())")


def test_differs_literals_are_the_predictions_own(same):
    gold = "SELECT name FROM singer WHERE country = 'France'"
    assert not same(gold, "SELECT name FROM singer WHERE country = 'value'")


def test_differs_gold_that_fails_matches_nothing(sandbox, tmp_path):
    sqlite3.connect(tmp_path / "empty.sqlite").close()
    gold, predicted = sandbox.run_many([(tmp_path / "empty.sqlite", "SELECT x FROM nothing")] * 2)
    assert gold.status == "error"
    assert not results_match(gold, predicted, ordered=False)


def test_the_table_of_differences_names_these_tests():
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    assert named <= globals().keys()
    assert {name for name in globals() if name.startswith("test_differs_")} <= named
