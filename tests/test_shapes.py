"""The SQL shapes: what they ask on a small database by hand, and on many drawn ones."""

import random
import re
import sqlite3
from collections import Counter
from contextlib import closing

import pytest

from benchmarks.clauses import parts
from sqlenv.embedded.databases import Column, Table, fill_database, load_databases
from sqlenv.embedded.draw import Draw, Question
from sqlenv.embedded.generate import draw_questions, is_answerable
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.schemas import SchemaGenerator
from sqlenv.embedded.shapes import SHAPES, draw_question
from tests.test_data import UNTIDY, literals, stands_in

# ------------------------------------------------------------------ by hand

ROWS = {
    "artists": [(1, "Ana", "soft"), (2, "Bea", "loud"), (3, "Cleo", "soft")],
    "albums": [(1, "Uno", 1, 10), (2, "Dos", 1, 12), (3, "Tres", 2, 20), (4, "Cuatro", 3, 14)],
    "songs": [
        (1, "Alba", 1, "rock", 3),
        (2, "Brisa", 1, "jazz", 5),
        (3, "Cielo", 2, "rock", 4),
        (4, "Duna", 3, "jazz", 8),
        (5, "Eco", 1, "rock", 7),
    ],
}
COLUMNS = {
    "artists": [("artist_id", "id"), ("name", "person"), ("style", "choice")],
    "albums": [
        ("album_id", "id"),
        ("title", "combine"),
        ("artist_id", "ref artists"),
        ("price", "int"),
    ],
    "songs": [
        ("song_id", "id"),
        ("title", "combine"),
        ("album_id", "ref albums"),
        ("genre", "choice"),
        ("minutes", "int +"),
    ],
}
ALBUMS = "albums AS T1 JOIN songs AS T2 ON T1.album_id = T2.album_id"
ARTISTS = (
    "artists AS T1 JOIN albums AS T2 ON T1.artist_id = T2.artist_id "
    "JOIN songs AS T3 ON T2.album_id = T3.album_id"
)
# The mean of minutes is 5.4: of rock 4.67, of jazz 6.5. Cuatro has no songs, so Cleo has none.
EXAMPLES = {
    "group_order": (
        "SELECT genre, COUNT(*) FROM songs GROUP BY genre ORDER BY COUNT(*) DESC",
        [("rock", 3), ("jazz", 2)],
    ),
    "having_above_avg": (
        "SELECT genre FROM songs GROUP BY genre "
        "HAVING AVG(minutes) > (SELECT AVG(minutes) FROM songs)",
        [("jazz",)],
    ),
    "max_row": (
        "SELECT title FROM songs WHERE minutes = (SELECT MAX(minutes) FROM songs)",
        [("Duna",)],
    ),
    "above_avg_where": (
        "SELECT title FROM songs WHERE genre = 'rock' "
        "AND minutes > (SELECT AVG(minutes) FROM songs)",
        [("Eco",)],
    ),
    "child_order": (
        "SELECT T1.title FROM songs AS T1 JOIN albums AS T2 ON T1.album_id = T2.album_id "
        "WHERE T2.title = 'Uno' ORDER BY T1.minutes DESC",
        [("Eco",), ("Brisa",), ("Alba",)],
    ),
    "child_count_where": (
        f"SELECT T1.title, COUNT(*) FROM {ALBUMS} WHERE T2.genre = 'rock' GROUP BY T1.album_id",
        [("Dos", 1), ("Uno", 2)],
    ),
    "child_count_order": (
        f"SELECT T1.title, COUNT(*) FROM {ALBUMS} GROUP BY T1.album_id "
        "ORDER BY COUNT(*) DESC, T1.title",
        [("Uno", 3), ("Dos", 1), ("Tres", 1)],
    ),
    "child_top_sum": (
        f"SELECT T1.title FROM {ALBUMS} GROUP BY T1.album_id ORDER BY SUM(T2.minutes) DESC LIMIT 1",
        [("Uno",)],
    ),
    "child_none_where": (
        "SELECT title FROM albums "
        "WHERE album_id NOT IN (SELECT album_id FROM songs WHERE genre = 'rock')",
        [("Cuatro",), ("Tres",)],
    ),
    "parent_group_avg": (
        "SELECT T2.style, AVG(T1.price) FROM albums AS T1 "
        "JOIN artists AS T2 ON T1.artist_id = T2.artist_id GROUP BY T2.style",
        [("loud", 20), ("soft", 12)],
    ),
    "grand_count": (
        f"SELECT T1.name, COUNT(*) FROM {ARTISTS} GROUP BY T1.artist_id",
        [("Ana", 4), ("Bea", 1)],
    ),
    "grand_exists": (
        f"SELECT DISTINCT T1.name FROM {ARTISTS} WHERE T3.genre = 'jazz'",
        [("Ana",), ("Bea",)],
    ),
    "intersect_child": (
        f"SELECT T1.title FROM {ALBUMS} WHERE T2.genre = 'rock' "
        f"INTERSECT SELECT T1.title FROM {ALBUMS} WHERE T2.genre = 'jazz'",
        [("Uno",)],
    ),
    "except_child": (
        f"SELECT title FROM albums EXCEPT SELECT T1.title FROM {ALBUMS} WHERE T2.genre = 'rock'",
        [("Cuatro",), ("Tres",)],
    ),
}


@pytest.fixture(scope="module")
def music():
    """Draws from the tables above."""
    tables = {}
    with closing(sqlite3.connect(":memory:")) as connection:
        for name, columns in COLUMNS.items():
            tables[name] = Table("music", name, len(ROWS[name]))
            for column, text in columns:
                kind, _, args = text.partition(" ")
                tables[name].columns.append(Column(column, kind, args, False, args == "+"))
            connection.execute(f"CREATE TABLE {name} ({', '.join(c for c, _ in columns)})")
            marks = ", ".join("?" * len(columns))
            connection.executemany(f"INSERT INTO {name} VALUES ({marks})", ROWS[name])
        yield Draw("music", tables, connection, random.Random(0))


def attempt(draw: Draw, shape: str) -> Question | None:
    """An answerable question, unless the drawn parts do not fit together."""
    try:
        question = draw_question(draw, shape)
    except LookupError:
        return None
    return question if is_answerable(question, draw.connection) else None


@pytest.mark.parametrize("shape", EXAMPLES)
def test_sql_and_result_by_hand(music, shape):
    sql, expected = EXAMPLES[shape]
    drawn = {q.sql for _ in range(1500) if (q := attempt(music, shape))}
    assert sql in drawn
    rows = music.connection.execute(sql).fetchall()
    assert (rows if " ORDER BY " in sql else sorted(rows)) == expected


def test_nothing_else_is_asked_about_three_generations(music):
    drawn = {q.sql for _ in range(100) for s in ("grand_count", "grand_top")
             if (q := attempt(music, s))}  # fmt: skip
    top = EXAMPLES["grand_count"][0].replace(", COUNT(*) FROM", " FROM")
    assert drawn == {EXAMPLES["grand_count"][0], f"{top} ORDER BY COUNT(*) DESC LIMIT 1"}


def test_two_generations_are_no_three(music):
    tables = {name: music.tables[name] for name in ("artists", "albums")}
    draw = Draw("music", tables, music.connection, random.Random(0))
    with pytest.raises(LookupError):
        draw_question(draw, "grand_list")


# ------------------------------------------------------------------ on drawn databases


@pytest.fixture(scope="module")
def draws():
    """Draws from three embedded databases, in which some tables have grandparents."""
    embedded = load_databases()
    connections = []
    drawn = []
    for db in ("library", "music", "football"):
        connections.append(sqlite3.connect(":memory:"))
        fill_database(connections[-1], embedded[db])
        drawn.append(Draw(db, embedded[db], connections[-1], random.Random(db)))
    yield drawn
    for connection in connections:
        connection.close()


@pytest.fixture(scope="module")
def lexicon():
    return Lexicon("en")


class Pick:
    """Chooses the option with this number."""

    def __init__(self, number: int):
        self.number = number

    def choice(self, options):
        return options[self.number]


def test_every_shape_has_four_templates(lexicon):
    assert lexicon.templates.keys() == SHAPES.keys()
    assert {s: t for s, t in lexicon.templates.items() if len(set(t)) < 4} == {}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_answered_and_said_in_every_way(draws, lexicon, shape):
    questions = [q for draw in draws for _ in range(60) if (q := attempt(draw, shape))]
    assert questions
    for question in questions[:20]:
        texts, numbers = literals(question.sql)
        phrasings = [lexicon.phrase(question, Pick(i))
                     for i in range(len(lexicon.templates[shape]))]  # fmt: skip
        for text in phrasings:
            assert all(part in text for part in texts), text
            assert all(stands_in(number, text) for number in numbers), text
        assert len(set(phrasings)) == len(phrasings)


def test_every_shape_fails_only_with_a_lookup_error():
    """Also on schemas of one table, or of tables that nothing names."""
    generator, rng = SchemaGenerator(("en",)), random.Random(1)
    for number in range(25):
        schema = generator.draw(f"schema_{number}", rng)
        with closing(sqlite3.connect(":memory:")) as connection:
            fill_database(connection, schema.tables)
            draw = Draw(schema.db, schema.tables, connection, rng)
            for shape in SHAPES:
                attempt(draw, shape)


@pytest.mark.parametrize("shape", [s for s in SHAPES if "topn" in s])
def test_the_first_rows_have_one_order(draws, shape):
    """No two of the first n + 1 sort keys are equal."""
    for draw in draws:
        for question in filter(None, (attempt(draw, shape) for _ in range(60))):
            keys = draw.connection.execute(question.ties).fetchall()[: question.limit + 1]
            assert len(set(keys)) == question.limit + 1, question.sql


def test_clauses_are_about_as_frequent_as_in_spider(lexicon):
    """The percentages of Spider's dev split are in docs/results.md."""
    spider = {"where": 50, "join": 42, "two joins or more": 7, "aggregate": 53, "group by": 26}
    spider |= {"having": 8, "order by": 22, "limit": 17, "nested query": 9, "between": 1}
    spider |= {"union": 2, "intersect": 4, "except": 3}
    spider |= {"easy": 23, "medium": 42, "hard": 16, "extra": 18}
    generator, rng, counts, asked = SchemaGenerator(("en",)), random.Random(2), Counter(), 0
    for number in range(200):
        schema = generator.draw(f"schema_{number}", rng)
        lexicon.entries[schema.db] = schema.words["en"]
        with closing(sqlite3.connect(":memory:")) as connection:
            fill_database(connection, schema.tables)
            draw = Draw(schema.db, schema.tables, connection, rng)
            for entry in draw_questions(draw, 5, {"en": lexicon}):
                counts.update(parts(entry["query"]))
                asked += 1
    shares = {name: 100 * counts[name] / asked for name in spider}
    far = {name: share for name, share in shares.items() if abs(share - spider[name]) > 7}
    assert far == {}


def test_questions_are_tidy(draws, lexicon):
    for draw in draws:
        for entry in draw_questions(draw, 100, {"en": lexicon}):
            for name, pattern in UNTIDY.items():
                assert not re.search(pattern, entry["en"]), (name, entry["en"])
