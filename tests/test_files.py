"""Files: the cache folder where it cannot be written, and read-only URIs of unusual paths."""

import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from sqlenv import Sandbox, UserError, load_schema
from sqlenv.files import _cache_root, cache_folder, locked, read_only_uri

ROOT = Path(__file__).parents[1]
UNUSUAL_NAMES = [
    "plain.sqlite",
    "two words.sqlite",
    "what?.sqlite",
    "what?mode=rwc.sqlite",
    "part #1.sqlite",
    "100% %20 %41.sqlite",
    "Sänger & größe.sqlite",
    "歌手.sqlite",
    'it\'s "quoted".sqlite',
    "-dash;semicolon.sqlite",
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns cache_folder("name") for a value of XDG_CACHE_HOME, with a temporary folder of the
    test's own."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    _cache_root.cache_clear()

    def folder(home: Path) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        return cache_folder("name")

    yield folder
    _cache_root.cache_clear()


def fallback(tmp_path: Path) -> Path:
    return tmp_path / "temporary" / f"grpo-text2sql-{os.getuid()}"


def test_the_cache_is_in_the_users_cache_folder(cache, tmp_path, monkeypatch):
    assert cache(tmp_path / "home") == tmp_path / "home" / "grpo-text2sql" / "name"
    assert (tmp_path / "home" / "grpo-text2sql").stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder("name") == tmp_path / ".cache" / "grpo-text2sql" / "name"
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.parametrize("blocked", ["the parent is a file", "the folder is a file"])
def test_without_a_writable_cache_the_temporary_folder_is_used(cache, tmp_path, caplog, blocked):
    """With one warning, however often it is asked for. Root can write everywhere, so a file takes
    the place of a folder."""
    home = tmp_path / "home"
    if blocked == "the parent is a file":
        home.touch()
    else:
        home.mkdir()
        (home / "grpo-text2sql").touch()
    with caplog.at_level(logging.WARNING):
        assert [cache(home) for _ in range(3)] == [fallback(tmp_path) / "name"] * 3
    (record,) = caplog.records
    message = record.getMessage()
    assert str(home / "grpo-text2sql") in message and str(fallback(tmp_path)) in message
    assert "XDG_CACHE_HOME" in message
    assert fallback(tmp_path).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write to any folder")
def test_a_read_only_cache_is_not_used(cache, tmp_path):
    (tmp_path / "home").mkdir(mode=0o500)
    assert cache(tmp_path / "home") == fallback(tmp_path) / "name"


def test_a_folder_of_another_user_is_not_used(cache, tmp_path, monkeypatch):
    """Another user could have created it in the shared temporary folder."""
    fallback(tmp_path).mkdir()
    (tmp_path / "home").touch()
    stat, uid = Path.stat, os.getuid()

    def owned_by_another(path: Path, **options):
        status = list(stat(path, **options))
        status[4] = uid + 1 if path == fallback(tmp_path) else status[4]  # st_uid
        return os.stat_result(status)

    monkeypatch.setattr(Path, "stat", owned_by_another)
    with pytest.raises(UserError, match="belongs to another user.*XDG_CACHE_HOME"):
        cache(tmp_path / "home")


def test_no_writable_folder_is_a_user_error(cache, tmp_path):
    (tmp_path / "home").touch()
    fallback(tmp_path).touch()
    with pytest.raises(UserError, match="XDG_CACHE_HOME") as caught:
        cache(tmp_path / "home")
    assert str(fallback(tmp_path)) in str(caught.value) and "\n" not in str(caught.value)


def test_the_embedded_dataset_is_built_in_the_fallback(tmp_path):
    """In a new process, where XDG_CACHE_HOME is below a file: a command works and warns."""
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    code = (
        "from sqlenv import EMBEDDED, load_dataset; print(load_dataset(EMBEDDED, 'en', 'dev')[0])"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "temporary")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert str(fallback(tmp_path) / "embedded") in run.stdout
    assert run.stderr.count("cannot write the cache folder") == 1


@pytest.mark.parametrize("name", UNUSUAL_NAMES)
def test_databases_with_unusual_names_are_opened_read_only(tmp_path, name):
    path = tmp_path / "a folder #1? 50%" / name
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t AS SELECT 7 AS x")
    connection.close()
    connection = sqlite3.connect(read_only_uri(path), uri=True)
    assert connection.execute("SELECT x FROM t").fetchall() == [(7,)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("INSERT INTO t VALUES (8)")
    connection.close()
    assert [table.name for table in load_schema(path).tables] == ["t"]
    with Sandbox(workers=1) as sandbox:
        assert sandbox.run(path, "SELECT x FROM t").rows == [(7,)]
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_database_is_not_created(tmp_path):
    path = tmp_path / "missing.sqlite"
    with pytest.raises(UserError, match="missing.sqlite"):
        read_only_uri(path)
    assert not path.exists()


def test_a_relative_path_is_resolved_at_each_call(tmp_path, monkeypatch):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.sqlite").touch()
        monkeypatch.chdir(tmp_path / folder)
        assert f"/{folder}/a.sqlite" in read_only_uri("a.sqlite")


def test_a_folder_that_a_killed_process_left_is_not_in_the_way(tmp_path):
    """In a container each process has the number of the one before it."""
    code = (
        "import os, sys; from pathlib import Path; from sqlenv import files\n"
        "os.getpid = lambda: 7\n"
        "files.write_directory(Path(sys.argv[1]), lambda new: eval(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    assert subprocess.run([*command, "os._exit(9)"], cwd=ROOT).returncode == 9
    (left,) = tmp_path.iterdir()
    subprocess.run([*command, "(new / 'a.txt').touch()"], cwd=ROOT, check=True)
    assert sorted(tmp_path.iterdir()) == sorted([left, tmp_path / "model"])
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a.txt"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_lock_is_held_until_the_end_of_the_block(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "lock"):
            order.append("second")

    with locked(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
