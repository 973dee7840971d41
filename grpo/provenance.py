"""What a run was made by and from: its command, code, libraries, machine and questions."""

import os
import platform
import shlex
import sqlite3
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from grpo.config import ROOT
from grpo.questions import hash_of
from sqlenv import Example

PACKAGE = "grpo-text2sql"
LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "sqlparse")


def provenance(
    words: list[str], device: str, processes: int, questions: dict[str, list[Example]]
) -> dict:
    """What config.json says about a start of a run.

    Args:
        words: of the command line, behind ``train.py``.
        questions: by what they are for, such as "dev".
    """
    start = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    libraries = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "command": shlex.join([*start, "train.py", *words]),
        "code": code_version(ROOT),
        "libraries": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        | libraries,
        "machine": machine(device),
        "questions": {
            name: {"count": len(some), "hash": hash_of(some)} for name, some in questions.items()
        },
    }


def code_version(root: Path) -> str:
    """The commit of the checkout at ``root``, with "+ changes" if tracked files differ from it; of
    an installed package the version.
    """
    if (root / ".git").exists():
        try:
            commit = git(root, "rev-parse", "HEAD")
            changed = git(root, "status", "--porcelain", "--untracked-files=no")
            return f"commit {commit}{' + changes' if changed else ''}"
        except (OSError, subprocess.SubprocessError):  # no git, or a checkout without a commit
            pass
    try:
        return f"version {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return "unknown"


def git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return run.stdout.strip()


def machine(device: str) -> dict[str, str | int | float]:
    """The system, the processor and its cores, the memory in GiB, and the GPU if one is used."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = {
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory, 1),
    }
    if device.startswith("cuda"):
        parts["gpu"] = torch.cuda.get_device_name(device)
    return parts


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor, which Linux has in a file."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
