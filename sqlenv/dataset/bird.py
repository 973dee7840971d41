"""BIRD as published:

    ROOT/train/train.json, ROOT/train/train_databases/<db_id>/<db_id>.sqlite
    ROOT/dev/dev.json or mini_dev_sqlite.json, ROOT/dev/dev_databases/<db_id>/<db_id>.sqlite
    .../<db_id>/database_description/<table>.csv

The folders of the splits may have any name (dev_20240627), and ROOT may be one of them. Hidden
folders and __MACOSX are not looked at.
"""

import csv
import io
import logging
import os
import re
from pathlib import Path

from sqlenv.dataset.base import Dataset, check_plain_name, listing
from sqlenv.dataset.entries import SPIDER_FIELDS, read_entries
from sqlenv.dataset.example import Example
from sqlenv.errors import UserError
from sqlenv.schema import load_schema

FILES = {"train": ["train.json"], "dev": ["dev.json", "mini_dev_sqlite.json"]}
FIELDS = SPIDER_FIELDS | {"gold_sql": ["SQL"]}
IGNORED = re.compile(r"\.|__MACOSX$")  # names of folders that are no split

logger = logging.getLogger(__name__)


class Bird(Dataset):
    looked_for = "train_databases/ or dev_databases/, in it or in a folder of it (BIRD)"
    default_lang = "en"

    @staticmethod
    def matches(root: Path) -> bool:
        return any(_folders(root, split) for split in FILES)

    def languages(self, split: str) -> list[str]:
        return [self.default_lang] if _folders(self.root, split) else []

    def questions(self, lang: str, split: str) -> list[Example]:
        folder, descriptions, examples = self._folder(split), {}, []
        names = FILES[split]
        files = [folder / name for name in names if (folder / name).is_file()]
        if len(files) != 1:
            raise UserError(
                f"{folder}: one of {' and '.join(names)} is expected, but it contains "
                f"{listing(folder)}"
            )
        for row in read_entries(files[0], FIELDS, optional=["evidence", "difficulty"]):
            path = _database(folder, split, row["db_id"])
            if path not in descriptions:
                descriptions[path] = read_descriptions(path)
            examples.append(
                Example(lang=lang, db_path=path, descriptions=descriptions[path], **row)
            )
        return examples

    def database_path(self, db_id: str) -> Path:
        check_plain_name(db_id)
        paths = [
            _database(folder, split, db_id)
            for split in ("dev", "train")
            for folder in _folders(self.root, split)
        ]
        return next((path for path in paths if path.is_file()), paths[0])

    def _folder(self, split: str) -> Path:
        folders = _folders(self.root, split)
        if len(folders) == 1:
            return folders[0]
        problem = f"it contains {listing(self.root)}"
        if folders:
            names = " and ".join(folder.name for folder in folders)
            problem = f"{names} have one: name one of them"
        raise UserError(
            f"{self.root}: one folder with {split}_databases is expected, but {problem}"
        )


def _folders(root: Path, split: str) -> list[Path]:
    """The folders that may be that of a split: the root if it has the split's databases, otherwise
    folders in it that have them.
    """

    def has_databases(place: Path) -> bool:
        # Unlike Path.is_dir(), this is false in a folder that cannot be read, such as lost+found.
        return os.path.isdir(place / f"{split}_databases")

    if has_databases(root):
        return [root]
    children = sorted(root.iterdir()) if root.is_dir() else []
    return [place for place in children if not IGNORED.match(place.name) and has_databases(place)]


def _database(folder: Path, split: str, db_id: str) -> Path:
    return folder / f"{split}_databases" / db_id / f"{db_id}.sqlite"


def read_descriptions(db_path: Path) -> dict[str, str]:
    """``"table.column"`` -> what the column and its values mean, in one line, from the CSV files
    beside a database; names as in the database, columns that it lacks are left out.
    """
    folder = db_path.parent / "database_description"
    if not db_path.is_file() or not folder.is_dir():
        return {}
    names = {
        f"{table.name}.{column.name}".lower(): f"{table.name}.{column.name}"
        for table in load_schema(db_path).tables
        for column in table.columns
    }
    descriptions = {}
    for file in sorted(folder.glob("*.csv")):
        try:
            rows = list(csv.DictReader(io.StringIO(_decoded(file), newline="")))
        except (OSError, csv.Error) as error:
            logger.warning("%s: not used, it cannot be read (%s)", file, error)
            continue
        if rows and "original_column_name" not in rows[0]:
            logger.warning("%s: not used, it has no column original_column_name", file)
            continue
        for row in rows:
            cells = {name: " ".join((row[name] or "").split()) for name in row if name}
            name = names.get(f"{file.stem}.{cells['original_column_name']}".lower())
            texts = [cells.get("column_description") or cells.get("column_name", "")]
            texts += [cells.get("value_description", "")]
            if name and any(texts):
                descriptions[name] = "; ".join(text for text in texts if text)
    return descriptions


def _decoded(file: Path) -> str:
    """Most of the published files are UTF-8, some are from Windows."""
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")
