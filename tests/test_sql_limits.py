"""Where the limits on SQL are set: ``--sql-timeout`` of train.py and evaluate.py, and the budget
for completions that time out, which rewards have and evaluations have not.
"""

import json
import sqlite3

import pytest
import torch

import evaluate
import train
from grpo import rewards as rewards_module
from grpo.command_line import parse_config
from grpo.config import Config
from grpo.evaluation.measure import score
from grpo.rewards import TIMEOUT_BUDGET, Rewards
from sqlenv import Example, ExecutionVerifier, Sandbox, UserError, load_suite

GOLD = "SELECT name FROM singer WHERE age > 30"
COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT {} UNION ALL SELECT x + 1 FROM n LIMIT {}) "
ENDLESS = COUNT_UP.format("{}", -1) + "SELECT count(*) FROM n"
SLOW = COUNT_UP.format(1, 6_000_000) + "SELECT count(*) FROM n"  # about 1 s
NONSENSE = ["0", "-1", "nan", "inf", "1e9", "0.01"]


@pytest.fixture
def root(tmp_path):
    """A dataset's root with one database."""
    database = tmp_path / "root" / "dataset" / "spider" / "database" / "pop" / "pop.sqlite"
    database.parent.mkdir(parents=True)
    connection = sqlite3.connect(database)
    connection.executescript(
        "CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INTEGER);"
        "INSERT INTO singer VALUES (1, 'Ann', 20), (2, 'Bob', 40), (3, 'Cid', 50);"
    )
    connection.close()
    return tmp_path / "root"


@pytest.fixture
def example(root):
    database = root / "dataset" / "spider" / "database" / "pop" / "pop.sqlite"
    return Example("Who is over 30?", "en", "pop", GOLD, database)


class RecordingSandbox(Sandbox):
    """A real sandbox that records the budget of each query."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.budgets: list[tuple[str, float | None]] = []

    def run_each(self, queries, use, *, timeout_budget=None):
        queries = list(queries)
        self.budgets += [(sql, timeout_budget) for _, sql in queries]
        super().run_each(queries, use, timeout_budget=timeout_budget)


# --------------------------------------------------------------------------------- the budget


def test_completions_have_a_budget_and_gold_has_none(example):
    """On the given database and on the variants of its test suite, once on each."""
    right = "SELECT name FROM singer WHERE NOT age <= 30"
    with RecordingSandbox(timeout=20) as sandbox:
        suites = {example.db_path: load_suite(example.db_path, [GOLD], sandbox)}
        sandbox.budgets.clear()
        weights = {"execution": 1, "test_suite": 1}
        rewards = Rewards(ExecutionVerifier(sandbox), None, weights, suites=suites)
        terms = rewards([example], [[right, "SELECT 1"]])
    assert terms.tolist() == [[[1, 1], [0, 0]]]
    assert {budget for sql, budget in sandbox.budgets if sql == GOLD} == {None}
    assert {budget for sql, budget in sandbox.budgets if sql != GOLD} == {TIMEOUT_BUDGET}
    on_variants = len(suites[example.db_path].variants_by_gold[GOLD])
    assert sum(sql == right for sql, _ in sandbox.budgets) == 1 + on_variants


def test_a_hostile_group_leaves_the_others_their_rewards(example, monkeypatch):
    """14 completions without end, of which one is tried for the whole 0.3 s, and 2 right ones."""
    monkeypatch.setattr(rewards_module, "TIMEOUT_BUDGET", 0.3)
    endless = [ENDLESS.format(number) for number in range(14)]
    with Sandbox(workers=2, timeout=0.3) as sandbox:
        rewards = Rewards(ExecutionVerifier(sandbox), None, {"execution": 1})
        terms = rewards([example] * 2, [[*endless[:7], GOLD], [GOLD, *endless[7:]]])
    assert torch.equal(terms[..., 0], torch.tensor([[0.0] * 7 + [1.0], [1.0] + [0.0] * 7]))


def test_an_evaluation_has_no_budget(example):
    """What a system scores on a question does not depend on its other answers."""
    with RecordingSandbox(timeout=20) as sandbox:
        score(ExecutionVerifier(sandbox), None, [example] * 2, [GOLD, "SELECT 1"])
    assert {budget for _, budget in sandbox.budgets} == {None}


# ------------------------------------------------------------------------------ --sql-timeout


@pytest.mark.parametrize("seconds", NONSENSE)
def test_a_time_limit_that_makes_no_sense_is_refused_before_anything_is_loaded(seconds, capsys):
    with pytest.raises(UserError, match="--sql-timeout: must be a number from 0.1 to 3600"):
        parse_config("", [f"--sql-timeout={seconds}"])
    unread = ["--predictions", "nowhere.jsonl", "--encoder", "nowhere"]
    assert evaluate.main([*unread, f"--sql-timeout={seconds}"]) == 2
    assert "error: --sql-timeout: must be a number from 0.1" in capsys.readouterr().err


def test_slow_gold_counts_with_a_longer_limit(root, tmp_path, capsys):
    """Gold and prediction take about 1 s. Under a limit of 0.1 s the question is left out."""
    path = tmp_path / "p.jsonl"
    row = {"db_id": "pop", "question": "?", "lang": "en", "gold": SLOW, "predicted": SLOW}
    path.write_text(json.dumps(row))
    options = ["--predictions", str(path), "--data", str(root), "--json", str(tmp_path / "r.json")]
    values = {}
    for seconds in ("0.1", "60"):
        assert evaluate.main([*options, "--sql-timeout", seconds]) == 0
        report = json.loads((tmp_path / "r.json").read_text())
        values[seconds] = report["failed_gold"], report["en"]["execution"]["value"]
    assert values == {"0.1": ({"en": 1}, None), "60": ({}, 1)}


def limits(monkeypatch, module, arguments):
    """The time limit of the sandbox that a command starts; the command ends there."""
    seen = []

    def sandbox(*, timeout):
        seen.append(timeout)
        raise UserError("enough")

    monkeypatch.setattr(module, "Sandbox", sandbox)
    assert module.main(arguments) == 2
    return seen


def test_train_has_the_limit_and_its_run_keeps_it(monkeypatch, tmp_path):
    options = ["--lang", "en", "--device", "cpu", "--output", str(tmp_path / "run")]
    assert limits(monkeypatch, train, [*options, "--sql-timeout", "7.5"]) == [7.5]
    config, _ = parse_config("", ["--device", "cpu", "--sql-timeout", "7.5"])
    assert json.loads(json.dumps(config.to_dict()))["sql_timeout"] == 7.5
    assert Config(device="cpu").differences(config) == ["sql_timeout: 7.5 -> 2.0"]  # so no resume


def test_an_evaluation_has_the_limit_of_its_run(monkeypatch, root, tmp_path, capsys):
    """Of two runs the longer one, for both; what the command line says, comes first."""
    for name, seconds in (("a", 7.5), ("b", 5.0), ("old", None), ("damaged", "long")):
        (tmp_path / name).mkdir()
        settings = {"model": "m", "lang": "en"} | ({"sql_timeout": seconds} if seconds else {})
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
    a, b, old, damaged = (str(tmp_path / name) for name in ("a", "b", "old", "damaged"))
    monkeypatch.setattr(evaluate, "check_system", lambda *_: None)  # there is no model
    more = ["--device", "cpu", "--limit", "1"]
    assert limits(monkeypatch, evaluate, ["--run", a, *more]) == [7.5]
    assert limits(monkeypatch, evaluate, ["--run", old, *more]) == [2.0]
    assert limits(monkeypatch, evaluate, ["--compare", b, a, *more]) == [7.5]
    assert limits(monkeypatch, evaluate, ["--run", a, "--sql-timeout", "3", *more]) == [3.0]
    assert limits(monkeypatch, evaluate, ["--run", damaged, *more]) == []
    assert "config.json: sql_timeout = 'long' is not understood" in capsys.readouterr().err


def test_a_test_suite_belongs_to_its_time_limit(example, tmp_path):
    """Gold that exceeds it has no variants, so a longer limit needs another suite."""
    for timeout in (20, 30, 20):
        with Sandbox(workers=1, timeout=timeout) as sandbox:
            load_suite(example.db_path, [GOLD], sandbox, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*/suite.json"))) == 2
