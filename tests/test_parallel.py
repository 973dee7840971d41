"""Several processes make the update that one process makes: real processes, connected by gloo."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from parallel_steps import steps
from trainer_kit import make_trainer

from grpo.checkpoint import load_training_state
from grpo.distributed.parallel import SINGLE_PROCESS, Distributed

TESTS = Path(__file__).resolve().parent


@given(count=st.integers(0, 100), size=st.integers(1, 9))
def test_shares_are_a_partition_into_nearly_equal_parts(count, size):
    shares = [Distributed(rank, size).split(count) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


PLACE = {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}


def launch(count: int, *words: str) -> subprocess.CompletedProcess:
    start = ["-m", "torch.distributed.run", "--nproc-per-node", str(count), "--standalone"]
    return subprocess.run(
        [sys.executable, *start, *words],
        cwd=TESTS.parent,
        env=PLACE,
        capture_output=True,
        text=True,
        timeout=240,
    )


OPTIONS = {  # 3 or 5 prompts do not divide by 2; 1 prompt leaves a process without any
    "plain": {"prompts_per_step": 3, "steps": 3},
    "no reference, one prompt": {"prompts_per_step": 1, "beta": 0.0, "steps": 2},
    "dynamic sampling": {"prompts_per_step": 5, "dynamic_sampling": 3, "steps": 2, "rare": True},
    "two updates, a mean of means": {
        **{"prompts_per_step": 5, "micro_batch": 1, "num_iterations": 2, "steps": 2},
        **{"loss_aggregation": "sequence", "advantage": "per_reward", "mask_truncated": True},
    },
    "minibatches, of one prompt and two": {"prompts_per_step": 3, "minibatches": 2, "steps": 2},
}


SHARDED = {f"sharded, {name}": options | {"shard": True} for name, options in OPTIONS.items()}
SHARDED["sharded, plain"]["checkpoint_activations"] = True
OPTIONS |= SHARDED


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_two_processes_make_the_update_of_one(options, examples, tmp_path):
    """LoRA weights and metrics after every step, within 1e-5, and the same on both."""
    folder, file = examples[0].db_path.parent, tmp_path / "states.pt"
    done = launch(2, str(TESTS / "parallel_steps.py"), str(folder), str(file), json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    expected, ranks = steps(SINGLE_PROCESS, folder, options), torch.load(file)
    assert len(ranks) == 2 and any(e["metrics"]["grad_norm"] > 0 for e in expected)
    for rank_states in ranks:
        for ours, single in zip(rank_states, expected, strict=True):
            assert ours["state"]["cursor"] == single["state"]["cursor"]
            assert ours["metrics"] == pytest.approx(single["metrics"], rel=1e-5, abs=2e-6)
            for name, tensor in single["lora"].items():
                assert (ours["lora"][name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_in_float16_a_process_may_be_without_a_group(examples, tmp_path):
    """Its scaler has scaled no loss; the gradient has to be the other's, unscaled."""
    folder, file = examples[0].db_path.parent, tmp_path / "states.pt"
    options = {"prompts_per_step": 1, "steps": 2, "dtype": "float16"}
    done = launch(2, str(TESTS / "parallel_steps.py"), str(folder), str(file), json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    expected = steps(SINGLE_PROCESS, folder, options | {"dtype": "float32"})
    for rank_states in torch.load(file):
        for ours, single in zip(rank_states, expected, strict=True):
            norms = ours["metrics"]["grad_norm"], single["metrics"]["grad_norm"]
            assert norms[0] == pytest.approx(norms[1], rel=0.05)


def test_one_process_goes_on_where_two_stopped(examples, tmp_path):
    """After the first of two steps: the second is as if one process had made both."""
    folder, file = examples[0].db_path.parent, tmp_path / "states.pt"
    options = {"prompts_per_step": 3, "steps": 2}
    done = launch(2, str(TESTS / "parallel_steps.py"), str(folder), str(file), json.dumps(options))
    assert done.returncode == 0, done.stderr[-3000:]
    trainer = make_trainer(examples, **options)
    load_training_state(trainer, torch.load(file)[1][0]["state"])
    trainer.train_step()
    for name, tensor in steps(SINGLE_PROCESS, folder, options)[1]["lora"].items():
        assert (trainer.parameters[name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_a_process_that_ends_ends_the_run(examples, tmp_path):
    folder, file = examples[0].db_path.parent, tmp_path / "states.pt"
    words = str(TESTS / "parallel_steps.py"), str(folder), str(file), json.dumps({"dies": True})
    done = launch(2, *words)
    assert done.returncode != 0 and not file.exists()
    assert re.search(r"exitcode\s*: 5\b", done.stderr), done.stderr[-3000:]


@pytest.mark.parametrize("shard", [False, True])
def test_the_others_say_that_a_process_is_gone(examples, tmp_path, shard):
    """Two processes without torchrun, which would end the first one itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = json.dumps({"dies": True, "shard": shard})
    words = [sys.executable, str(TESTS / "parallel_steps.py"), str(examples[0].db_path.parent)]
    place = PLACE | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (
        subprocess.Popen(
            [*words, str(tmp_path / "states.pt"), options],
            env=place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    error = first.communicate(timeout=240)[1]
    assert second.wait(timeout=60) == 5 and first.returncode not in (0, 5)
    assert "process 0: another process of this run has ended" in error.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temprature", "1"], "error: unrecognized arguments: --temprature 1"),
        (["--model", "/nowhere"], "error: process {}: /nowhere: no such model directory"),
    ],
)
def test_one_of_the_processes_says_what_is_wrong(words, message, tmp_path):
    """In the command line, before the processes know each other, and after it. torchrun adds its
    own report of the processes that ended.
    """
    output = str(tmp_path / "run")
    done = launch(2, "train.py", *words, "--output", output, "--device", "cpu")
    assert done.returncode == 1 and not Path(output).exists()  # torchrun's own code
    assert re.search(r"exitcode\s*: 2\b", done.stderr), done.stderr[-3000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and any(message.format(n) in errors[0] for n in range(2)), errors
    ours = rf'File "{re.escape(str(TESTS.parent))}/(train|grpo|encoder|sqlenv)'
    assert not re.search(ours, done.stderr)  # no traceback of this project
