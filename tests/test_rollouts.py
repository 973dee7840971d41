"""rollouts.jsonl: what was sampled, what it earned and why."""

import json

import pytest
import torch
from trainer_kit import QUERIES, make_trainer

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.evaluation.rollouts import append_rollouts, cut_rollouts, group_rows, read_rollouts
from grpo.rewards import Rewards
from grpo.run import RunFolder
from sqlenv import UserError


@pytest.fixture
def trainer(examples, verifier):
    rewards = Rewards(verifier, None, {"execution": 1.0, "syntax": 0.1})
    return make_trainer(examples, rewards, max_new_tokens=4)


def rows_of(trainer) -> list[dict]:
    (rollout,) = trainer.last_rollouts
    golds = trainer.rewards.run_gold(rollout.examples)
    return group_rows(
        trainer.step, rollout, trainer.advantages(rollout), trainer.rewards.names, golds
    )


def test_a_line_tells_what_was_sampled_and_what_it_earned(trainer):
    """Recomputed from the rollout: 1 for the right result and 0.1 if it runs, less the mean."""
    statuses = set()
    for _ in range(4):
        trainer.train_step()
        (rollout,) = trainer.last_rollouts
        for row, example, ids in zip(rows_of(trainer), rollout.examples, rollout.completion_ids):
            assert (row["question"], row["gold"]) == (example.question, example.gold_sql)
            assert row["gold_rows"] and row["gold_num_rows"] >= len(row["gold_rows"])
            rewards = [completion["reward"] for completion in row["completions"]]
            advantages = group_advantages(torch.tensor([rewards]))[0].tolist()
            assert [c["advantage"] for c in row["completions"]] == pytest.approx(
                advantages, abs=1e-4
            )
            for completion, tokens in zip(row["completions"], ids):
                terms = completion["terms"]
                assert completion["reward"] == pytest.approx(
                    terms["execution"] + 0.1 * terms["syntax"]
                )
                assert completion["tokens"] == len(tokens) and completion["logprob"] < 0
                assert (completion["status"] == "ok") == (terms["syntax"] == 1)
                assert bool(completion["error"]) == (completion["status"] == "error")
                if terms["execution"]:
                    assert completion["num_rows"] == row["gold_num_rows"]
                    assert sorted(completion["rows"]) == sorted(row["gold_rows"])
                statuses.add(completion["status"])
    assert {"ok", "error"} <= statuses


def test_the_logprob_is_that_of_the_tokens(trainer):
    trainer.train_step()
    (rollout,) = trainer.last_rollouts
    group = rollout.sampling_logprobs[1]
    expected = [
        group[g, : len(ids)].sum().item() for g, ids in enumerate(rollout.completion_ids[1])
    ]
    logprobs = [completion["logprob"] for completion in rows_of(trainer)[1]["completions"]]
    assert logprobs == pytest.approx(expected, abs=1e-3)


def test_groups_that_dynamic_sampling_discards_are_kept(examples, verifier, tmp_path):
    rewards = Rewards(verifier, None, {"execution": 1.0})
    trainer = make_trainer(examples, rewards, dynamic_sampling=2, max_new_tokens=4)
    folder = RunFolder(Config(), SINGLE_PROCESS, str(tmp_path / "run"), False)
    sampled = 0
    for _ in range(2):
        sampled += trainer.train_step()["groups_sampled"]
        folder.keep_rollouts(trainer)
    rows = list(read_rollouts(folder.rollouts_path))
    assert len(rows) == sampled > 8


@pytest.mark.parametrize("keep", [0, 3])
def test_no_more_groups_of_a_step_than_are_asked_for(trainer, tmp_path, keep):
    folder = RunFolder(Config(keep_rollouts=keep), SINGLE_PROCESS, str(tmp_path / "run"), False)
    for _ in range(2):
        trainer.train_step()
        folder.keep_rollouts(trainer)
    rows = list(read_rollouts(folder.rollouts_path))
    assert [row["step"] for row in rows] == [1] * keep + [2] * keep


def test_lines_after_the_checkpoint_and_half_a_line_are_cut(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    cut_rollouts(path, 3)  # there is none yet
    append_rollouts(path, [{"step": 1, "text": "Việt\ud800"}, {"step": 2}])
    whole = path.read_bytes()
    append_rollouts(path, [{"step": 3}, {"step": 4}])
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "ha')
    assert [row["step"] for row in read_rollouts(path)] == [1, 2, 3, 4]
    cut_rollouts(path, 2)
    assert path.read_bytes() == whole
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "ha')
    cut_rollouts(path, 2)
    assert path.read_bytes() == whole
    assert next(read_rollouts(path))["text"].startswith("Việt")


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="cannot write .*the last checkpoint is kept"):
        append_rollouts(tmp_path, [{"step": 1}])


def test_long_results_are_shortened(examples, verifier):
    """Three rows, six columns, forty characters in one line."""
    sql = (
        "SELECT replace(printf('%100d', 7), ' ', 'a b'), x'00ff', NULL, 1.5, 4, 5, 6, 7 FROM singer"
    )
    (verdict,) = verifier.verify([examples[0]], [f"{sql} UNION ALL {sql}"])
    assert verdict.execution.num_rows == 6 and len(verdict.execution.head) == 3
    for row in verdict.execution.head:
        assert row[0] == "a ba ba ba ba ba ba ba ba ba ba ba ba b…" and len(row[0]) == 40
        assert row[1:] == ("x'00ff'", "NULL", "1.5", "4", "5")
    assert json.dumps(verdict.execution.head)


def test_the_queries_of_the_policy_are_among_those_sampled(trainer):
    """What is written as text is what was decoded."""
    trainer.train_step()
    texts = {c["text"].split(";")[0] + ";" for row in rows_of(trainer) for c in row["completions"]}
    assert texts & set(QUERIES)
