"""Test-suite accuracy (TS): execution match on the given database and on variants of it.

On a single database a wrong query often gives the right rows by chance. So ``load_suite`` draws
small databases with the same schema and keeps a few that together distinguish the gold queries from
their mutants (a distilled test suite, Zhong et al. 2020). ``suite_matches`` requires that a
prediction matches gold on the given database and on all of its variants. TS is never above EX.

If the result of gold is not deterministic on a variant (a LIMIT through a tie, a bare column of a
group), or gold fails on it, predictions for this gold query are not verified on this variant.

    suite = load_suite("concert_singer.sqlite", gold_queries, sandbox)
    suite_matches(sandbox, [(suite, gold, predicted), …])   # [True, …]
"""

import functools
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlenv.errors import UserError
from sqlenv.files import cache_folder, locked, read_only_uri
from sqlenv.gold import GoldResults
from sqlenv.sandbox.sandbox import Sandbox
from sqlenv.schema import load_schema
from sqlenv.testsuite.distill import DrawnDatabase, GoldQuery, choose_variants
from sqlenv.testsuite.mutants import make_mutants
from sqlenv.testsuite.profile import read_profile

# The modules that determine the content of a suite: a change to one gives another cache key.
CODE = """query schema text metrics/execution_match sandbox/worker testsuite/determinism
    testsuite/distill testsuite/edge_cases testsuite/literals testsuite/mutants testsuite/populate
    testsuite/profile testsuite/suite testsuite/swaps""".split()
MANIFEST = "suite.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """The test suite of a database.

    Attributes:
        db_path: the given database.
        variants: the databases that were drawn.
        variants_by_gold: for each gold query the variants on which predictions for it are verified;
            none if gold fails on the given database.
    """

    db_path: Path
    variants: tuple[Path, ...]
    variants_by_gold: dict[str, tuple[Path, ...]]

    def databases(self, gold: str) -> tuple[Path, ...]:
        """The databases on which predictions for a gold query are verified, the given one first.

        Raises:
            ValueError: the suite was built without this gold query.
        """
        if gold not in self.variants_by_gold:
            raise ValueError(
                f"the test suite of {self.db_path} was built without this gold: {gold}"
            )
        return self.db_path, *self.variants_by_gold[gold]


def load_suite(
    db_path: str | os.PathLike,
    golds: Iterable[str],
    sandbox: Sandbox,
    *,
    seed: int = 0,
    cache: str | os.PathLike | None = None,
) -> Suite:
    """Returns the test suite of a database for its gold queries; builds it on first use.

    A damaged entry of the cache is built again. If several processes need the same suite, one
    builds it and the others wait.

    Args:
        db_path: the database.
        golds: all its gold queries. The variants depend on them, but not on their order, so pass
            those of a whole split.
        sandbox: runs the gold queries on the given database.
        seed: of the drawn variants.
        cache: the folder for suites; None for ``$XDG_CACHE_HOME/grpo-text2sql/suites`` (or
            ``~/.cache/…``).

    Raises:
        UserError: the database cannot be read or the cache cannot be written.
    """
    db_path, golds = Path(db_path).absolute(), sorted(set(golds))
    folder = Path(cache).absolute() if cache is not None else cache_folder("suites")
    entry = folder / cache_key(db_path, golds, seed, sandbox.timeout)
    suite = read_entry(entry, db_path)
    if suite is not None:
        return suite
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(entry.with_suffix(".lock")):
            suite = read_entry(entry, db_path)
            return suite or write_entry(entry, db_path, golds, sandbox, seed)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write test-suite databases here ({error.strerror}); "
            "name another folder by XDG_CACHE_HOME"
        ) from error


def suite_matches(
    sandbox: Sandbox,
    cases: Sequence[tuple[Suite, str, str]],
    *,
    timeout_budget: float | None = None,
) -> list[bool]:
    """Returns for each (suite, gold, predicted) whether the prediction is correct by TS.

    It is correct if ``results_match`` on the given database and on every variant for this gold
    query. Predictions may be hostile.

    Args:
        timeout_budget: seconds for the predictions that time out, see ``Sandbox.run_each``.

    Raises:
        ValueError: a suite was built without the gold query.
    """
    given = [(suite.databases(gold)[0], gold, sql) for suite, gold, sql in cases]
    compared = GoldResults(sandbox).compare(given, timeout_budget=timeout_budget)
    # Most wrong predictions fail on the given database, after one query.
    right = [case for case, (_, equal, _) in zip(cases, compared) if equal]
    matches = iter(variants_match(sandbox, right, timeout_budget=timeout_budget))
    return [equal and next(matches) for _, equal, _ in compared]


def variants_match(
    sandbox: Sandbox,
    cases: Sequence[tuple[Suite, str, str]],
    *,
    timeout_budget: float | None = None,
) -> list[bool]:
    """As ``suite_matches``, on the variants alone: for predictions that are known to be right on
    the given database.
    """
    checks = [
        (number, (path, gold, sql))
        for number, (suite, gold, sql) in enumerate(cases)
        for path in suite.databases(gold)[1:]
    ]
    results, matches = GoldResults(sandbox), [True] * len(cases)
    compared = results.compare([case for _, case in checks], timeout_budget=timeout_budget)
    for (number, _), (_, equal, _) in zip(checks, compared):
        matches[number] &= equal
    return matches


def cache_key(db_path: Path, golds: Sequence[str], seed: int, timeout: float) -> str:
    """The folder name of a suite in the cache: a hash of everything that it depends on."""
    read_only_uri(db_path)  # refuses what cannot be read
    # A gold query that exceeds the sandbox's time limit has no variants.
    parts = [file_hash(db_path), code_hash(), sqlite3.sqlite_version, seed, timeout, *golds]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def file_hash(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def code_hash() -> str:
    """The hashes of the modules in CODE."""
    folder = Path(__file__).parents[1]
    return "".join(file_hash(folder / f"{name}.py") for name in CODE)


def read_entry(entry: Path, db_path: Path) -> Suite | None:
    """Reads a suite from the cache; None if it does not exist or a file has changed."""
    try:
        manifest = json.loads((entry / MANIFEST).read_text(encoding="utf-8"))
        if any(file_hash(entry / name) != digest for name, digest in manifest["files"].items()):
            raise ValueError("a file has changed")
        return suite_of(entry, db_path, manifest)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        logger.warning("%s: damaged; the test suite is built again (%s)", entry, error)
        return None


def suite_of(entry: Path, db_path: Path, manifest: dict[str, dict]) -> Suite:
    """The suite that a manifest describes."""
    paths = tuple(entry / name for name in manifest["files"])
    variants_by_gold = {
        gold: tuple(paths[number] for number in numbers)
        for gold, numbers in manifest["variants_by_gold"].items()
    }
    return Suite(db_path, paths, variants_by_gold)


def write_entry(
    entry: Path, db_path: Path, golds: Sequence[str], sandbox: Sandbox, seed: int
) -> Suite:
    """Builds a suite in a temporary folder, which is renamed when it is complete."""
    temporary = entry.with_suffix(".building")
    for folder in (temporary, entry):  # left by a killed build, or damaged
        if folder.exists():
            shutil.rmtree(folder)
    temporary.mkdir()
    try:
        manifest = build(db_path, golds, sandbox, seed, temporary)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        temporary.rename(entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # left only after an error
    return suite_of(entry, db_path, manifest)


def save(drawn: DrawnDatabase, path: Path) -> None:
    """Writes a drawn database to a new file."""
    try:
        drawn.write(path)
    except sqlite3.Error as error:
        raise UserError(
            f"{path}: cannot write test-suite databases here ({error}); make room on this disk or "
            "name another folder by XDG_CACHE_HOME"
        ) from error


def build(
    db_path: Path, golds: Sequence[str], sandbox: Sandbox, seed: int, folder: Path
) -> dict[str, dict]:
    """Writes the variants into a folder.

    Returns:
        The manifest: {"files": {name: hash}, "variants_by_gold": {gold: [indices of variants]}}.
    """
    results = GoldResults(sandbox).run([(db_path, gold) for gold in golds])
    running = [gold for gold, result in zip(golds, results) if result.status == "ok"]
    widths = {gold: len(result.columns) for gold, result in zip(golds, results)}
    schema = load_schema(db_path)
    queries = [
        GoldQuery(gold, widths[gold], schema, make_mutants(gold, schema, edge_cases=True))
        for gold in running
    ]
    variants = choose_variants(read_profile(db_path, running), queries, seed=seed)
    files = {}
    for number, drawn in enumerate(variants):
        path = folder / f"{number}.sqlite"
        save(drawn, path)
        files[path.name] = file_hash(path)
    variants_by_gold: dict[str, list[int]] = {gold: [] for gold in golds}
    for gold in queries:
        results = [drawn.gold_result(gold) for drawn in variants]
        variants_by_gold[gold.sql] = [i for i, result in enumerate(results) if result is not None]
    without_variant = sum(not variants_by_gold[gold] for gold in running)
    if without_variant:
        logger.warning(
            "%s: %d of %d gold queries have no variant on which predictions can be verified; for "
            "them test-suite accuracy equals execution accuracy",
            db_path,
            without_variant,
            len(running),
        )
    return {"files": files, "variants_by_gold": variants_by_gold}
