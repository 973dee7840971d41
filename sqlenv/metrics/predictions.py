"""Predictions files: SQL of any system for questions with gold SQL, to be scored.

Each line is a JSON object with the strings ``db_id``, ``question``, ``lang``, ``gold`` and
``predicted``; the last may be null or empty if the system gave no SQL. ``part``, a part of the
questions to report on, may be there; further fields are ignored.
The SQL is used unchanged: no statement is extracted from a longer text.
"""

import json
import re
from collections import Counter
from os import PathLike
from pathlib import Path

from sqlenv.dataset import LANGUAGES, Example, database_path
from sqlenv.errors import UserError

FIELDS = ("db_id", "question", "lang", "gold", "predicted")


def read_predictions(
    path: str | PathLike, data: str | PathLike, *, langs: list[str] | None = None, limit: int = 0
) -> tuple[list[Example], list[str | None], dict[str, Counter]]:
    """Returns the questions of a file, the predicted SQL for each, and for each language the number
    of questions that are skipped for each missing database.

    Args:
        path: the predictions file.
        data: the dataset that has the databases.
        langs: read only these languages; None for all.
        limit: the number of questions of each language; 0 for all.

    Raises:
        UserError: the file is missing, is not UTF-8 or has no line in these languages, a line is
            malformed, or no database exists. The message names the file and the line.
    """
    path = Path(path)
    rows, databases = _rows(path, data)
    langs = langs or list(dict.fromkeys(row["lang"] for row in rows))
    by_lang = {lang: [row for row in rows if row["lang"] == lang] for lang in langs}
    absent = {
        lang: Counter(row["db_id"] for row in asked if not databases[row["db_id"]].is_file())
        for lang, asked in by_lang.items()
    }
    rows = [
        row
        for lang, asked in by_lang.items()
        for row in [row for row in asked if row["db_id"] not in absent[lang]][: limit or None]
    ]
    if not rows:
        missing = next((db for counts in absent.values() for db in counts), None)
        if missing:
            raise UserError(f"{path}: no database {missing!r} at {databases[missing]}")
        raise UserError(f"{path}: no prediction{f' in {langs}' if langs else ''}")
    examples = [
        Example(
            row["question"],
            row["lang"],
            row["db_id"],
            row["gold"],
            databases[row["db_id"]],
            str(row.get("part", "")),
        )
        for row in rows
    ]
    return examples, [row["predicted"] or None for row in rows], absent


def _rows(path: Path, data: str | PathLike) -> tuple[list[dict], dict[str, Path]]:
    """The lines of a file, and where each database that they name should be."""
    rows, databases = [], {}
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = _row(where, line)
            if row["db_id"] not in databases:
                databases[row["db_id"]] = _database(where, data, row["db_id"])
            rows.append(row)
    return rows, databases


def without_prediction(examples: list[Example], questions: list[Example]) -> list[Example]:
    """Returns the questions of a dataset that ``examples`` lack, each as often as it is missing.

    Questions are matched by db_id, question and language.
    """
    unmatched = Counter((e.db_id, e.question, e.lang) for e in examples)
    missing = []
    for question in questions:
        key = question.db_id, question.question, question.lang
        if not unmatched[key]:
            missing.append(question)
        unmatched[key] -= unmatched[key] > 0
    return missing


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this predictions file ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def _database(where: str, data: str | PathLike, db_id: str) -> Path:
    """Where the database should be. Raises UserError if its name is not a plain one."""
    try:
        return database_path(data, db_id)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _row(where: str, line: str) -> dict[str, str | None]:
    """Parses a line. Raises UserError if it is malformed or lacks a field."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({getattr(error, 'msg', error)})") from error
    for field in FIELDS:
        if not isinstance(row, dict) or field not in row:
            raise UserError(f"{where}: no {field!r}; an object needs {', '.join(FIELDS)}")
        value, optional = row[field], field == "predicted"
        if not isinstance(value, str) and not (value is None and optional):
            raise UserError(f"{where}: {field!r} is not a text")
        if not optional and not value.strip():
            raise UserError(f"{where}: {field!r} is empty")
        if re.search("[\ud800-\udfff]", value or ""):
            raise UserError(f"{where}: {field!r} is not valid Unicode (half of a surrogate pair)")
    if row["lang"] not in LANGUAGES:
        languages = ", ".join(LANGUAGES)
        raise UserError(f"{where}: unknown language {row['lang']!r}: choose from {languages}")
    return row
