"""Test-suite accuracy (TS): gold's result on the given database and on variants of it.

On one database a wrong query often gives the right rows by chance. So `load_suite` draws small
databases with the same schema and keeps a few that together tell the gold queries from their near
misses (Zhong et al. 2020 call this distilling a test suite), and `suite_matches` asks that a
prediction agrees with gold on the given database and on all of them. TS is never above EX.

Where gold's own answer is arbitrary on a variant (ORDER BY … LIMIT through a tie, a bare column of
a group), or gold fails there, the variant says nothing about that gold and is not used for it.

    suite = load_suite("concert_singer.sqlite", gold_queries, sandbox)
    suite_matches(sandbox, [(suite, gold, predicted), …])   # [True, …]
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlenv.errors import UserError
from sqlenv.files import cache_folder
from sqlenv.metrics.execution_match import results_match
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.schema import load_schema
from sqlenv.testsuite.distill import Gold, choose_variants
from sqlenv.testsuite.mutants import make_mutants
from sqlenv.testsuite.profile import read_blueprint
from sqlenv.text import is_ordered

# The modules that decide what a suite holds: with other code, another key in the cache.
CODE = """query schema text metrics/execution_match testsuite/determinism testsuite/distill
    testsuite/literals testsuite/mutants testsuite/populate testsuite/profile testsuite/suite
    testsuite/swaps""".split()
MANIFEST = "suite.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """A database, variants of it, and for each gold query the variants that it is judged on."""

    db_path: Path
    variants: tuple[Path, ...]
    judged: dict[str, tuple[Path, ...]]  # none for a gold that fails on the given database

    def databases(self, gold: str) -> tuple[Path, ...]:
        """The given database first. Raises ValueError if the suite was not built for this gold."""
        if gold not in self.judged:
            raise ValueError(
                f"the test suite of {self.db_path} was built without this gold: {gold}"
            )
        return self.db_path, *self.judged[gold]


def load_suite(
    db_path: str | os.PathLike,
    golds: Iterable[str],
    sandbox: Sandbox,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> Suite:
    """Return the test suite of a database for these gold queries; built if not in the cache.

    golds   all that are ever to be judged on it: the variants depend on them (not on their order),
            so build for a whole split rather than for a part of it
    cache   folder to keep suites in; $XDG_CACHE_HOME/grpo-text2sql/suites (~/.cache/…) if None

    An entry that is damaged is built anew; processes that ask for the same one at the same time
    wait for the first. Raises UserError if the database cannot be read or the cache not written.
    """
    db_path, golds = Path(db_path), sorted(set(golds))
    folder = Path(cache) if cache is not None else cache_folder("suites")
    entry = folder / cache_key(db_path, golds, seed)
    suite = read_entry(entry, db_path)
    if suite is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(entry.with_suffix(".lock")):
                suite = read_entry(entry, db_path)
                if suite is None:
                    write_entry(entry, db_path, golds, sandbox, seed)
                    suite = read_entry(entry, db_path)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot keep test-suite databases here ({error.strerror}); "
                "name another folder by XDG_CACHE_HOME"
            ) from error
    return suite


def suite_matches(sandbox: Sandbox, cases: Sequence[tuple[Suite, str, str]]) -> list[bool]:
    """Return for each (suite, gold, predicted) whether the prediction is right by TS.

    That is, whether `results_match` on the given database and on every variant that the gold is
    judged on. Predictions may be hostile. Raises ValueError for a gold that a suite does not know.
    """
    databases = [suite.databases(gold) for suite, gold, _ in cases]
    results: dict[tuple[Path, str], Execution] = {}
    matches = [True] * len(cases)
    # The given database comes first: most that is wrong is found there, by one query.
    for part in (slice(0, 1), slice(1, None)):
        open_cases = [number for number, match in enumerate(matches) if match]
        queries = dict.fromkeys(
            (path, sql)
            for number in open_cases
            for path in databases[number][part]
            for sql in cases[number][1:]
        )
        results.update(zip(queries, sandbox.run_many(queries)))
        for number in open_cases:
            _, gold, predicted = cases[number]
            ordered = is_ordered(gold)
            matches[number] = all(
                results_match(results[path, gold], results[path, predicted], ordered)
                for path in databases[number][part]
            )
    return matches


def cache_key(db_path: Path, golds: Sequence[str], seed: int) -> str:
    """The name of a suite: a hash of all that it depends on."""
    try:
        content = file_hash(db_path)
    except OSError as error:
        raise UserError(f"{db_path}: cannot open this database ({error.strerror})") from error
    parts = [content, code_hash(), sqlite3.sqlite_version, seed, *golds]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def code_hash() -> str:
    folder = Path(__file__).parents[1]
    return "".join(file_hash(folder / f"{name}.py") for name in CODE)


def read_entry(entry: Path, db_path: Path) -> Suite | None:
    """The suite in a folder of the cache; None if there is none or it is not as it was written."""
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        paths = [entry / name for name in manifest["files"]]
        if [file_hash(path) for path in paths] != list(manifest["files"].values()):
            raise ValueError("a file has changed")
        judged = {
            gold: tuple(paths[number] for number in numbers)
            for gold, numbers in manifest["judged"].items()
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s: damaged, so the test suite is built anew (%s)", entry, error)
        return None
    return Suite(db_path, tuple(paths), judged)


def write_entry(
    entry: Path, db_path: Path, golds: Sequence[str], sandbox: Sandbox, seed: int
) -> None:
    """Build a suite under the lock; the folder gets its name when it is complete."""
    temporary = entry.with_suffix(".building")
    for folder in (temporary, entry):  # left by a build that was killed; damaged
        if folder.exists():
            shutil.rmtree(folder)
    temporary.mkdir()
    manifest = build(db_path, golds, sandbox, seed, temporary)
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    temporary.rename(entry)


def build(
    db_path: Path, golds: Sequence[str], sandbox: Sandbox, seed: int, folder: Path
) -> dict[str, dict]:
    """Write the variants into a folder; return what the manifest says of them."""
    results = sandbox.run_many((db_path, gold) for gold in golds)
    running = [gold for gold, result in zip(golds, results) if result.status == "ok"]
    widths = {gold: len(result.columns) for gold, result in zip(golds, results)}
    schema = load_schema(db_path)
    known = [
        Gold(gold, widths[gold], schema, [miss.sql for miss in make_mutants(gold, schema)])
        for gold in running
    ]
    choice = choose_variants(read_blueprint(db_path, running), known, seed)
    files = {}
    for number, drawn in enumerate(choice.variants):
        path = folder / f"{number}.sqlite"
        drawn.connection.execute("VACUUM INTO ?", [str(path)])
        files[path.name] = file_hash(path)
    judged: dict[str, list[int]] = {gold: [] for gold in golds}
    for gold in known:
        answers = [drawn.answer(gold) for drawn in choice.variants]
        judged[gold.sql] = [number for number, answer in enumerate(answers) if answer is not None]
    unjudged = sum(not judged[gold] for gold in running)
    if unjudged:
        logger.warning(
            "%s: %d of %d gold queries have no variant that could judge them, so that test-suite "
            "accuracy is execution accuracy for them",
            db_path,
            unjudged,
            len(running),
        )
    return {"files": files, "judged": judged}


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; another process waits. It ends with the process at the latest."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
