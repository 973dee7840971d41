"""Test suites: wrong queries that one database does not reveal, correct ones, the cache, and
databases of every shape."""

import hashlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest

from encoder.rewrites import equivalent_rewrites
from sqlenv import (
    EMBEDDED,
    Sandbox,
    UserError,
    load_dataset,
    load_schema,
    make_mutants,
    results_match,
)
from sqlenv.testsuite import suite as suite_module
from sqlenv.testsuite.suite import load_suite, suite_matches
from sqlenv.text import is_ordered
from tests.test_dataset import multispider

ROOT = Path(__file__).parents[1]

MOVIES = """
CREATE TABLE director (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE movie (id INTEGER PRIMARY KEY, title TEXT NOT NULL, year INTEGER,
                    director_id INTEGER NOT NULL REFERENCES director(id));
CREATE TABLE showing (movie_id INTEGER NOT NULL REFERENCES movie(id), day TEXT, seats INTEGER,
                      PRIMARY KEY (movie_id, day));
INSERT INTO director VALUES (1, 'Agnes'), (2, 'Bong'), (3, 'Chantal');
INSERT INTO movie VALUES (1, 'Cleo', 1962, 1), (2, 'Vagabond', 1985, 1), (3, 'Gleaners', 2000, 1),
  (4, 'Mother', 2009, 2), (5, 'Parasite', 2019, 2), (6, 'News', 1976, 3);
INSERT INTO showing VALUES (1, '2020-01-01', 40), (2, '2020-01-01', 25), (3, '2020-01-02', 25),
  (4, '2020-01-05', 60), (5, '2020-01-05', 10), (6, '2020-01-09', 5);
"""
# Directors of more than two different movies that were shown. In the given database each movie was
# shown once, so that rows and movies are the same number, and more than 2 is at least 3.
COUNT_MOVIES = (
    "SELECT d.name FROM director AS d JOIN movie AS m ON m.director_id = d.id"
    " JOIN showing AS s ON s.movie_id = m.id GROUP BY d.id HAVING count({}) {}"
)
PAPER_GOLD = COUNT_MOVIES.format("DISTINCT m.id", "> 2")
PAPER_MUTANT = COUNT_MOVIES.format("*", ">= 3")
MOVIE_GOLDS = [
    PAPER_GOLD,
    "SELECT title FROM movie WHERE year > 1985",
    "SELECT count(*) FROM showing WHERE seats >= 25",
    "SELECT title FROM movie ORDER BY year DESC LIMIT 1",
    "SELECT name FROM director WHERE id NOT IN (SELECT director_id FROM movie WHERE year < 2000)",
]


def write_database(path: Path, script: str) -> Path:
    with sqlite3.connect(path) as connection:
        connection.executescript(script)
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def movies(tmp_path):
    return write_database(tmp_path / "movies.sqlite", MOVIES)


def execution_match(sandbox, path, gold, predicted):
    return results_match(sandbox.run(path, gold), sandbox.run(path, predicted), is_ordered(gold))


def hashes(folder: Path) -> dict[str, str]:
    """The files of the one suite in a cache."""
    (entry,) = [path for path in folder.iterdir() if path.is_dir()]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(entry.iterdir())}


def test_the_example_of_the_paper(sandbox, movies, tmp_path):
    """count(*) for count(DISTINCT …) and >= 3 for > 2: equal on the given database (Agnes has three
    movies, each shown once), so the prediction is correct by EX, but not by TS."""
    suite = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    assert sandbox.run(movies, PAPER_GOLD).rows == [("Agnes",)]
    assert execution_match(sandbox, movies, PAPER_GOLD, PAPER_MUTANT)
    cases = [(suite, PAPER_GOLD, sql) for sql in (PAPER_MUTANT, PAPER_GOLD)]
    assert suite_matches(sandbox, cases) == [False, True]


def test_boundaries_that_the_given_database_does_not_have(sandbox, movies, tmp_path):
    """No movie of 1986, no showing with 24 or 26 seats: EX cannot tell 1986 from 1985, > 24 from
    >= 25."""
    suite = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    wrong = {
        MOVIE_GOLDS[1]: "SELECT title FROM movie WHERE year > 1986",
        MOVIE_GOLDS[2]: "SELECT count(*) FROM showing WHERE seats > 23",
        MOVIE_GOLDS[3]: "SELECT title FROM movie WHERE id = 5",
        MOVIE_GOLDS[4]: "SELECT 'Bong'",
    }
    assert all(execution_match(sandbox, movies, gold, sql) for gold, sql in wrong.items())
    assert not any(suite_matches(sandbox, [(suite, *pair) for pair in wrong.items()]))


def test_the_first_of_several_rows_is_no_part_of_what_gold_asks(sandbox, movies, tmp_path):
    """SQLite takes the first row of = (SELECT …). Where there are several, equivalent SQL may give
    other results, so such variants are not used. Semicolons at the end do not matter.
    """
    gold = "SELECT title FROM movie WHERE director_id = (SELECT id FROM director WHERE name = {});"
    golds = [gold.format("'Bong'"), gold.format("'Agnes'") + ";"]
    suite = load_suite(movies, golds, sandbox, cache=tmp_path / "cache")
    for gold in golds:
        assert suite.variants_by_gold[gold]
        right = [gold, gold.replace("= (", "IN ("), gold.replace(");", " ORDER BY id DESC);")]
        assert suite_matches(sandbox, [(suite, gold, sql) for sql in right]) == [True] * 3
        wrong = "SELECT title FROM movie WHERE director_id = 99"
        assert suite_matches(sandbox, [(suite, gold, wrong)]) == [False]


def test_gold_agrees_with_itself_and_hostile_predictions_do_no_harm(sandbox, movies, tmp_path):
    suite = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    before = hashes(tmp_path / "cache")
    assert all(suite.variants_by_gold[gold] for gold in MOVIE_GOLDS)
    assert all(suite_matches(sandbox, [(suite, gold, gold) for gold in MOVIE_GOLDS]))
    hostile = [
        "DROP TABLE movie",
        "",
        "SELECT title FROM movie WHERE year > 1985; DELETE FROM movie",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n",
        "SELECT title FROM film",
        "SELECT title FROM movie WHERE year > 1985 AND random() != 0",
        "\0",
    ]
    assert not any(suite_matches(sandbox, [(suite, MOVIE_GOLDS[1], sql) for sql in hostile]))
    assert hashes(tmp_path / "cache") == before


def test_ts_is_below_ex_for_the_gold_of_another_question(sandbox, tmp_path):
    """The gold of every other question on the database as the prediction: most of those that match
    by EX by chance do not match by TS, and TS never exceeds EX."""
    golds = {}
    for example in load_dataset(EMBEDDED, "en", "dev"):
        golds.setdefault(example.db_path, set()).add(example.gold_sql)
    path = sorted(golds)[0]
    some = sorted(golds[path])[:60]
    suite = load_suite(path, golds[path], sandbox, cache=tmp_path)
    pairs = [(gold, other) for gold in some for other in some if gold != other]
    ts = suite_matches(sandbox, [(suite, *pair) for pair in pairs])
    queries = dict(zip(some, sandbox.run_many((path, gold) for gold in some)))
    ex = [results_match(queries[g], queries[o], is_ordered(g)) for g, o in pairs]
    assert all(e or not t for e, t in zip(ex, ts))
    assert sum(ts) < sum(ex) / 2


def test_the_same_arguments_give_the_same_files(sandbox, movies, tmp_path):
    """In any order of the gold queries, and whatever PYTHONHASHSEED is; another seed gives
    others."""
    load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "a")
    code = (
        "import sys, json; from sqlenv import Sandbox, load_suite\n"
        "with Sandbox() as sandbox:\n"
        "    load_suite(sys.argv[1], json.loads(sys.argv[3]), sandbox, cache=sys.argv[2])\n"
    )
    for hash_seed in ("1", "2"):
        folder = tmp_path / hash_seed
        arguments = [str(movies), str(folder), json.dumps(MOVIE_GOLDS[::-1])]
        subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT, check=True, env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )  # fmt: skip
        assert hashes(folder) == hashes(tmp_path / "a")
    load_suite(movies, MOVIE_GOLDS, sandbox, seed=1, cache=tmp_path / "b")
    assert hashes(tmp_path / "b") != hashes(tmp_path / "a")


def test_a_suite_is_built_once(sandbox, movies, tmp_path, monkeypatch):
    first = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")

    def build(*arguments):
        raise AssertionError("built again")

    monkeypatch.setattr(suite_module, "build", build)
    assert load_suite(movies, MOVIE_GOLDS[::-1], sandbox, cache=tmp_path / "cache") == first
    # A copy elsewhere has the same content, so the same variants.
    copy = shutil.copy(movies, tmp_path / "copy.sqlite")
    suite = load_suite(copy, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    assert suite.variants_by_gold == first.variants_by_gold
    for other in ({"golds": MOVIE_GOLDS[1:]}, {"seed": 2}):
        with pytest.raises(AssertionError):
            load_suite(
                **{"db_path": movies, "golds": MOVIE_GOLDS, "sandbox": sandbox} | other,
                cache=tmp_path / "cache",
            )


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest", "not JSON", "other JSON"])
def test_a_damaged_entry_is_built_again(sandbox, movies, tmp_path, caplog, damage):
    suite = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    before = hashes(tmp_path / "cache")
    variant, manifest = suite.variants[0], suite.variants[0].parent / "suite.json"
    if damage == "truncated":
        variant.write_bytes(variant.read_bytes()[:100])
    elif damage == "missing":
        variant.unlink()
    elif damage == "manifest":
        manifest.unlink()
    else:
        manifest.write_text("{" if damage == "not JSON" else "[]")
    with caplog.at_level(logging.WARNING):
        again = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    assert again == suite
    assert hashes(tmp_path / "cache") == before
    assert ("damaged" in caplog.text) == (damage not in ("missing", "manifest"))


def test_a_build_that_was_killed_leaves_no_trace(sandbox, movies, tmp_path, monkeypatch):
    def build(db_path, golds, sandbox, seed, folder):
        (folder / "0.sqlite").write_text("half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suite_module, "build", build)
        with pytest.raises(KeyboardInterrupt):
            load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    suite = load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache")
    entry = suite.variants[0].parent
    assert sorted(os.listdir(tmp_path / "cache")) == [entry.name, f"{entry.name}.lock"]


def test_builders_at_the_same_time(movies, tmp_path):
    """Four builders get the same suite, and nothing unfinished stays behind."""
    suites = []

    def build():
        with Sandbox(workers=1) as sandbox:
            suites.append(load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "cache"))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(suites) == 4 and all(suite == suites[0] for suite in suites)
    entry = suites[0].variants[0].parent
    assert sorted(os.listdir(tmp_path / "cache")) == [entry.name, f"{entry.name}.lock"]


def test_the_cache_stays_in_the_users_cache_folder(sandbox, movies, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    suite = load_suite(movies, MOVIE_GOLDS[:1], sandbox)
    assert suite.variants[0].is_relative_to(tmp_path / "xdg" / "grpo-text2sql" / "suites")
    assert sorted(os.listdir(tmp_path)) == ["movies.sqlite", "xdg"]


def test_bad_input(sandbox, movies, tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="missing.sqlite"):
        load_suite(tmp_path / "missing.sqlite", [], sandbox, cache=cache)
    (tmp_path / "text.sqlite").write_text("no database " * 100)
    with pytest.raises(UserError, match="text.sqlite"):
        load_suite(tmp_path / "text.sqlite", ["SELECT 1"], sandbox, cache=cache)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        load_suite(movies, MOVIE_GOLDS, sandbox, cache=tmp_path / "file")
    suite = load_suite(movies, MOVIE_GOLDS[:1], sandbox, cache=cache)
    with pytest.raises(ValueError, match="without this gold"):
        suite_matches(sandbox, [(suite, "SELECT 1", "SELECT 1")])


def test_gold_that_fails_is_never_matched(sandbox, movies, tmp_path):
    golds = [*MOVIE_GOLDS[:2], "SELECT broken FROM movie", "DROP TABLE movie", "\ud800"]
    suite = load_suite(movies, golds, sandbox, cache=tmp_path / "cache")
    has_variants = [bool(suite.variants_by_gold[gold]) for gold in golds]
    assert has_variants == [True, True, False, False, False]
    cases = [(suite, gold, gold) for gold in golds]
    assert suite_matches(sandbox, cases) == [True, True, False, False, False]


def test_a_build_holds_the_rows_of_one_gold_query_at_a_time(sandbox, movies, tmp_path, monkeypatch):
    """Of 24 gold queries with 6 * 6 * 6 * 6 rows, each a tuple (48 bytes) of a text (149 bytes)."""
    monkeypatch.setattr("sqlenv.gold.KEPT_BYTES", 0)
    monkeypatch.setattr(suite_module, "choose_variants", lambda *arguments, **options: [])
    gold = "SELECT printf('%0100d', {}) FROM movie AS a, movie AS b, movie AS c, movie AS d"
    golds = [gold.format(number) for number in range(24)]
    tracemalloc.start()
    load_suite(movies, golds, sandbox, cache=tmp_path / "cache")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 6**4 * (48 + 149) / 2


@pytest.mark.parametrize(
    "script", ["", "CREATE TABLE t (a INTEGER, b TEXT)", "CREATE VIEW v AS SELECT 1 AS x"]
)
def test_databases_with_next_to_nothing(sandbox, tmp_path, script):
    path = write_database(tmp_path / "empty.sqlite", script or "PRAGMA user_version = 1")
    golds = ["SELECT 1", "SELECT a FROM t WHERE b > 'm' ORDER BY a", "SELECT x FROM v"]
    suite = load_suite(path, golds, sandbox, cache=tmp_path / "cache")
    running = [gold for gold in golds if sandbox.run(path, gold).status == "ok"]
    assert suite_matches(sandbox, [(suite, gold, gold) for gold in running]) == [True] * len(
        running
    )
    if "TABLE t" in script:  # EX takes any query that returns nothing for right
        wrong = "SELECT a FROM t WHERE b > 'x' ORDER BY a"
        assert execution_match(sandbox, path, golds[1], wrong)
        assert suite_matches(sandbox, [(suite, golds[1], wrong)]) == [False]


def test_a_join_that_only_looks_up_may_be_left_out(sandbox, tmp_path):
    """Every showing has its movie: by NOT NULL and a foreign key, or, without them, because it is
    so in the given database. A prediction that does without the join is right then."""
    gold = "SELECT s.day FROM showing AS s JOIN movie AS m ON s.movie_id = m.id WHERE s.seats > 9"
    without = "SELECT day FROM showing WHERE seats > 9"
    undeclared = MOVIES.replace(" NOT NULL REFERENCES movie(id)", "")
    for name, script in (("declared", MOVIES), ("undeclared", undeclared)):
        path = write_database(tmp_path / f"{name}.sqlite", script)
        suite = load_suite(path, [gold], sandbox, cache=tmp_path / "cache")
        dropped = "SELECT s.day FROM showing AS s JOIN movie AS m ON s.movie_id = m.id"
        cases = [(suite, gold, without), (suite, gold, dropped)]
        assert suite.variants_by_gold[gold] and suite_matches(sandbox, cases) == [True, False]


@pytest.mark.parametrize("database", ["concert_singer", "singer", "pets_1"])
def test_mutants_are_rejected_and_rewrites_accepted_on_real_questions(sandbox, tmp_path, database):
    """As benchmarks/testsuite_power.py, on three databases: at least 95 % of all mutants (including
    equivalent ones) are rejected, and no rewrite that EX accepts."""
    root = multispider() / "dev3"
    examples = [e for e in load_dataset(root, "en", "dev") if e.db_id == database]
    golds = {example.gold_sql for example in examples}
    path = examples[0].db_path
    suite = load_suite(path, golds, sandbox, cache=tmp_path)
    schema = load_schema(path)
    mutants = [(suite, g, mutant.sql) for g in sorted(golds) for mutant in make_mutants(g, schema)]
    wrong = suite_matches(sandbox, mutants)
    assert len(wrong) > 100 and sum(wrong) <= 0.05 * len(wrong)
    same = [(suite, gold, r.sql) for gold in sorted(golds) for r in equivalent_rewrites(gold)]
    matches = suite_matches(sandbox, same)
    assert len(matches) > 50
    for (_, gold, sql), match in zip(same, matches):
        assert match or not execution_match(sandbox, path, gold, sql), (gold, sql)
