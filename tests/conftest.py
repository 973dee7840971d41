"""What all tests share, and fixtures of the tests of the training loop."""

import os
import signal
import sqlite3

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: processes, not threads
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from trainer_kit import DATABASES, QUESTIONS, make_trainer

from grpo.rollout import Rollout
from sqlenv import Example, ExecutionVerifier, Sandbox


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Test-suite databases are built anew, and the user's are left alone; subprocesses too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """Ctrl-C interrupts, also where the tests run in the background and the shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> list[Example]:
    """Five questions on two databases."""
    folder = tmp_path_factory.mktemp("databases")
    for name, script in DATABASES.items():
        connection = sqlite3.connect(folder / f"{name}.sqlite")
        connection.executescript(script)
        connection.close()
    return [Example(q, "en", db, gold, folder / f"{db}.sqlite") for q, db, gold in QUESTIONS]


@pytest.fixture(scope="module")
def verifier():
    with Sandbox(timeout=10) as sandbox:
        yield ExecutionVerifier(sandbox)


@pytest.fixture(scope="module")
def sampled(examples) -> Rollout:
    """A batch of the untrained policy: four groups of three."""
    return make_trainer(examples).sample_and_score(4)
