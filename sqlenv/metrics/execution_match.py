"""Do two results answer the question alike? The comparison behind execution accuracy (EX).

Results are compared much as Spider's test-suite evaluation does (Zhong et al. 2020): as multisets
of rows, in row order only if the gold query orders, with free column order. Rows as a *set* would
reward a wrong DISTINCT; trying all column orders would hang on 20 columns. docs/evaluation.md
lists every difference from that evaluation, from BIRD's and from Spider's first.
"""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np

from sqlenv.sandbox.sandbox import Execution

# Far above the noise of summing in another order, far below the differences in real data.
TOLERANCE = {"rel_tol": 1e-9, "abs_tol": 1e-12}
MAX_CELLS = 20_000_000  # looked at in search of the column order, before giving up: some seconds


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
    gold_rows, rows = (
        [tuple(values.get(cell, cell) for cell in row) for row in e.rows] if values else e.rows
        for e in (gold, predicted)
    )
    gold_columns, columns = (list(zip(*table, strict=True)) for table in (gold_rows, rows))
    if ordered:  # rows are aligned, so columns need only be the same up to their order
        return Counter(gold_columns) == Counter(columns)
    if Counter(gold_rows) == Counter(rows):
        return True
    if Counter(map(signature, gold_columns)) != Counter(map(signature, columns)):
        return False
    numbers: dict = {}  # one for all equal cells
    gold_cells, cells = (
        np.array([[numbers.setdefault(c, len(numbers)) for c in row] for row in table], np.uint64)
        for table in (gold_rows, rows)
    )
    nothing = np.zeros(len(gold.columns), np.uint64)
    return match_columns(gold_cells, cells, nothing, nothing, [MAX_CELLS])


def signature(column: tuple) -> frozenset:
    return frozenset(Counter(column).items())


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


def match_columns(
    gold: np.ndarray,
    predicted: np.ndarray,
    gold_colors: np.ndarray,
    colors: np.ndarray,
    budget: list[int],
) -> bool:
    """Return whether some order of the predicted columns makes the multisets of rows equal.

    Only columns of the same color, see `refine`, can stand for each other. Where columns of a
    color differ, one gold column is set apart, and each of the predicted ones in its stead by
    turns, until all colors are clear: few steps, except in a puzzle of hundreds of alike columns,
    which ends in False once `budget`, a number of cells, is spent.

    gold, predicted      (rows, columns) numbers of cells
    gold_colors, colors  (columns,) what is known of each column: columns of different colors
                         cannot stand for each other
    """
    gold_colors, colors = refine(gold, gold_colors), refine(predicted, colors)
    if sorted(gold_colors) != sorted(colors):
        return False
    for color in np.unique(gold_colors):
        (alike,) = np.nonzero(gold_colors == color)
        if len(multiset(gold.T[alike])) > 1:
            break
    else:
        by_color = (
            cells[:, np.argsort(c)] for cells, c in ((gold, gold_colors), (predicted, colors))
        )
        return multiset(next(by_color)) == multiset(next(by_color))
    # Columns that are equal cell by cell need to be tried once.
    candidates = {predicted[:, i].tobytes(): i for i in np.nonzero(colors == color)[0]}
    apart = mix(color[None])
    for candidate in candidates.values():
        budget[0] -= gold.size
        if budget[0] < 0:
            return False
        chosen = gold_colors.copy(), colors.copy()
        chosen[0][alike[0]], chosen[1][candidate] = apart[0], apart[0]
        if match_columns(gold, predicted, *chosen, budget):
            return True
    return False


def refine(cells: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Tell columns apart by their cells, and by what else stands in the rows of these cells.

    Color refinement: rows are hashed with the colors of their cells' columns, columns with the
    hashes of their cells' rows, and so on while that tells more columns apart. The hashes do not
    depend on the order of rows and columns, so columns that can stand for each other get the same.
    """
    while True:
        rows = mix(mix(cells) ^ colors).sum(axis=1)  # (rows,)
        refined = mix(mix(mix(cells) ^ rows[:, None]).sum(axis=0) ^ mix(colors))  # (columns,)
        if len(np.unique(refined)) == len(np.unique(colors)):
            return refined
        colors = refined


def mix(numbers: np.ndarray) -> np.ndarray:
    """A hash of each 64-bit number (the finalizer of splitmix64)."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def multiset(rows: np.ndarray) -> Counter:
    return Counter(row.tobytes() for row in rows)
