"""The audit of answers that please the encoder and are wrong."""

import json

import pytest

from benchmarks import audit


@pytest.mark.parametrize(
    "sql, kinds",
    [
        ("SELECT name, age FROM t WHERE age > 3 AND id > 3", []),
        ("SELECT age,  AGE FROM t", ["column"]),
        ("select distinct age, age from t", ["column"]),
        ("SELECT age FROM t WHERE age > 3 AND id = 1 OR age > 3", ["condition"]),
        ("SELECT age FROM t WHERE city IN ('a', 'b', 'a')", ["value"]),
        ("SELECT a FROM t UNION SELECT a FROM t", ["query"]),
        ("SELECT a FROM t UNION SELECT b FROM t", []),
        ("SELECT a, a FROM t WHERE b = 1 AND b = 1", ["column", "condition"]),
        ("no SQL at all", []),
    ],
)
def test_what_stands_twice(sql, kinds):
    assert audit.repeated(sql) == kinds


def write(path, *answers):
    names = ("semantic", "test_suite", "predicted")
    more = {"lang": "en", "db_id": "zoo", "question": "?", "gold": "SELECT 1"}
    lines = [json.dumps(dict(zip(names, one)) | more) for one in answers]
    path.write_text("\n".join(lines))


def test_shares_of_all_answers(tmp_path, capsys):
    """Of four answers two please the encoder and are wrong; one of all repeats a column."""
    path = tmp_path / "one.jsonl"
    twice = "SELECT a, a FROM t"
    write(
        path,
        (True, False, twice),
        (True, False, "SELECT a"),
        (False, False, None),
        (True, True, "x"),
    )
    assert audit.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| one | 4 | 50.0 | 25.0 | 0.0 | 0.0 | 0.0 | 25.0 |"
    )
    assert audit.main([str(path), "--draw", "5"]) == 0
    drawn = [json.loads(line)["predicted"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(drawn) == ["SELECT a", twice]


def test_bad_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    write(path, (True, None, "SELECT 1"))
    for text in (None, "no json"):
        path.write_text(text) if text else None
        assert audit.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert "one.jsonl" in error and error.count("\n") == 1
