"""The cells of the paper's experiment: what is kept of each measured policy, one JSON line a cell.

    python -m benchmarks.paper_table        # measures the missing cells and adds their lines

docs/results/EXPERIMENT/cells.jsonl holds the cells of an experiment, sorted by row, language and
seed. The keys of a line:

    row, lang, seed   identify the cell; lang is what train.py got as --lang
    minutes           that training and measuring took, without those before an interruption
    curve             metric -> means over equal parts of training; empty without training
    golds             for each question the number of its gold query; absent if it is 0, 1, 2, ...
    outcomes          language -> metric -> a string of 0 and 1, one digit for each question
    rewarded          of the completions that the rewards found right, the shares that are right by
                      EX and TS; only where databases are cut or rewards need no gold

measured.json has what all cells of an experiment are measured with: the version of the embedded
dataset ("" for other data), hashes of the encoder and of the SFT policy, and options.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from grpo.evaluation.report import read_metrics
from grpo.evaluation.rollouts import read_rollouts
from sqlenv import UserError, canonical_sql
from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.generate import build
from sqlenv.files import locked, write_file

FILE, MEASURED = "cells.jsonl", "measured.json"
METRICS = {"valid": "valid", "execution": "EX", "test_suite": "TS", "semantic": "semantic"}
CURVE = ("reward", "reward/execution", "reward/semantic", "kl")
LANGUAGE_CURVES = tuple(f"language/{lang}" for lang in LANGUAGES)  # not every step has all


def cell_key(cell: dict) -> tuple[str, str, int]:
    """What identifies a cell within its experiment."""
    return cell["row"], cell["lang"], cell["seed"]


def read_cells(folder: Path) -> list[dict]:
    """Reads the cells of an experiment, each with its ``golds``; none if there is no file yet.

    Raises:
        UserError: a line is not JSON; names the file and the line.
    """
    path, cells = folder / FILE, []
    if not path.exists():
        return []
    # Not splitlines(), which also splits at a U+2028 in an answer.
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            cell = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        questions = len(next(iter(cell["outcomes"].values()))["valid"])
        cells.append({"golds": list(range(questions))} | cell)
    return cells


def is_current(folder: Path) -> bool:
    """Whether the cells of an experiment are of this version of the embedded dataset, or of other
    data.
    """
    path = folder / MEASURED
    saved = json.loads(path.read_text(encoding="utf-8"))["dataset"] if path.exists() else ""
    return saved in ("", build().name)


def files_hash(folder: Path) -> str:
    """A hash of the files of a model's directory."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def save_cell(folder: Path, cell: dict, *, lock: Path) -> None:
    """Writes a cell into the experiment's file; the same cell measured before is replaced.

    Args:
        folder: folder of the experiment.
        cell: with the keys in the module's docstring, including ``golds``.
        lock: file to lock meanwhile, so that processes do not lose each other's cells.

    Raises:
        UserError: the file cannot be read or written.
    """
    with locked(lock):
        cells = {cell_key(other): other for other in read_cells(folder)} | {cell_key(cell): cell}
        text = "".join(cell_line(cells[key]) for key in sorted(cells))
        write_file(folder / FILE, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def cell_line(cell: dict) -> str:
    """A cell as a line of JSON, identity first."""
    names = ["row", "lang", "seed", "minutes", "curve", "golds", "outcomes", "rewarded"]
    if cell["golds"] == list(range(len(cell["golds"]))):
        names.remove("golds")
    line = {name: cell[name] for name in names if name in cell}
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def outcomes(predictions: Path) -> dict:
    """What a cell keeps of a file of ``evaluate.py --save-predictions``.

    Questions whose gold query fails in one language are left out in all.

    Returns:
        ``golds`` and ``outcomes``, as described in the module's docstring.

    Raises:
        UserError: the languages do not have the same questions.
    """
    by_lang: dict[str, list[dict]] = {}
    for line in predictions.read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        by_lang.setdefault(row["lang"], []).append(row)
    first = next(iter(by_lang.values()))
    if any(len(rows) != len(first) for rows in by_lang.values()):
        raise UserError(f"{predictions}: the languages do not have the same questions")
    usable = [i for i in range(len(first)) if all(rows[i]["gold_ok"] for rows in by_lang.values())]
    golds = [(first[i]["db_id"], canonical_sql(first[i]["gold"])) for i in usable]
    numbers = {gold: i for i, gold in enumerate(dict.fromkeys(golds))}
    return {
        "golds": [numbers[gold] for gold in golds],
        "outcomes": {
            lang: {m: "".join(str(int(rows[i][m])) for i in usable) for m in METRICS}
            for lang, rows in by_lang.items()
        },
    }


def rewarded(rollouts: Path) -> Iterator[dict]:
    """As predictions: the first completion of each group that execution, or a test suite, found
    right. Where neither is a reward, it is the one with the greatest advantage, unless that is 0.
    """
    for group in read_rollouts(rollouts):
        completions = group["completions"]
        terms = completions[0]["terms"]
        judge = next((name for name in ("execution", "test_suite") if name in terms), None)
        if judge:
            right = [c for c in completions if c["terms"][judge] == 1]
        else:
            best = max(completions, key=lambda completion: completion["advantage"])
            right = [best] if best["advantage"] > 0 else []
        if right:
            names = ("db_id", "question", "lang", "gold")
            yield {name: group[name] for name in names} | {"predicted": right[0]["sql"]}


def curve(metrics: Path, points: int = 24) -> dict[str, list[float]]:
    """Means over equal parts of training of the metrics in ``CURVE``, and of the reward in each
    language that occurs in every part.
    """
    rows = read_metrics(metrics)
    parts = np.array_split(np.arange(len(rows)), min(points, len(rows)))
    curves = {}
    for name in CURVE + LANGUAGE_CURVES:
        # A number that was not finite is None.
        known = ([rows[i].get(name) for i in part] for part in parts)
        values = [[value for value in part if value is not None] for part in known]
        if all(values):
            curves[name] = [round(float(np.mean(part)), 4) for part in values]
    return curves
