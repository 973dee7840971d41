"""The sandbox on real worker processes: what is allowed, what is not, and that it survives both."""

import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sqlenv import Sandbox, UserError

ROOT = Path(__file__).parents[1]
UNION_600 = " UNION ALL ".join(["SELECT 1"] * 600)
COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {}) "

DENIED = [
    "DROP TABLE singer",
    "DELETE FROM singer",
    "INSERT INTO singer VALUES (9, 'x', 'y', 1)",
    "UPDATE singer SET age = 1",
    "WITH c AS (SELECT 1) DELETE FROM singer",
    "CREATE TEMP TABLE singer (id)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "ATTACH ':memory:' AS a",
    "DETACH main",
    "VACUUM INTO 'copy.sqlite'",
    "PRAGMA user_version = 3",
    "PRAGMA table_info(singer)",
    "SELECT * FROM pragma_database_list",
    "SELECT count(*) FROM pragma_database_list",
    "SELECT load_extension('x')",
    "BEGIN",
    "SAVEPOINT s",
    "REINDEX",
    "ANALYZE",
    "EXPLAIN SELECT 1",
    " -- c\n/* EXPLAIN */ ;\ufeff explain query plan SELECT 1",
    "SELECT random()",
    "SELECT name FROM singer ORDER BY random()",
    "SELECT randomblob(4)",
    "SELECT zeroblob(4)",
    "SELECT current_timestamp",
    "SELECT datetime('now')",
    "SELECT date()",
    "SELECT strftime('%Y')",
    "SELECT date(x'4e6f77')",
    "SELECT date(lower('NO') || 'w' || char(0) || 'x')",
    "SELECT datetime('2020-01-01', 'localtime')",
    "SELECT name FROM sqlite_master",
    "SELECT 1 FROM sqlite_master",
    "SELECT * FROM (SELECT sql FROM sqlite_schema)",
    "SELECT count(*) FROM dbstat",
    "SELECT count(*) FROM json_each('[1]')",
    "SELECT count(*) FROM sqlite_stmt",
    "SELECT count(*) FROM pragma_module_list",
    "SELECT last_insert_rowid()",
]
ERROR = [
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE singer",
    "",
    " \n ; ",
    "-- only a comment",
    "/* only a comment */",
    "SELECT ?",
    "SELECT :name",
    "SELECT 1\0",
    "SELECT '\ud800'",
    "SELECT " + "(" * 3000 + "1" + ")" * 3000,
    "SELECT 1；",
    "SELECT name FROM nowhere",
    "SELECT nothing FROM singer",
    "The answer is 42.",
    "SELECT name FROM singer WHERE name REGEXP 'a'",
]
TIMEOUT = [
    COUNT_UP.format(-1) + "SELECT count(*) FROM n",
    "SELECT count(*) FROM " + ", ".join(f"big AS b{i}" for i in range(10)),
    # In one long step of SQLite each, where only killing the process helps.
    COUNT_UP.format(3000) + "SELECT a.x * b.x AS p FROM n AS a, n AS b ORDER BY p",
    """WITH t(a) AS (SELECT printf('%.*c', 4000000, 'a'))
    SELECT instr(a, substr(a, 1, 2000000) || 'b') FROM t""",
]
TOO_LARGE = [
    "SELECT * FROM " + ", ".join(f"big AS b{i}" for i in range(6)),
    "SELECT printf('%.*c', 9e8, 'x')",
    "SELECT printf('%900000000d', 1)",
    "SELECT format('%*d', '900000000', 1)",
    "SELECT replace(replace(printf('%.5000c', 'a'), 'a', printf('%.5000c', 'b')), 'b', 'xx')",
    "SELECT group_concat(printf('%.500000c', 'x')) FROM big",
    "WITH RECURSIVE d(a) AS (SELECT 'aa' UNION ALL SELECT a || a FROM d) SELECT length(a) FROM d",
    "SELECT 1 -- " + "x" * 2_000_000,
    UNION_600,
]
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
        CREATE VIEW french AS SELECT name FROM singer WHERE country = 'France';
        WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 200)
            INSERT INTO big SELECT x, 'row ' || x FROM r;"""
    )
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=2.0) as sandbox:
        yield sandbox


@pytest.fixture
def unharmed(database, sandbox):
    """Afterwards the file is what it was, nothing lies beside it, and queries still work."""
    before = hashlib.sha256(database.read_bytes()).digest()
    yield
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert list(database.parent.iterdir()) == [database]
    assert sandbox.run(database, "SELECT count(*) FROM singer").rows == [(4,)]


def shortened(sql):
    return sql[:50]


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("sql", "status"),
    [(sql, "denied") for sql in DENIED]
    + [(sql, "error") for sql in ERROR]
    + [(sql, "too_large") for sql in TOO_LARGE],
    ids=shortened,
)
def test_refused(sandbox, database, sql, status):
    execution = sandbox.run(database, sql)
    assert execution.status == status, execution
    assert execution.error and not execution.rows and not execution.columns


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("sql", TIMEOUT, ids=shortened)
def test_timeout(database, sql):
    with Sandbox(workers=1, timeout=0.2) as sandbox:
        execution = sandbox.run(database, sql)
        assert (execution.status, list(execution.rows)) == ("timeout", [])
        assert sandbox.run(database, "SELECT 1").status == "ok"


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("sql", OK, ids=shortened)
def test_ok(sandbox, database, sql):
    execution = sandbox.run(database, sql)
    assert (execution.status, execution.rows, execution.error) == ("ok", OK[sql], None)


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
        execution = sandbox.run(database, TIMEOUT[0].replace("SELECT 1", "SELECT age FROM singer"))
    assert (execution.status, execution.reads) == ("timeout", {("singer", "age")})


def test_limits_are_the_ones_asked_for(database):
    with Sandbox(workers=1, max_rows=4, max_bytes=5000) as sandbox:
        assert sandbox.run(database, "SELECT * FROM singer").status == "ok"
        assert sandbox.run(database, "SELECT n FROM big LIMIT 5").status == "too_large"
        assert sandbox.run(database, "SELECT printf('%.4000c', 'x')").status == "ok"
        query = "SELECT printf('%.4000c', 'x') FROM big LIMIT 2"
        assert sandbox.run(database, query).status == "too_large"


def test_memory_is_limited(database):
    query = COUNT_UP.format(300_000)
    query += "SELECT x || printf('%.100c', 'x') AS t FROM n ORDER BY t LIMIT 1 OFFSET 250000"
    with Sandbox(workers=1, memory_mb=16, timeout=10) as sandbox:
        execution = sandbox.run(database, query)
        assert execution.status == "too_large" and "memory" in execution.error
        assert sandbox.run(database, "SELECT 1").status == "ok"


def test_run_many_keeps_the_order_over_slow_and_failing_queries(database):
    queries = [(database, f"SELECT {i}") for i in range(60)]
    queries[3] = database, TIMEOUT[0]
    queries[5] = database, TIMEOUT[3]
    queries[7] = database, "DROP TABLE singer"
    with Sandbox(workers=2, timeout=0.2) as sandbox:
        results = sandbox.run_many(queries)
    assert [results[i].status for i in (3, 5, 7)] == ["timeout", "timeout", "denied"]
    rest = [i for i in range(60) if i not in (3, 5, 7)]
    assert [results[i].rows for i in rest] == [[(i,)] for i in rest]


def test_a_worker_that_is_stuck_is_killed_while_the_other_works_on(database):
    queries = [(database, TIMEOUT[3])] + [(database, "SELECT count(*) FROM big")] * 50_000
    with Sandbox(workers=2, timeout=0.1) as sandbox:
        start = time.monotonic()
        results = sandbox.run_many(queries)
        duration = time.monotonic() - start
    assert (results[0].status, {e.status for e in results[1:]}) == ("timeout", {"ok"})
    # Were the clock looked at only when the other worker is quiet, it would be killed at the end.
    assert results[0].seconds < 0.8 * duration


def worker_pids(sandbox):
    return [worker.process.pid for worker in sandbox._workers if worker]


def test_a_worker_that_dies_costs_one_query(database):
    with Sandbox(workers=1, timeout=5) as sandbox:
        sandbox.run(database, "SELECT 1")
        (pid,) = worker_pids(sandbox)
        threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
        died, after = sandbox.run_many([(database, TIMEOUT[0]), (database, "SELECT 2")])
        assert (died.status, after.rows) == ("error", [(2,)])
        assert "-9" in died.error
        os.kill(worker_pids(sandbox)[0], signal.SIGKILL)  # now while it is idle
        time.sleep(0.2)
        assert sandbox.run(database, "SELECT 3").rows == [(3,)]


def test_a_late_answer_is_not_taken_for_the_next_query(database, monkeypatch):
    with Sandbox(workers=1, timeout=1) as sandbox:
        sandbox.run(database, "SELECT 1")
        with monkeypatch.context() as patch:

            def interrupted(wait):
                raise KeyboardInterrupt

            patch.setattr(sandbox._selector, "select", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sandbox.run(database, "SELECT 'the interrupted one'")
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


def test_unreadable_databases_are_the_users_to_mend(sandbox, database, tmp_path):
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
@pytest.mark.parametrize("sql", ["SELECT 1", TIMEOUT[3]], ids=["idle", "busy"])
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
    give_up = time.monotonic() + 15
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
    code = "import sys, sqlenv; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
