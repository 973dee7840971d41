"""The measure of copying (benchmarks/copying.py), by hand."""

from benchmarks.copying import Answer, names, shares


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
