"""The sandbox with real worker processes: allowed, denied and hostile queries, limits and failures.

Each line of ``hostile_sql.jsonl`` has a hostile query: its text ``sql`` (a list if a piece is
repeated: ``["SELECT 1", [", {i}", 3]]`` is SELECT 1, 1, 2, 3), the ``status`` it must have
(``denied|error`` if that depends on the build of SQLite) and ``why``.
"""

import hashlib
import json
import logging
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sqlenv import Sandbox, UserError
from sqlenv.files import read_only_uri
from sqlenv.sandbox import sandbox as sandbox_module

ROOT = Path(__file__).parents[1]
HOSTILE = [
    json.loads(line)
    for line in Path(__file__).with_name("hostile_sql.jsonl").read_text().split("\n")
    if line
]
COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) "
ENDLESS = COUNT_UP.format(-1) + "SELECT count(*) FROM n"
MEMORY_BOMB = (
    COUNT_UP.format(300_000)
    + "SELECT x || printf('%.100c', 'x') AS t FROM n ORDER BY t LIMIT 1 OFFSET 250000"
)
# One long step of SQLite, in which only killing the process helps.
STUCK = """WITH t(a) AS (SELECT printf('%.4000000c', 'a'))
    SELECT instr(a, substr(a, 1, 2000000) || 'b') FROM t"""
OK = {
    "SELECT count(*) FROM singer;;": [(4,)],
    "SELECT age FROM singer WHERE id = 1 -- the first; really": [(52,)],
    '/* c */ SELECT name FROM singer WHERE country = "France"': [("Rose",)],
    "SELECT id, id FROM singer WHERE id = 2": [(2, 2)],
    "SELECT x'00ff'": [(b"\x00\xff",)],
    "SELECT CAST(x'61ff62' AS TEXT)": [("a\ufffdb",)],
    "SELECT 1/0, 9e999": [(None, float("inf"))],
    "SELECT date('2020-02-28', '+2 days'), strftime('%Y', '1999-01-01')": [("2020-03-01", "1999")],
    "SELECT date('Snow')": [(None,)],
    "SELECT printf('%05.2f|%s', 3.14159, 'x')": [("03.14|x",)],
    "SELECT rank() OVER (ORDER BY age) FROM singer WHERE id < 3": [(1,), (2,)],
    COUNT_UP.format(3) + "SELECT count(*) FROM n": [(3,)],
    "VALUES (1), (2)": [(1,), (2,)],
}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("with space % and ?") / "Sänger #1.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INT);
        INSERT INTO singer VALUES (1, 'Joe', 'Spain', 52), (2, 'Tim', 'Spain', 32),
            (3, 'Rose', 'France', 41), (4, 'John', NULL, 43);
        CREATE TABLE big (n INTEGER, label TEXT);
        CREATE TABLE numbered (id INTEGER PRIMARY KEY AUTOINCREMENT);
        CREATE INDEX by_age ON singer (age);
        CREATE TRIGGER spy AFTER DELETE ON singer BEGIN SELECT 1; END;
        CREATE VIEW spy_view AS SELECT name FROM sqlite_master;
        CREATE VIEW dice AS SELECT random() AS n;
        CREATE VIEW french AS SELECT name FROM singer WHERE country = 'France';
        WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 200)
            INSERT INTO big SELECT x, 'row ' || x FROM r;
        ANALYZE;"""
    )
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=2.0) as sandbox:
        yield sandbox


@pytest.fixture
def unharmed(database, sandbox):
    """Afterwards the file is unchanged, its folder has no new file, and queries still work."""
    before = hashlib.sha256(database.read_bytes()).digest()
    yield
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert list(database.parent.iterdir()) == [database]
    assert sandbox.run(database, "SELECT count(*) FROM singer").rows == [(4,)]


def sql_text(sql):
    if isinstance(sql, str):
        return sql
    pieces = [(piece, 1) if isinstance(piece, str) else piece for piece in sql]
    return "".join(
        "".join(text.replace("{i}", str(i + 1)) for i in range(count))
        if "{i}" in text
        else text * count
        for text, count in pieces
    )


def times_out(line):
    return "timeout" in line["status"]


@pytest.fixture(scope="module")
def hostile_results(database, patient):
    """By line number: the result, that of a harmless query after it, and the workers' memory."""
    harmless = database, "SELECT count(*) FROM singer"
    queries = [[(database, sql_text(line["sql"])), harmless] for line in HOSTILE]
    hasty = [number for number, line in enumerate(HOSTILE) if times_out(line)]
    results = {}
    with Sandbox(workers=2, timeout=0.1) as sandbox:
        executions = sandbox.run_many([query for number in hasty for query in queries[number]])
        for number, pair in zip(hasty, zip(executions[::2], executions[1::2])):
            results[number] = *pair, peak_memory(sandbox)
    return queries, results


@pytest.fixture(scope="module")
def patient():
    """For queries that must not end in a time-out, however busy the machine is."""
    with Sandbox(workers=1, timeout=60) as sandbox:
        yield sandbox


def peak_memory(sandbox):
    """MiB that the workers alive have had in memory at most; 0 where the system does not say."""
    texts = [Path(f"/proc/{pid}/status") for pid in worker_pids(sandbox)]
    texts = [path.read_text() for path in texts if path.exists()]
    return max((int(text.split("VmHWM:")[1].split()[0]) >> 10 for text in texts), default=0)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "number", range(len(HOSTILE)), ids=lambda n: f"{n + 1}-{str(HOSTILE[n]['sql'])[:50]}"
)
def test_hostile(number, hostile_results, patient):
    queries, results = hostile_results
    if number not in results:
        results[number] = *patient.run_many(queries[number]), peak_memory(patient)
    execution, harmless, memory = results[number]
    assert execution.status in HOSTILE[number]["status"].split("|"), execution.error
    assert (harmless.status, harmless.rows) == ("ok", [(4,)])
    assert memory < 512 + 256
    if execution.status != "ok":
        assert execution.error and not execution.rows and not execution.columns
        assert len(execution.error) <= 300 and "\n" not in execution.error


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the limits of a process")
def test_the_system_limits_the_workers(database):
    with Sandbox(workers=1, memory_mb=100) as sandbox:
        sandbox.run(database, "SELECT 1")
        (pid,) = worker_pids(sandbox)
        assert resource.prlimit(pid, resource.RLIMIT_AS) == (356 << 20, 356 << 20)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (0, 0)
        assert resource.prlimit(pid, resource.RLIMIT_CORE) == (0, 0)
        assert 0 < resource.prlimit(pid, resource.RLIMIT_CPU)[0] < 20


def test_a_limit_that_the_system_lacks_is_reported_once(database, tmp_path, monkeypatch, caplog):
    """As on macOS, where the address space cannot be limited; SQLite's own memory still is."""
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import runpy, sys; sys.platform = 'darwin'\n"
        f"runpy.run_path({str(sandbox_module.WORKER)!r}, run_name='__main__')"
    )
    monkeypatch.setattr(sandbox_module, "WORKER", worker)
    sandbox_module._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING), Sandbox(workers=2, memory_mb=16) as sandbox:
        results = sandbox.run_many([(database, "SELECT 1")] * 4 + [(database, MEMORY_BOMB)])
    assert [execution.status for execution in results] == ["ok"] * 4 + ["too_large"]
    assert [record.getMessage() for record in caplog.records] == [
        "sandbox: this system does not limit a worker's memory (RLIMIT_AS)"
    ]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("sql", OK, ids=lambda sql: sql[:50])
def test_ok(sandbox, database, sql):
    execution = sandbox.run(database, sql)
    assert (execution.status, execution.rows, execution.error) == ("ok", OK[sql], None)


PRINTED = [
    "",
    "%s",
    "a%%",
    "%d|%5.1f|%-4s|%04d|%+d",
    "%.3s",
    "%c",
    "%*d",
    "%.*f",
    "%x %o %e %g",
    "%Q",
]
PRINTED += ["%,d", "%!.20g", "%Z", "%", "%-", "%llu", "%q%w"]
DATES = ["'2020-02-30'", "'2020-01-31', '+1 month'", "2459000.5", "0, 'unixepoch'", "NULL", "'x'"]


def test_replaced_functions_give_the_same_as_those_of_sqlite(sandbox, database):
    """printf and the date functions, which the worker replaces."""
    values = [
        ("3", "2.5", "'it''s'", "-7", "NULL"),
        ("NULL",) * 5,
        ("x'616200'", "1e300", "9", "1", "2"),
    ]
    sqls = [f"SELECT printf('{form}', {', '.join(v)})" for form in PRINTED for v in values]
    sqls += [f"SELECT format({form})" for form in ("NULL, 1", "5", "1.5", "x'2564', 5", "'%d'", "")]
    names = ("date", "time", "datetime", "julianday")
    sqls += [f"SELECT {name}({date})" for name in names for date in DATES]
    sqls += [f"SELECT strftime('%Y %j %s %%', {date})" for date in DATES]
    plain = sqlite3.connect(":memory:")
    for sql in sqls:
        execution = sandbox.run(database, sql)
        assert (execution.status, execution.rows) == ("ok", plain.execute(sql).fetchall()), sql


def test_columns_keep_their_names_and_duplicates(sandbox, database):
    assert sandbox.run(database, "SELECT id AS a, id AS a FROM singer").columns == ("a", "a")


@pytest.mark.parametrize(
    ("sql", "reads"),
    [
        ("SELECT T.Name FROM Singer AS T", {("singer", "name")}),
        ("SELECT count(*) FROM singer", {("singer", "")}),
        ("WITH c AS (SELECT age FROM singer) SELECT count(*) FROM c", {("singer", "age")}),
        ("SELECT n FROM big WHERE n IN (SELECT id FROM singer)", {("big", "n"), ("singer", "id")}),
        (
            "SELECT * FROM french",
            {("french", "name"), ("singer", "name"), ("singer", "country")},
        ),
        ("SELECT 'name'", set()),
    ],
)
def test_reads(sandbox, database, sql, reads):
    execution = sandbox.run(database, sql)
    assert execution.status == "ok"
    assert reads <= execution.reads
    assert {pair for pair in execution.reads if pair[1]} == {pair for pair in reads if pair[1]}


def test_reads_are_known_of_a_query_that_times_out(database):
    with Sandbox(workers=1, timeout=0.1) as sandbox:
        query = ENDLESS.replace("SELECT 1", "SELECT age FROM singer")
        execution = sandbox.run(database, query)
    assert (execution.status, execution.reads) == ("timeout", {("singer", "age")})


def test_limits_are_the_ones_asked_for(database):
    with Sandbox(workers=1, max_rows=4, max_bytes=5000) as sandbox:
        assert sandbox.run(database, "SELECT * FROM singer").status == "ok"
        assert sandbox.run(database, "SELECT n FROM big LIMIT 5").status == "too_large"
        assert sandbox.run(database, "SELECT printf('%.4000c', 'x')").status == "ok"
        query = "SELECT printf('%.4000c', 'x') FROM big LIMIT 2"
        assert sandbox.run(database, query).status == "too_large"


def test_memory_is_limited(database):
    with Sandbox(workers=1, memory_mb=16, timeout=10) as sandbox:
        execution = sandbox.run(database, MEMORY_BOMB)
        assert execution.status == "too_large" and "memory" in execution.error
        assert sandbox.run(database, "SELECT 1").status == "ok"


def test_run_many_keeps_the_order_over_slow_and_failing_queries(database):
    queries = [(database, f"SELECT {i}") for i in range(60)]
    queries[3] = database, ENDLESS
    queries[5] = database, STUCK
    queries[7] = database, "DROP TABLE singer"
    with Sandbox(workers=2, timeout=0.2) as sandbox:
        results = sandbox.run_many(queries)
    assert [results[i].status for i in (3, 5, 7)] == ["timeout", "timeout", "denied"]
    rest = [i for i in range(60) if i not in (3, 5, 7)]
    assert [results[i].rows for i in rest] == [[(i,)] for i in rest]


def test_a_worker_that_is_stuck_is_killed_while_the_other_works_on(database):
    queries = [(database, STUCK)] + [(database, "SELECT count(*) FROM big")] * 50_000
    with Sandbox(workers=2, timeout=0.1) as sandbox:
        start = time.monotonic()
        results = sandbox.run_many(queries)
        duration = time.monotonic() - start
    assert (results[0].status, {e.status for e in results[1:]}) == ("timeout", {"ok"})
    # If the time were checked only when the other worker is idle, it would be killed at the end.
    assert results[0].seconds < 0.8 * duration


def worker_pids(sandbox):
    return [worker.process.pid for worker in sandbox._workers if worker]


def test_a_worker_that_dies_costs_one_query(database):
    with Sandbox(workers=1, timeout=1) as sandbox:
        for queries, statuses in (
            ([ENDLESS], ["error"]),
            ([ENDLESS, "SELECT 2"], ["timeout", "ok"]),  # run again, since it may have been either
        ):
            sandbox.run(database, "SELECT 1")
            (pid,) = worker_pids(sandbox)
            threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
            results = sandbox.run_many([(database, sql) for sql in queries])
            assert [execution.status for execution in results] == statuses
            assert statuses == ["timeout", "ok"] or "-9" in results[0].error
        os.kill(worker_pids(sandbox)[0], signal.SIGKILL)  # now while it is idle
        time.sleep(0.2)
        assert sandbox.run(database, "SELECT 3").rows == [(3,)]


def test_a_worker_that_is_killed_costs_no_other_query(database):
    queries = [(database, f"SELECT {i}") for i in range(200)]
    queries[100] = database, STUCK
    with Sandbox(workers=2, timeout=0.1) as sandbox:
        results = sandbox.run_many(queries)
    assert [i for i in range(200) if results[i].rows != [(i,)]] == [100]
    assert results[100].status == "timeout"


def test_an_idle_worker_that_dies_costs_none(database):
    with Sandbox(workers=2, timeout=0.5) as sandbox:
        sandbox.run_many([(database, "SELECT 1")] * 8)
        idle = worker_pids(sandbox)[1]
        threading.Timer(0.2, os.kill, (idle, signal.SIGKILL)).start()
        assert sandbox.run(database, ENDLESS).status == "timeout"  # by the first worker
        assert idle not in worker_pids(sandbox)
        assert {e.status for e in sandbox.run_many([(database, "SELECT 1")] * 8)} == {"ok"}


def test_a_slow_query_gives_the_rest_of_its_chunk_back(database):
    """So that queries do not wait behind slow ones while another worker is idle."""
    slow = COUNT_UP.format(1_000_000) + "SELECT count(*) FROM n"
    with Sandbox(workers=1, timeout=60) as sandbox:
        (result,) = sandbox.run_many([(database, "SELECT 1")])
        worker = sandbox._workers[0]
        path = os.fspath(database)
        version = read_only_uri(path), sandbox_module._file_version(path)
        worker.submit([sandbox_module.Job(i, path, version, slow) for i in range(3)], 60)
        worker.flush()
        answers = []
        while not answers:
            answers += worker.receive()
    (answer,) = answers
    assert (answer[0], answer[2], answer[-1]) == ("ok", [(1_000_000,)], True)


def test_a_late_answer_is_not_taken_for_the_next_query(database, monkeypatch):
    with Sandbox(workers=1, timeout=1) as sandbox:
        sandbox.run(database, "SELECT 1")
        with monkeypatch.context() as patch:

            def interrupted(wait):
                raise KeyboardInterrupt

            patch.setattr(sandbox._selector, "select", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sandbox.run(database, "SELECT 'interrupted'")
        assert sandbox.run(database, "SELECT 'next'").rows == [("next",)]


def test_a_replaced_file_is_read_anew(sandbox, tmp_path):
    path = tmp_path / "changing.sqlite"
    for value in (1, 2):
        new = tmp_path / "new.sqlite"
        connection = sqlite3.connect(new)
        connection.execute("CREATE TABLE t AS SELECT ? AS v", [value])
        connection.commit()
        connection.close()
        new.replace(path)
        assert sandbox.run(path, "SELECT v FROM t").rows == [(value,)]


def test_unreadable_databases_are_a_user_error(sandbox, database, tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database" * 100)
    for path in (tmp_path / "missing.sqlite", text, tmp_path):
        with pytest.raises(UserError, match=str(path)):
            sandbox.run_many([(database, "SELECT 1"), (path, "SELECT 1")])
    assert not (tmp_path / "missing.sqlite").exists()
    assert sandbox.run(database, "SELECT 1").status == "ok"


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads process states in /proc")
@pytest.mark.parametrize("sql", ["SELECT 1", STUCK], ids=["idle", "busy"])
def test_workers_end_with_a_parent_that_is_killed(database, sql):
    code = (
        "import sys, sqlenv; s = sqlenv.Sandbox(workers=1, timeout=1); p, q = sys.argv[1:]\n"
        "s.run(p, 'SELECT 1'); print(s._workers[0].process.pid, flush=True)\n"
        "s.run(p, q); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(database), sql],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    parent.kill()
    parent.communicate()
    give_up = time.monotonic() + 120  # it may use 4 s of a CPU that others use, too
    while alive(pid) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not alive(pid)


def test_ctrl_c_in_the_terminal_does_not_reach_the_workers(sandbox, database):
    sandbox.run(database, "SELECT 1")
    assert os.getpgid(worker_pids(sandbox)[0]) != os.getpgid(0)


def test_closing_ends_the_workers(database):
    with Sandbox(workers=2) as sandbox:
        sandbox.run_many([(database, "SELECT 1")] * 4)
        processes = [worker.process for worker in sandbox._workers]
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2


def test_the_package_does_not_import_torch():
    """Nor the packages that depend on it."""
    code = "import sys, sqlenv; sys.exit(not {'torch', 'grpo', 'encoder'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
