"""Loads questions with gold SQL and database, in the layout of MultiSpider:

    ROOT/dataset/multispider/with_English_value/{train,dev}_{lang}.json
    ROOT/dataset/spider/database/<db_id>/<db_id>.sqlite

The embedded dataset (``sqlenv/embedded/``) is built in this layout in the cache folder on first
use. Published copies lack some databases; questions on these are skipped and counted.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from os import PathLike
from pathlib import Path

from sqlenv.embedded import LANGUAGES, SPLITS
from sqlenv.errors import UserError

PLAIN_NAME = re.compile(r"\w[\w .-]*")  # a valid db_id, which becomes part of a path
EMBEDDED = Path(__file__).resolve().parent / "embedded"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """A question in one language, with its database and the gold SQL that answers it.

    Attributes:
        db_path: made absolute, so that results that are kept by it stay right after ``chdir``.
        part: of its split, where the dataset names parts: results are also reported by part.
        evidence: what one has to know to answer it; "" if nothing.
        descriptions: of columns of the database, by "table.column".
    """

    question: str
    lang: str
    db_id: str
    gold_sql: str
    db_path: Path
    part: str = ""
    evidence: str = ""
    descriptions: dict[str, str] = dataclass_field(default_factory=dict, hash=False)

    def __post_init__(self):
        object.__setattr__(self, "db_path", Path(self.db_path).absolute())


def load_dataset(path: str | PathLike, lang: str, split: str) -> list[Example]:
    """Returns the questions of a split whose database exists, in the order of the file.

    Logs a warning with the number of skipped questions for each missing database.

    Args:
        path: the dataset's root folder, or EMBEDDED.
        lang: one of LANGUAGES.
        split: one of SPLITS.

    Raises:
        UserError: as in ``read_dataset``, or if no database exists.
    """
    examples, missing = read_dataset(path, lang, split)
    counts = ", ".join(f"{db_id} ({count})" for db_id, count in sorted(missing.items()))
    if not examples:
        folder = "dataset/spider/database"
        raise UserError(f"{path}: no database of {split}_{lang} exists in {folder}: {counts}")
    if missing:
        total = missing.total()
        logger.warning("%s_%s: %d questions skipped, no database: %s", split, lang, total, counts)
    return examples


def by_database(examples: Iterable) -> dict[str, list]:
    """Groups examples, or other objects with a ``db_id``, by database, in order of appearance."""
    groups: dict[str, list] = {}
    for example in examples:
        groups.setdefault(example.db_id, []).append(example)
    return groups


def read_dataset(path: str | PathLike, lang: str, split: str) -> tuple[list[Example], Counter[str]]:
    """Returns the questions of a split, and the number of those skipped for each missing database.

    Raises:
        UserError: the language or split is unknown, a file or folder is missing, or the file is
            malformed. The message names the file and the line.
    """
    if lang not in LANGUAGES:
        raise UserError(f"unknown language {lang!r}: choose from {', '.join(LANGUAGES)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    root = _published(path)
    file = _follow(root / "dataset" / "multispider") / "with_English_value" / f"{split}_{lang}.json"
    examples, missing = [], Counter()
    for db_id, question, query, part in read_questions(file):
        db_path = _database_path(root, db_id)
        # Each database is looked up until it is known to be missing.
        if db_id in missing or not db_path.is_file():
            missing[db_id] += 1
        else:
            examples.append(Example(question, lang, db_id, query, db_path, part))
    return examples, missing


def database_path(path: str | PathLike, db_id: str) -> Path:
    """The path of a database in a dataset; the file may be missing.

    Raises:
        UserError: the ``db_id`` is not a plain name, or the dataset does not exist.
    """
    if not PLAIN_NAME.fullmatch(db_id):
        raise UserError(f"db_id {db_id!r} is not a plain name")
    return _database_path(_published(path), db_id)


def _database_path(root: Path, db_id: str) -> Path:
    return _follow(root / "dataset" / "spider") / "database" / db_id / f"{db_id}.sqlite"


def _published(path: str | PathLike) -> Path:
    """The root of the published layout; builds the embedded dataset on first use."""
    root = Path(path)
    if root.resolve() == EMBEDDED:
        from sqlenv.embedded.generate import build  # loaded only if the embedded dataset is used

        return build()
    if not (root / "dataset").is_dir():
        problem = "it does not exist"
        if root.is_dir():
            problem = f"it contains {_listing(root)}"
        elif root.exists():
            problem = "it is a file"
        raise UserError(f"{root}: a folder that contains 'dataset' is expected, but {problem}")
    return root


def _follow(path: Path) -> Path:
    """The target of a symbolic link that git wrote as a text file, as on systems without symbolic
    links. Other paths are returned unchanged."""
    return path.parent / path.read_text(encoding="utf-8").strip() if path.is_file() else path


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "nothing") + more


def read_questions(file: Path) -> list[tuple[str, str, str, str]]:
    """Returns (db_id, question, query, part or "") for each entry of a split's file.

    Raises:
        UserError: the file is missing or malformed, or an entry lacks a field. The message names
            the file and the line.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; in its folder: {_listing(file.parent)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        entries = json.loads(text)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: malformed JSON: {error.msg}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}:1: a non-empty list of questions is expected")
    questions = []
    for index, entry in enumerate(entries):
        problem = _problem(entry)
        if problem:
            line = _line_of_entry(text, index)
            raise UserError(f"{file}:{line}: entry {index + 1} {problem}")
        part = str(entry.get("part", ""))
        questions.append((entry["db_id"], entry["question"], entry["query"], part))
    return questions


def _problem(entry: object) -> str | None:
    """Describes what is wrong with an entry of the file; None if it is valid."""
    if not isinstance(entry, dict):
        return "is not an object with db_id, question and query"
    for field in ("db_id", "question", "query"):
        if not isinstance(entry.get(field), str) or not entry[field].strip():
            problem = "is empty or not a text" if field in entry else "is missing"
            return f"cannot be used: its {field!r} {problem}"
        if re.search("[\ud800-\udfff]", entry[field]):
            return f"has {field!r} that is not valid Unicode (half of a surrogate pair)"
    # It becomes part of a path, which must stay inside the folder of databases.
    if not PLAIN_NAME.fullmatch(entry["db_id"]):
        return f"has db_id {entry['db_id']!r}, which is not a plain name"
    return None


def _line_of_entry(text: str, index: int) -> int:
    """The line on which an entry of a JSON list starts; the text is valid JSON."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    position = text.index("[") + 1
    for _ in range(index):
        _, position = decoder.raw_decode(text, between.match(text, position).end())
    return text.count("\n", 0, between.match(text, position).end()) + 1
