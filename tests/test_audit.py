"""The audit of wrong answers that the encoder finds right."""

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
        ("SELECT a FROM t WHERE a BETWEEN 3 AND 5 OR b BETWEEN 1 AND 5", []),
        ("SELECT a FROM t WHERE a BETWEEN 3 AND 5 OR a between 3 and 5", ["condition"]),
        ("SELECT a FROM t WHERE x = 1 AND x = 1 ORDER BY a", ["condition"]),
        ("SELECT a FROM t WHERE x = 1 AND x = 1 UNION SELECT b FROM t", ["condition"]),
        ("SELECT a FROM t WHERE b IN (SELECT c FROM u WHERE x = 1 AND x = 1)", ["condition"]),
        ("SELECT a FROM t WHERE x = 1 UNION SELECT b FROM t WHERE x = 1", []),
        ("SELECT a FROM t WHERE b IN (1, 2) AND c IN (3, 3)", ["value"]),
        ("SELECT a FROM t UNION SELECT a FROM t ORDER BY a LIMIT 3", ["query"]),
        ("SELECT round(a, 1), round(b, 1) FROM t", []),
        ("no SQL at all", []),
    ],
)
def test_repetitions_are_seen(sql, kinds):
    assert audit.repeated(sql) == kinds


def write_answers(path, *answers):
    names = ("semantic", "test_suite", "predicted")
    question = {"lang": "en", "db_id": "zoo", "question": "?", "gold": "SELECT 1", "gold_ok": True}
    rows = [dict(zip(names, answer)) | question for answer in answers]
    path.write_text("\n".join(json.dumps(row) for row in rows))


def test_shares_of_all_answers(tmp_path, capsys):
    """Of four answers the encoder finds two right that are wrong; one of all repeats a column."""
    path = tmp_path / "answers.jsonl"
    twice = "SELECT a, a FROM t"
    write_answers(
        path,
        (True, False, twice),
        (True, False, "SELECT a"),
        (False, False, None),
        (True, True, "x"),
    )
    assert audit.main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "| answers | 4 | 50.0 | 25.0 | 0.0 | 0.0 | 0.0 | 25.0 |"
    )
    assert audit.main([str(path), "--draw", "5"]) == 0
    drawn = [json.loads(line)["predicted"] for line in capsys.readouterr().out.splitlines()]
    assert sorted(drawn) == ["SELECT a", twice]


def test_bad_files_are_one_line(tmp_path, capsys):
    path = tmp_path / "answers.jsonl"
    write_answers(path, (True, None, "SELECT 1"))
    for text in (None, "no json"):
        path.write_text(text) if text else None
        assert audit.main([str(path)]) == 2
        error = capsys.readouterr().err
        assert "answers.jsonl" in error and error.count("\n") == 1
