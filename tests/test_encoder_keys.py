"""Conditions along keys, which the encoder reads without their columns."""

import sqlite3
from collections import defaultdict
from contextlib import closing

import pytest

from encoder.batches import hard_negatives
from encoder.rewrites import equivalent_rewrites
from encoder.text import sql_text
from sqlenv import EMBEDDED, load_dataset, load_schema

TABLES = """
CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, boss INTEGER REFERENCES singer(id));
CREATE TABLE concert (id INTEGER PRIMARY KEY, singer_id INTEGER REFERENCES singer, year INTEGER);
CREATE TABLE airport (code TEXT PRIMARY KEY, city TEXT);
CREATE TABLE flight (start TEXT REFERENCES airport(code), goal TEXT REFERENCES airport(code));
CREATE TABLE seat (row INTEGER, letter TEXT, PRIMARY KEY (row, letter));
CREATE TABLE ticket (row INTEGER, letter TEXT,
    FOREIGN KEY (row, letter) REFERENCES seat(row, letter));
CREATE TABLE "order line" (singer_id INTEGER REFERENCES singer(id), note TEXT);
CREATE TABLE city (id INTEGER PRIMARY KEY, city TEXT);
CREATE TABLE shop (city_id INTEGER REFERENCES city(id), name TEXT);
"""


def make_schema(folder, script):
    with closing(sqlite3.connect(folder / "k.sqlite")) as connection:
        connection.executescript(script)
    return load_schema(folder / "k.sqlite")


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return make_schema(tmp_path_factory.mktemp("keys"), TABLES)


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        (
            "SELECT a.name FROM singer a JOIN concert b ON b.singer_id = a.id",
            "SELECT t1.name FROM singer AS t1 JOIN concert AS t2 ON t1 = t2",
        ),
        (
            "SELECT name FROM singer JOIN concert ON Singer.ID == concert.singer_id AND year > 9",
            "SELECT name FROM singer AS t1 JOIN concert AS t2 ON t1 = t2 AND year > 9",
        ),
        (
            "SELECT 1 FROM singer a, concert b WHERE (a.id = b.singer_id OR a.name = 'x')",
            "SELECT 1 FROM singer AS t1, concert AS t2 WHERE (t1 = t2 OR t1.name = 'x')",
        ),
        (
            "SELECT 1 FROM singer a LEFT JOIN concert b ON a.id = b.singer_id GROUP BY a.id, year",
            "SELECT 1 FROM singer AS t1 LEFT JOIN concert AS t2 ON t1 = t2 GROUP BY t1, year",
        ),
        (
            "SELECT 1 FROM singer WHERE (SELECT 1 FROM concert c WHERE c.singer_id = singer.id)",
            "SELECT 1 FROM singer WHERE (SELECT 1 FROM concert AS t1 WHERE singer = t1)",
        ),
        (
            "SELECT name FROM singer WHERE id NOT IN (SELECT DISTINCT singer_id FROM concert)",
            "SELECT name FROM singer WHERE singer NOT IN (SELECT concert FROM concert)",
        ),
        (
            "SELECT a.name FROM singer a WHERE a.id IN (SELECT b.singer_id FROM concert b)",
            "SELECT t1.name FROM singer AS t1 WHERE t1 IN (SELECT t2 FROM concert AS t2)",
        ),
        (
            'SELECT note FROM "order line" AS a JOIN singer AS b ON a."singer_id" = b.id',
            'SELECT note FROM "order line" AS t1 JOIN singer AS t2 ON t1 = t2',
        ),
        (
            "SELECT 1 FROM singer WHERE (VALUES (1) EXCEPT SELECT 1 FROM singer, concert"
            " WHERE 1 AND singer.id = concert.singer_id)",
            "SELECT 1 FROM singer WHERE (VALUES (1) EXCEPT SELECT 1 FROM singer AS t1,"
            " concert AS t2 WHERE 1 AND t1 = t2)",
        ),
        (
            'SELECT 1 FROM "order line" JOIN singer ON "order line".singer_id = singer.id',
            'SELECT 1 FROM "order line" AS t1 JOIN singer AS t2 ON t1 = t2',
        ),
        (
            "SELECT 1 FROM city JOIN shop ON city.id = shop.city_id",  # city is a column, too
            "SELECT 1 FROM city AS t1 JOIN shop AS t2 ON t1 = t2",
        ),
    ],
)
def test_a_key_is_read_without_its_columns(schema, sql, text):
    assert sql_text(sql, schema, with_schema=False) == text


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 FROM singer JOIN concert ON singer.id = concert.id",  # no key
        "SELECT 1 FROM singer JOIN concert ON singer.id > concert.singer_id",
        "SELECT 1 FROM singer JOIN concert ON singer.id = concert.singer_id + 1",
        "SELECT 1 FROM singer JOIN concert ON NOT singer.id = concert.singer_id",
        "SELECT 1 FROM airport JOIN flight ON airport.code = flight.start",  # there are two keys
        "SELECT 1 FROM seat JOIN ticket ON seat.row = ticket.row",  # half of a key
        "SELECT 1 FROM singer AS t1 JOIN singer AS t2 ON t1.boss = t2.id",  # of one table
        "WITH w1 AS (SELECT 1) SELECT 1 FROM w1 JOIN concert ON w1.id = concert.singer_id",
        "SELECT 1 FROM concert GROUP BY concert.singer_id",
        "SELECT 1 FROM ticket GROUP BY ticket.row",
        "SELECT 1 FROM seat GROUP BY seat.row",
        "SELECT 1 FROM singer WHERE id IN (SELECT id FROM concert)",
        "SELECT 1 FROM singer WHERE 1 + id IN (SELECT singer_id FROM concert)",
        "SELECT 1 FROM singer WHERE id IN (SELECT max(singer_id) FROM concert)",
        "SELECT 1 FROM singer WHERE id IN (SELECT singer_id FROM concert UNION SELECT 1)",
        "SELECT 1 FROM singer, airport WHERE id IN (SELECT singer_id FROM concert)",
        # The short form would be that of another query, or of a string.
        "SELECT 1 FROM city GROUP BY city.id",
        "SELECT 1 FROM city WHERE id IN (SELECT city_id FROM shop)",
        # What looks like the operand of IN is a part of one.
        "SELECT 1 FROM singer WHERE 5 BETWEEN 1 AND id IN (SELECT singer_id FROM concert)",
        "SELECT 1 FROM singer WHERE name IS NOT id IN (SELECT singer_id FROM concert)",
        "SELECT 1 FROM singer WHERE name IN (VALUES (id) UNION SELECT singer_id FROM concert)",
        "SELECT 1 FROM singer WHERE name IN (WITH w1 AS (SELECT 1 WHERE id) SELECT singer_id"
        " FROM concert WHERE year IN w1)",
        # The other table of a FROM is not seen; singer is an airport here.
        "SELECT 1 FROM airport AS t1 WHERE EXISTS (SELECT 1 FROM singer AS t1,"
        " (SELECT 1 FROM concert WHERE t1.id = concert.singer_id))",
    ],
)
def test_other_conditions_keep_their_columns(schema, sql):
    """Without a schema nothing is a key."""
    assert sql_text(sql, schema, with_schema=False) == sql_text(sql)


def test_tables_that_are_called_like_new_names(tmp_path):
    """x becomes t1, which is another table here. So no condition is shortened."""
    schema = make_schema(tmp_path, TABLES + "CREATE TABLE t1 (n INTEGER);")
    sql = "SELECT 1 FROM singer AS x, t1, concert WHERE x.id = concert.singer_id"
    text = "SELECT 1 FROM singer AS t1, t1 AS t2, concert AS t3 WHERE t1.id = t3.singer_id"
    assert sql_text(sql, schema, with_schema=False) == text


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        # A column hides an alias of its name, but not in a whole sort key.
        (
            "SELECT count(*) AS year FROM concert WHERE year > 2014",
            "SELECT count(*) FROM concert WHERE year > 2014",
        ),
        (
            "SELECT count(*) AS year FROM concert GROUP BY year HAVING year > 9 ORDER BY year + 1",
            "SELECT count(*) FROM concert GROUP BY year HAVING year > 9 ORDER BY year + 1",
        ),
        (
            "SELECT max(id) AS year FROM concert GROUP BY singer_id ORDER BY year",
            "SELECT max(id) AS c1 FROM concert GROUP BY singer_id ORDER BY c1",
        ),
        (
            "SELECT count(*) AS year FROM singer WHERE"
            " EXISTS (SELECT 1 FROM concert WHERE year > 9)",
            "SELECT count(*) FROM singer WHERE EXISTS (SELECT 1 FROM concert WHERE year > 9)",
        ),
        (
            "WITH w AS (SELECT max(id) AS year FROM concert) SELECT year FROM w",
            "WITH w1 AS (SELECT max(id) AS c1 FROM concert) SELECT c1 FROM w1",
        ),
        # A table without an alias keeps its name where another is called like it.
        (
            "SELECT concert.name FROM singer AS concert"
            " WHERE EXISTS (SELECT 1 FROM concert WHERE concert.id = 3)",
            "SELECT t1.name FROM singer AS t1"
            " WHERE EXISTS (SELECT 1 FROM concert WHERE concert.id = 3)",
        ),
        (
            "SELECT concert.name FROM singer AS concert"
            " WHERE EXISTS (SELECT 1 FROM shop WHERE concert.id = 3)",
            "SELECT t1.name FROM singer AS t1 WHERE EXISTS (SELECT 1 FROM shop WHERE t1.id = 3)",
        ),
        # A column has the name of this table; its alias, t1, is no column.
        (
            "SELECT 1 FROM city AS city JOIN shop AS shop ON city.id = shop.city_id",
            "SELECT 1 FROM city AS t1 JOIN shop AS t2 ON t1 = t2",
        ),
    ],
)
def test_what_a_name_is_depends_on_the_schema(schema, sql, text):
    assert sql_text(sql, schema, with_schema=False) == text


def test_columns_that_are_called_like_new_names(tmp_path):
    """x, singer and concert become t1, t2 and t3, of which two are columns of x."""
    schema = make_schema(tmp_path, TABLES + "CREATE TABLE x (t1 INTEGER, t2 INTEGER);")
    start = "SELECT 1 FROM x, singer AS singer JOIN concert AS concert ON "
    text = "SELECT 1 FROM x AS t1, singer AS t2 JOIN concert AS t3 ON "
    for before, after in (
        ("singer.id = concert.singer_id", "t2.id = t3.singer_id"),
        ("t1 = t2", "t1 = t2"),
    ):
        assert sql_text(start + before, schema, with_schema=False) == text + after


def test_without_a_schema_nothing_is_a_key():
    sql = "SELECT 1 FROM singer AS t1 JOIN concert AS t2 ON t1.id = t2.singer_id GROUP BY t1.id"
    assert sql_text(sql) == sql


def test_queries_of_equal_text_give_equal_rows():
    """Gold, its hard negatives and its rewrites, on real databases."""
    shortened = equal = 0
    for example in load_dataset(EMBEDDED, "en", "dev")[::20]:
        schema, queries = load_schema(example.db_path), defaultdict(list)
        gold = example.gold_sql
        others = [*hard_negatives(gold, schema), *equivalent_rewrites(gold)]
        for sql in (gold, *(other.sql for other in others)):
            queries[sql_text(sql, schema, with_schema=False)].append(sql)
            shortened += sql_text(sql, schema, with_schema=False) != sql_text(sql)
        with closing(sqlite3.connect(f"file:{example.db_path}?mode=ro", uri=True)) as connection:
            for first, *rest in queries.values():
                for sql in rest:
                    rows = [
                        sorted(connection.execute(s).fetchall(), key=repr) for s in (first, sql)
                    ]
                    assert rows[0] == rows[1], (first, sql)
                    equal += 1
    assert shortened > 200 and equal > 20
