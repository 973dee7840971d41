"""pass@k against the count of all draws of k samples; what the semantic reward changes, by hand."""

import json
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.group_signal import main, pass_at_k, semantic_signal
from grpo.rewards import WEIGHTS


@given(samples=st.integers(1, 8), data=st.data())
def test_pass_at_k_counts_the_draws_with_a_right_one(samples, data):
    right = data.draw(st.integers(0, samples))
    k = data.draw(st.integers(1, samples))
    answers = [True] * right + [False] * (samples - right)
    draws = [any(drawn) for drawn in combinations(answers, k)]
    assert pass_at_k(right, samples=samples, k=k) == pytest.approx(sum(draws) / len(draws))


def test_semantic_signal_by_hand():
    """Rewards (execution, syntax, schema, semantic) of three groups of two, all weights 1:

    - right (1, 1, 1, 0.2) and wrong (0, 1, 0, 0.6): advantages with semantic +-0.8, without +-1,
      cosine 1; the wrong one gets more from the encoder: 0 of 1 pairs in order;
    - two wrong ones that only the encoder tells apart: zero variance without it;
    - two right ones, equal in all: zero variance.
    """
    groups = [
        [[1, 1, 1, 0.2], [0, 1, 0, 0.6]],
        [[0, 1, 0, 0.2], [0, 1, 0, 0.6]],
        [[1, 1, 1, 0.9], [1, 1, 1, 0.9]],
    ]
    assert list(WEIGHTS) == ["execution", "syntax", "schema", "semantic"]
    third = pytest.approx(1 / 3)
    assert semantic_signal(torch.tensor(groups), torch.ones(4)) == {
        "none right": third,
        "some right": third,
        "all right": third,
        "only semantic differs": third,
        "cosine": pytest.approx(1),
        "right above wrong": 0,
    }


def test_the_groups_of_runs(tmp_path, capsys):
    """Two runs of a group of two answers: of the first one is right, of the other none. A run
    without the encoder has no term of it.
    """
    for name, terms in (
        ("one", [[1, 1, 1, 0.2], [0, 1, 0, 0.6]]),
        ("two", [[0, 1, 0, 0.2], [0, 1, 0, 0.6]]),
        ("other", [[0, 1, 0], [1, 1, 1]]),
    ):
        (tmp_path / name).mkdir()
        answers = [{"terms": dict(zip(WEIGHTS, values))} for values in terms]
        line = json.dumps({"completions": answers}) + "\n"
        (tmp_path / name / "rollouts.jsonl").write_text(line)
    runs = [str(tmp_path / name) for name in ("one", "two", "other")]
    assert main(["--runs", *runs[:2]]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        ["| one", "1", "0.0", "100.0"],
        ["| two", "1", "100.0", "0.0"],
        ["| all", "2", "50.0", "50.0"],
    ]
    assert main(["--runs", runs[2]]) == 2
    assert "other: has no groups with the rewards execution, syntax," in capsys.readouterr().err
