"""evaluate.py: shares, averages, gaps, hardness, errors and comparisons against numbers counted by
hand, and bad input.
"""

import argparse
import csv
import json
import os
import re
import sqlite3
from collections import Counter
from dataclasses import replace

import pytest

import evaluate
from grpo.checkpoint import save_adapter
from grpo.config import ASSETS
from grpo.evaluation.analysis import compare, error_class, full_report
from grpo.evaluation.measure import Prediction, score
from grpo.lora import add_lora
from grpo.models import load_policy
from sqlenv import Example, ExecutionVerifier, Sandbox, UserError, load_dataset, open_dataset
from sqlenv.metrics.predictions import read_predictions
from tests.test_dataset import multispider

POLICY = str(ASSETS / "policy")
GOLD = "SELECT name FROM singer WHERE age > 30"
ORDERED = "SELECT name FROM singer ORDER BY age LIMIT 1"


@pytest.fixture
def root(tmp_path):
    """A dataset of one database with singers of 20, 40 and 50, and two English dev questions."""
    folder = tmp_path / "root" / "dataset"
    database = folder / "spider" / "database" / "pop" / "pop.sqlite"
    database.parent.mkdir(parents=True)
    connection = sqlite3.connect(database)
    connection.executescript(
        """
        CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);
        INSERT INTO singer VALUES (1, 'Ann', 20), (2, 'Bob', 40), (3, CAST(X'61FF' AS TEXT), 50);
        """
    )
    connection.close()
    questions = [
        {"db_id": "pop", "question": "Who is over 30?", "query": GOLD},
        {"db_id": "pop", "question": "Who is the youngest?", "query": ORDERED},
    ]
    published = folder / "multispider" / "with_English_value"
    published.mkdir(parents=True)
    (published / "dev_en.json").write_text(json.dumps(questions))
    return folder.parent


def line(predicted, question="Who is over 30?", gold=GOLD, lang="en", **changed):
    row = {"db_id": "pop", "question": question, "lang": lang, "gold": gold}
    return row | {"predicted": predicted} | changed


def write(path, lines):
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def run(root, path, *more):
    return evaluate.main(["--predictions", str(path), "--data", str(root), *map(str, more)])


def prediction(right, lang="en", question="?", gold=GOLD, **changed):
    fields = {"predicted": "SELECT 1", "gold_ok": True, "valid": True, "semantic": None}
    fields |= {"status": "ok", "execution": right} | changed
    return Prediction("pop", question, lang, gold, **fields)


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
PREDICTED = [  # SQL, class of error
    (GOLD, None),
    ("SELECT name FROM singer WHERE age >= 40\n\n -- in paragraphs", None),
    (None, "no SQL"),
    (" \n", "no SQL"),
    ("SELECT name FORM singer", "syntax"),
    ("SELECT name FROM singer WHERE", "syntax"),
    ("SELECT name FROM singer; SELECT 1", "syntax"),
    (f"Sure! {GOLD}", "syntax"),
    ("SELECT nome FROM singer", "missing column"),
    ("SELECT name FROM singers", "missing table"),
    ("SELECT max(name, 1) OVER () FROM singer", "other error"),
    ("DELETE FROM singer", "denied"),
    (ENDLESS, "timeout"),
    (f"SELECT '{'x' * 100_000}'", "too large"),
    ("SELECT name FROM singer", "wrong result"),
    ("SELECT age FROM singer", "wrong result"),
    ("SELECT id FROM singer", "wrong result"),
    ("SELECT 1", "wrong result"),
]

MISSING_COLUMN = """
    missing column: Who is over 30? (en, pop)
        gold       SELECT name
                   FROM singer
                   WHERE age > 30
        predicted  SELECT nome
                   FROM singer
        error      no such column: nome
"""


POP = "root/dataset/spider/database/pop/pop.sqlite"


def test_lines_that_answer_a_question_again_are_said(root, tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", [line(GOLD), line("SELECT 1"), line(GOLD)])
    assert run(root, path) == 0
    shown = capsys.readouterr().out
    assert "2 lines answer a question again, such as 'Who is over 30?' (en, pop)" in shown
    assert run(root, write(path, [line(GOLD)])) == 0
    assert "again" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "p.jsonl"], "--json p.jsonl: would overwrite what --predictions names"),
        (["--json", "out", "--csv", "./out"], "--csv ./out: --json names this file, too"),
        (["--save-predictions", "p.jsonl"], "p.jsonl: would overwrite what --predictions names"),
        (["--json", POP], "pop.sqlite: would overwrite what --data names"),
    ],
)
def test_no_output_overwrites_an_input_or_another_output(
    root, tmp_path, capsys, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "p.jsonl", [line(GOLD)])
    before = path.read_bytes()
    assert run(root, path, *words) == 2
    assert re.search(message, capsys.readouterr().err)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ["p.jsonl", "root"]


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        ("run/config.json", "--run"),
        ("run/adapter/adapter_config.json", "--run"),
        ("shop.sqlite", "--data"),
        ("pairs.csv", "--questions"),
        ("run/report.json", ""),  # of an earlier evaluation
        ("run/new/config.json", ""),
    ],
)
def test_no_output_overwrites_a_run_or_its_data(tmp_path, output, refused):
    for name in ("run/adapter/adapter_config.json", "run/config.json", "run/report.json",
                 "shop.sqlite", "pairs.csv"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    arguments = evaluate.parse_arguments(
        ["--run", str(tmp_path / "run"), "--json", str(tmp_path / output)]
    )
    data = {"data": str(tmp_path / "shop.sqlite"), "questions": str(tmp_path / "pairs.csv")}
    systems = [argparse.Namespace(**vars(arguments) | data)]
    if refused:
        with pytest.raises(UserError, match=f"would overwrite what {refused} names"):
            evaluate.check_outputs(arguments, systems)
    else:
        evaluate.check_outputs(arguments, systems)


def test_every_class_of_errors_in_every_output(root, tmp_path, capsys):
    """2 of 18 are right; 6 run: 2 right and 4 wrong. Each level of hardness has its n."""
    path = write(tmp_path / "p.jsonl", [line(sql) for sql, _ in PREDICTED])
    outputs = {name: tmp_path / f"out.{name}" for name in ("json", "csv", "markdown")}
    saved = tmp_path / "saved.jsonl"
    options = [word for name, file in outputs.items() for word in (f"--{name}", file)]
    assert run(root, path, *options, "--save-predictions", saved) == 0
    report = json.loads(outputs["json"].read_text())
    assert report["en"]["execution"]["value"] == pytest.approx(2 / 18)
    assert report["en"]["valid"]["value"] == pytest.approx(6 / 18)
    assert report["average"] == report["en"] and report["gap"] == {}
    counts = {level: metrics["valid"]["n"] for level, metrics in report["hardness"].items()}
    assert counts == {"easy": 18, "medium": 0, "hard": 0, "extra": 0}
    expected = Counter(name for _, name in PREDICTED if name)
    assert {name: error["n"] for name, error in report["errors"].items()} == expected
    wrong = report["errors"]["wrong result"]
    assert wrong["lang"] == {"en": 4} and len(wrong["examples"]) == 3
    assert wrong["examples"][0]["predicted"] == "SELECT name FROM singer"
    assert "no such table" in report["errors"]["missing table"]["examples"][0]["error"]

    rows = list(csv.DictReader(outputs["csv"].open(newline="")))
    (share,) = [r for r in rows if (r["section"], r["metric"]) == ("language", "execution")][:1]
    assert (share["name"], float(share["value"]), share["n"]) == ("en", 2 / 18, "18")
    assert {r["metric"]: int(r["value"]) for r in rows if r["section"] == "error"} == expected
    text = outputs["markdown"].read_text()
    assert "| en | 18 | 33.3 (" in text and MISSING_COLUMN in text
    shown = capsys.readouterr().out
    assert "11.1 (" in shown and "wrong result" in shown

    assert run(root, saved, "--json", outputs["json"]) == 0
    assert json.loads(outputs["json"].read_text())["en"] == report["en"]


def test_gold_that_fails_is_left_out_and_counted(root, tmp_path, capsys):
    broken = line("SELECT 1", gold="SELECT gone FROM singer", lang="vi")
    path = write(tmp_path / "p.jsonl", [line(GOLD), broken, line(GOLD, lang="vi")])
    assert run(root, path, "--json", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["vi"]["execution"] == pytest.approx({"value": 1, "low": 0.025, "high": 1, "n": 1})
    assert report["failed_gold"] == {"vi": 1}
    assert "vi: left out 1 questions whose gold query fails" in capsys.readouterr().out
    path = write(tmp_path / "p.jsonl", [broken])
    assert run(root, path, "--json", tmp_path / "out.json") == 0
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert json.loads((tmp_path / "out.json").read_text())["average"]["execution"] == nothing


def test_average_and_gap_by_hand():
    """en has 3 of 4, vi 1 of 2, de 1 of 1: the average is 3/4, gaps are -1/4 and +1/4."""
    right = {"en": [1, 1, 1, 0], "vi": [1, 0], "de": [1]}
    report = full_report(
        [
            prediction(bool(value), lang, gold=f"SELECT {i}")
            for lang, values in right.items()
            for i, value in enumerate(values)
        ]
    )
    assert report["average"]["execution"]["value"] == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)
    assert report["average"]["execution"]["n"] == 7
    gap = {lang: values["execution"]["value"] for lang, values in report["gap"].items()}
    assert gap == {"vi": -0.25, "de": 0.25}
    assert report["gap"]["vi"]["execution"]["n"] == 2


def test_parts_by_hand():
    """Part a has 1 of 2, b 1 of 1; questions without a part are in none."""
    parts = [("a", True), ("a", False), ("b", True), ("", False)]
    predictions = [
        prediction(right, question=f"{i}?", part=p) for i, (p, right) in enumerate(parts)
    ]
    report = full_report(predictions)
    values = {part: values["execution"] for part, values in report["parts"].items()}
    assert {part: (v["value"], v["n"]) for part, v in values.items()} == {
        "a": (0.5, 2),
        "b": (1, 1),
    }
    assert full_report(predictions[-1:])["parts"] == {}


def test_questions_without_a_part_or_a_difficulty_have_none(root, tmp_path):
    """null, as other tools write what is missing, is no level named "None"."""
    rows = [line(GOLD, part=None, difficulty=None), line(GOLD, part=1, difficulty="hard")]
    examples, *_ = read_predictions(write(tmp_path / "p.jsonl", rows), open_dataset(root))
    assert [(e.part, e.difficulty) for e in examples] == [("", ""), ("1", "hard")]


def test_translations_are_drawn_together():
    """Two languages, right on the same 30 of 60 questions. The interval of their average is as wide
    as that of each, 1.96 * sqrt(1/4 / 60) = 0.127 to either side, and that of their gap has width
    0. Drawn independently, the average would have 0.089 to either side, and the gap 0.18.
    """
    same = [
        prediction(i % 2 == 0, lang, gold=f"SELECT {i}") for lang in ("en", "vi") for i in range(60)
    ]
    report = full_report(same)
    average = report["average"]["execution"]
    assert average["high"] - average["low"] == pytest.approx(2 * 0.127, abs=0.02)
    assert report["gap"]["vi"]["execution"] == {"value": 0, "low": 0, "high": 0, "n": 60}


def test_questions_of_one_gold_query_are_drawn_together():
    """Two golds with ten questions each, in one language; all of the first become right, none of
    the second. A resample has each gold once, or one twice: the shares are 0, 0.5 and 1.
    """
    golds = [GOLD, "SELECT 1"]
    before = [
        prediction(False, question=f"{i}{gold}", gold=gold) for gold in golds for i in range(10)
    ]
    after = [replace(each, execution=each.gold == GOLD) for each in before]
    report, gained = full_report(after), compare(before, after, "AB")["difference"]
    whole = {"value": 0.5, "low": 0.0, "high": 1.0, "n": 20}
    assert report["en"]["execution"] == report["average"]["execution"] == whole
    assert gained["en"]["execution"] == gained["average"]["execution"] == whole
    both = before + [replace(each, lang="vi") for each in before]
    nothing = compare(both, both, "AB")["difference"]["average"]["execution"]
    assert nothing == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 40}
    # All wrong: two outcomes show no more than that 1 - 0.025 ** (1 / 2) are right.
    wrong = full_report(before)["en"]["execution"]
    assert wrong == pytest.approx({"value": 0, "low": 0, "high": 0.8419, "n": 20}, abs=1e-4)


def test_the_hardness_breakdown_pools_the_languages():
    golds = [GOLD, ORDERED, "SELECT 1 UNION SELECT 2"]
    report = full_report(
        [prediction(gold != ORDERED, lang, gold=gold) for lang in ("en", "vi") for gold in golds]
    )
    levels = {
        level: (metrics["execution"]["value"], metrics["execution"]["n"])
        for level, metrics in report["hardness"].items()
    }
    assert levels == {"easy": (1, 2), "medium": (0, 2), "hard": (1, 2), "extra": (None, 0)}


@pytest.mark.parametrize(
    ("message", "name"),
    [
        ('near "FORM": syntax error', "syntax"),
        ('unrecognized token: "#"', "syntax"),
        ('near "' + "以上的查询" * 59, "syntax"),  # cut at 300 characters
        ("incomplete input", "syntax"),
        ("no such column: T1.nome", "missing column"),
        ("no such table: singers", "missing table"),
        ("ambiguous column name: id", "other error"),
        ("misuse of aggregate: count()", "other error"),
    ],
)
def test_error_classes_of_messages(message, name):
    assert error_class(prediction(False, valid=False, status="error", error=message)) == name


def test_the_error_class_of_sql_that_is_right_on_the_given_database_only():
    assert error_class(prediction(True, test_suite=True)) is None
    assert error_class(prediction(True, test_suite=False)) == "wrong on a variant"
    assert error_class(prediction(False, test_suite=False)) == "wrong result"


def test_test_suite_accuracy_of_a_mutant(root, tmp_path, monkeypatch):
    """Nobody is 30 in the given database, so `>=` for `>` is right by EX; a variant tells the two
    apart.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = [line(GOLD), line(GOLD.replace(">", ">=")), line("SELECT 1"), line(None)]
    path = write(tmp_path / "p.jsonl", lines)
    assert run(root, path, "--test-suite", "--json", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["en"]["execution"]["value"] == 0.5
    assert report["en"]["test_suite"]["value"] == 0.25
    assert report["errors"]["wrong on a variant"]["n"] == 1


# ---------------------------------------------------------------------------------- two systems


def test_compare_by_hand(root, tmp_path, capsys):
    """Of questions 0 to 3, A has 0 and 1 right, and B, in reverse order, 1, 2 and 3: 2 gained, 1
    lost.
    """
    asked = [line(GOLD, question=f"Who is {i}?", lang="en" if i < 2 else "vi") for i in range(4)]
    files = []
    for name, right in (("a", {0, 1}), ("b", {1, 2, 3})):
        lines = [
            row if i in right else row | {"predicted": "SELECT 1"} for i, row in enumerate(asked)
        ]
        files.append(write(tmp_path / f"{name}.jsonl", lines[:: 1 if name == "a" else -1]))
    out = [f"--{name}={tmp_path / name}" for name in ("json", "csv", "markdown")]
    command = ["--compare", *map(str, files), "--data", str(root), *out]
    assert evaluate.main(command) == 0
    report = json.loads((tmp_path / "json").read_text())
    difference = report["difference"]
    values = {lang: metrics["execution"]["value"] for lang, metrics in difference.items()}
    assert values == {"en": -0.5, "vi": 1.0, "average": 0.25}
    assert report["first"]["average"]["execution"]["value"] == 0.5
    assert report["second"]["average"]["execution"]["value"] == 0.75
    assert difference["average"]["execution"]["n"] == 4
    assert "difference,language,average,execution,0.25," in (tmp_path / "csv").read_text()
    assert "| average | EX | 4 |" in (tmp_path / "markdown").read_text()
    assert "+100.0 (+100.0 to +100.0)" in capsys.readouterr().out


def test_compare_is_paired():
    """Both are right on the same half of 100 questions, and B on 10 more: only these make the
    interval, 1.96 * sqrt((0.1 - 0.1 ** 2) / 100) = 0.059 to either side; unpaired, 0.138.
    """
    a = [prediction(i < 50, question=str(i), gold=f"SELECT {i}") for i in range(100)]
    b = [prediction(i < 60, question=str(i), gold=f"SELECT {i}") for i in range(100)]
    difference = compare(a, b, "AB")["difference"]["en"]["execution"]
    assert difference["value"] == pytest.approx(0.1)
    assert difference["high"] - difference["low"] == pytest.approx(2 * 0.059, abs=0.02)


def test_compare_matches_a_question_that_repeats():
    golds = ["SELECT 1", "SELECT 1", "SELECT 2"]
    a = [prediction(right, gold=gold) for right, gold in zip((True, True, False), golds)]
    assert compare(a, a[::-1], "AB")["difference"]["en"]["execution"]["value"] == 0


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            [line("x", "Who?")],
            ["1 of the first's 2", "1 of the second's 2", "'Who is the youngest?'"],
        ),
        ([], ["1 of the first's 2", "0 of the second's 1", "'Who is the youngest?' (en, pop)"]),
        (
            [line("x", "Who is the youngest?", GOLD)],
            ["have different gold", "'Who is the youngest"],
        ),
    ],
)
def test_compare_refuses_other_questions(root, tmp_path, capsys, changed, words):
    first = [line(GOLD), line("SELECT 1", "Who is the youngest?", ORDERED)]
    a = write(tmp_path / "a.jsonl", first)
    b = write(tmp_path / "b.jsonl", [first[0], *changed])
    assert evaluate.main(["--compare", str(a), str(b), "--data", str(root)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in error for word in [*words, str(a), str(b)]), error


def test_a_run_against_its_own_predictions(tmp_path, capsys):
    run = tmp_path / "run"
    policy = load_policy(POLICY, "cpu", "float32")
    add_lora(policy.model, rank=2, alpha=4)
    save_adapter(policy.model, run / "adapter", POLICY)
    settings = {"model": POLICY, "lang": "vi", "dtype": "float32"}
    (run / "config.json").write_text(json.dumps(settings))
    with_settings = evaluate.with_run(evaluate.parse_arguments(["--run", str(run)]))
    assert with_settings.dtype == "float32" and with_settings.max_new_tokens == 96
    saved, out = tmp_path / "saved.jsonl", tmp_path / "out.json"
    options = ["--limit", "3", "--device", "cpu"]
    assert evaluate.main(["--run", str(run), "--save-predictions", str(saved), *options]) == 0
    assert len(saved.read_text().splitlines()) == 3
    assert evaluate.main(["--compare", str(run), str(saved), "--json", str(out), *options]) == 0
    report = json.loads(out.read_text())
    assert report["first"]["vi"] == report["second"]["vi"]
    assert report["difference"]["vi"]["execution"] == {"value": 0, "low": 0, "high": 0, "n": 3}


def test_a_file_is_compared_with_a_run_on_the_questions_of_the_run(tmp_path):
    """Whichever comes first; --data names other questions for both."""
    settings = {"model": POLICY, "lang": "vi", "data": "shop.sqlite", "questions": "pairs.csv"}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"dev_limit": 5}))
    for names in (["FILE", str(tmp_path)], [str(tmp_path), "FILE"]):
        for more, data in (([], "shop.sqlite"), (["--data", "other.sqlite"], "other.sqlite")):
            arguments = evaluate.parse_arguments(["--compare", *names, *more])
            systems = map(evaluate.with_run, evaluate.sources(arguments))
            first, second = evaluate.with_data_of_run(list(systems))
            chosen = (first.data, first.questions, first.lang, first.limit)
            assert chosen == (second.data, second.questions, second.lang, second.limit)
            assert first.data == data and first.lang == "vi"


def test_compare_raises_what_the_command_line_says():
    with pytest.raises(UserError, match="do not cover the same questions"):
        compare([prediction(True)], [prediction(True, question="other")], "AB")


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\n{", ["line 2", "not JSON"]),
        (b"\n[1]", ["line 2", "no 'db_id'", "question"]),
        (b"[" * 100_000, ["line 1", "not JSON"]),
        (b'{"db_id": "pop"}', ["line 1", "no 'question'"]),
        (json.dumps(line(GOLD, gold=3)).encode(), ["line 1", "'gold' is not a text"]),
        (json.dumps(line(GOLD, gold=" ")).encode(), ["line 1", "'gold' is empty"]),
        (json.dumps(line(["x"])).encode(), ["line 1", "'predicted' is not a text"]),
        (json.dumps(line("\ud800")).encode(), ["line 1", "'predicted' is not valid Unicode"]),
        (json.dumps(line(GOLD, part="\udc00")).encode(), ["line 1", "'part' is not valid Unicode"]),
        (json.dumps(line(GOLD, lang="x_x")).encode(), ["line 1", "lang 'x_x' is not the tag"]),
        (json.dumps(line(GOLD, db_id="rock")).encode(), ["no database 'rock'", "rock.sqlite"]),
        (json.dumps(line(GOLD, db_id="../pop")).encode(), ["line 1", "not a plain name"]),
        (b'{"db_id": "pop"\xff}\n', ["line 1", "not UTF-8"]),
        (b"\n\n" + json.dumps(line(GOLD)).encode() + b"\n\xc3\x28", ["line 4", "not UTF-8"]),
        (b"\n", ["p.jsonl: no prediction"]),
    ],
)
def test_bad_predictions_are_named_by_line(root, tmp_path, capsys, text, words):
    path = tmp_path / "p.jsonl"
    path.write_bytes(text)
    assert run(root, path) == 2
    (error,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("error: ")]
    assert all(word in error for word in [*words, str(path)]), error


def test_questions_without_a_database_are_skipped_and_counted(root, tmp_path, capsys):
    """As those of a dataset are."""
    lines = [line(GOLD, db_id="rock"), line(GOLD), line("SELECT 1", db_id="rock")]
    path = write(tmp_path / "p.jsonl", lines)
    assert run(root, path, "--json", tmp_path / "out.json") == 0
    said = "en: skipped 2 questions whose database is missing: rock (2)"
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["en"]["execution"]["n"] == 1 and report["skipped"] == {"rock": 2}


def test_fewer_lines_than_the_dataset_has(root, tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", [line(GOLD)])
    assert run(root, path) == 0
    assert "1 of the 2 dev questions" in capsys.readouterr().out
    assert run(root, path, "--split", "dev") == 2
    error = capsys.readouterr().err
    assert "1 of the 2 dev questions" in error and "'Who is the youngest?' (en, pop)" in error
    write(path, [line(GOLD), line(None, "Who is the youngest?", ORDERED)])
    assert run(root, path, "--split", "dev") == 0
    assert "have no line" not in capsys.readouterr().out


def test_languages_and_limit_of_a_predictions_file(root, tmp_path, capsys):
    lines = [line(GOLD), line("SELECT 1"), line(GOLD, lang="vi"), line("SELECT 1", lang="vi")]
    path = write(tmp_path / "p.jsonl", lines)
    assert run(root, path, "--lang", "vi", "--limit", 1, "--json", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert "en" not in report and report["vi"]["execution"]["value"] == 1
    assert run(root, path, "--lang", "de") == 2
    assert "no prediction in ['de']" in capsys.readouterr().err


def test_part_of_a_file_is_spread_over_each_language():
    """Two of four English lines and of one Vietnamese: the first, the third, and the one."""
    langs = ["en", "en", "vi", "en", "en"]
    examples = [Example(f"{i}?", lang, "pop", GOLD, "p.sqlite") for i, lang in enumerate(langs)]
    assert evaluate.spread_lines(examples, 2) == [0, 2, 3]


def test_a_limit_measures_the_questions_that_a_model_is_measured_on(root, tmp_path, capsys):
    """The first line answers the dataset's second question, the second line its first, which is
    measured: once, although a third line answers it, too. Of a file without it, a line is.
    """
    lines = [line(None, "Who is the youngest?", ORDERED), line(GOLD), line("SELECT 1")]
    path, out = write(tmp_path / "p.jsonl", lines), tmp_path / "out.json"
    assert run(root, path, "--limit", 1, "--split", "dev", "--json", out) == 0
    assert "have no line" not in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["en"]["execution"]["n"] == 1 and report["en"]["execution"]["value"] == 1
    write(path, lines[:1])
    assert run(root, path, "--limit", 1, "--json", out) == 0
    report = json.loads(out.read_text())
    assert report["en"]["execution"]["n"] == 1 and report["en"]["execution"]["value"] == 0
    assert run(root, path, "--limit", 1, "--split", "dev") == 2
    assert "1 of the 1 dev questions" in capsys.readouterr().err


@pytest.fixture
def half_answered(tmp_path):
    """Options for three dev questions on a shop, one of them without SQL."""
    shop, questions = tmp_path / "shop.sqlite", tmp_path / "pairs.csv"
    connection = sqlite3.connect(shop)
    connection.execute("CREATE TABLE book AS SELECT 'Dom Casmurro' AS title")
    connection.close()
    rows = ["split,question,sql", "dev,How many?,SELECT count(*) FROM book", "dev,Why?,"]
    questions.write_text("\n".join([*rows, "dev,Which?,SELECT title FROM book"]))
    return ["--data", str(shop), "--questions", str(questions)]


def test_questions_without_sql_are_not_measured(half_answered, tmp_path, capsys):
    """Whoever gave the answers: a model, whose saved predictions are complete without them, or
    another system in an official form, which has a line for each question. With --limit 2, one of
    two questions has SQL.
    """
    saved, out, official = (tmp_path / name for name in ("saved.jsonl", "out.json", "p.sql"))
    model = ["--model", POLICY, "--device", "cpu", "--max-new-tokens", "4"]
    assert evaluate.main([*model, *half_answered, "--save-predictions", str(saved)]) == 0
    assert len(saved.read_text().splitlines()) == 2
    options = [*half_answered, "--split", "dev", "--json", str(out)]
    official.write_text("SELECT count(*) FROM book\nSELECT 1\nSELECT 'wrong'\n")
    for path, limit, count in [(saved, 0, 2), (official, 0, 2), (official, 2, 1), (saved, 2, 1)]:
        limited = ["--limit", str(limit)] if limit else []
        assert evaluate.main(["--predictions", str(path), *options, *limited]) == 0
        assert json.loads(out.read_text())["und"]["execution"]["n"] == count
    assert "have no line" not in capsys.readouterr().out
    assert evaluate.main(["--compare", str(saved), str(official), *options]) == 0
    saved.write_text(saved.read_text().splitlines()[0])
    assert evaluate.main(["--predictions", str(saved), *options]) == 2
    assert "1 of the 2 dev questions" in capsys.readouterr().err


def test_an_official_file_without_a_question_with_sql(half_answered, tmp_path, capsys):
    (tmp_path / "p.sql").write_text("SELECT 1\n")
    (tmp_path / "pairs.csv").write_text("split,question,sql\ndev,Why?,\ntrain,Who?,SELECT 1\n")
    assert evaluate.main(["--predictions", str(tmp_path / "p.sql"), *half_answered]) == 2
    assert "p.sql: answers no question with gold SQL" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_corrupt_database(root, tmp_path, capsys, content):
    database = root / "dataset" / "spider" / "database" / "pop" / "pop.sqlite"
    database.write_bytes(content)
    code = run(root, write(tmp_path / "p.jsonl", [line(GOLD)]))
    captured = capsys.readouterr()
    if content:
        assert code == 2 and f"{database}: cannot be read as a SQLite database" in captured.err
    else:  # an empty file is a database without tables, on which gold fails
        assert code == 0 and "left out 1 questions" in captured.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--predictions", "nowhere.jsonl"], ["nowhere.jsonl", "cannot read"]),
        (["--run", "nowhere"], ["--run nowhere", "config.json does not exist"]),
        (["--compare", "nowhere", "else"], ["nowhere", "cannot read"]),
        (["--model", "m", "--lang", "xx"], ["--lang xx: not a language of", "dev: en, de"]),
        (["--model", "m", "--lang", "x_x"], ["--lang 'x_x': not the tag of a language"]),
        (["--model", "m", "--data", "nowhere"], ["nowhere", "does not exist"]),
        (["--model", "m", "--data", "file"], ["file", "it is a file"]),
        (["--model", "file"], ["--model file", "a file"]),
        (
            ["--model", POLICY, "--limit", "1", "--adapter", "file"],
            ["file/adapter_config.json does not exist"],
        ),
        (
            ["--model", POLICY, "--limit", "1", "--max-new-tokens", "2000"],
            ["--max-new-tokens 2000 have", "more than 2048"],
        ),
        (["--run", "file"], ["--run file", "config.json does not exist"]),
        (["--predictions", "."], [".: cannot read this predictions file (Is a directory)"]),
        (["--model", "m", "--json", "."], ["--json .", "cannot be written"]),
        (["--model", "m", "--encoder", "nowhere"], ["nowhere"]),
    ],
)
def test_bad_arguments(arguments, words, capsys, monkeypatch, tmp_path):
    """Before a policy is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "load_policy", None)  # to call it would be a TypeError
    (tmp_path / "file").write_text("x")
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and all(word in error for word in words), error


@pytest.mark.parametrize("config", ["{", "[]", '{"lang": "vi"}', "\ud800"])
def test_damaged_run(config, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert f"{tmp_path / 'config.json'}: damaged" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model": "m", "lang": 5}')
    assert evaluate.main(["--run", str(tmp_path)]) == 2
    assert "lang = 5 is not understood" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "a", "a"], "--compare needs two different runs or files"),
        (["--compare", "a", "b", "--save-predictions", "c"], "goes with one source, not with"),
        (["--predictions", "a", "--adapter", "b"], "--adapter goes with --model"),
        ([], "one of the arguments --run --model --predictions --compare is required"),
    ],
)
def test_options_that_do_not_go_together(arguments, words, capsys):
    assert evaluate.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


# ------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(("folder", "lang", "n"), [("dev3", "vi", 972), ("sample7", "ja", None)])
def test_gold_is_right_by_its_own_measure(folder, lang, n, tmp_path):
    root = multispider() / folder
    examples = load_dataset(root, lang, "dev")
    path = tmp_path / "gold.jsonl"
    rows = [line(e.gold_sql, e.question, e.gold_sql, lang, db_id=e.db_id) for e in examples]
    write(path, rows)
    with Sandbox(timeout=20) as sandbox:
        answered = read_predictions(path, open_dataset(root))[:2]
        predictions = score(ExecutionVerifier(sandbox), None, *answered)
    report = full_report(predictions)
    assert report[lang]["execution"]["value"] == report[lang]["valid"]["value"] == 1
    assert report[lang]["execution"]["n"] == (n or len(examples))
    assert report["failed_gold"] == report["errors"] == {}
