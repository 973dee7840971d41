"""Verdicts on hand-written SQL, run on a small real database."""

import sqlite3
import tracemalloc
from pathlib import Path

import pytest

from sqlenv import Example, ExecutionVerifier, Sandbox, Suite, UserError, gold, load_suite

OLD = "SELECT name FROM singer WHERE age > 30"  # Bob, Cid and Dee
ORDERED = "SELECT name FROM singer ORDER BY age DESC"  # Dee, Cid, Bob, Ann
FAILS = "SELECT nam FROM singer"
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


class RecordingSandbox(Sandbox):
    """A real sandbox that records the queries that it runs."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.ran: list[tuple[Path, str]] = []

    def run_each(self, queries, use, **options):
        queries = list(queries)
        self.ran += queries
        super().run_each(queries, use, **options)


@pytest.fixture(scope="module")
def processes():
    with RecordingSandbox(timeout=10) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(processes) -> RecordingSandbox:
    processes.ran.clear()
    return processes


@pytest.fixture
def verifier(sandbox) -> ExecutionVerifier:
    return ExecutionVerifier(sandbox)


def make_database(path: Path, rows: str) -> Path:
    connection = sqlite3.connect(path)
    connection.executescript(
        f"CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, age INT);"
        f"INSERT INTO singer VALUES {rows};"
    )
    connection.close()
    return path


@pytest.fixture
def db(tmp_path) -> Path:
    rows = "(1, 'Ann', 25), (2, 'Bob', 35), (3, 'Cid', 40), (4, 'Dee', 50)"
    return make_database(tmp_path / "concerts.sqlite", rows)


@pytest.fixture
def other_db(tmp_path) -> Path:
    """The same table with one singer, who is older than 30."""
    return make_database(tmp_path / "other.sqlite", "(1, 'Eve', 60)")


def ask(db: Path, gold: str = OLD) -> Example:
    return Example("Who is older than 30?", "en", db.stem, gold, db)


def correct(verifier: ExecutionVerifier, db: Path, gold: str, *sqls: str | None) -> list[bool]:
    """Whether each query is correct for the same gold query."""
    return [verdict.correct for verdict in verifier.verify([ask(db, gold)] * len(sqls), sqls)]


# ------------------------------------------------------------------------------------ verdicts


@pytest.mark.parametrize(
    ("sql", "status", "valid", "is_correct"),
    [
        (OLD, "ok", True, True),
        ("select T.NAME from Singer as T where not T.age <= 30", "ok", True, True),
        ("SELECT name FROM singer WHERE id != 1", "ok", True, True),  # right on this database
        ("SELECT name FROM singer WHERE age > 40", "ok", True, False),
        ("SELECT name, age FROM singer WHERE age > 30", "ok", True, False),
        ("SELECT name FROM singer WHERE age > 99", "ok", True, False),  # no row
        (FAILS, "error", False, False),
        ("SELECT name FROM singer WHERE", "error", False, False),
        ("I do not know.", "error", False, False),
        ("", "error", False, False),
        (f"{OLD}; SELECT 1", "error", False, False),
        ("DELETE FROM singer", "denied", False, False),
    ],
)
def test_a_verdict_by_hand(verifier, db, sql, status, valid, is_correct):
    (verdict,) = verifier.verify([ask(db)], [sql])
    assert (verdict.sql, verdict.execution.status) == (sql, status)
    assert (verdict.valid, verdict.correct) == (valid, is_correct)


def test_the_verdict_has_the_execution(verifier, db):
    (verdict,) = verifier.verify([ask(db)], ["SELECT name FROM singer WHERE age > 40"])
    assert verdict.execution.columns == ("name",)
    assert (verdict.execution.rows, verdict.execution.num_rows) == ([], 1)
    assert verdict.execution.reads == {("singer", "name"), ("singer", "age")}


def test_without_a_query_nothing_runs(verifier, sandbox, db):
    (verdict,) = verifier.verify([ask(db)], [None])
    assert (verdict.sql, verdict.execution) == (None, None)
    assert not verdict.valid and not verdict.correct
    assert sandbox.ran == []


def test_there_are_as_many_verdicts_as_queries(verifier, db):
    assert verifier.verify([], []) == []
    sqls = [FAILS, None, OLD, "SELECT 1", None, OLD]
    verdicts = verifier.verify([ask(db)] * 6, sqls)
    assert [verdict.sql for verdict in verdicts] == sqls
    assert [verdict.valid for verdict in verdicts] == [False, False, True, True, False, True]
    assert [verdict.correct for verdict in verdicts] == [False, False, True, False, False, True]


def test_where_gold_fails_no_query_is_correct(verifier, db):
    """Not even the same query. A query that runs is still valid."""
    verdicts = verifier.verify([ask(db, FAILS)] * 3, [FAILS, OLD, None])
    assert [verdict.correct for verdict in verdicts] == [False, False, False]
    assert [verdict.valid for verdict in verdicts] == [False, True, False]


def test_a_timeout_of_gold_and_query_is_not_correct(db):
    with Sandbox(workers=2, timeout=0.5) as sandbox:
        (verdict,) = ExecutionVerifier(sandbox).verify([ask(db, ENDLESS)], [ENDLESS])
    assert verdict.execution.status == "timeout"
    assert not verdict.valid and not verdict.correct


def test_row_order_counts_if_gold_orders(verifier, db):
    backwards = "SELECT name FROM singer ORDER BY age"
    assert correct(verifier, db, ORDERED, ORDERED, backwards) == [True, False]
    assert correct(verifier, db, "SELECT name FROM singer", ORDERED, backwards) == [True, True]


def test_row_order_does_not_count_if_only_a_subquery_of_gold_orders(verifier, db):
    gold = "SELECT name FROM singer WHERE id IN (SELECT id FROM singer ORDER BY age LIMIT 3)"
    backwards = "SELECT name FROM singer WHERE age < 50 ORDER BY age DESC"
    assert correct(verifier, db, gold, backwards) == [True]


def test_an_empty_result_is_correct_if_golds_is_empty(verifier, db):
    """With as many columns. The training loop leaves such questions out."""
    gold = "SELECT name FROM singer WHERE age > 99"
    empty = "SELECT age FROM singer WHERE 0", "SELECT name, age FROM singer WHERE 0"
    assert correct(verifier, db, gold, gold, *empty, OLD) == [True, True, False, False]


def test_each_question_is_verified_on_its_own_database(verifier, db, other_db):
    """The oldest singer is 50 on one database and 60 on the other."""
    gold = "SELECT max(age) FROM singer"
    examples = [ask(db, gold), ask(other_db, gold)] * 2
    verdicts = verifier.verify(examples, ["SELECT 50", "SELECT 50", "SELECT 60", "SELECT 60"])
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True]


def test_a_missing_database_is_a_user_error(verifier, tmp_path):
    with pytest.raises(UserError, match="nowhere.sqlite"):
        verifier.verify([ask(tmp_path / "nowhere.sqlite")], [OLD])


# -------------------------------------------------------------------------- queries run once


def test_equal_queries_run_once_on_each_database(verifier, sandbox, db, other_db):
    """Gold runs separately, in the first call only."""
    examples = [ask(db), ask(db), ask(db), ask(other_db)]
    wrong = "SELECT age FROM singer"
    verdicts = verifier.verify(examples, [wrong, OLD, wrong, wrong])
    assert verdicts[0].execution is verdicts[2].execution
    gold = [(db, OLD), (other_db, OLD)]
    queries = [(db, wrong), (db, OLD), (other_db, wrong)]
    assert sandbox.ran == gold + queries
    sandbox.ran.clear()
    verifier.verify(examples, [wrong, OLD, wrong, wrong])
    assert sandbox.ran == queries


def test_run_gold_runs_each_distinct_query_once(verifier, sandbox, db, other_db):
    examples = [ask(db), ask(other_db), ask(db), ask(db, FAILS)]
    executions = verifier.run_gold(examples)
    assert [execution.status for execution in executions] == ["ok", "ok", "ok", "error"]
    assert [execution.num_rows for execution in executions] == [3, 1, 3, 0]
    assert executions[2] is executions[0]
    assert verifier.run_gold(examples[::-1]) == executions[::-1]
    assert sandbox.ran == [(db, OLD), (other_db, OLD), (db, FAILS)]


# ------------------------------------------------------------------------------------- memory

LARGE = "SELECT a.id, b.name || {} FROM singer AS a JOIN singer AS b JOIN singer"  # 12 x 12 x 12


def peak_of(verifier: ExecutionVerifier, examples: list[Example], sqls: list[str]) -> int:
    """Bytes that Python allocates at most while it verifies, and then compares on a suite of the
    given database alone.
    """
    suites = {e.db_path: Suite(e.db_path, (), {x.gold_sql: () for x in examples}) for e in examples}
    tracemalloc.start()
    verdicts = verifier.verify(examples, sqls)
    on_suites = verifier.verify_on_suites(examples, verdicts, suites)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    right = [example.gold_sql == sql for example, sql in zip(examples, sqls)]
    assert [verdict.correct for verdict in verdicts] == on_suites == right
    assert all(verdict.execution.num_rows == 1728 for verdict in verdicts)
    return peak


@pytest.mark.parametrize("golds_run_again", [False, True])
def test_memory_does_not_grow_with_the_number_of_predictions(
    sandbox, tmp_path, monkeypatch, golds_run_again
):
    """Cross joins of 1,728 rows of (integer, text), at least 56 bytes for the tuple and 50 for the
    text, so 180 kB. Of 20 more of them not even two are in memory. That holds for as many gold
    queries, too, where their rows are not kept. Every other prediction is right, if gold differs,
    otherwise one is.
    """
    if golds_run_again:
        monkeypatch.setattr(gold, "KEPT_BYTES", 0)
        monkeypatch.setattr(gold, "BATCH_BYTES", 40_000)  # of two gold queries
    db = make_database(tmp_path / "choir.sqlite", ", ".join(f"({i}, 'Ann', 1)" for i in range(12)))
    peaks = []
    for count in (4, 24):
        numbers = range(count)
        golds = [LARGE.format(100 + i * golds_run_again) for i in numbers]
        sqls = [
            golds[i]
            if i % 2 == 0 and i < (count if golds_run_again else 1)
            else LARGE.format(200 + i)
            for i in numbers
        ]
        peaks.append(peak_of(ExecutionVerifier(sandbox), [ask(db, g) for g in golds], sqls))
    assert peaks[1] - peaks[0] < 2 * 180_000


def test_gold_that_runs_again_counts_as_it_ran_last(sandbox, db, monkeypatch):
    """Its file was replaced by one without the table: what compares with it is wrong, and gold
    fails for the caller as well.
    """
    monkeypatch.setattr(gold, "KEPT_BYTES", 0)
    verifier = ExecutionVerifier(sandbox)
    assert verifier.run_gold([ask(db)])[0].status == "ok"
    db.unlink()
    sqlite3.connect(db).close()
    assert not verifier.verify([ask(db)], ["SELECT 1"])[0].correct
    assert verifier.run_gold([ask(db)])[0].status == "error"


# -------------------------------------------------------------------------------- test suites


def test_a_test_suite_tells_a_mutant_from_gold(verifier, sandbox, db):
    """Nobody is 30 and the ids follow the ages, so three queries give gold's rows. On a variant of
    the database only the one that means the same does.
    """
    equivalent, boundary, by_id = (
        f"SELECT name FROM singer WHERE {condition}"
        for condition in ("NOT age <= 30", "age >= 30", "id > 1")
    )
    sqls = [OLD, equivalent, boundary, by_id, "SELECT age FROM singer", FAILS, None]
    examples = [ask(db)] * len(sqls)
    suites = {db: load_suite(db, [OLD], sandbox)}
    verdicts = verifier.verify(examples, sqls)
    assert [verdict.correct for verdict in verdicts] == [True] * 4 + [False] * 3
    assert verifier.verify_on_suites(examples, verdicts, suites) == [True, True] + [False] * 5


def test_only_correct_queries_run_on_the_test_suite(verifier, sandbox, db):
    """And on its variants alone: that they are right on the given database is known."""
    wrong = "SELECT age FROM singer"
    examples, suites = [ask(db)] * 3, {db: load_suite(db, [OLD], sandbox)}
    verdicts = verifier.verify(examples, [wrong, OLD, None])
    sandbox.ran.clear()
    assert verifier.verify_on_suites(examples, verdicts, suites) == [False, True, False]
    assert {sql for _, sql in sandbox.ran} == {OLD}
    assert {path for path, _ in sandbox.ran} == set(suites[db].variants)


def test_each_query_is_verified_on_the_suite_of_its_database(verifier, sandbox, db, other_db):
    """`id > 0` gives gold's rows on the second database only; a variant of that one tells. A suite
    that was built for other gold queries would raise a ValueError.
    """
    golds = {db: OLD, other_db: "SELECT name FROM singer WHERE age > 50"}
    suites = {path: load_suite(path, [gold], sandbox) for path, gold in golds.items()}
    examples = [ask(path, gold) for path, gold in golds.items()] * 2
    everybody = "SELECT name FROM singer WHERE id > 0"
    verdicts = verifier.verify(examples, [*golds.values(), everybody, everybody])
    assert [verdict.correct for verdict in verdicts] == [True, True, False, True]
    assert verifier.verify_on_suites(examples, verdicts, suites) == [True, True, False, False]


def test_where_gold_fails_no_query_is_correct_on_a_suite(verifier, sandbox, db):
    examples, suites = [ask(db, FAILS)] * 2, {db: load_suite(db, [FAILS], sandbox)}
    verdicts = verifier.verify(examples, [FAILS, OLD])
    assert verifier.verify_on_suites(examples, verdicts, suites) == [False, False]
