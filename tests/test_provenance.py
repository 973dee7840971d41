"""Provenance: the commit of a real checkout, what a start says, and paths inside the project."""

import json
import subprocess
from pathlib import Path

import pytest

from grpo.config import ROOT, Config, read_provenance, read_settings
from grpo.provenance import LIBRARIES, code_version, processor, provenance
from grpo.questions import hash_of
from sqlenv import EMBEDDED, load_dataset


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    run = subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, check=True)
    return run.stdout.decode().strip()


def test_the_commit_of_a_checkout_and_whether_it_is_changed(tmp_path):
    """Files that git does not track are no change: runs/ and caches lie in a checkout."""
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "run").write_text("")
    assert code_version(tmp_path) == f"commit {commit}"
    (tmp_path / "code.py").write_text("2")
    assert code_version(tmp_path) == f"commit {commit} + changes"


@pytest.mark.parametrize("checkout", [False, True])
def test_without_a_commit_it_is_the_version_of_the_package(tmp_path, checkout):
    """A folder that is no checkout, and a checkout without any commit."""
    if checkout:
        git(tmp_path, "init")
    assert code_version(tmp_path) == "unknown" or code_version(tmp_path).startswith("version ")


def test_a_start_names_its_command_libraries_machine_and_questions():
    dev = load_dataset(EMBEDDED, "vi", "dev")[:3]
    start = provenance(["--lang", "vi", "--output", "my run"], "cpu", 2, {"dev": dev})
    command = "torchrun --nproc-per-node 2 train.py --lang vi --output 'my run'"
    assert start["command"] == command
    assert start["questions"] == {"dev": {"count": 3, "hash": hash_of(dev)}}
    assert set(LIBRARIES) < set(start["libraries"]) and start["libraries"]["torch"][0].isdigit()
    assert start["machine"]["cores"] >= 1 and start["machine"]["memory_gib"] > 0
    json.dumps(start)


def test_the_processor_is_read_where_linux_has_it(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast 3000: X\n")
    assert processor(tmp_path / "cpuinfo") == "Fast 3000: X"
    assert processor(tmp_path / "none")


def test_paths_inside_the_project_are_saved_relative_to_it(tmp_path, monkeypatch):
    """They are found from any folder. A file of that name where the command runs goes first."""
    config = Config(encoder="elsewhere")
    saved = config.saved()
    assert saved["model"] == "assets/policy" and saved["encoder"] == "elsewhere"
    (tmp_path / "config.json").write_text(json.dumps(saved | {"provenance": [{"command": "c"}]}))
    monkeypatch.chdir(tmp_path)
    settings = read_settings("--run", tmp_path)
    assert settings == config.to_dict() and settings["model"] == str(ROOT / "assets" / "policy")
    assert read_provenance(tmp_path / "config.json") == [{"command": "c"}]
    (tmp_path / "assets" / "policy").mkdir(parents=True)
    assert read_settings("--run", tmp_path)["model"] == "assets/policy"
