"""Evaluation on validation questions while a run trains: which questions they are, what is
measured, which step is the best, and when a run ends early.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_kit import ANY_SPEED, lora_of, make_policy, make_trainer, same

import grpo.run as run_module
from encoder.checkpoint import load_state
from grpo.checkpoint import restore_adapter
from grpo.config import Config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.evaluation.measure import evaluate_policy, generate, load_suites
from grpo.evaluation.validation import Validation, best_step, evaluations_since_best
from grpo.lora import lora_merged, lora_parameters
from grpo.prompt import PromptBuilder
from grpo.questions import load_questions, split_validation
from grpo.rewards import Rewards
from grpo.run import RunFolder
from sqlenv import EMBEDDED, Example, UserError, load_dataset
from sqlenv.dataset import spread

TS = "eval/test_suite"


def rows_of(*shares: float | None) -> list[dict]:
    """Lines of metrics.jsonl, a step each; None where nothing was measured."""
    rows = [{"step": step, "reward": 0.1 * step} for step in range(1, len(shares) + 1)]
    return [row if s is None else row | {TS: s} for row, s in zip(rows, shares)]


def test_the_best_step_by_hand():
    assert best_step(rows_of(None, None)) is None and evaluations_since_best(rows_of(None)) == 0
    rows = rows_of(None, 0.2, None, 0.5, None, 0.5, 0.4)
    assert best_step(rows) == (4, 0.5) and evaluations_since_best(rows) == 2


def test_part_of_dev_is_spread_over_it():
    every = load_dataset(EMBEDDED, "vi", "dev")
    *_, dev = load_questions(Config(lang="vi", dev_limit=3))
    assert dev == spread(every, 3) != every[:3]


@ANY_SPEED
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), st.integers(0, 12))
def test_no_query_is_on_both_sides(drawn, count):
    """Number n is the query; each occurs in several languages, written in different cases."""
    pool = [
        Example(f"q{i}", "en", "db", f"select {n}" if lower else f"SELECT {n}", "x.sqlite")
        for i, (n, lower) in enumerate(drawn)
    ]
    train, validation = split_validation(pool, count, limit=15)
    assert len(validation) <= count and len(train) <= 15
    query = lambda e: e.gold_sql.lower()  # noqa: E731
    assert not {query(e) for e in train} & {query(e) for e in validation}
    assert not {e.question for e in train} & {e.question for e in validation}
    if not count:
        assert train == pool[:15]


def test_validation_questions_come_from_those_that_are_left():
    """Of the embedded dataset 2,000 of 3,010 are trained on: nearly none of them change."""
    plain, none, _ = load_questions(Config())
    train, validation, dev = load_questions(Config(eval_every=5))
    key = lambda e: (e.db_id, e.question)  # noqa: E731
    assert none == [] and len(validation) == 100 and len(train) == len(plain) == 2000
    assert len({*map(key, train)} & {*map(key, plain)}) > 1900
    for other in (train, dev):
        assert not {*map(key, validation)} & {*map(key, other)}


@pytest.fixture
def trainer(examples, verifier):
    rewards = Rewards(verifier, None, {"execution": 1.0, "syntax": 0.1})
    return make_trainer(examples, rewards, max_new_tokens=4)


@pytest.fixture
def validation(trainer, examples, verifier) -> Validation:
    suites = load_suites(verifier.sandbox, examples)
    return Validation(examples, trainer.policy, verifier, suites, trainer.config, SINGLE_PROCESS)


def test_what_is_measured(validation, examples, verifier):
    """The greedy shares are those of ``evaluate_policy``; one of G samples is at least as often
    right as two samples' halves say, and reproducibly so.
    """
    measured = validation.measure()
    assert set(measured) == {*("eval/valid", "eval/execution", TS, "eval/pass@3", "eval_seconds")}
    with lora_merged(validation.policy.model):
        answers = evaluate_policy(
            validation.policy, verifier, None, examples, max_new_tokens=4, suites=validation.suites
        )
    for metric in ("valid", "execution", "test_suite"):
        shares = [getattr(answer, metric) for answer in answers]
        assert measured[f"eval/{metric}"] == pytest.approx(sum(shares) / 5)
    assert 0 <= measured["eval/pass@3"] <= 1
    again = validation.measure()
    assert {**again, "eval_seconds": 0} == {**measured, "eval_seconds": 0}


def test_pass_at_g_by_hand(validation, monkeypatch):
    """Of three samples none, the first, and the last are right; then all."""
    right = validation.examples[0].gold_sql
    texts = [
        ["SELECT 1"] * 3,
        [right, "no", "SELECT 1"],
        ["x", "y", right],
        [right] * 3,
        ["", "", ""],
    ]
    same_question = [validation.examples[0]] * 5
    monkeypatch.setattr("grpo.evaluation.validation.generate", lambda *_, **__: texts)
    one_right = validation.one_is_right(same_question, first=0, max_new_tokens=4)
    assert one_right == [False, True, True, True, False]


def test_samples_of_a_question_do_not_depend_on_the_process(validation):
    """The last two questions are sampled alike beside the others and alone, as second process."""
    policy, examples = validation.policy, validation.examples
    prompts = PromptBuilder(policy.tokenizer, validation.settings)
    options = {"max_new_tokens": 4, "group_size": 2, "temperature": 1.0}
    whole = generate(policy, prompts, examples, **options)
    first = len(examples) - 2
    own = examples[first:]
    assert generate(policy, prompts, own, first=first, **options) == whole[first:]
    assert generate(policy, prompts, own, **options) != whole[first:]


class Script:
    """Measurements that are written down, one after the other."""

    def __init__(self, *shares: float):
        self.shares = list(shares)

    def measure(self) -> dict:
        return {TS: self.shares.pop(0)}


def run_with(trainer, folder, *shares: float, **settings):
    config = Config(eval_every=1, **settings)
    run = RunFolder(config, SINGLE_PROCESS, str(folder), False)
    run.start(trainer, {})
    weights = []
    step = trainer.train_step
    trainer.train_step = lambda: [step(), weights.append(lora_of(trainer))][0]
    assert run.train(trainer, Script(*shares))
    return run, weights


def test_the_policy_gets_the_weights_of_the_best_step(trainer, tmp_path):
    """TS 0.2, 0.6, 0.6 and 0.1: step 2. Those of the last step are kept beside it."""
    run, weights = run_with(trainer, tmp_path / "run", 0.2, 0.6, 0.6, 0.1)
    assert same(lora_of(trainer), weights[3])
    run.use_best(trainer)
    assert same(lora_of(trainer), weights[1]) and not same(weights[1], weights[3])
    for name, expected in (("adapter", weights[1]), ("last_adapter", weights[3])):
        other = make_policy(5).model
        restore_adapter(other, run.path / name)
        assert same({n: t.detach() for n, t in lora_parameters(other).items()}, expected)
    record = json.loads((run.path / "best_adapter" / "best.json").read_text())
    assert record == {"step": 2, "by": TS, "value": 0.6}


def test_a_run_that_is_killed_while_it_keeps_the_best_keeps_it_on_resume(
    trainer, tmp_path, monkeypatch
):
    """In step 2, whose TS of 0.6 is the best of 0.2, 0.6, 0.3 and 0.1."""
    keep_best = run_module.keep_best

    def killed(path, model, base, rows, window):
        if len(rows) == 2:
            raise SystemExit(137)
        keep_best(path, model, base, rows, window)

    shares, config = (0.2, 0.6, 0.3, 0.1), Config(eval_every=1, save_every=1)
    monkeypatch.setattr(run_module, "keep_best", killed)
    run = RunFolder(config, SINGLE_PROCESS, str(tmp_path / "run"), False)
    run.start(trainer, {})
    with pytest.raises(SystemExit):
        run.train(trainer, Script(*shares))
    run.lock.close()
    monkeypatch.undo()
    again = RunFolder(config, SINGLE_PROCESS, str(tmp_path / "run"), True)
    again.start(trainer, {})
    assert again.train(trainer, Script(*shares[trainer.step :])) and trainer.step == 4
    record = json.loads((again.path / "best_adapter" / "best.json").read_text())
    assert record == {"step": 2, "by": TS, "value": 0.6}


def test_patience(trainer, tmp_path, capsys):
    """Two evaluations without a better one end a run of four steps after the third."""
    run, weights = run_with(trainer, tmp_path / "run", 0.5, 0.4, 0.5, patience=2)
    assert len(weights) == 3 == trainer.step
    assert "ended after step 3: no better TS on the validation questions in 2" in (
        capsys.readouterr().out
    )
    assert [row[TS] for row in run.rows] == [0.5, 0.4, 0.5]


def test_a_resumed_run_remembers_its_evaluations(trainer, tmp_path):
    """The run that ended by patience does not go on when it is resumed."""
    run, _ = run_with(trainer, tmp_path / "run", 0.5, 0.4, 0.5, patience=2)
    run.lock.close()
    again = RunFolder(run.config, SINGLE_PROCESS, str(run.path), True)
    again.start(trainer, {})
    assert trainer.step == 3 and again.train(trainer, Script()) and trainer.step == 3
    again.lock.close()
    with pytest.raises(UserError, match="ended at step 3, since there was no better TS .*another"):
        RunFolder(replace(run.config, steps=9), SINGLE_PROCESS, str(run.path), True)


@pytest.mark.parametrize(
    "save_every, rewards, best",
    [(1, [0.9, 0.5, 0.1], 0), (20, [0.9, 0.5, 0.1], 2), (2, [0.2, 0.4, 0.9], 1)],
)
def test_a_run_that_falls_apart_ends_with_its_best_adapter(
    trainer, tmp_path, capsys, save_every, rewards, best
):
    """That of the best checkpoint; before the first one, that of the step at which it ends. The
    weights of that step are no better because the mean of the last steps is high.
    """
    config = Config(stop_on_collapse=True, save_every=save_every)
    run = RunFolder(config, SINGLE_PROCESS, str(tmp_path / "run"), False)
    run.start(trainer, {})
    rewards, weights = iter(rewards), []

    def step() -> dict:
        trainer.step += 1
        with torch.no_grad():
            next(iter(trainer.parameters.values())).add_(1)
        weights.append(lora_of(trainer))
        more = {"collapse": 1} if trainer.step == 3 else {}
        return {"step": trainer.step, "reward": next(rewards), **more}

    trainer.train_step = step
    assert run.train(trainer, None) and trainer.step == 3
    run.use_best(trainer)
    assert same(lora_of(trainer), weights[best])
    assert (run.path / "adapter" / "adapter_model.safetensors").is_file()
    assert load_state(run.state_path)["step"] == 3
    assert "ended after step 3: a sign of collapse" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, message",
    [({"patience": 2}, "--patience: needs --eval-every"), ({"eval_every": -1}, "--eval-every")],
)
def test_settings_that_no_run_can_have(settings, message):
    with pytest.raises(UserError, match=message):
        Config(**settings).check()


def test_too_few_questions_for_validation(monkeypatch):
    few = [Example(f"q{i}", "en", "db", "SELECT 1", "x.sqlite") for i in range(4)]
    dataset = SimpleNamespace(load=lambda *_: few, name="x")
    monkeypatch.setattr("grpo.questions.open_dataset", lambda *_, **__: dataset)
    monkeypatch.setattr("grpo.questions.chosen_languages", lambda *_: ["en"])
    with pytest.raises(UserError, match="--eval-every: too few training questions"):
        load_questions(Config(eval_every=1))
