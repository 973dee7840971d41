"""The folder of a run: one process has it, and its training questions are decided once."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo.config import Config, chosen_languages
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.run import RunFolder
from sqlenv import Example, UserError

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
    killed.usable_questions(QUESTIONS, left_out([]))
    killed.lock.close()
    assert open_folder(tmp_path / "run").path == tmp_path / "run"
    with pytest.raises(UserError, match="exists; add --resume"):
        open_folder(tmp_path / "run")


def test_questions_are_left_out_once_and_for_all(tmp_path):
    """A resume keeps the decision of the start, though gold is now slower or faster."""
    folder = open_folder(tmp_path / "run")
    assert folder.usable_questions(QUESTIONS, left_out([1, 3])) == [QUESTIONS[0], QUESTIONS[2]]
    folder.lock.close()
    again = open_folder(tmp_path / "run", resume=True)
    assert again.usable_questions(QUESTIONS, left_out([])) == [QUESTIONS[0], QUESTIONS[2]]


@pytest.mark.parametrize(
    "others",
    [QUESTIONS[:3], QUESTIONS[::-1], [replace(QUESTIONS[0], gold_sql="SELECT 9"), *QUESTIONS[1:]]],
)
def test_other_questions_than_at_the_start_are_refused(tmp_path, others):
    folder = open_folder(tmp_path / "run")
    folder.usable_questions(QUESTIONS, left_out([]))
    folder.lock.close()
    again = open_folder(tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="has other training questions"):
        again.usable_questions(others, left_out([]))


def test_a_run_needs_a_question(tmp_path):
    with pytest.raises(UserError, match="no training question has a gold query"):
        open_folder(tmp_path / "run").usable_questions(QUESTIONS, left_out([0, 1, 2, 3]))


def test_the_order_of_languages_does_not_matter():
    assert chosen_languages("vi,en") == chosen_languages("en,vi,en") == ["en", "vi"]
