"""Workers that are stopped, processes that fork, and a SQLite with other defaults."""

import logging
import multiprocessing
import os
import signal
import sqlite3
import sys
import textwrap

import pytest

from sqlenv import Sandbox
from sqlenv.sandbox import sandbox as sandbox_module


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("databases") / "singers.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE singer (name, country); INSERT INTO singer VALUES ('Rose', 'France')"
    )
    connection.close()
    return path


def pids(sandbox):
    return [worker.process.pid for worker in sandbox._workers if worker]


def large(number: int) -> str:
    """A query of 90,000 bytes: more than the 64 KiB that a pipe holds."""
    return f"SELECT {number} -- {'x' * 90_000}"


def test_a_worker_that_is_stopped_does_not_stop_the_parent(database):
    """It reads nothing, so its queries do not fit into the pipe. It is killed when they time out,
    and they run again; the other worker has answered meanwhile.
    """
    with Sandbox(workers=2, timeout=1) as sandbox:
        sandbox.run_many([(database, "SELECT 1")] * 8)
        stopped = pids(sandbox)[0]
        os.kill(stopped, signal.SIGSTOP)
        results = sandbox.run_many([(database, large(i)) for i in range(16)])
        assert [result.rows for result in results] == [[(i,)] for i in range(16)]
        assert stopped not in pids(sandbox)
        os.kill(pids(sandbox)[1], signal.SIGSTOP)
        assert sandbox.run(database, large(7)).rows == [(7,)]  # by the first
        os.kill(pids(sandbox)[0], signal.SIGSTOP)
        execution = sandbox.run(database, large(8))
        assert (execution.status, execution.rows) == ("timeout", ())
        assert sandbox.run(database, large(9)).rows == [(9,)]


def test_a_message_larger_than_a_pipe_arrives_whole(database):
    with Sandbox(workers=1, timeout=60) as sandbox:
        results = sandbox.run_many([(database, large(i)) for i in range(70)])
    assert [result.rows for result in results] == [[(i,)] for i in range(70)]


def ask(sandbox: Sandbox, path, start: int, pipe) -> None:
    numbers = range(start, start + 200)
    results = [sandbox.run(path, f"SELECT {i}").rows for i in numbers]
    wrong = sum(rows != [(i,)] for i, rows in zip(numbers, results))
    pipe.send((wrong, pids(sandbox)))
    sandbox.close()
    pipe.close()


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_process_has_workers_of_its_own(database):
    """Both processes use one sandbox at the same time: every answer is to the query that was asked,
    and the end of the child leaves the parent's workers alive.
    """
    fork = multiprocessing.get_context("fork")
    with Sandbox(workers=2, timeout=60) as sandbox:
        sandbox.run_many([(database, "SELECT 1")] * 8)
        before, (reader, writer) = pids(sandbox), fork.Pipe(duplex=False)
        with sandbox._lock:  # as if another thread were in the middle of a query
            child = fork.Process(target=ask, args=(sandbox, database, 1000, writer))
            child.start()
        results = [sandbox.run(database, f"SELECT {i}").rows for i in range(200)]
        assert reader.poll(60)
        wrong, workers_of_the_child = reader.recv()
        child.join()
        assert results == [[(i,)] for i in range(200)] and wrong == 0
        assert child.exitcode == 0
        assert pids(sandbox) == before and not set(before) & set(workers_of_the_child)
        assert sandbox.run(database, "SELECT 'still'").rows == [("still",)]


# A worker in which SQLite starts as built without double-quoted strings. Before Python 3.12 only
# sqlite3_db_config (1013 is SQLITE_DBCONFIG_DQS_DML) does that; the handle is the first field of
# the connection object.
WITHOUT_DOUBLE_QUOTES = """
    import _sqlite3, ctypes, runpy, sqlite3
    connect = sqlite3.connect

    def strict(*arguments, **options):
        connection = connect(*arguments, **options)
        handle = ctypes.c_void_p.from_address(id(connection) + object.__basicsize__)
        library = ctypes.CDLL(_sqlite3.__file__)
        assert library.sqlite3_db_config(handle, 1013, 0, None) == 0
        return connection

    sqlite3.connect = strict
    runpy.run_path({path!r}, run_name="__main__")
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="a variadic call by ctypes fails there")
def test_text_in_double_quotes_is_read_or_its_absence_is_reported(
    database, tmp_path, monkeypatch, caplog
):
    """By a SQLite that is built without it."""
    worker = tmp_path / "worker.py"
    code = WITHOUT_DOUBLE_QUOTES.format(path=str(sandbox_module.WORKER))
    worker.write_text(textwrap.dedent(code))
    monkeypatch.setattr(sandbox_module, "WORKER", worker)
    sandbox_module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING), Sandbox(workers=2, timeout=60) as sandbox:
        query = database, 'SELECT name FROM singer WHERE country = "France"'
        results = sandbox.run_many([query] * 4)
    warnings = [record.getMessage() for record in caplog.records]
    if hasattr(sqlite3.Connection, "setconfig"):
        assert [result.rows for result in results] == [[("Rose",)]] * 4 and not warnings
    else:
        assert {result.status for result in results} == {"error"}
        (warning,) = warnings
        assert 'this SQLite does not read text in double quotes, as in country = "Fra' in warning
        assert "Python 3.12" in warning
