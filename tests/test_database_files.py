"""What a path names: the database that is there now, whole, or one clear line."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from sqlenv import Example, ExecutionVerifier, Sandbox, UserError, load_schema, load_suite
from sqlenv.files import read_only_uri
from sqlenv.schema import open_read_only
from sqlenv.values import sample_values

COUNT = "SELECT count(*) FROM t"
# Adds a fifth row; ends without closing the connection, as a killed program does.
WRITERS = {
    "-wal": """PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0; INSERT INTO t VALUES (5);""",
    "-journal": """PRAGMA cache_size=1; PRAGMA cache_spill=1; BEGIN; INSERT INTO t VALUES (5);
        INSERT INTO t SELECT zeroblob(9999) FROM t; INSERT INTO t SELECT x FROM t;
        INSERT INTO t SELECT x FROM t;""",
}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=30) as sandbox:
        yield sandbox


def create(path: Path, rows: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(rows)])
    connection.commit()
    connection.close()
    return path


def killed_writer(path: Path, script: str) -> None:
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.executescript(sys.argv[2]); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path), script], check=True)


def readers(sandbox: Sandbox) -> dict:
    return {
        "run": lambda path: sandbox.run(path, COUNT),
        "run_many": lambda path: sandbox.run_many([(path, COUNT)]),
        "load_schema": load_schema,
        "sample_values": lambda path: sample_values(path, 1),
        "open_read_only": open_read_only,
        "load_suite": lambda path: load_suite(path, [COUNT], sandbox),
        "verify": lambda path: ExecutionVerifier(sandbox).verify(
            [Example("How many?", "en", "t", COUNT, Path(path))], [COUNT]
        ),
    }


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_whose_changes_are_in_a_journal_is_refused(sandbox, tmp_path, suffix, linked):
    """``immutable`` would read the file alone: 4 rows for 5, or a half of a transaction. The
    journal may appear after the file has been read, and lies beside the target of a link. What the
    message says to do helps: all 5 rows are read, or the 4 from before the transaction.
    """
    file = create(tmp_path / "data" / "shop.sqlite")
    path = tmp_path / "link.sqlite" if linked else file
    if linked:
        path.symlink_to(file)
    for read in readers(sandbox).values():
        read(path)
    killed_writer(file, WRITERS[suffix])
    assert Path(f"{file}{suffix}").stat().st_size > 0
    for name, read in readers(sandbox).items():
        with pytest.raises(UserError, match=f"shop.sqlite{suffix}: has changes") as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value), name
    connection = sqlite3.connect(file)
    for pragma in ("user_version", "journal_mode=DELETE"):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    connection.close()
    assert sandbox.run(path, COUNT).rows == [(5 if suffix == "-wal" else 4,)]


def test_journals_that_are_done_do_not_matter(sandbox, tmp_path):
    """One that is empty, one whose start SQLite has zeroed, and a log that is read again."""
    path = create(tmp_path / "shop.sqlite")
    Path(f"{path}-wal").touch()
    Path(f"{path}-shm").write_bytes(b"index")
    Path(f"{path}-journal").write_bytes(bytes(512))
    assert sandbox.run(path, COUNT).rows == [(4,)]


def test_a_relative_path_is_what_it_names_now(sandbox, tmp_path, monkeypatch):
    """Two databases of one name, in two folders, with 1 and 2 rows. What an example names does not
    change with the folder: gold, kept since the first question, is not taken for the second's.
    """
    verifier, examples = ExecutionVerifier(sandbox), []
    for rows, folder in enumerate(("first", "second"), 1):
        create(tmp_path / folder / "shop.sqlite", rows)
        monkeypatch.chdir(tmp_path / folder)
        assert sandbox.run("shop.sqlite", COUNT).rows == [(rows,)]
        assert len(sample_values("shop.sqlite", 9)["t", "x"]) == rows
        examples.append(Example("How many?", "en", "shop", COUNT, Path("shop.sqlite")))
        assert verifier.verify(examples[-1:], [f"SELECT {rows}"])[0].correct
        suite = load_suite("shop.sqlite", [COUNT], sandbox, cache="suites")
        assert all(path.is_absolute() for path in suite.databases(COUNT))
    verdicts = verifier.verify(examples * 2, ["SELECT 1", "SELECT 2", "SELECT 2", "SELECT 1"])
    assert [verdict.correct for verdict in verdicts] == [True, True, False, False]
    assert examples[0].db_path == tmp_path / "first" / "shop.sqlite"


def test_the_parent_of_a_link_is_its_targets(sandbox, tmp_path):
    """``link/../shop.sqlite`` is beside the folder that the link leads to, not beside the link."""
    create(tmp_path / "shop.sqlite", 1)
    (create(tmp_path / "far" / "shop.sqlite", 2).parent / "inner").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "inner")
    path = os.path.join(tmp_path, "link", "..", "shop.sqlite")
    assert sandbox.run(path, COUNT).rows == [(2,)]
    assert sandbox.run(Path(path), COUNT).rows == [(2,)]
    assert len(sample_values(path, 9)["t", "x"]) == 2
    assert read_only_uri(path) == read_only_uri(tmp_path / "far" / "shop.sqlite")
    suite = load_suite(path, [COUNT], sandbox, cache=tmp_path / "suites")
    assert sandbox.run(suite.db_path, COUNT).rows == [(2,)]


@pytest.mark.parametrize("name", ["a\0b.sqlite", "\ud800.sqlite", "\udcff.sqlite", "\n", "x" * 999])
def test_an_impossible_path_is_one_line(sandbox, tmp_path, name):
    """NUL, a surrogate that stands for no byte, one that does (here of a missing file), a line
    break, and a name that is too long.
    """
    for reader, read in readers(sandbox).items():
        with pytest.raises(UserError, match="cannot open this database") as caught:
            read(os.path.join(tmp_path, name))
        assert str(caught.value).isprintable(), reader


def test_a_name_that_is_not_utf8_is_read(sandbox, tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.sqlite"))
    try:
        create(Path(path))
    except (OSError, UnicodeError, sqlite3.Error):
        pytest.skip("this system has no such names")
    assert sandbox.run(path, COUNT).rows == [(4,)]
    assert [table.name for table in load_schema(path).tables] == ["t"]
