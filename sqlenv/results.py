"""Do two results answer the question alike? The comparison behind execution accuracy (EX).

Results are compared as Spider's test-suite evaluation does (Zhong et al. 2020): as multisets of
rows, in row order only if the gold query orders, with free column order. Rows as a *set* would
reward a wrong DISTINCT; trying all column orders would hang on 20 columns.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from sqlenv.sandbox import Execution

# Far above the noise of summing in another order, far below the differences in real data.
TOLERANCE = {"rel_tol": 1e-9, "abs_tol": 1e-12}
MAX_PLACEMENTS = 10_000  # of a predicted column at a gold column's place, before giving up


def results_match(gold: Execution, predicted: Execution, ordered: bool) -> bool:
    """Return whether two executions give the same result; False unless both are ok.

    - Rows count as often as they occur:        [(1,), (1,)] is not [(1,)]
    - Row order counts only if `ordered`:       [(1,), (2,)] is [(2,), (1,)] unless ordered
    - Column order and names never count:       [(1, "a")] is [("a", 1)], for all rows alike
    - The number of columns counts:             [(1, 1)] is not [(1,)]
    - Integers and floats compare by value:     1 is 1.0, and 0.1 + 0.2 is 0.3; see `round_floats`
    - Text and bytes compare exactly:           "a" is not "A", "1" is not 1
    - NULL is NULL and nothing else:            None is not 0, not ""
    - Empty is empty, given as many columns; whether that deserves a reward is the caller's choice.
    """
    if gold.status != "ok" or predicted.status != "ok":
        return False
    if len(gold.columns) != len(predicted.columns) or len(gold.rows) != len(predicted.rows):
        return False
    if not gold.rows:
        return True
    values = round_floats(cell for e in (gold, predicted) for row in e.rows for cell in row)
    gold_columns, predicted_columns = (
        [tuple(values.get(cell, cell) for cell in column) for column in zip(*e.rows, strict=True)]
        for e in (gold, predicted)
    )
    if ordered:  # rows are aligned, so columns need only be the same up to their order
        return Counter(gold_columns) == Counter(predicted_columns)
    return match_columns(gold_columns, predicted_columns)


def round_floats(cells: Iterable) -> dict:
    """Map numbers to a representative, so that those within the tolerance become equal.

    Neighbours on the number line fall together if they differ by a relative 1e-9 (or by 1e-12),
    but two different whole numbers never do: keys like 10000000001 and 10000000002 stay apart.
    Looking at the values of both results at once avoids the flaw of rounding, which parts two
    neighbours that lie on either side of a rounding boundary.

    >>> round_floats([0.3, 0.1 + 0.2, 5])
    {0.30000000000000004: 0.3}
    """
    numbers = {cell for cell in cells if isinstance(cell, (int, float))}
    if all(isinstance(number, int) or number.is_integer() for number in numbers):
        return {}  # the usual case; whole floats equal integers in Python as they should here
    # One NaN for all: Python's containers take an object to be equal to itself.
    representative = {number: math.nan for number in numbers if math.isnan(number)}
    previous, cluster, whole = math.nan, math.nan, False
    for number in sorted(numbers - representative.keys()):
        is_whole = isinstance(number, int) or number.is_integer()
        # An infinity is close to itself only, and nothing is close to NaN.
        if math.isclose(number, previous, **TOLERANCE) and not (whole and is_whole):
            representative[number] = cluster
            whole = whole or is_whole
        else:
            cluster, whole = number, is_whole
        previous = number
    return representative


def match_columns(gold: Sequence[tuple], predicted: Sequence[tuple]) -> bool:
    """Return whether some order of the predicted columns makes the multisets of rows equal.

    Only columns with the same multiset of cells can stand for each other. Among those the search
    places one column after the other and compares the rows as far as they are placed; columns that
    are the same cell by cell are tried once. Data that defeats this (hundreds of alike columns in
    a puzzle) ends in False after MAX_PLACEMENTS steps instead of an endless search.
    """
    candidates = defaultdict(list)  # multiset of cells -> predicted columns
    for column in predicted:
        candidates[signature(column)].append(column)
    places = [(candidates[signature(column)], column) for column in gold]
    if Counter(map(signature, gold)) != Counter(map(signature, predicted)):
        return False
    places.sort(key=lambda place: len(place[0]))  # the least choice first
    rows = [0] * len(gold[0])  # equal rows as far as placed have equal numbers
    return place_columns(places, 0, rows, rows, [MAX_PLACEMENTS])


def signature(column: tuple) -> frozenset:
    return frozenset(Counter(column).items())


def place_columns(places: list, at: int, gold_rows: list, rows: list, budget: list) -> bool:
    """Place columns from position `at` on, given the numbers of the rows as placed so far."""
    if at == len(places):
        return True
    candidates, column = places[at]
    numbers = defaultdict(lambda: len(numbers))  # (number so far, next cell) -> new number
    new_gold = [numbers[pair] for pair in zip(gold_rows, column, strict=True)]
    wanted = Counter(new_gold)
    for candidate in dict.fromkeys(candidates):
        if budget[0] == 0:
            return False
        budget[0] -= 1
        new_rows = [numbers[pair] for pair in zip(rows, candidate, strict=True)]
        if Counter(new_rows) == wanted:
            candidates.remove(candidate)
            if place_columns(places, at + 1, new_gold, new_rows, budget):
                return True
            candidates.append(candidate)
    return False
