"""The measure of copying (benchmarks/copying.py), by hand."""

from benchmarks.copying import Answer, answers, names, shares
from grpo.config import ASSETS
from grpo.models import load_policy


def test_shares_by_hand():
    """Three names written, of which "c" stands in no schema; of four wanted three are written."""
    schema = "CREATE TABLE a (b INTEGER, bc TEXT);"
    results = [
        Answer(schema, "SELECT b FROM a", "SELECT b FROM a"),
        Answer(schema, "SELECT bc FROM a", "SELECT c FROM a"),
    ]
    assert shares(results) == {
        "names copied right": 3 / 4,
        "names of gold in the answer": 3 / 4,
        "answers equal to gold": 1 / 2,
    }


def test_names_are_those_of_tables_and_columns():
    sql = "SELECT T1.ab, COUNT(*) FROM cd AS T1 JOIN ef AS T2 ON T1.id = T2.id WHERE T2.g = 'h'"
    assert names(sql) == ["ab", "cd", "ef", "id", "id", "g"]


def test_the_shipped_policy_copies_names_that_no_text_has():
    policy = load_policy(str(ASSETS / "policy"), "cpu", "float32")
    measured = shares(answers(policy, 10, ("en", "vi")))
    assert measured["names copied right"] > 0.6
    assert measured["names of gold in the answer"] > 0.5
