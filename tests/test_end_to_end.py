"""The command lines as a user runs them, with the shipped policy and encoder: a few steps, a kill,
a resumed run, errors.
"""

import contextlib
import json
import os
import shutil
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
from grpo.evaluation.rollouts import read_rollouts
from sqlenv import EMBEDDED, load_dataset
from sqlenv.embedded.generate import build

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--lang vi --steps 4 --prompts-per-step 2 --group-size 3 --max-new-tokens 24 --dev-limit 6 "
    "--examples 40 --temperature 1.5 --save-every 2 --eval-every 2 --eval-questions 4 --device cpu"
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
    dtype = json.loads((finished / "config.json").read_text())["dtype"]
    assert dtype in ("float32", "bfloat16")  # what `auto` was found to be
    rows = read_metrics(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert 0 <= row["reward/execution"] <= row["reward/syntax"] <= 1
        assert row["kl"] >= 0
        assert row["sampling_logp_difference"] < (1e-2 if dtype == "bfloat16" else 1e-4)
    assert rows[0]["kl"] < 1e-6  # LoRA starts at the base, which is the reference
    assert any(row["grad_norm"] > 0 for row in rows)
    summary = json.loads((finished / "summary.json").read_text())
    for when in ("before", "after"):
        for metric in ("valid", "execution", "test_suite", "semantic"):
            value = summary[when]["vi"][metric]
            assert value["n"] == 6 and 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert summary["seconds"] > 0
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert ["eval/test_suite" in row for row in rows] == [False, True, False, True]
    best = max(
        (row for row in rows if "eval/test_suite" in row), key=lambda r: r["eval/test_suite"]
    )
    assert summary["best"] == {
        "step": best["step"],
        "by": "eval/test_suite",
        "value": best["eval/test_suite"],
    }
    groups = list(read_rollouts(finished / "rollouts.jsonl"))
    assert [group["step"] for group in groups] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert all(len(group["completions"]) == 3 for group in groups)
    assert groups[0]["question"] in (finished / "report.html").read_text()


def test_resume_after_kill_9_gives_the_same_numbers(finished, tmp_path):
    """The run is killed once step 3 is written: the last checkpoint is that of step 2, and the
    resumed run repeats step 3. Its seconds are with those of step 1, which are made to be 1000.
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
    rows = read_metrics(folder / "metrics.jsonl")
    rows[0]["train_seconds"] = 1000
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines))
    resumed = subprocess.run(
        train_command(folder, "--resume"), cwd=ROOT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert steps_of(folder) == steps_of(finished)
    ours, theirs = (json.loads((f / "summary.json").read_text()) for f in (folder, finished))
    assert ours["after"] == theirs["after"] and ours["best"] == theirs["best"]
    assert 1000 < ours["seconds"] < 2000
    for name in ("rollouts.jsonl", "before.jsonl", "after.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


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
    assert '"tables": []' in (folder / "report.html").read_text()
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
    of_run = ["--run", str(finished), "--save-predictions", str(predictions)]
    assert evaluate.main([*of_run, *options]) == 0
    measured = json.loads(report.read_text())
    assert measured["vi"] == json.loads((finished / "summary.json").read_text())["after"]["vi"]
    assert measured["average"]["execution"]["n"] == 6
    assert evaluate.main(["--predictions", str(predictions), *options]) == 0
    assert json.loads(report.read_text())["vi"] == measured["vi"]
    after = str(finished / "after.jsonl")
    assert evaluate.main(["--predictions", after, *options]) == 0
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
        (["--lang", "xx"], "--lang xx: not a language of "),
        (["--reward", "beauty=1"], "unknown reward"),
        (["--reward", "semantic"], "NAME=WEIGHT"),
        (["--reward", "semantic=2"], "must weigh less than execution"),
        (["--data", "/nowhere"], "/nowhere: not a dataset: looked for dataset/ (MultiSpider)"),
        (["--data", "train.py"], "it is a file; a SQLite file needs its questions, --questions"),
        (["--questions", "x.csv"], "with --questions a SQLite file, but it is a folder"),
        (["--data", "train.py", "--questions", "x.csv"], "train.py: cannot be read as a SQLite"),
        (["--model", "/nowhere"], "/nowhere: no such model directory"),
        (["--model", "train.py"], "--model train.py: a file; --model takes a"),
        (["--max-new-tokens", "2000"], "more than 2048"),
        (["--reward", "nowhere.py:f=1"], "nowhere.py does not exist"),
        (["--device", "quantum"], "--device quantum cannot be used here"),
        (["--device", "cuda:99"], "--device cuda:99 cannot be used here"),
        (["--resume"], "--resume needs --output"),
        (["--output", "tests"], "tests exists"),
        (["--output", "tests", "--resume"], "config.json does not exist; give the folder of a run"),
        (["--output", "train.py"], "--output train.py exists"),
        (["--output", "train.py/x"], "cannot write train.py/x"),
        (["--encoder", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, tmp_path, capsys, monkeypatch):
    """Before a policy is loaded, and no folder is left."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "load_policy_with_lora", None)  # to call it would be a TypeError
    own = {"--output", "--resume"} & {*arguments}
    output = [] if own else ["--output", str(tmp_path / "run")]
    assert train.main([*arguments, *output]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error.splitlines()[-1] and error.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_language_without_a_file_is_refused_before_a_policy_is_loaded(
    tmp_path, capsys, monkeypatch
):
    """Though there are questions in another of the languages asked for."""
    files = tmp_path / "dataset" / "multispider" / "with_English_value"
    built = build()
    shutil.copytree(built / files.relative_to(tmp_path), files)
    (tmp_path / "dataset" / "spider").symlink_to(built / "dataset" / "spider")
    (files / "train_ja.json").unlink()
    monkeypatch.setattr(train, "load_policy_with_lora", None)
    words = ["--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert train.main([*words, "--lang", "vi,ja"]) == 2
    assert f"--lang ja: not a language of {tmp_path} (train: en, de," in capsys.readouterr().err
    monkeypatch.setattr(evaluate, "load_policy", None)
    (files / "dev_ja.json").unlink()
    assert evaluate.main(["--model", "m", "--data", str(tmp_path), "--lang", "ja"]) == 2
    assert f"--lang ja: not a language of {tmp_path} (dev: en, de," in capsys.readouterr().err


def interrupt(*_, **__) -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_training_leaves_no_folder(tmp_path, monkeypatch, capsys):
    """While the first measurement runs: there is nothing to resume."""
    monkeypatch.setattr(train, "evaluate_policy", interrupt)
    assert train.main([*SMALL, "--output", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_measuring_at_the_end_says_how_to_resume(finished, tmp_path, monkeypatch):
    """The handler of the training loop, which waits for the end of a step, is gone."""
    folder = copy_of(finished, tmp_path)
    monkeypatch.setattr(train, "evaluate_policy", interrupt)
    output, resume = tmp_path / "output", ["--resume", "--output", str(folder)]
    with output.open("w") as file, contextlib.redirect_stdout(file):
        assert train.main(resume) == 130
    assert f"resume with: python train.py {' '.join(resume)}" in output.read_text()
    assert (folder / "checkpoint").is_dir()


def test_ctrl_c_in_an_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate_policy", interrupt)
    words = ["--model", str(ASSETS / "policy"), "--lang", "vi", "--limit", "2", "--device", "cpu"]
    assert evaluate.main([*words, "--json", str(tmp_path / "out.json")]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.iterdir())


def test_model_without_tokenizer(tmp_path, capsys):
    assert train.main(["--model", broken_model(tmp_path), "--output", str(tmp_path / "run")]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def copy_of(run: Path, folder: Path) -> Path:
    return Path(shutil.copytree(run, folder / "copy"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--group-size", "4"], "the run in {} has other settings (group_size: 3 -> 4); leave"),
        (["--lang", "en", "--seed", "1"], "(lang: vi -> en; seed: 0 -> 1)"),
        (["--reward", "schema=0.1"], "'schema': 0.1"),
        (["--recipe", "dapo"], "(recipe:  -> dapo)"),
        (["--steps", "3"], "--steps 3: the run in {} has 4 steps already; give more"),
        (["--steps", "0"], "--steps 0: the run in {} has 4 steps already; give more"),
    ],
)
def test_resume_with_other_settings_is_refused(finished, words, message, monkeypatch, capsys):
    monkeypatch.setattr(train, "load_policy_with_lora", None)
    before = (finished / "metrics.jsonl").read_bytes()
    assert train.main([*words, "--output", str(finished), "--resume"]) == 2
    assert message.format(finished) in capsys.readouterr().err
    assert (finished / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("unfinished", ["summary.json", "metrics.jsonl"])
def test_a_run_that_is_not_finished_cannot_be_extended(finished, tmp_path, capsys, unfinished):
    folder = copy_of(finished, tmp_path)
    (folder / unfinished).unlink()
    assert train.main(["--steps", "6", "--output", str(folder), "--resume"]) == 2
    message = f"--steps 6: the run in {folder} has --steps 4 and is not finished; resume it without"
    assert message in capsys.readouterr().err


def test_a_finished_run_is_extended_and_interrupted_and_goes_on_by_itself(
    finished, tmp_path, monkeypatch, capsys
):
    """Four steps become six, with all other settings as saved and --save-every, which affects no
    result, as given. Then a checkpoint of step 4 remains, as after a kill: --resume and --output
    alone end with the same numbers. With a warm-up over 5 steps, the rate of step t (from 0) is
    lr x min(1, (t + 1) / 5, (steps - t) / max(1, steps - 5)): 1/5, 2/5, 3/5 and 4/5 for four steps
    in all; for steps 4 and 5 of six it is 1 and 1.
    """
    folder = copy_of(finished, tmp_path)
    state = (folder / "checkpoint" / "state.pt").read_bytes()
    words = ["--resume", "--output", str(folder)]
    assert train.main([*words, "--steps", "6", "--save-every", "1"]) == 0
    assert "6 steps of 2 prompts x 3 completions" in capsys.readouterr().out
    rows = steps_of(folder)
    assert rows[:4] == steps_of(finished)
    rates = [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    assert [row["lr"] for row in rows] == pytest.approx([6e-4 * rate for rate in rates])
    saved, old = (json.loads((f / "config.json").read_text()) for f in (folder, finished))
    starts, first = saved.pop("provenance"), old.pop("provenance")
    assert saved == old | {"steps": 6, "save_every": 1}
    assert starts[:-1] == first and "--resume" in starts[-1]["command"]
    assert all(start["questions"] == first[0]["questions"] for start in starts)
    summary = (folder / "summary.json").read_text()
    (folder / "checkpoint" / "state.pt").write_bytes(state)
    (folder / "summary.json").unlink()
    assert train.main(words) == 0
    assert steps_of(folder) == rows
    assert (
        json.loads((folder / "summary.json").read_text())["after"] == json.loads(summary)["after"]
    )


def test_a_run_is_evaluated_on_its_own_dev_questions(finished, tmp_path):
    """Six in Vietnamese, as by its --dev-limit; --limit, or another split, has its own number."""
    out = tmp_path / "out.json"

    def count(*words: str) -> int:
        assert evaluate.main(["--run", str(finished), "--json", str(out), *words]) == 0
        return json.loads(out.read_text())["vi"]["execution"]["n"]

    assert count() == 6 and count("--limit", "2") == 2
    arguments = evaluate.parse_arguments(["--run", str(finished), "--split", "train"])
    assert evaluate.with_run(arguments).limit == 0
    arguments = evaluate.parse_arguments(["--run", str(finished), "--limit", "0"])
    assert evaluate.with_run(arguments).limit == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ('{"db_id": "shop"}', "needs db_id"),
        (
            '{"db_id": "shop", "question": "?", "lang": "x_x", "gold": "SELECT 1", '
            '"predicted": "SELECT 1"}',
            "lang 'x_x' is not the tag of a language",
        ),
    ],
)
def test_bad_predictions_file(line, message, tmp_path, capsys):
    (tmp_path / "p.jsonl").write_text("\n" + line + "\n")
    assert evaluate.main(["--predictions", str(tmp_path / "p.jsonl")]) == 2
    error = capsys.readouterr().err
    assert "line 2" in error and message in error
