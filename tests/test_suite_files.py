"""Writing a test suite: of a database with many tables, and on a full disk."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sqlenv import Sandbox, load_suite

ROOT = Path(__file__).parents[1]
GOLD = "SELECT name FROM t5 WHERE id > 1"


def create(path: Path, tables: int) -> Path:
    connection = sqlite3.connect(path)
    for number in range(tables):
        connection.execute(f"CREATE TABLE t{number} (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute(f"INSERT INTO t{number} VALUES (1, 'a'), (2, 'b')")
    connection.commit()
    connection.close()
    return path


def test_a_suite_for_800_tables_is_written(tmp_path):
    """Writing such a variant takes SQLite more steps than a query may."""
    path = create(tmp_path / "wide.sqlite", 800)
    with Sandbox(workers=1, timeout=60) as sandbox:
        suite = load_suite(path, [GOLD], sandbox, cache=tmp_path / "suites")
        databases = suite.databases(GOLD)
        assert len(databases) > 1
        for database in databases:
            count = "SELECT count(*) FROM t799"
            assert sandbox.run(database, count).status == "ok"


@pytest.mark.parametrize("limit", [0, 4096, 20_000])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, limit):
    """A limit on the size of a file stands for the disk. A database of 10 tables has 11 pages of
    4,096 bytes.
    """
    path = create(tmp_path / "shop.sqlite", 10)
    code = (
        "import resource, sys; from sqlenv import Sandbox, load_suite\n"
        "from sqlenv.errors import exit_code\n"
        "path, gold, cache, limit = sys.argv[1:]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))\n"
        "with Sandbox(timeout=60) as sandbox:\n"
        "    sys.exit(exit_code(lambda: load_suite(path, [gold], sandbox, cache=cache) and 0))"
    )
    cache = tmp_path / "suites"
    arguments = [sys.executable, "-c", code, str(path), GOLD, str(cache), str(limit)]
    run = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    (line,) = run.stderr.splitlines()
    assert run.returncode == 2
    assert line.startswith("error: ") and "cannot write test-suite databases" in line
    assert "XDG_CACHE_HOME" in line
    assert [file.suffix for file in cache.iterdir()] == [".lock"]
