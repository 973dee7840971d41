"""Builds the embedded dataset from the text in this folder, in the layout of MultiSpider.

    python -m sqlenv.embedded.generate               build it in the cache folder, print the path
    python -m sqlenv.embedded.generate --show vi 20  print twenty random questions with their SQL
    ... --show vi 20 --invented 0.3                  the same about newly generated schemas

Four splits: ``sft`` for supervised fine-tuning (grpo.sft), ``train`` for RL training (train.py),
``encoder`` for additional data of the encoder (encoder.train), ``dev`` for evaluation. Every
question exists in all seven languages with the same SQL. A SQL text belongs to one split only, and
so does a question's text. The same sources give the same files.

Thirty databases are handwritten: fourteen in sft, train and dev, twelve in encoder, four in dev
only. The others are generated (schemas.py), and each is in one split. The questions of dev are in
three parts: *known schema*, about the fourteen; *new schema*, about generated databases; and *new
words*, about the four, parts of whose vocabulary no other database has.
"""

import argparse
import hashlib
import json
import random
import sqlite3
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlenv.embedded import LANGUAGES, SPLITS
from sqlenv.embedded.databases import ENCODER, UNSEEN, Table, load_databases, write_database
from sqlenv.embedded.draw import Draw, Question
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.schemas import GeneratedSchema, SchemaGenerator
from sqlenv.embedded.shapes import SHAPES, draw_question
from sqlenv.errors import UserError, exit_code
from sqlenv.files import cache_folder, locked, write_directory
from sqlenv.text import format_sql

HERE = Path(__file__).resolve().parent
# Questions of each handwritten database.
SEEN_COUNTS = {"sft": 430, "train": 108, "dev": 24}
COUNTS = dict.fromkeys(UNSEEN, {"dev": 84}) | dict.fromkeys(ENCODER, {"encoder": 250})
# Generated databases by split, and questions of each.
GENERATED = {"train": (100, 15), "encoder": (100, 15), "dev": (28, 12)}
# In all: 6,020 SFT, 3,012 RL, 4,500 encoder and 3 x 336 = 1,008 evaluation questions.
MAX_ROWS = 400  # of the result of a question, so that a person can read it


def is_answerable(question: Question, connection: sqlite3.Connection) -> bool:
    """Whether the result of gold has rows, is not just NULL or 0, and does not depend on ties."""
    rows = connection.execute(question.sql).fetchmany(MAX_ROWS + 1)
    if not 0 < len(rows) <= MAX_ROWS or rows in ([(None,)], [(0,)]):
        return False
    if question.ties is None:
        return True
    keys = connection.execute(question.ties).fetchall()
    if question.limit == 0:  # any tie leaves the order open
        return len(set(keys)) == len(keys)
    return len(keys) > question.limit and keys[question.limit - 1] != keys[question.limit]


def draw_questions(
    draw: Draw,
    count: int,
    lexicons: dict[str, Lexicon],
    seen: set | None = None,
    shapes: Sequence[str] = tuple(SHAPES),
) -> list[dict]:
    """Draws ``count`` entries {"db_id", "query", "shape", lang: question}.

    They differ from each other, and from those in ``seen``, in SQL and in every language. Their
    texts are added to ``seen``.
    """
    weights = [SHAPES[shape][1] for shape in shapes]
    entries, seen = [], set() if seen is None else seen
    for _ in range(count * 200):
        if len(entries) == count:
            return entries
        try:
            question = draw_question(draw, draw.rng.choices(shapes, weights)[0])
        except LookupError:  # a table without a suitable column, for example
            continue
        key = question.sql.lower()  # databases may differ in the case of names alone
        if key in seen or not is_answerable(question, draw.connection):
            continue
        texts = {
            lang: lexicon.phrase(question, random.Random(f"{question.sql} {lang}"))
            for lang, lexicon in lexicons.items()
        }
        if seen.isdisjoint(texts.items()):
            seen.update((key, *texts.items()))
            entries.append(
                {"db_id": question.db, "query": question.sql, "shape": question.shape, **texts}
            )
    raise RuntimeError(f"{draw.db}: only {len(entries)} of {count} different questions")


def generated_databases() -> dict[str, GeneratedSchema]:
    """The generated databases, called by their split and a number."""
    generator = SchemaGenerator(LANGUAGES)
    names = [f"{split}_{n:03}" for split, (count, _) in GENERATED.items() for n in range(count)]
    return {db: generator.draw(db, random.Random(f"generated {db}")) for db in names}


def part_of(db: str) -> str:
    """The part of dev that the questions about a database belong to."""
    if db in UNSEEN:
        return "new words"
    return "known schema" if db in load_databases() else "new schema"


def split_questions(
    folder: Path,
    databases: dict[str, dict[str, Table]],
    lexicons: dict[str, Lexicon],
    seed: int = 0,
) -> dict[str, list[dict]]:
    """Draws the entries of each split; ``folder`` has the databases."""
    splits = {split: [] for split in SPLITS}
    seen = set()  # shared by all databases, since two of them have a table "animals"
    for db, tables in databases.items():
        split, _, number = db.partition("_")
        counts = {split: GENERATED[split][1]} if number else COUNTS.get(db, SEEN_COUNTS)
        with closing(sqlite3.connect(folder / db / f"{db}.sqlite")) as connection:
            draw = Draw(db, tables, connection, random.Random(f"{seed} {db}"))
            entries = draw_questions(draw, sum(counts.values()), lexicons, seen)
        draw.rng.shuffle(entries)
        for split, count in counts.items():
            splits[split] += entries[:count]
            entries = entries[count:]
    for entries in splits.values():
        random.Random(seed).shuffle(entries)
    for entry in splits["dev"]:
        entry["part"] = part_of(entry["db_id"])
    return splits


def source_hash() -> str:
    """A hash of all files that determine the dataset; fresh.py only uses them."""
    digest = hashlib.sha256()
    for path in sorted(HERE.rglob("*.py")) + sorted(HERE.rglob("*.toml")):
        if path.name == "fresh.py":
            continue
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def build() -> Path:
    """Returns the folder of the built dataset in the cache; builds it if it does not exist.

    The folder's name is a hash of the sources, so that a change to them leads to a new build.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = cache_folder("embedded") / source_hash()[:16]
    folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not folder.is_dir():
            write_directory(folder, write_dataset)
    return folder


def write_dataset(folder: Path) -> None:
    """Writes the databases and the questions of all languages."""
    root = folder / "dataset" / "spider" / "database"
    lexicons, generated = {lang: Lexicon(lang) for lang in LANGUAGES}, generated_databases()
    for lang, lexicon in lexicons.items():
        lexicon.entries |= {db: schema.words[lang] for db, schema in generated.items()}
    databases = load_databases() | {db: schema.tables for db, schema in generated.items()}
    for db, tables in databases.items():
        write_database(tables, root / db / f"{db}.sqlite")
    questions = folder / "dataset" / "multispider" / "with_English_value"
    questions.mkdir(parents=True)
    for split, entries in split_questions(root, databases, lexicons).items():
        for lang in LANGUAGES:
            rows = [
                {"db_id": e["db_id"], "query": e["query"], "question": e[lang], "shape": e["shape"]}
                | {key: e[key] for key in ("part",) if key in e}
                for e in entries
            ]
            text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            (questions / f"{split}_{lang}.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")


def show(lang: str, count: str, invented: float | None = None) -> None:
    """Prints newly drawn questions in English and another language with their SQL.

    Args:
        invented: draws a new schema for each question, in which this share of the tables and
            columns have invented names; None: the embedded databases.

    Raises:
        UserError: an unknown language, or a count that is not a number.
    """
    if lang not in LANGUAGES or not count.isdecimal():
        languages = ", ".join(LANGUAGES)
        raise UserError(f"--show {lang} {count}: expected a language ({languages}) and a number")
    lexicons = {name: Lexicon(name) for name in dict.fromkeys(("en", lang))}
    rng = random.Random()
    databases = load_databases()
    if invented is not None:
        generator, databases = SchemaGenerator(tuple(lexicons)), {}
        for number in range(int(count)):
            schema = generator.draw(f"schema_{number}", rng, invented=invented)
            databases[schema.db] = schema.tables
            for name, lexicon in lexicons.items():
                lexicon.entries[schema.db] = schema.words[name]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(int(count)):
            db = rng.choice(list(databases))
            path = Path(folder) / f"{db}.sqlite"
            if not path.exists():
                write_database(databases[db], path)
            connection = sqlite3.connect(path)
            (entry,) = draw_questions(Draw(db, databases[db], connection, rng), 1, lexicons)
            connection.close()
            print(f"\n[{db} {entry['shape']}]", *(entry[name] for name in lexicons), sep="\n")
            print(format_sql(entry["query"]))


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--show",
        nargs=2,
        metavar=("LANG", "COUNT"),
        help="print random questions instead of building",
    )
    parser.add_argument(
        "--invented",
        type=float,
        metavar="SHARE",
        help="with --show: on newly generated schemas, SHARE of whose names are invented words",
    )
    arguments = parser.parse_args(argv)
    if arguments.show:
        lang, count = arguments.show
        return exit_code(lambda: show(lang, count, arguments.invented))
    return exit_code(lambda: print(build()))


if __name__ == "__main__":
    sys.exit(main())
