"""Self-consistency: which SQL wins, by the results of real queries."""

import pytest

from grpo.evaluation.vote import vote

COUNT, SUM = "SELECT count(*) FROM singer", "SELECT sum(1) FROM singer"  # both 3
NAMES = "SELECT name FROM singer"
UP, DOWN = f"{NAMES} ORDER BY age", f"{NAMES} ORDER BY age DESC"
NONE, NEITHER = f"{NAMES} WHERE age > 99", f"{NAMES} WHERE age < 0"
WRONG, DENIED = "SELECT nome FROM singer", "DELETE FROM singer"


@pytest.mark.parametrize(
    ("sqls", "sql", "agreement"),
    [
        ([NAMES, COUNT, SUM], COUNT, 2 / 3),  # results are counted, not texts
        ([NAMES, SUM, COUNT, COUNT, NAMES], COUNT, 3 / 5),  # the commonest text of the result
        ([COUNT, NAMES], COUNT, 1 / 2),  # of two, the first
        ([COUNT, WRONG, None, NAMES, NAMES], NAMES, 2 / 5),  # of all samples
        ([COUNT, WRONG, WRONG, DENIED], COUNT, 1 / 4),  # what fails has no vote
        ([NONE, NEITHER, COUNT], NONE, 2 / 3),  # no rows are a result
        ([UP, DOWN, COUNT], UP, 1 / 3),  # both are ordered, otherwise
        ([UP, NAMES, COUNT], UP, 2 / 3),  # only one is
        ([COUNT], COUNT, 1.0),
        ([WRONG, DENIED], WRONG, 0.0),
        ([None, DENIED], DENIED, 0.0),
        ([None, None], None, 0.0),
    ],
)
def test_what_wins(examples, verifier, sqls, sql, agreement):
    won = vote(verifier.sandbox, examples[0].db_path, sqls)
    assert (won.sql, won.agreement) == (sql, pytest.approx(agreement))
    status = {WRONG: "error", DENIED: "denied", None: "no SQL"}.get(sql, "ok")
    assert won.execution.status == status
    if sql == COUNT:
        assert won.execution.rows == [(3,)]
