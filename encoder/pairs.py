"""What the encoder learns from: each SQL of a dataset with its questions in all languages, and
batches of them with near misses beside.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from encoder.attacks import TRAINED, Target, attack
from encoder.negatives import draw_negatives, hard_negatives
from encoder.text import sql_text
from sqlenv import Schema, UserError, load_dataset, load_schema

ATTACK_SHARE = 0.5  # of SQLs have an attack among their negatives


@dataclass(frozen=True)
class Entry:
    """A SQL of a database, as the dataset has it, and its questions as (language, text)."""

    gold: str
    db_id: str
    schema: Schema
    questions: tuple[tuple[str, str], ...]


def load_entries(data: str, langs: Sequence[str], splits: Sequence[str]) -> list[Entry]:
    """The different SQLs of some splits. Raises UserError if a language or a file is not there."""
    schemas: dict[str, Schema] = {}
    found: dict[tuple[str, str], tuple[str, dict]] = {}
    for split in splits:
        for lang in langs:
            for example in load_dataset(data, lang, split):
                if example.db_id not in schemas:
                    schemas[example.db_id] = load_schema(example.db_path)
                # Texts that are the same to the encoder are one SQL.
                key = example.db_id, sql_text(example.gold_sql)
                questions = found.setdefault(key, (example.gold_sql, {}))[1]
                questions[lang, example.question] = None
    return [
        Entry(gold, db_id, schemas[db_id], tuple(questions))
        for (db_id, _), (gold, questions) in found.items()
    ]


def hold_out(entries: list[Entry], share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Entries to train on, and to calibrate on.

    Only SQL of a database that has several is held out, as there must be a wrong one to compare
    with. Raises UserError if that leaves nothing to train on or to hold out.
    """
    databases = by_database(entries)
    choice = [entry for entry in entries if len(databases[entry.db_id]) > 1]
    held_out = random.Random(seed).sample(choice, round(share * len(choice)))
    chosen = set(map(id, held_out))
    known = [entry for entry in entries if id(entry) not in chosen]
    if not held_out or not known:
        raise UserError(
            f"{len(choice)} different SQL texts are too few to train and calibrate an encoder"
        )
    return known, held_out


def by_database(entries: list[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.db_id, []).append(entry)
    return found


def epoch_batches(entries: list[Entry], size: int, rng: random.Random) -> list[list[Entry]]:
    """Every entry once, in batches of `size`: half mixed, half of one database, where all SQLs
    share tables and columns and only the meaning tells them apart.

    A database with fewer than `size` entries left shares its batch with the next one.
    """
    entries = rng.sample(entries, len(entries))
    mixed, grouped = entries[: len(entries) // 2], entries[len(entries) // 2 :]
    rank = {db_id: rng.random() for db_id in sorted({entry.db_id for entry in entries})}
    grouped.sort(key=lambda entry: rank[entry.db_id])  # stable: stays shuffled within a database
    batches = [
        part[start : start + size]
        for part in (mixed, grouped)
        for start in range(0, len(part), size)
    ]
    rng.shuffle(batches)
    return batches


@dataclass
class Batch:
    """N questions and M different SQL texts, the gold ones first."""

    questions: list[str]
    sqls: list[str]
    own: list[int]  # for each question the place of its SQL


def make_batch(
    entries: list[Entry], questions: int, negatives: int, with_schema: bool, rng: random.Random
) -> Batch:
    """At most so many questions and near misses of each SQL, drawn anew each time."""
    chosen = [rng.sample(e.questions, min(questions, len(e.questions))) for e in entries]
    schemas = [entry.schema if with_schema else None for entry in entries]
    place: dict[str, int] = {}
    own = []
    for entry, schema, asked in zip(entries, schemas, chosen):
        number = place.setdefault(sql_text(entry.gold, schema), len(place))
        own += [number] * len(asked)
    texts = [text for asked in chosen for _, text in asked]
    for entry, schema, asked in zip(entries, schemas, chosen):
        misses = draw_negatives(hard_negatives(entry.gold, entry.schema), negatives, rng)
        wrong = [miss.sql for miss in misses]
        if negatives and rng.random() < ATTACK_SHARE:
            target = Target(asked[0][1], rng.choice(texts), entry.gold, entry.schema, rng)
            wrong[-1:] = [attack(rng.choice(TRAINED), target)]
        for sql in wrong:
            place.setdefault(sql_text(sql, schema), len(place))
    return Batch(texts, list(place), own)
