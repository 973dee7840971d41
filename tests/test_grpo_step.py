"""The benchmark of a step, on a tiny model, beside a peer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_kit import CHAT, make_model, make_tokenizer

PEER = """
import json, sys
words = "--beta 0.04 --prompts 2 --group 3 --new-tokens 4 --steps 2 --fp32".split()
assert sys.argv[2:] == words
print(json.dumps({"step_seconds": [9.0, 1000.0], "peak_rss_mb": 1 << 20}))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory) -> tuple[str, dict]:
    folder = tmp_path_factory.mktemp("step")
    make_model().save_pretrained(folder)
    make_tokenizer(chat_template=CHAT).save_pretrained(folder)
    (folder / "peer.py").write_text(PEER)
    # bfloat16 products take minutes on a CPU without instructions for them.
    words = ["--prompts", "2", "--group", "3", "--new-tokens", "4", "--steps", "2", "--fp32"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.grpo_step", str(folder), *words]
        + ["--versus", str(folder / "peer.py")],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stdout.splitlines()[-1])


def test_the_last_line_has_the_peers_keys(result):
    """Two steps before the peer and one after it, each of all phases."""
    _, last = result
    assert {"step_seconds", "peak_rss_mb", "peak_cuda_mb", "torch", "transformers"} <= last.keys()
    assert (last["prompts"], last["group"], last["new_tokens"]) == (2, 3, 4)
    assert len(last["step_seconds"]) == 3 and all(seconds > 0 for seconds in last["step_seconds"])
    phases = {"prefill", "decode", "reference", "forward", "backward", "optimizer"}
    assert phases <= last["phase_seconds"].keys()


def test_the_peer_is_compared_without_its_first_step(result):
    text, last = result
    ours = sum(last["step_seconds"][1:]) / 2
    assert last["peer_to_ours"] == pytest.approx(1000 / ours, rel=0.01)
    assert last["peer_memory_to_ours"] == pytest.approx((1 << 20) / last["peak_rss_mb"], abs=0.01)
    assert "peer / ours" in text and "TFLOP" in text
