"""Comparison of the results of two queries, for execution accuracy (EX).

Results are compared similarly to Spider's test-suite evaluation (Zhong et al. 2020): as multisets
of rows, in row order only if the gold query orders, in any column order. Comparison as sets would
accept a wrong DISTINCT. Trying all column orders would take forever on 20 columns.
docs/evaluation.md lists the differences from that evaluation, from BIRD's and from Spider's first.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sqlenv.sandbox.sandbox import Execution

# Far above the error of summing in another order, far below the differences in real data.
TOLERANCE = {"rel_tol": 1e-9, "abs_tol": 1e-12}
MAX_CELLS = 20_000_000  # cells read in the search for the column order (some seconds)


def results_match(gold: Execution, predicted: Execution, ordered: bool) -> bool:
    """Returns whether two executions give the same result; False unless both are ok.

    - Rows count as often as they occur:          [(1,), (1,)] differs from [(1,)]
    - Row order counts only if ``ordered``:       [(1,), (2,)] equals [(2,), (1,)] unless ordered
    - Column order and names do not count:        [(1, "a")] equals [("a", 1)]
    - The number of columns counts:               [(1, 1)] differs from [(1,)]
    - Integers and floats are compared by value:  1 equals 1.0, 0.1 + 0.2 equals 0.3, see
      ``round_floats``
    - Text and bytes are compared exactly:        "a" differs from "A", "1" differs from 1
    - NULL equals only NULL:                      None differs from 0 and ""
    - Empty results with as many columns are equal. The caller decides whether that is rewarded.
    """
    if gold.status != "ok" or predicted.status != "ok":
        return False
    if len(gold.columns) != len(predicted.columns) or len(gold.rows) != len(predicted.rows):
        return False
    if not gold.rows:
        return True
    gold_rows, rows = comparable_rows(gold, predicted)
    gold_columns, columns = (list(zip(*table, strict=True)) for table in (gold_rows, rows))
    if ordered:  # rows are aligned, so only the order of columns is free
        return Counter(gold_columns) == Counter(columns)
    if Counter(gold_rows) == Counter(rows):
        return True
    if Counter(map(signature, gold_columns)) != Counter(map(signature, columns)):
        return False
    numbers: dict = {}  # equal cells get equal numbers
    gold_cells, cells = (
        np.array([[numbers.setdefault(c, len(numbers)) for c in row] for row in table], np.uint64)
        for table in (gold_rows, rows)
    )
    uncolored = np.zeros(len(gold.columns), np.uint64)
    return match_columns(gold_cells, cells, uncolored, uncolored, [MAX_CELLS])


def result_overlap(gold: Execution, predicted: Execution) -> float:
    """How much of the result is right, from 0 to 1: the F1 score of its rows, each compared as the
    multiset of its cells, so that the order of columns does not count (nor that of rows). 0 where
    one of the queries fails or the numbers of columns differ.

    >>> ok = lambda *rows: Execution("ok", columns=["a", "b"], rows=list(rows))
    >>> result_overlap(ok((1, "x"), (2, "y")), ok(("x", 1)))  # of 2 + 1 rows 2 have a partner
    0.6666666666666666
    """
    if gold.status != "ok" or predicted.status != "ok":
        return 0.0
    total = len(gold.rows) + len(predicted.rows)
    if len(gold.columns) != len(predicted.columns) or not total:
        return 0.0
    gold_rows, rows = (Counter(map(signature, t)) for t in comparable_rows(gold, predicted))
    return 2 * (gold_rows & rows).total() / total


def comparable_rows(gold: Execution, predicted: Execution) -> Iterator[Sequence[tuple]]:
    """The rows of both results, in which numbers within the tolerance are equal."""
    values = round_floats(cell for e in (gold, predicted) for row in e.rows for cell in row)
    for e in (gold, predicted):
        yield [tuple(values.get(c, c) for c in row) for row in e.rows] if values else e.rows


def signature(cells: tuple) -> frozenset:
    """The multiset of the cells of a column or row, hashable."""
    return frozenset(Counter(cells).items())


def round_floats(cells: Iterable) -> dict:
    """Maps numbers to a representative, so that numbers within the tolerance become equal.

    Numbers are merged with the smallest one that they differ from by a relative 1e-9 or by 1e-12,
    and not with a neighbour: a column of times a second apart would be one number. Two different
    whole numbers are never merged: keys like 10000000001 and 10000000002 stay different. The values
    of both results are passed together, since rounding each number by itself would separate close
    numbers on both sides of a rounding boundary.

    >>> round_floats([0.3, 0.1 + 0.2, 5])
    {0.30000000000000004: 0.3}
    """
    numbers = {cell for cell in cells if isinstance(cell, (int, float))}
    if all(isinstance(number, int) or number.is_integer() for number in numbers):
        return {}  # the usual case; in Python whole floats equal integers
    # The same NaN object for all: containers compare by identity first, so it equals itself.
    representative = {number: math.nan for number in numbers if math.isnan(number)}
    cluster, whole = math.nan, False
    for number in sorted(numbers - representative.keys()):
        is_whole = isinstance(number, int) or number.is_integer()
        # Infinity is close only to itself, and no number is close to NaN.
        if math.isclose(number, cluster, **TOLERANCE) and not (whole and is_whole):
            representative[number] = cluster
            whole = whole or is_whole
        else:
            cluster, whole = number, is_whole
    return representative


def match_columns(
    gold: np.ndarray,
    predicted: np.ndarray,
    gold_colors: np.ndarray,
    colors: np.ndarray,
    budget: list[int],
) -> bool:
    """Returns whether some order of the predicted columns makes the multisets of rows equal.

    Only columns of the same color can be matched, see ``refine``. If different columns have the
    same color, a gold column gets a color of its own, and so does each of the predicted columns in
    turn (individualization and refinement, as in graph isomorphism). This takes few steps except on
    hundreds of similar columns.

    Args:
        gold: (rows, columns) uint64, equal for equal cells.
        predicted: the same, of the other result.
        gold_colors: (columns,) uint64; columns of different colors cannot be matched.
        colors: the same, of the predicted columns.
        budget: a list with the number of cells that may still be read. It is reduced in place; the
            search ends with False when it is used up.
    """
    gold_colors, colors = refine(gold, gold_colors), refine(predicted, colors)
    if sorted(gold_colors) != sorted(colors):
        return False
    for color in np.unique(gold_colors):
        (same_color,) = np.nonzero(gold_colors == color)
        if len(multiset(gold.T[same_color])) > 1:
            break
    else:
        by_color = (
            cells[:, np.argsort(c)] for cells, c in ((gold, gold_colors), (predicted, colors))
        )
        return multiset(next(by_color)) == multiset(next(by_color))
    # Of identical columns one is enough.
    candidates = {predicted[:, i].tobytes(): i for i in np.nonzero(colors == color)[0]}
    new_color = mix(color[None])[0]
    for candidate in candidates.values():
        budget[0] -= gold.size
        if budget[0] < 0:
            return False
        recolored = gold_colors.copy(), colors.copy()
        recolored[0][same_color[0]], recolored[1][candidate] = new_color, new_color
        if match_columns(gold, predicted, *recolored, budget):
            return True
    return False


def refine(cells: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colors columns by their cells and by the other cells of the same rows (color refinement).

    Rows are hashed with the colors of their cells' columns, then columns with the hashes of their
    cells' rows, repeatedly until the number of colors no longer grows. The hashes do not depend on
    the order of rows and columns, so columns that can be matched get the same color.

    Args:
        cells: (rows, columns) uint64.
        colors: (columns,) uint64.

    Returns:
        (columns,) uint64.
    """
    while True:
        rows = mix(mix(cells) ^ colors).sum(axis=1)  # (rows,)
        refined = mix(mix(mix(cells) ^ rows[:, None]).sum(axis=0) ^ mix(colors))  # (columns,)
        if len(np.unique(refined)) == len(np.unique(colors)):
            return refined
        colors = refined


def mix(numbers: np.ndarray) -> np.ndarray:
    """Hashes each 64-bit number (the finalizer of splitmix64)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def multiset(rows: np.ndarray) -> Counter:
    """The rows of an array with their numbers of occurrences."""
    return Counter(row.tobytes() for row in rows)
