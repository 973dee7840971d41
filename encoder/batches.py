"""Training data of the encoder: SQL with its questions, hard negatives, and batches of both.

A hard negative is SQL that is almost right. Another SQL query of the database is easy to tell from
gold, as it reads other tables; the reward is needed where two queries differ by `>` and `>=`. So
the hard negatives are the mutants of `sqlenv/testsuite/`, which also select the databases of a test
suite. They are derived from the parsed query, which leaves the inside of literals unchanged.
"""

import functools
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from encoder.attacks import TRAINED, AttackInput, attack
from encoder.text import sql_text
from sqlenv import Dataset, Mutant, Schema, UserError, by_database, load_schema, make_mutants
from sqlenv.testsuite.mutants import KINDS as MUTANT_KINDS

KINDS = tuple(MUTANT_KINDS)
# How much more often than others a kind is drawn: what encoders confuse longest.
HARDER = {"column": 3, "table": 3}
ATTACK_SHARE = 0.5  # of the SQL queries have an attack among their hard negatives


@dataclass(frozen=True)
class Entry:
    """A SQL query of a database, as in the dataset, and its questions as (language, text)."""

    gold: str
    db_id: str
    schema: Schema
    questions: tuple[tuple[str, str], ...]


def load_entries(dataset: Dataset, *, langs: Sequence[str], splits: Sequence[str]) -> list[Entry]:
    """The distinct SQL queries of some splits, each with its questions in all of `langs`.

    Queries of a database whose `sql_text` is equal are one entry. Questions without SQL are left
    out.

    Raises:
        UserError: a language, a split or a file does not exist.
    """
    schemas: dict[str, Schema] = {}
    golds: dict[tuple[str, str], str] = {}
    questions: dict[tuple[str, str], dict[tuple[str, str], None]] = {}  # ordered sets
    for split in splits:
        for lang in langs:
            for example in dataset.load(lang, split):
                if not example.gold_sql:
                    continue
                if example.db_id not in schemas:
                    schemas[example.db_id] = load_schema(example.db_path)
                key = example.db_id, sql_text(example.gold_sql)
                golds.setdefault(key, example.gold_sql)
                questions.setdefault(key, {})[lang, example.question] = None
    return [
        Entry(gold, key[0], schemas[key[0]], tuple(questions[key])) for key, gold in golds.items()
    ]


def hold_out(entries: list[Entry], *, share: float, seed: int) -> tuple[list[Entry], list[Entry]]:
    """Splits entries at random: those to train on, and a share to calibrate on.

    Only entries are held out that calibration can compare with another SQL query.

    Raises:
        UserError: there is nothing left to train on, or nothing to hold out.
    """
    databases = by_database(entries)
    eligible = [entry for entry in entries if any(wrong_entries(entry, databases[entry.db_id]))]
    held_out = random.Random(seed).sample(eligible, round(share * len(eligible)))
    held_out_ids = set(map(id, held_out))
    known = [entry for entry in entries if id(entry) not in held_out_ids]
    if not held_out or not known:
        raise UserError(
            f"{len(eligible)} different SQL texts are too few to train and calibrate an encoder"
        )
    return known, held_out


def wrong_entries(entry: Entry, entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yields those of a database's entries whose SQL answers none of the questions of `entry`."""
    questions = set(entry.questions)
    for other in entries:
        if other is not entry and questions.isdisjoint(other.questions):
            yield other


def hash_of(entries: list[Entry]) -> str:
    """A hash of the questions, the SQL and the schemas."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(json.dumps([entry.db_id, entry.gold, entry.questions]).encode())
    for db_id, (first, *_) in by_database(entries).items():
        digest.update(json.dumps([db_id, repr(first.schema)]).encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=100_000)
def hard_negatives(sql: str, schema: Schema) -> tuple[Mutant, ...]:
    """All hard negatives (sql, kind) of a query, in an order that depends on the arguments only."""
    return tuple(make_mutants(sql, schema))


def draw_negatives(negatives: Sequence[Mutant], count: int, rng: random.Random) -> list[Mutant]:
    """Draws at most `count` hard negatives without replacement, each time the kind first.

    A query may have ten other columns to confuse but one DISTINCT to drop: by the kind, the one is
    drawn `HARDER` times as often as the other, and not ten times.
    """
    by_kind: dict[str, list[Mutant]] = {}
    for negative in rng.sample(negatives, len(negatives)):
        by_kind.setdefault(negative.kind, []).append(negative)
    drawn = []
    while by_kind and len(drawn) < count:
        (kind,) = rng.choices(list(by_kind), [HARDER.get(kind, 1) for kind in by_kind])
        drawn.append(by_kind[kind].pop())
        if not by_kind[kind]:
            del by_kind[kind]
    return drawn


def epoch_batches(entries: list[Entry], size: int, rng: random.Random) -> list[list[Entry]]:
    """Every entry once, in batches of `size`: half of them mixed, half of one database each.

    The SQL queries of one database share tables and columns, so only the meaning tells them apart.
    A database with fewer than `size` entries left shares its batch with the next one.
    """
    entries = rng.sample(entries, len(entries))
    mixed, grouped = entries[: len(entries) // 2], entries[len(entries) // 2 :]
    rank = {db_id: rng.random() for db_id in sorted({entry.db_id for entry in entries})}
    grouped.sort(key=lambda entry: rank[entry.db_id])  # stable: stays shuffled within a database
    batches = [
        half[start : start + size]
        for half in (mixed, grouped)
        for start in range(0, len(half), size)
    ]
    rng.shuffle(batches)
    return batches


@dataclass
class Batch:
    """N questions and M distinct SQL texts, the gold ones first, then hard negatives.

    Attributes:
        positives: for each question the index of its gold SQL in `sqls`.
    """

    questions: list[str]
    sqls: list[str]
    positives: list[int]


def make_batch(
    entries: list[Entry], *, questions: int, negatives: int, with_schema: bool, rng: random.Random
) -> Batch:
    """Draws at most `questions` questions and `negatives` hard negatives of each entry.

    Unless `negatives` is 0, an attack replaces the last one for `ATTACK_SHARE` of the entries.
    """
    drawn = [rng.sample(e.questions, min(questions, len(e.questions))) for e in entries]
    read = functools.partial(sql_text, with_schema=with_schema)
    index: dict[str, int] = {}  # of each distinct SQL text
    positives = []
    for entry, asked in zip(entries, drawn):
        row = index.setdefault(read(entry.gold, entry.schema), len(index))
        positives += [row] * len(asked)
    texts = [text for asked in drawn for _, text in asked]
    for entry, asked in zip(entries, drawn):
        pool = hard_negatives(entry.gold, entry.schema)
        wrong = [negative.sql for negative in draw_negatives(pool, negatives, rng)]
        if negatives and rng.random() < ATTACK_SHARE:
            inputs = AttackInput(asked[0][1], rng.choice(texts), entry.gold, entry.schema)
            wrong[-1:] = [attack(rng.choice(TRAINED), inputs)]
        for sql in wrong:
            index.setdefault(read(sql, entry.schema), len(index))
    return Batch(texts, list(index), positives)
