"""Builds the embedded dataset in the layout that MultiSpider is published in, from the text in this folder.

    python -m data.generate                    build data/build/ if it is missing or older than its sources
    python -m data.generate --show vi 20       print twenty random questions with their SQL

Every question exists in all seven languages with the same SQL. A SQL text belongs to train or to dev, never to both,
and neither does a question's text; two databases occur in dev only. The same sources give the same files.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
from pathlib import Path

from data.databases import UNSEEN, load_databases, write_database
from data.lexicon import Lexicon
from data.shapes import SHAPES, Question, Sampler

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
LANGUAGES = ("en", "de", "es", "fr", "ja", "vi", "zh")
TRAIN, DEV_SEEN, DEV_UNSEEN = (
    375,
    30,
    40,
)  # questions for each database: 8 x 375 train, 8 x 30 + 2 x 40 dev
MAX_ROWS = 400  # a longer answer is no answer to a person


def answerable(question: Question, connection: sqlite3.Connection) -> bool:
    """Whether gold gives a definite answer: some rows, not just NULL or 0, and no tie where LIMIT cuts."""
    rows = connection.execute(question.sql).fetchmany(MAX_ROWS + 1)
    if not 0 < len(rows) <= MAX_ROWS or rows in ([(None,)], [(0,)]):
        return False
    if question.ties is None:
        return True
    keys = connection.execute(question.ties).fetchall()
    if question.limit == 0:  # a full ordering: ties anywhere leave it open
        return len(set(keys)) == len(keys)
    return len(keys) > question.limit and keys[question.limit - 1] != keys[question.limit]


def draw_questions(sampler: Sampler, count: int, lexicons: dict[str, Lexicon]) -> list[dict]:
    """``count`` entries {"db_id", "query", "shape", lang: question}, all different in SQL and in every language."""
    entries, seen = [], set()
    for _ in range(count * 200):
        if len(entries) == count:
            return entries
        try:
            question = sampler.ask(sampler.rng.choices(list(SHAPES), SHAPES.values())[0])
        except LookupError:  # this draw does not work out: no such column, say
            continue
        if question.sql in seen or not answerable(question, sampler.connection):
            continue
        texts = {
            lang: lexicon.phrase(question, random.Random(f"{question.sql} {lang}"))
            for lang, lexicon in lexicons.items()
        }
        if seen.isdisjoint(texts.items()):
            seen.update((question.sql, *texts.items()))
            entries.append(
                {"db_id": question.db, "query": question.sql, "shape": question.shape, **texts}
            )
    raise RuntimeError(f"{sampler.db}: only {len(entries)} of {count} different questions found")


def split_questions(
    folder: Path, lexicons: dict[str, Lexicon], seed: int = 0
) -> dict[str, list[dict]]:
    """The entries of both splits; ``folder`` holds the databases."""
    splits = {"train": [], "dev": []}
    for db, tables in load_databases().items():
        connection = sqlite3.connect(folder / db / f"{db}.sqlite")
        sampler = Sampler(db, tables, connection, random.Random(f"{seed} {db}"))
        train = 0 if db in UNSEEN else TRAIN
        entries = draw_questions(
            sampler, train + (DEV_UNSEEN if db in UNSEEN else DEV_SEEN), lexicons
        )
        connection.close()
        sampler.rng.shuffle(entries)
        splits["train"] += entries[:train]
        splits["dev"] += entries[train:]
    for entries in splits.values():
        random.Random(seed).shuffle(entries)
    return splits


def source_hash() -> str:
    """Changes with every file that the dataset is made from."""
    digest = hashlib.sha256()
    for path in sorted([*HERE.glob("*.py"), *HERE.glob("*.toml"), *HERE.glob("lexicon/*.toml")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def build() -> Path:
    """The folder with the built dataset; builds it on first use and again after its sources changed."""
    stamp = BUILD / "SOURCE"
    wanted = source_hash()
    if stamp.is_file() and stamp.read_text() == wanted:
        return BUILD
    work = HERE / f"build.{os.getpid()}"
    databases = work / "dataset" / "spider" / "database"
    for db, tables in load_databases().items():
        write_database(tables, databases / db / f"{db}.sqlite")
    lexicons = {lang: Lexicon(lang) for lang in LANGUAGES}
    questions = work / "dataset" / "multispider" / "with_English_value"
    questions.mkdir(parents=True)
    for split, entries in split_questions(databases, lexicons).items():
        for lang in LANGUAGES:
            rows = [
                {"db_id": e["db_id"], "query": e["query"], "question": e[lang], "shape": e["shape"]}
                for e in entries
            ]
            text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            (questions / f"{split}_{lang}.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    (work / "SOURCE").write_text(wanted)
    if BUILD.exists():
        BUILD.rename(HERE / f"build.{os.getpid()}.old")
    try:
        work.rename(BUILD)
    except OSError:  # another process finished the same build a moment earlier
        if not stamp.is_file() or stamp.read_text() != wanted:
            raise
        shutil.rmtree(work)
    shutil.rmtree(HERE / f"build.{os.getpid()}.old", ignore_errors=True)
    return BUILD


def show(lang: str, count: int) -> None:
    """Prints random questions of a language (and in English) with their SQL, drawn afresh, to read them through."""
    lexicons = {name: Lexicon(name) for name in dict.fromkeys(("en", lang))}
    rng = random.Random()
    databases = load_databases()
    for _ in range(count):
        db = rng.choice(list(databases))
        path = HERE / f"show.{os.getpid()}.sqlite"
        write_database(databases[db], path)
        connection = sqlite3.connect(path)
        (entry,) = draw_questions(Sampler(db, databases[db], connection, rng), 1, lexicons)
        connection.close()
        path.unlink()
        print(
            f"[{entry['db_id']} {entry['shape']}] {entry['query']}",
            *(entry[name] for name in lexicons),
            sep="\n   ",
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--show",
        nargs=2,
        metavar=("LANG", "COUNT"),
        help="print random questions instead of building",
    )
    arguments = parser.parse_args()
    if arguments.show:
        show(arguments.show[0], int(arguments.show[1]))
    else:
        print(build())
