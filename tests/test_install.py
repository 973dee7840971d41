"""The project as a package: installed, its names work from any folder, and it installs nothing
else.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"encoder", "grpo", "sqlenv"}
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "docs")
PIP_INSTALL = ["install", "--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed"]

# The packages come from the installed place, and no other module comes from the checkout.
PLACES = """
import importlib.util
import sys
from pathlib import Path

installed, checkout = map(Path, sys.argv[1:])
for name in ("encoder", "grpo", "sqlenv"):
    assert Path(importlib.util.find_spec(name).origin).is_relative_to(installed), name
for name in ("assets", "benchmarks", "data", "evaluate", "tests", "train"):
    spec = importlib.util.find_spec(name)
    assert str(checkout) not in str(spec), spec
"""

# Every public name at work: a tiny policy samples, its loss has a gradient, SQL runs and is scored.
USE = """
import sqlite3
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from encoder import ContrastiveEncoder
from grpo import add_lora, completion_logprobs, group_advantages, policy_loss, sample_groups
from sqlenv import Sandbox

shape = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1)
config = LlamaConfig(**shape, num_attention_heads=2, eos_token_id=1)
model = add_lora(LlamaForCausalLM(config).eval(), rank=2, alpha=4.0)
prompt_ids = [[3, 4, 5], [6, 7]]
samples = sample_groups(model, prompt_ids, group_size=3, max_new_tokens=4, eos_ids={1})
logprobs = completion_logprobs(model, prompt_ids, samples.completion_ids)  # (P, G, T)
rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
advantages = group_advantages(rewards)  # (P, G)
assert torch.allclose(advantages.sum(1), torch.zeros(2), atol=1e-6)
weights = torch.full_like(logprobs, 1 / logprobs.numel())
loss = policy_loss(logprobs, logprobs.detach(), advantages, weights, beta=0.0)
(loss[0] if isinstance(loss, tuple) else loss).backward()
assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())

connection = sqlite3.connect("singers.sqlite")
connection.executescript("CREATE TABLE singer (name); INSERT INTO singer VALUES ('Ada'), ('Bo')")
connection.close()
with Sandbox(timeout=10) as sandbox:
    assert sandbox.run("singers.sqlite", "SELECT count(*) FROM singer").rows == [(2,)]
    assert sandbox.run("singers.sqlite", "DROP TABLE singer").status == "denied"

question = ["How many singers are there?"] * 2
sqls = ["SELECT count(*) FROM singer", "SELECT title FROM book WHERE year > 1990"]
encoder = ContrastiveEncoder.load(sys.argv[1])
right, wrong = (encoder.embed(question, "query") * encoder.embed(sqls, "sql")).sum(dim=1)
assert right > wrong
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy, so that no build folder is left in the checkout and none is there already."""
    pytest.importorskip("setuptools", "77", reason="needs setuptools >= 77 to build a wheel")
    folder = tmp_path_factory.mktemp("checkout") / "copy"
    shutil.copytree(ROOT, folder, ignore=IGNORED)
    (folder / "data").mkdir(exist_ok=True)  # a user's own folder beside the packages
    (folder / "data" / "__init__.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *command, str(checkout)], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def install(tmp_path):
    """Installs into a new environment that sees the packages of this one; gives a function that
    runs it in an empty folder, and its site-packages.
    """

    def install(*what: str):
        folder = tmp_path / "environment"
        venv.create(folder, with_pip=False)
        paths = {"base": str(folder), "platbase": str(folder)}
        site_packages = Path(sysconfig.get_path("purelib", "venv", paths))
        parents = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        (site_packages / "parent.pth").write_text("\n".join(parents) + "\n")
        python = str(folder / "bin" / "python")
        pip = [sys.executable, "-m", "pip", "--python", python]
        subprocess.run([*pip, *PIP_INSTALL, *what], check=True)
        empty = tmp_path / "empty"
        empty.mkdir()

        def run(*arguments) -> None:
            environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
            command = [python, *map(str, arguments)]
            subprocess.run(command, cwd=empty, env=environment, check=True)

        return run, site_packages

    return install


def test_the_names_of_an_editable_install_work_in_another_folder(install, checkout):
    run, _ = install("-e", str(checkout))
    run("-c", PLACES, checkout, checkout)
    run("-c", USE, ROOT / "assets" / "encoder")


def test_a_wheel_brings_the_text_of_the_dataset(install, wheel, checkout):
    run, site_packages = install(str(wheel))
    run("-c", PLACES, site_packages, checkout)
    run("-m", "sqlenv.embedded.generate", "--show", "vi", "1")


def test_the_wheel_holds_the_three_packages_and_their_files(wheel, checkout):
    with zipfile.ZipFile(wheel) as archive:
        names = [Path(name) for name in archive.namelist()]
    installed = {name for name in names if not name.parts[0].endswith(".dist-info")}
    assert {name.parts[0] for name in installed} == PACKAGES
    sources = {
        path.relative_to(checkout)
        for package in PACKAGES
        for path in (checkout / package).rglob("*")
        if path.suffix in (".py", ".toml", ".html", ".css", ".js")
    }
    assert installed == sources


def test_requirements_and_pyproject_ask_for_the_same():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = {line for line in lines if line and not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    dependencies = set(project["dependencies"])
    tests = {
        text
        for text in project["optional-dependencies"]["dev"]
        if re.split(r"\W", text)[0] not in ("ruff", "pyright")
    }
    assert {text for text in pinned if not text.startswith("torch")} == {
        text for text in dependencies | tests if not text.startswith("torch")
    }
