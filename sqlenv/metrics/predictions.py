"""Predictions files: SQL of any system for questions with gold SQL, to be scored.

Each line is a JSON object with the strings ``db_id``, ``question``, ``lang``, ``gold`` and
``predicted``; the last may be null or empty if the system gave no SQL. ``part`` and ``difficulty``,
by which results are also reported, may be there; further fields are ignored.

The official forms hold the SQL alone, for the questions of a split in their order:

- Spider's, ``*.sql`` or ``*.txt``: a line a question, the SQL, then maybe a tab and the db_id
- BIRD's, a JSON object: ``{"0": "SELECT ...\\t----- bird -----\\t<db_id>", "1": ...}``

A file that starts as a JSON object has no SQL in lines, whatever its name.

The SQL is used unchanged: no statement is extracted from a longer text.
"""

import json
import re
from collections import Counter
from os import PathLike
from pathlib import Path

from sqlenv.dataset import Dataset, Example, is_language, language_tag, spread
from sqlenv.errors import UserError
from sqlenv.text import SURROGATE

FIELDS = ("db_id", "question", "lang", "gold", "predicted")
LEVELS = ("part", "difficulty")  # fields by which results are reported where they are there
BIRD_SEPARATOR = "\t----- bird -----\t"


def is_official(path: str | PathLike) -> bool:
    """Whether a predictions file is in one of the official forms, which lack the questions."""
    path = Path(path)
    text = _text(path)
    is_object = re.match(r'\s*\{\s*"', text) is not None
    return _is_bird(text) or (path.suffix.lower() in (".sql", ".txt") and not is_object)


def read_official(
    path: str | PathLike, dataset: Dataset, lang: str, split: str, *, limit: int = 0
) -> tuple[list[Example], list[str | None], dict[str, Counter]]:
    """As ``read_predictions``, for a file in an official form: one answer for each question of a
    split, those included whose database is missing or that have no gold. Both are left out.

    Raises:
        UserError: the file is malformed, or not for these questions: their number or a database
            differs. The message names the file and the line or key.
    """
    path, questions = Path(path), dataset.questions(lang, split)
    text = _text(path)
    count = len(questions)
    if _is_bird(text):
        answers = _bird_answers(path, text)
    else:
        answers = _spider_answers(path, text, count, {question.db_id for question in questions})
    if len(answers) != count:
        raise UserError(
            f"{path}: has {len(answers)} answers, but the {split} split of {dataset.root} has "
            f"{count} questions; the form needs one for each, in their order"
        )
    asked, missing = [], Counter()
    for (where, sql, db_id), question in zip(answers, questions):
        if db_id not in ("", question.db_id):
            raise UserError(
                f"{where}: db_id {db_id!r}, but question {question.question!r} of the {split} "
                f"split of {dataset.root} is on {question.db_id!r}"
            )
        if not question.db_path.is_file():
            missing[question.db_id] += 1
        else:
            asked.append((question, sql.strip() or None))
    if not asked:
        db_id = next(iter(missing))
        raise UserError(f"{path}: no database {db_id!r} at {dataset.database_path(db_id)}")
    # Limited before those without gold are left out, as the questions of a model are.
    asked = [(question, sql) for question, sql in spread(asked, limit) if question.gold_sql]
    if not asked:
        raise UserError(f"{path}: answers no question with gold SQL, so nothing can be measured")
    return [question for question, _ in asked], [sql for _, sql in asked], {lang: missing}


def _spider_answers(
    path: Path, text: str, count: int, db_ids: set[str]
) -> list[tuple[str, str, str]]:
    """(where, SQL, db_id or "") of each line; an empty line is a question without SQL, unless it is
    at the end and there are ``count`` lines before it. A word behind the last tab is a db_id, and
    so is one of ``db_ids``, which may have spaces.
    """
    answers, lines = [], text.removesuffix("\n").split("\n")
    while len(lines) > count and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, 1):
        sql, tab, db_id = line.rstrip().rpartition("\t")
        if not tab or db_id not in db_ids:
            sql, db_id = re.fullmatch(r"(.*?)(?:\t(\S*)\s*)?", line.rstrip("\r")).groups()
        answers.append((f"{path}, line {number}", sql, db_id or ""))
    return answers


def _is_bird(text: str) -> bool:
    return re.match(r'\s*\{\s*"\d+"\s*:', text) is not None


def _bird_answers(path: Path, text: str) -> list[tuple[str, str, str]]:
    """(where, SQL, db_id or "") in the order of the keys; what is no text is a question without
    SQL, as in BIRD's script.
    """
    try:
        values = json.loads(text)
        keys = sorted(values, key=int)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UserError(
            f"{path}, line {line}: not JSON ({getattr(error, 'msg', error)})"
        ) from error
    if keys != [str(i) for i in range(len(keys))]:
        gap = next(i for i, key in enumerate(keys) if key != str(i))
        raise UserError(f"{path}: no key {str(gap)!r}; the keys number the questions from 0")
    answers = []
    for key in keys:
        sql, _, db_id = (values[key] if isinstance(values[key], str) else "").partition(
            BIRD_SEPARATOR
        )
        where = f"{path}, key {key!r}"
        _check_unicode(where, "the SQL", sql)
        answers.append((where, sql, db_id.strip()))
    return answers


def read_predictions(
    path: str | PathLike, dataset: Dataset, *, langs: list[str] | None = None
) -> tuple[list[Example], list[str | None], dict[str, Counter]]:
    """Returns the questions of a file, the predicted SQL for each, and for each language the number
    of questions that are skipped for each missing database.

    Args:
        path: the predictions file.
        dataset: has the databases.
        langs: read only these languages; None for all.

    Raises:
        UserError: the file is missing, is not UTF-8 or has no line in these languages, a line is
            malformed, or no database exists. The message names the file and the line.
    """
    path = Path(path)
    rows, databases = _rows(path, dataset)
    langs = langs or list(dict.fromkeys(row["lang"] for row in rows))
    by_lang = {lang: [row for row in rows if row["lang"] == lang] for lang in langs}
    absent = {
        lang: Counter(row["db_id"] for row in asked if not databases[row["db_id"]].is_file())
        for lang, asked in by_lang.items()
    }
    rows = [
        row for lang, asked in by_lang.items() for row in asked if row["db_id"] not in absent[lang]
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
            **{name: str(row[name]) for name in LEVELS if row.get(name) is not None},
        )
        for row in rows
    ]
    sqls = [row["predicted"] if (row["predicted"] or "").strip() else None for row in rows]
    return examples, sqls, absent


def _rows(path: Path, dataset: Dataset) -> tuple[list[dict], dict[str, Path]]:
    """The lines of a file, and where each database that they name should be."""
    rows, databases = [], {}
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            row = _row(where, line)
            if row["db_id"] not in databases:
                databases[row["db_id"]] = _database(where, dataset, row["db_id"])
            rows.append(row)
    return rows, databases


def without_prediction(examples: list[Example], questions: list[Example]) -> list[Example]:
    """Returns the questions of a dataset that ``examples`` lack, each as often as it is missing.

    Questions are matched by db_id, question and language.
    """
    unmatched, missing = Counter(map(_key, examples)), []
    for question in questions:
        key = _key(question)
        if not unmatched[key]:
            missing.append(question)
        unmatched[key] -= unmatched[key] > 0
    return missing


def repeated_lines(examples: list[Example], questions: list[Example]) -> list[Example]:
    """Returns the examples that answer one of the questions more often than it is asked."""
    asked = set(map(_key, questions))
    return [e for e in without_prediction(questions, examples) if _key(e) in asked]


def lines_for(examples: list[Example], questions: list[Example]) -> list[int]:
    """Returns the indices of ``examples`` that are these questions, each question once, matched as
    in ``without_prediction``.
    """
    wanted, places = Counter(map(_key, questions)), []
    for i, key in enumerate(map(_key, examples)):
        if wanted[key]:
            places.append(i)
            wanted[key] -= 1
    return places


def _key(example: Example) -> tuple[str, str, str]:
    return example.db_id, example.question, example.lang


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read this predictions file ({error.strerror})") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from error


def _database(where: str, dataset: Dataset, db_id: str) -> Path:
    """Where the database should be. Raises UserError if its name is not a possible one."""
    try:
        return dataset.database_path(db_id)
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
    for field in (*FIELDS, *LEVELS):
        _check_unicode(where, repr(field), str(row.get(field)))
    if not is_language(row["lang"]):
        raise UserError(f"{where}: lang {row['lang']!r} is not the tag of a language (BCP 47)")
    return row | {"lang": language_tag(row["lang"])}


def _check_unicode(where: str, what: str, text: str) -> None:
    """Raises UserError for a text that cannot be written to a file or sent to the sandbox."""
    if SURROGATE.search(text):
        raise UserError(f"{where}: {what} is not valid Unicode (half of a surrogate pair)")
