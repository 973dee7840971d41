"""The folder of a run: one process has it, and its training questions are decided once."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import evaluate
from grpo.command_line import parse_config
from grpo.config import ASSETS, Config, resumed_config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.evaluation.measure import Prediction
from grpo.questions import load_questions, without_result
from grpo.run import RunFolder, not_measured
from sqlenv import EMBEDDED, Example, ExecutionVerifier, Sandbox, UserError

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = [
    Example(f"How many {n}?", "en", "shop", f"SELECT {n}", Path("shop.sqlite")) for n in range(4)
]


def left_out(indices: list[int]) -> SimpleNamespace:
    """A verifier to which the gold queries of these questions return no row."""
    result = lambda i: SimpleNamespace(status="ok", num_rows=0 if i in indices else 1)  # noqa: E731
    return SimpleNamespace(run_gold=lambda questions: [result(i) for i in range(len(questions))])


def open_folder(output: Path | None, *, resume: bool = False) -> RunFolder:
    name = str(output) if output else None
    folder = RunFolder(Config(), SINGLE_PROCESS, name, resume)
    (folder.path / "config.json").write_text(json.dumps(Config().to_dict()), "utf-8")
    return folder


CLAIM = """
import sys, time
from grpo.config import Config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.run import RunFolder
from sqlenv import UserError

print("ready", flush=True)
sys.stdin.readline()
try:
    folder = RunFolder(Config(lang="vi"), SINGLE_PROCESS, sys.argv[1] or None, False)
    print(folder.path, flush=True)
except UserError as error:
    print(error, flush=True)
sys.stdin.readline()  # and holds the folder
"""


def start(directory: Path, output: str = "") -> subprocess.Popen:
    """A process that is ready to claim a folder, and does so at the next line of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLAIM, output],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("output", ["", "mine"])
def test_runs_that_start_at_the_same_moment_do_not_share_a_folder(tmp_path, output):
    """Three processes: three new folders; with --output one has it and two are told."""
    processes = [start(tmp_path, output) for _ in range(3)]
    for process in processes:
        go(process)
    results = sorted(process.stdout.readline().strip() for process in processes)
    for process in processes:
        process.communicate("\n", timeout=60)
    if output:
        told = "--output mine: another process is training in this folder"
        assert results == [told, told, "mine"]
    else:
        assert results == ["runs/vi-1", "runs/vi-2", "runs/vi-3"]


def test_a_folder_in_use_cannot_be_resumed(tmp_path):
    """And can be, when the process that used it was killed."""
    process = start(tmp_path, "run")
    go(process)
    assert process.stdout.readline() == "run\n"
    with pytest.raises(UserError, match="another process is training"):
        open_folder(tmp_path / "run", resume=True)
    process.kill()
    process.communicate()
    (tmp_path / "run" / "config.json").write_text(json.dumps(Config().to_dict()), "utf-8")
    assert open_folder(tmp_path / "run", resume=True).path == tmp_path / "run"


def test_a_run_that_ended_before_it_began_is_not_in_the_way(tmp_path):
    """Its folder is removed, unless it was killed; then the folder can be used."""
    with pytest.raises(KeyError), RunFolder(Config(), SINGLE_PROCESS, str(tmp_path / "run"), False):
        raise KeyError
    assert not (tmp_path / "run").exists()
    killed = RunFolder(Config(), SINGLE_PROCESS, str(tmp_path / "run"), False)
    killed.usable_questions(QUESTIONS, [], left_out([]))
    (tmp_path / "run" / "config.json.17.tmp").write_text('{"lang": ')
    killed.lock.close()
    begun = open_folder(tmp_path / "run")
    assert begun.path == tmp_path / "run"
    (begun.path / "before.jsonl").write_text("")
    with pytest.raises(UserError, match="exists; add --resume"):
        open_folder(tmp_path / "run")


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    """One with only a config.json, such as a model's, is not that of a run which never began."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="exists; add --resume"):
        RunFolder(Config(), SINGLE_PROCESS, str(tmp_path), False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UserError, match=r"--output .*: cannot be read \(.*Permission denied"):
        RunFolder(Config(), SINGLE_PROCESS, str(tmp_path), False)


def test_a_resume_that_fails_leaves_the_folder(tmp_path):
    """Even that of a run that was killed before it had measured anything."""
    open_folder(tmp_path / "run").lock.close()
    with pytest.raises(KeyError), RunFolder(Config(), SINGLE_PROCESS, str(tmp_path / "run"), True):
        raise KeyError
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": []}, "reward = [] is not understood"),
        ({"lr": "fast"}, "lr = 'fast' is not understood"),
        ({"of_tomorrow": 1}, "unknown settings: of_tomorrow"),
    ],
)
def test_settings_that_are_not_understood_are_refused(tmp_path, settings, message):
    saved = Config().to_dict() | settings
    (tmp_path / "config.json").write_text(json.dumps(saved), "utf-8")
    with pytest.raises(UserError) as caught:
        resumed_config(tmp_path, {})
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {message}"


def test_settings_of_an_older_version_have_the_defaults(tmp_path):
    saved = Config(lr=1).to_dict()
    del saved["reward_timeout"]
    (tmp_path / "config.json").write_text(json.dumps(saved), "utf-8")
    assert resumed_config(tmp_path, {"micro_batch": 2}) == Config(lr=1, micro_batch=2)


def test_questions_are_left_out_once_and_for_all(tmp_path):
    """A resume keeps the decision of the start, though gold is now slower or faster."""
    folder = open_folder(tmp_path / "run")
    assert folder.usable_questions(QUESTIONS, [], left_out([1, 3])) == [QUESTIONS[0], QUESTIONS[2]]
    folder.lock.close()
    again = open_folder(tmp_path / "run", resume=True)
    assert again.usable_questions(QUESTIONS, [], left_out([])) == [QUESTIONS[0], QUESTIONS[2]]


def test_dev_questions_that_are_not_measured_are_said():
    right = Prediction("pop", "A?", "en", "SELECT 1", "SELECT 1", True, True, True, None, "ok")
    failed = replace(right, question="B?", gold_ok=False)
    assert not_measured([right]) == ""
    assert not_measured([]) == "nothing was evaluated: no dev question has SQL"
    assert not_measured([right, failed]).startswith(
        "left out 1 of 2 dev questions, such as 'B?' (en, pop): gold fails, or the sandbox"
    )


def test_gold_that_the_sandbox_stops_is_counted_apart(tmp_path, capsys):
    """Of three questions without a result, one has broken gold, and two golds are stopped."""
    results = [
        SimpleNamespace(status=status, num_rows=1 if status == "ok" else 0)
        for status in ("ok", "timeout", "error", "too_large")
    ]
    verifier = SimpleNamespace(run_gold=lambda questions: results)
    assert open_folder(tmp_path / "run").usable_questions(QUESTIONS, [], verifier) == QUESTIONS[:1]
    shown = capsys.readouterr().out
    assert f"left out 3 of 4 training questions, such as {QUESTIONS[1].question!r}" in shown
    assert "of these the sandbox refuses or stops 2" in shown


@pytest.mark.parametrize(
    "others",
    [
        QUESTIONS[:3],
        QUESTIONS[::-1],
        [replace(QUESTIONS[0], gold_sql="SELECT 9"), *QUESTIONS[1:]],
        [replace(QUESTIONS[0], evidence="many means all"), *QUESTIONS[1:]],
        [replace(question, descriptions={"book.pages": "sheets"}) for question in QUESTIONS],
    ],
)
def test_other_questions_than_at_the_start_are_refused(tmp_path, others):
    folder = open_folder(tmp_path / "run")
    folder.usable_questions(QUESTIONS, [], left_out([]))
    folder.lock.close()
    again = open_folder(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="--data has other questions than when"):
        again.usable_questions(others, [], left_out([]))
    with pytest.raises(UserError, match="--data has other questions than when"):
        again.usable_questions(QUESTIONS, others[:1], left_out([]))  # of dev


def test_questions_without_gold(tmp_path):
    """With custom rewards alone they are trained on, and those whose gold returns no row are still
    left out; only dev questions with gold are measured, by evaluate.py, too. With other rewards the
    line is named.
    """
    database, pairs = tmp_path / "shop.sqlite", tmp_path / "pairs.csv"
    sqlite3.connect(database).execute("CREATE TABLE t (a)").connection.close()
    lines = ["train,A?,", "train,B?,SELECT 1", "train,C?,SELECT a FROM t"]
    lines += ["dev,D?,", "dev,E?,SELECT 1"]
    pairs.write_text("\n".join(["split,question,sql", *lines]))
    given = {"lang": "pt", "data": str(database), "questions": str(pairs)}
    train, _, dev = load_questions(Config(reward={"execution": 0, "my.py:f": 1}, **given))
    assert {e.question for e in train} == {"A?", "B?", "C?"}
    assert [e.question for e in dev] == ["E?"] and {e.lang for e in train} == {"pt"}
    with Sandbox() as sandbox:
        decided = without_result(train, ExecutionVerifier(sandbox))
    assert [train[i].question for i in decided["left_out"]] == ["C?"]
    words = ["--model", "m", "--lang", "pt", "--data", str(database), "--questions", str(pairs)]
    measured, _ = evaluate.load_questions(evaluate.with_run(evaluate.parse_arguments(words)))
    assert [e.question for e in measured] == ["E?"]
    with pytest.raises(UserError, match="pairs.csv:2: the question has no SQL; SFT, training"):
        load_questions(Config(**given))


def test_the_languages_of_other_data(tmp_path):
    """All of them, unless --lang says which; a run is evaluated on its own questions, and not with
    these on other data.
    """
    assert parse_config("", [])[0].lang == "vi"
    given = ["--data", "shop.sqlite", "--questions", "pairs.csv"]
    config, _ = parse_config("", given)
    assert (config.lang, config.questions) == ("all", "pairs.csv")
    assert parse_config("", [*given, "--lang", "pt-br"])[0].lang == "pt-br"
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), "utf-8")
    run = ["--run", str(tmp_path)]
    filled = evaluate.with_run(evaluate.parse_arguments(run))
    assert (filled.data, filled.questions) == ("shop.sqlite", "pairs.csv")
    assert not evaluate.with_run(evaluate.parse_arguments([*run, "--data", "x"])).questions
    limited = config.to_dict() | {"dev_limit": 7, "encoder": "E"}
    (tmp_path / "config.json").write_text(json.dumps(limited), "utf-8")
    for words, limit in ([], 7), (["--data", "x"], 0), (["--data", "x", "--limit", "5"], 5):
        filled = evaluate.with_run(evaluate.parse_arguments([*run, *words]))
        assert filled.limit == limit and filled.encoder == "E"
    other = evaluate.with_run(evaluate.parse_arguments([*run, "--encoder", "F"]))
    assert evaluate.one_encoder([other]) == "F"
    with pytest.raises(UserError, match="--compare: one run has --encoder E, one F; name one"):
        evaluate.one_encoder([filled, other])
    model = evaluate.with_run(evaluate.parse_arguments(["--model", "m"]))
    assert evaluate.one_encoder([model]) == str(ASSETS / "encoder")
    assert evaluate.one_encoder([model, filled]) == "E"


def test_a_run_needs_a_question(tmp_path):
    with pytest.raises(UserError, match="no training question has a gold query"):
        open_folder(tmp_path / "run").usable_questions(QUESTIONS, [], left_out([0, 1, 2, 3]))


@pytest.mark.parametrize("more", [[], ["--recipe", "dapo"], ["--beta", "0.1", "--lr", "1e-3"]])
def test_options_that_agree_with_the_run_may_be_repeated(tmp_path, more):
    """All, some or none of them; a recipe's own settings do not stand against those given to the
    run beside it.
    """
    words = ["--recipe", "dapo", "--beta", "0.1", "--reward", "semantic=0.1", "--lr", "1e-3"]
    config, _ = parse_config("", words)
    (tmp_path / "config.json").write_text(json.dumps(config.saved()), "utf-8")
    resume = ["--resume", "--output", str(tmp_path)]
    paths = ["--model", str(ASSETS / "policy"), "--data", str(EMBEDDED)]
    for given in (words, more, [*more, "--reward", "semantic=0.1", "--device", "auto"], paths):
        assert parse_config("", [*given, *resume])[0].saved() == config.saved()
    changed = parse_config("", [*resume, "--save-every", "7"])[0]
    assert changed.saved() == replace(config, save_every=7).saved()
    (tmp_path / "config.json").write_text(json.dumps(config.saved() | {"device": "cuda"}), "utf-8")
    elsewhere = parse_config("", [*resume, "--device", "cpu"])[0]  # on a machine without a GPU
    assert elsewhere.saved() == replace(config, device="cpu").saved()
    with pytest.raises(UserError, match=r"has other settings \(beta: 0.1 -> 0.2\)"):
        parse_config("", [*resume, "--beta", "0.2"])
