"""The datasets of the paper's experiment that are changed copies of the embedded one.

- ``poor-N``: the training databases with N rows in each table, and those that these rows refer to.
  Fewer rows are less evidence: more SQL that is wrong returns what gold returns. The training
  questions of all are the same, those whose gold query returns rows in ``poor-3``. Dev is about the
  databases that no training has seen, which are whole.
- ``unseen``: a half of the dev questions about those databases, to adapt to them; the other half is
  dev.

They are in the layout of MultiSpider, in the cache folder.
"""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.generate import build
from sqlenv.files import cache_folder, locked, write_directory

FEWEST = 3  # rows of a table
KNOWN = "known schema"


def derived(name: str) -> Path:
    """The folder of a derived dataset; it is made on first use."""
    source = build()
    folder = cache_folder("experiments") / f"{source.name}-{name}"
    folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            write_directory(folder, lambda new: write(name, source, new))
    return folder


def write(name: str, source: Path, folder: Path) -> None:
    """Writes the derived dataset ``name`` into an empty folder."""
    databases = Path("dataset/spider/database")
    dev = entries(source, "dev", "en")
    unseen = [i for i, row in enumerate(dev) if row["part"] != KNOWN]
    if name == "unseen":
        (folder / databases.parent).mkdir(parents=True)
        (folder / databases).symlink_to(source / databases)
        chosen = {"train": ("dev", unseen[::2]), "dev": ("dev", unseen[1::2])}
    else:
        rows = None if name == "poor-all" else int(name.removeprefix("poor-"))
        train = entries(source, "train", "en")
        trained_on, fewest = {row["db_id"] for row in train}, folder / "fewest"
        for db in (source / databases).iterdir():
            target = folder / databases / db.name
            shutil.copytree(db, target)
            if db.name in trained_on:
                shutil.copytree(db, fewest / db.name)
                cut_rows(fewest / db.name / f"{db.name}.sqlite", FEWEST)
                if rows:
                    cut_rows(target / f"{db.name}.sqlite", rows)
        kept = [i for i, row in enumerate(train) if returns_rows(fewest, row)]
        shutil.rmtree(fewest)
        chosen = {"train": ("train", kept), "dev": ("dev", unseen)}
    for split, (origin, indices) in chosen.items():
        for lang in LANGUAGES:
            questions = entries(source, origin, lang)
            path = questions_path(folder, split, lang)
            path.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps([questions[i] for i in indices], ensure_ascii=False)
            path.write_text(text, encoding="utf-8")


def questions_path(root: Path, split: str, lang: str) -> Path:
    return root / f"dataset/multispider/with_English_value/{split}_{lang}.json"


def entries(root: Path, split: str, lang: str) -> list[dict]:
    """The questions of a split; all languages have the same, in the same order."""
    return json.loads(questions_path(root, split, lang).read_text(encoding="utf-8"))


def returns_rows(databases: Path, row: dict) -> bool:
    """Whether the gold query of a question returns a row other than NULL or 0."""
    path = databases / row["db_id"] / f"{row['db_id']}.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(row["query"]).fetchmany(2) not in ([], [(None,)], [(0,)])


def cut_rows(path: Path, count: int) -> None:
    """Deletes all but the first ``count`` rows of each table of a database, and those rows that a
    row which is kept refers to.
    """
    with closing(sqlite3.connect(path)) as connection, connection:
        references = references_to(connection)
        while references:  # a table when all that refer to it have been cut
            free = [
                table
                for table in references
                if not any(child in references for child, _, _ in references[table])
            ]
            table = (free or list(references))[0]
            kept = [f'rowid IN (SELECT rowid FROM "{table}" ORDER BY rowid LIMIT {count})']
            kept += [
                f'"{to}" IN (SELECT "{column}" FROM "{child}" WHERE "{column}" IS NOT NULL)'
                for child, column, to in references.pop(table)
            ]
            connection.execute(f'DELETE FROM "{table}" WHERE NOT ({" OR ".join(kept)})')


def references_to(connection: sqlite3.Connection) -> dict[str, list[tuple[str, str, str]]]:
    """For each table the foreign keys of other tables to it: (other table, its column, column)."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    references = {name: [] for (name,) in names}
    for (child,) in names:
        for key in connection.execute(f'PRAGMA foreign_key_list("{child}")').fetchall():
            if key[2] != child:
                references[key[2]].append((child, key[3], key[4]))
    return references
