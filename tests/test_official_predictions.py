"""Predictions in the official forms of Spider and BIRD: one answer for each question of a split, in
the order of its file.
"""

import json

import pytest
from dataset_kit import make_database, write_json

import evaluate
from sqlenv import UserError, open_dataset
from sqlenv.metrics.predictions import is_official, read_official

COUNT, NAMES = "SELECT count(*) FROM pet", "SELECT name FROM pet"
GOLDS = [("pets", COUNT), ("lost", COUNT), ("pets", NAMES)]
SEPARATOR = "\t----- bird -----\t"


@pytest.fixture
def spider(tmp_path):
    """Three dev questions, the second of which is on a database that is missing."""
    root = tmp_path / "spider"
    make_database(root / "database" / "pets" / "pets.sqlite")
    entries = [
        {"db_id": db_id, "question": f"{i}?", "query": gold}
        for i, (db_id, gold) in enumerate(GOLDS)
    ]
    write_json(root / "dev.json", entries)
    return root


@pytest.fixture
def bird(tmp_path):
    """A simple question, and two challenging ones."""
    root = tmp_path / "bird"
    make_database(root / "dev" / "dev_databases" / "pets" / "pets.sqlite")
    levels = ["simple", "challenging", "challenging"]
    entries = [
        {"db_id": "pets", "question": f"{i}?", "SQL": COUNT, "evidence": "e", "difficulty": level}
        for i, level in enumerate(levels)
    ]
    write_json(root / "dev" / "dev.json", entries)
    return root


def answers(path, root, **options):
    assert is_official(path)
    examples, sqls, missing = read_official(path, open_dataset(root), "en", "dev", **options)
    return [(e.question, sql) for e, sql in zip(examples, sqls)], missing


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1\tpets\nSELECT 2\tlost\nSELECT\t3 x\tpets\n",
        "\ufeffSELECT 1\r\nSELECT 2\r\nSELECT\t3 x",
        "SELECT 1\nSELECT 2\tlost\nSELECT\t3 x\tpets\n\n",
    ],
)
@pytest.mark.parametrize("name", ["pred.sql", "predicted_sql.txt"])
def test_the_form_of_spider(spider, tmp_path, text, name):
    """With or without db_id; the answer to the missing database is left out, the rest stays in
    step.
    """
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    answered = [("0?", "SELECT 1"), ("2?", "SELECT\t3 x")]
    assert answers(path, spider) == (answered, {"en": {"lost": 1}})
    assert answers(path, spider, limit=1)[0] == [("0?", "SELECT 1")]


def test_questions_without_sql(spider, bird, tmp_path):
    path = tmp_path / "pred.sql"
    path.write_text("\tpets\nSELECT 2\tlost\nSELECT 3\tpets\n")
    assert answers(path, spider)[0] == [("0?", None), ("2?", "SELECT 3")]
    path.write_text("\nSELECT 2\nSELECT 3\n")
    assert answers(path, spider)[0] == [("0?", None), ("2?", "SELECT 3")]
    path = write_json(tmp_path / "pred.json", {"0": 0, "2": f"SELECT 3{SEPARATOR}pets", "1": ""})
    assert answers(path, bird)[0] == [("0?", None), ("1?", None), ("2?", "SELECT 3")]


@pytest.mark.parametrize(
    ("text", "sqls"),
    [
        ("A\nB\n\n", ["A", None]),  # the last is empty
        ("A\r\nB\r\n\r\n", ["A", None]),
        ("A\n\n\n", ["A", None]),  # the last two are
        ("\n\n\n", [None, None]),
        ("A\n\nC", ["A", "C"]),
        ("A\n\nC\n\n \n", ["A", "C"]),  # and more empty lines than questions
    ],
)
def test_empty_answers_at_the_end(spider, tmp_path, text, sqls):
    """Three questions; a newline at the end of a file ends its last line, and is no answer."""
    path = tmp_path / "pred.sql"
    path.write_text(text, newline="")
    assert [sql for _, sql in answers(path, spider)[0]] == sqls
    path.write_text("A\n\n")
    with pytest.raises(UserError, match="has 2 answers"):
        answers(path, spider)


def test_a_db_id_with_spaces(tmp_path):
    """A file name such as "minha loja.sqlite" is the db_id of one SQLite file."""
    shop = make_database(tmp_path / "minha loja.sqlite")
    questions = tmp_path / "pairs.csv"
    questions.write_text(f"split,question,sql\ndev,A?,{COUNT}\ndev,B?,{NAMES}\n")
    dataset, path = open_dataset(shop, questions), tmp_path / "pred.sql"
    path.write_text("SELECT 1\tminha loja\r\nSELECT\t2 x\tminha loja \n", newline="")
    assert read_official(path, dataset, "pt", "dev")[1] == ["SELECT 1", "SELECT\t2 x"]
    path.write_text("minha loja\nSELECT\t2 x\n")  # without db_ids
    assert read_official(path, dataset, "pt", "dev")[1] == ["minha loja", "SELECT\t2 x"]


@pytest.mark.parametrize("name", ["p.txt", "p.sql", "p.SQL", "p.jsonl", "p.json"])
def test_json_lines_are_recognised_whatever_the_name(tmp_path, name):
    path = tmp_path / name
    path.write_text('\n {"db_id": "pets", "question": "0?"}\n')
    assert not is_official(path)
    path.write_text('{"0": "SELECT 1"}')
    assert is_official(path)
    path.write_text("SELECT 1\n")
    assert is_official(path) == (not name.startswith("p.json"))


@pytest.mark.parametrize("separator", ["\n", " "])
def test_the_form_of_bird(bird, tmp_path, separator):
    """Its own JSON on many lines, or on one."""
    values = {str(i): f"SELECT {i}{SEPARATOR}pets" for i in (0, 2, 1)}
    path = tmp_path / "predict_dev.json"
    path.write_text(json.dumps(values, indent=None if separator == " " else 4))
    assert answers(path, bird)[0] == [(f"{i}?", f"SELECT {i}") for i in range(3)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.sql", "SELECT 1\n", "p.sql: has 1 answers, but the dev split of .* has 3 questions"),
        ("p.sql", "SELECT 1\tpet\nA\nB\n", "p.sql, line 1: db_id 'pet', but question '0.' of the"),
        (
            "p.json",
            '{"0": "A", "1": "B\\t----- bird -----\\tpet", "2": "C"}',
            "p.json, key '1': db_",
        ),
        ("p.json", '{"0": "A", "2": "B", "3": "C"}', "p.json: no key '1'; the keys number"),
        ("p.json", '{"0": "A",\n"1": }', "p.json, line 2: not JSON"),
        ("p.json", '{"0": "A", "x": "B"}', "p.json, line 1: not JSON"),
        ("p.json", '{"0": "\\ud83d"}', "p.json, key '0': the SQL is not valid Unicode"),
    ],
)
def test_bad_files(bird, tmp_path, name, text, words):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        answers(path, bird)


def test_no_database_at_all(spider, tmp_path):
    (spider / "database" / "pets" / "pets.sqlite").unlink()
    path = tmp_path / "p.sql"
    path.write_text("A\nB\nC\n")
    with pytest.raises(UserError, match="p.sql: no database 'pets' at .*pets.sqlite"):
        answers(path, spider)


def test_evaluate_reports_by_difficulty(bird, tmp_path, capsys):
    """The simple question is right, and one of the two challenging ones. Saved predictions have the
    level, and the same report.
    """
    path, out, saved = (tmp_path / name for name in ("p.json", "out.json", "saved.jsonl"))
    write_json(path, {"0": COUNT, "1": NAMES, "2": f"{COUNT}{SEPARATOR}pets"})
    options = ["--data", str(bird), "--json", str(out), "--csv", str(tmp_path / "out.csv")]
    first = ["--predictions", str(path), "--save-predictions", str(saved), *options]
    assert evaluate.main(first) == 0
    report = json.loads(out.read_text())
    shares = {level: m["execution"]["value"] for level, m in report["difficulty"].items()}
    assert shares == {"simple": 1.0, "challenging": 0.5}
    assert report["en"]["execution"]["n"] == 3
    assert "Difficulty\n\ndifficulty" in capsys.readouterr().out
    assert "difficulty,challenging,execution,0.5," in (tmp_path / "out.csv").read_text()
    assert evaluate.main(["--predictions", str(saved), *options]) == 0
    assert json.loads(out.read_text())["difficulty"] == report["difficulty"]


def test_evaluate_needs_one_language(tmp_path, capsys):
    (tmp_path / "p.sql").write_text("SELECT 1\n")
    assert evaluate.main(["--predictions", str(tmp_path / "p.sql")]) == 2
    assert "answers questions in one language; give --lang, of en, de" in capsys.readouterr().err
