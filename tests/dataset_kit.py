"""What the tests of datasets share: databases and question files of their own."""

import json
import sqlite3
from pathlib import Path

from sqlenv import Dataset

PETS = """
    CREATE TABLE pet (name TEXT, "Birth year" INT, sex TEXT);
    INSERT INTO pet VALUES ('Rex', 2015, 'M'), ('Kim', 2020, 'F');
"""


def make_database(path: Path, script: str = PETS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    return path


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=0), encoding="utf-8")
    return path


def texts(dataset: Dataset, lang: str, split: str) -> list[str]:
    return [example.question for example in dataset.load(lang, split)]
