"""Batches of queries under pressure: CPU time and not the clock, a budget for time-outs, results
passed on as they arrive.
"""

import math
import os
import signal
import sqlite3
import threading
import time

import pytest

from sqlenv import Sandbox
from sqlenv.sandbox.sandbox import FIRST_TRY

COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT {} UNION ALL SELECT x + 1 FROM n LIMIT {}) "
ENDLESS = COUNT_UP.format("{}", -1) + "SELECT count(*) FROM n"
SLOW = COUNT_UP.format("{}", 1_500_000) + "SELECT count(*) FROM n"  # more than FIRST_TRY anywhere
# One long step of SQLite, in which only killing the process helps.
STUCK = """WITH t(a) AS (SELECT printf('%.4000000c', 'a'))
    SELECT instr(a, substr(a, 1, 2000000) || 'b{}') FROM t"""


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("batches") / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE item (id INTEGER); INSERT INTO item VALUES (1), (2);")
    connection.close()
    return path


def batch(database, *texts):
    """Queries of these kinds, each with its number in it."""
    return [(database, text.format(number)) for number, text in enumerate(texts)]


def worker_pid(sandbox):
    (worker,) = sandbox._workers
    return worker.process.pid


# ------------------------------------------------------------------------ CPU time and the clock


def test_a_worker_that_waits_for_the_processor_has_its_time_left(database):
    """Stopped for 1 s, three times the limit: the query has used none of it."""
    with Sandbox(workers=1, timeout=0.3) as sandbox:
        sandbox.run(database, "SELECT 1")
        pid = worker_pid(sandbox)
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(1.0, os.kill, (pid, signal.SIGCONT)).start()
        assert sandbox.run(database, "SELECT 2").rows == [(2,)]
        assert worker_pid(sandbox) == pid


def test_a_worker_that_never_goes_on_is_killed(database):
    with Sandbox(workers=1, timeout=0.05) as sandbox:
        sandbox.run(database, "SELECT 1")
        os.kill(worker_pid(sandbox), signal.SIGSTOP)
        execution = sandbox.run(database, "SELECT 2")
        assert (execution.status, execution.error) == (
            "timeout",
            "killed: no result within 1 s of waiting",
        )
        assert sandbox.run(database, "SELECT 3").rows == [(3,)]


def test_a_stuck_worker_ends_by_itself(database):
    """Also if this process ignores the timer's signal, which is inherited."""
    previous = signal.signal(signal.SIGPROF, signal.SIG_IGN)
    try:
        with Sandbox(workers=1, timeout=0.1) as sandbox:
            execution = sandbox.run(database, STUCK)
    finally:
        signal.signal(signal.SIGPROF, previous)
    assert (execution.status, execution.error) == ("timeout", "killed: no result within 0.1 s")


def test_seconds_are_cpu_time(database):
    with Sandbox(workers=1, timeout=0.2) as sandbox:
        execution = sandbox.run(database, ENDLESS.format(0))
    assert execution.status == "timeout" and 0.2 <= execution.seconds < 0.4


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf])
def test_a_time_limit_is_a_number_above_0(timeout):
    with pytest.raises(ValueError, match="timeout"):
        Sandbox(timeout=timeout)


# ------------------------------------------------------------------------- a budget for time-outs


@pytest.mark.parametrize("hostile", [ENDLESS, STUCK], ids=["endless", "stuck"])
def test_a_hostile_batch_has_a_budget_and_harmless_queries_their_results(database, hostile):
    """Of 24 hostile queries all get FIRST_TRY, and the first two the time limit of 0.25 s, which
    is the budget of 0.5 s. The 24 harmless ones between them have their results.
    """
    queries = batch(database, *[hostile, "SELECT {}"] * 24)
    with Sandbox(workers=2, timeout=0.25) as sandbox:
        results = sandbox.run_many(queries, timeout_budget=0.5)
    assert [result.rows for result in results[1::2]] == [[(n,)] for n in range(1, 48, 2)]
    assert {result.status for result in results[::2]} == {"timeout"}
    short = ["in a batch in which too many" in result.error for result in results[::2]]
    assert short == [False] * 2 + [True] * 22
    if hostile is ENDLESS:
        assert all(result.seconds >= 0.25 for result in results[:4:2])
        assert all(FIRST_TRY <= result.seconds < 0.25 for result in results[4::2])


def test_slow_queries_in_a_batch_without_time_outs_have_their_results(database):
    """Each needs a second try, for which there is always time while none times out."""
    queries = batch(database, *["SELECT {}", SLOW] * 4)
    with Sandbox(workers=2, timeout=30) as sandbox:
        results = sandbox.run_many(queries, timeout_budget=0)
    assert [result.rows for result in results[::2]] == [[(0,)], [(2,)], [(4,)], [(6,)]]
    assert [result.rows for result in results[1::2]] == [[(1_500_000,)]] * 4
    assert all(result.seconds > FIRST_TRY for result in results[1::2])


def test_slow_queries_before_time_outs_have_their_results(database):
    """Second tries are made in the order of the queries, with the full time limit."""
    queries = batch(database, SLOW, *[ENDLESS] * 3)
    with Sandbox(workers=2, timeout=3) as sandbox:
        results = sandbox.run_many(queries, timeout_budget=0)
    assert [result.status for result in results] == ["ok"] + ["timeout"] * 3
    assert results[0].rows == [(1_500_000,)]
    assert all("too many" in result.error for result in results[2:])


def test_without_a_budget_no_query_depends_on_the_others(database):
    queries = batch(database, *[ENDLESS] * 3, "SELECT {}")
    with Sandbox(workers=2, timeout=0.2) as sandbox:
        results = sandbox.run_many(queries)
    assert results[3].rows == [(3,)]
    assert all(result.seconds >= 0.2 for result in results[:3])


# --------------------------------------------------------------------- results as they arrive


def test_each_result_is_passed_on_once(database):
    """Rejected, denied, failing, killed and right ones, with their numbers of rows."""
    texts = ["SELECT id FROM item", "\ud800", "DROP TABLE item", STUCK, "SELECT x", "VALUES (7)"]
    arrived = {}
    with Sandbox(workers=2, timeout=0.2) as sandbox:
        sandbox.run_each(
            [(database, text) for text in texts],
            lambda index, execution: arrived.setdefault(index, []).append(execution),
        )
    assert {len(executions) for executions in arrived.values()} == {1}
    arrived = {index: execution for index, (execution,) in arrived.items()}
    statuses = [arrived[index].status for index in range(len(texts))]
    assert statuses == ["ok", "error", "denied", "timeout", "error", "ok"]
    assert [arrived[index].num_rows for index in range(len(texts))] == [2, 0, 0, 0, 0, 1]
    assert (arrived[0].without_rows().rows, arrived[0].without_rows().num_rows) == ([], 2)


def test_the_first_results_are_passed_on_before_the_last_query_runs(database):
    """So they can be dropped: here the callback ends the batch before the worker gets the endless
    query, which would run for 60 s. A worker gets three of five queries first.
    """

    class EnoughError(Exception):
        pass

    def stop(index, execution):
        raise EnoughError

    with Sandbox(workers=1, timeout=60) as sandbox:
        started = time.monotonic()
        with pytest.raises(EnoughError):
            sandbox.run_each(batch(database, *["SELECT {}"] * 4, ENDLESS), stop)
        assert time.monotonic() - started < 30
        assert sandbox.run(database, "SELECT 'next'").rows == [("next",)]


def test_no_worker_is_killed_because_its_result_had_to_wait(database):
    """Using the first result takes 1.5 s, and a worker may be silent for 1 s. The other worker,
    stopped until then, sends its result meanwhile.
    """
    arrived = {}

    def use(index, execution):
        if not arrived:
            os.kill(sandbox._workers[1].process.pid, signal.SIGCONT)
            time.sleep(1.5)
        arrived[index] = execution

    with Sandbox(workers=2, timeout=0.05) as sandbox:
        sandbox.run_many(batch(database, *["SELECT {}"] * 8))  # starts both
        os.kill(sandbox._workers[1].process.pid, signal.SIGSTOP)
        sandbox.run_each(batch(database, "SELECT {}", "SELECT {}"), use)
    assert [arrived[index].rows for index in (0, 1)] == [[(0,)], [(1,)]]
