"""The command lines as a user runs them, with the shipped policy and encoder: a few steps, a kill,
a resumed run, errors.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import evaluate
import train
from grpo.config import ASSETS
from grpo.evaluation.report import read_metrics
from grpo.models import has_fast_bfloat16
from sqlenv import EMBEDDED, load_dataset

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--lang vi --steps 4 --prompts-per-step 2 --group-size 3 --max-new-tokens 24 --dev-limit 6 "
    "--examples 40 --save-every 2 --device cpu"
).split()
CLOCKS = ("_seconds", "_tokens_per_second")


def train_command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "train.py", *SMALL, "--output", str(folder), *more]


def steps_of(folder: Path) -> list[dict]:
    """The metrics of a run without its timings."""
    return [
        {name: value for name, value in row.items() if not name.endswith(CLOCKS)}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """An uninterrupted run of four steps."""
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    process = subprocess.run(train_command(folder), cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "before" in process.stdout and "difference" in process.stdout
    return folder


def test_a_run_writes_its_folder(finished):
    files = {"config.json", "metrics.jsonl", "adapter", "checkpoint", "curves.png", "summary.json"}
    files.add("best_adapter")
    assert files <= set(os.listdir(finished))
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert 0 <= row["reward/execution"] <= row["reward/syntax"] <= 1
        assert row["kl"] >= 0
        assert row["sampling_logp_difference"] < (1e-2 if has_fast_bfloat16("cpu") else 1e-4)
    assert rows[0]["kl"] < 1e-6  # LoRA starts at the base, which is the reference
    assert any(row["grad_norm"] > 0 for row in rows)
    summary = json.loads((finished / "summary.json").read_text())
    for when in ("before", "after"):
        for metric in ("valid", "execution", "test_suite", "semantic"):
            value = summary[when]["vi"][metric]
            assert value["n"] == 6 and 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert summary["seconds"] > 0
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resume_after_kill_9_gives_the_same_numbers(finished, tmp_path):
    """The run is killed once step 3 is written: the last checkpoint is that of step 2, and the
    resumed run repeats step 3.
    """
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        train_command(folder), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while len(read_metrics(folder / "metrics.jsonl")) < 3:
        assert process.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be killed"
        )
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "summary.json").exists()
    resumed = subprocess.run(
        train_command(folder, "--resume"), cwd=ROOT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(folder) == steps_of(finished)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, finished))
    assert ours["after"] == theirs["after"]


def test_ctrl_c_saves_and_says_how_to_resume(finished, tmp_path):
    folder = tmp_path / "interrupted"
    process = subprocess.Popen(
        train_command(folder, "--save-every", "100"),
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 240
    while not read_metrics(folder / "metrics.jsonl"):
        assert process.poll() is None and time.monotonic() < deadline, (
            "the run ended before it could be interrupted"
        )
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 130, stderr
    assert "resume with: python train.py" in stdout and "--resume" in stdout
    assert 1 <= len(steps_of(folder)) < 4
    command = stdout.split("resume with: ")[1].split()
    resumed = subprocess.run(
        [sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(folder) == steps_of(finished)


def test_evaluate_a_run_and_its_predictions_file(finished, tmp_path, capsys):
    """The saved adapter gives what the run measured, and so do the saved predictions."""
    report, predictions = tmp_path / "out.json", tmp_path / "predictions.jsonl"
    options = ["--test-suite", "--json", str(report)]
    of_run = ["--run", str(finished), "--limit", "6", "--save-predictions", str(predictions)]
    assert evaluate.main([*of_run, *options]) == 0
    measured = json.loads(report.read_text())
    assert measured["vi"] == json.loads((finished / "summary.json").read_text())["after"]["vi"]
    assert measured["average"]["execution"]["n"] == 6
    assert evaluate.main(["--predictions", str(predictions), *options]) == 0
    assert json.loads(report.read_text())["vi"] == measured["vi"]
    assert "EX" in capsys.readouterr().out


def test_gold_as_prediction_is_always_correct(tmp_path):
    predictions, out = tmp_path / "gold.jsonl", tmp_path / "out.json"
    rows = [
        {"db_id": e.db_id, "question": e.question, "lang": "ja", "gold": e.gold_sql}
        | {"predicted": e.gold_sql}
        for e in load_dataset(EMBEDDED, "ja", "dev")[:40]
    ]
    predictions.write_text("\n".join(map(json.dumps, rows)))
    assert evaluate.main(["--predictions", str(predictions), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["ja"]["valid"]["value"] == report["ja"]["execution"]["value"] == 1


def broken_model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((ASSETS / "policy" / "config.json").read_text())
    return str(folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--lang", "xx"], "unknown language"),
        (["--reward", "beauty=1"], "unknown reward"),
        (["--reward", "semantic"], "NAME=WEIGHT"),
        (["--reward", "semantic=2"], "must weigh less than execution"),
        (["--data", "/nowhere"], "/nowhere"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--group-size", "1"], "--group-size"),
        (["--temperature", "0"], "--temperature"),
        (["--resume"], "--resume needs --output"),
        (["--output", "tests"], "tests exists"),
        (["--output", "tests", "--resume"], "not the folder of a run"),
        (["--encoder", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")


def test_model_without_tokenizer(tmp_path, capsys):
    assert train.main(["--model", broken_model(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_resume_with_other_settings_is_refused(finished, capsys):
    before = (finished / "metrics.jsonl").read_bytes()
    assert train.main([*SMALL, "--steps", "9", "--output", str(finished), "--resume"]) == 2
    assert "steps: 4 -> 9" in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ('{"db_id": "shop"}', "needs db_id"),
        (
            '{"db_id": "shop", "question": "?", "lang": "xx", "gold": "SELECT 1", '
            '"predicted": "SELECT 1"}',
            "unknown language 'xx'",
        ),
    ],
)
def test_bad_predictions_file(line, message, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text("\n" + line + "\n")
    assert evaluate.main(["--predictions", str(tmp_path / "p.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "line 2" in error and message in error
