"""Mutants that differ from gold only on rows that few databases have, and the suites for them."""

import pytest

from sqlenv import Sandbox, canonical_sql, load_suite, make_mutants, suite_matches
from sqlenv.testsuite.edge_cases import EDGE_KINDS
from tests.test_mutants import of_kind
from tests.test_testsuite import execution_match, write_database

# query: every mutant of these kinds, as canonical SQL
EXPECTED = {
    ("SELECT id FROM fan UNION SELECT id FROM singer", "row_limit"): [
        "SELECT id FROM fan UNION SELECT id FROM singer LIMIT 100",
    ],
    ("WITH f AS (SELECT id FROM fan) SELECT id FROM f", "row_limit"): [
        "WITH f AS (SELECT id FROM fan) SELECT id FROM f LIMIT 100",
    ],
    ("SELECT age, count(*) FROM fan GROUP BY age", "row_limit"): [
        "SELECT age, count(*) FROM fan GROUP BY age LIMIT 100",
    ],
    ("SELECT count(*) FROM fan", "row_limit"): [],  # one row
    ("SELECT id FROM fan ORDER BY age LIMIT 3", "row_limit"): [],
    ("SELECT id FROM fan WHERE name = 'Al' AND age = 3 OR name != '7'", "letter_case"): [
        "SELECT id FROM fan WHERE name = 'Al' COLLATE NOCASE AND age = 3 OR name != '7'",
    ],
    ("SELECT id FROM fan WHERE name NOT IN ('Al', 'Bo') AND name LIKE '%a_'", "letter_case"): [
        "SELECT id FROM fan WHERE name COLLATE NOCASE NOT IN ('Al', 'Bo') AND name LIKE '%a_'",
        "SELECT id FROM fan WHERE name NOT IN ('Al', 'Bo') AND name GLOB '*a?'",
    ],
    ("SELECT id FROM fan WHERE name = \"Al\" AND age = 3", "substring"): [
        "SELECT id FROM fan WHERE name LIKE \"%Al%\" AND age = 3",
    ],
    # no NULL in a primary key
    ("SELECT DISTINCT id, name FROM fan WHERE age <> 3 AND id != 4", "null"): [
        "SELECT DISTINCT id, coalesce(name, '') FROM fan WHERE age <> 3 AND id != 4",
        "SELECT DISTINCT id, name FROM fan WHERE (age <> 3 OR age IS NULL) AND id != 4",
    ],
    ("SELECT id FROM fan WHERE id = 3 OR id = 4 ORDER BY age, id LIMIT 3", "null"): [
        "SELECT id FROM fan WHERE age IS NOT NULL AND (id = 3 OR id = 4) ORDER BY age, id LIMIT 3",
    ],
    ("SELECT avg(age), count(name) FROM fan WHERE name NOT LIKE 'a%'", "null"): [
        "SELECT avg(coalesce(age, 0)), count(name) FROM fan WHERE name NOT LIKE 'a%'",
        "SELECT avg(age), count(name) FROM fan WHERE (name NOT LIKE 'a%' OR name IS NULL)",
    ],
    ("SELECT id FROM fan WHERE age NOT IN (SELECT age FROM singer)", "not_null_key"): [
        "SELECT id FROM fan WHERE age NOT IN (SELECT age FROM singer WHERE age IS NOT NULL)",
    ],
    ("SELECT id FROM fan WHERE age NOT IN (SELECT age FROM singer WHERE id = 1 OR id = 2)",
     "not_null_key"): [
        "SELECT id FROM fan WHERE age NOT IN"
        " (SELECT age FROM singer WHERE age IS NOT NULL AND (id = 1 OR id = 2))",
    ],
    ("SELECT f.id FROM fan f JOIN singer s ON f.age = s.age JOIN concert c ON c.name = s.name",
     "outer_join"): [
        "SELECT f.id FROM fan f LEFT JOIN singer s ON f.age = s.age"
        " LEFT JOIN concert c ON c.name = s.name",
    ],
    # c.day = '' drops the rows that LEFT JOIN adds
    ("SELECT f.id FROM fan f JOIN singer s ON f.age = s.age JOIN concert c ON c.name = s.name"
     " WHERE c.day = ''", "outer_join"): [],
    ("SELECT age FROM fan WHERE age > 3 GROUP BY age HAVING avg(age) >= 5 AND avg(age) < 9",
     "fraction"): [  # age is an integer, its average is not
        "SELECT age FROM fan WHERE age > 3 GROUP BY age HAVING avg(age) >= 4.5 AND avg(age) < 9",
        "SELECT age FROM fan WHERE age > 3 GROUP BY age HAVING avg(age) >= 5 AND avg(age) < 8.5",
    ],
}  # fmt: skip


@pytest.mark.parametrize("sql, kind", EXPECTED)
def test_mutants_of_a_kind(sql, kind):
    assert sorted(of_kind(sql, kind)) == sorted(map(canonical_sql, EXPECTED[sql, kind]))


def test_every_kind_is_expected_somewhere_and_only_on_request():
    """The encoder's hard negatives are the mutants without them."""
    assert {kind for _, kind in EXPECTED} == set(EDGE_KINDS)
    for sql, _ in EXPECTED:
        assert not any(mutant.kind in EDGE_KINDS for mutant in make_mutants(sql))


SHOP = """
CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT, country TEXT);
CREATE TABLE shop (id INTEGER PRIMARY KEY, name TEXT, area REAL, staff INTEGER, owner TEXT,
                   city_id INTEGER REFERENCES city(id));
INSERT INTO city VALUES (1, 'Hue', 'Vietnam'), (2, 'Nice', 'France');
INSERT INTO shop VALUES (1, 'A', 20, 3, 'Ann', 1), (2, 'B', 30, 5, 'Bob', 2),
  (3, 'C', 40, 8, 'Ann', 2);
"""
# Predictions with gold's rows on SHOP, each in another spelling than the mutants. They differ from
# gold on more than 100 shops; on a country "france"; on a shop without a name, staff or owner; on a
# country "French Guiana"; on an area of 30.25; on a city without a shop.
MISTAKES = [
    ("SELECT name FROM shop", "SELECT name FROM shop LIMIT 100"),
    ("SELECT name FROM shop", "SELECT ifnull(name, '') FROM shop"),
    ("SELECT name FROM shop WHERE area > 20", "SELECT name FROM shop WHERE area > 20 LIMIT 100"),
    ("SELECT id FROM city WHERE country = 'France'",
     "SELECT id FROM city WHERE lower(country) = 'france'"),
    ("SELECT id FROM city WHERE country = 'France'",
     "SELECT id FROM city WHERE country LIKE 'france'"),
    ("SELECT id FROM city WHERE country = 'France'",
     "SELECT id FROM city WHERE instr(country, 'France') > 0"),
    ("SELECT count(*) FROM shop WHERE area > 30", "SELECT count(*) FROM shop WHERE area >= 31"),
    ("SELECT avg(staff) FROM shop", "SELECT avg(ifnull(staff, 0)) FROM shop"),
    ("SELECT id FROM shop WHERE owner != 'Ann'",
     "SELECT id FROM shop WHERE owner IS NOT 'Ann'"),
    ("SELECT id FROM city WHERE name NOT IN (SELECT owner FROM shop)",
     "SELECT id FROM city WHERE NOT EXISTS (SELECT * FROM shop WHERE owner = city.name)"),
    ("SELECT c.name, s.id FROM city c JOIN shop s ON s.city_id = c.id",
     "SELECT c.name, s.id FROM city c LEFT JOIN shop s ON s.city_id = c.id"),
]  # fmt: skip
# Right: a shop has its city in the given database, so the suite's shops have theirs.
RIGHT = [
    ("SELECT s.name FROM shop s JOIN city c ON s.city_id = c.id",
     "SELECT s.name FROM shop s LEFT JOIN city c ON s.city_id = c.id"),
    ("SELECT id FROM city WHERE id NOT IN (SELECT city_id FROM shop)",
     "SELECT id FROM city WHERE NOT EXISTS (SELECT * FROM shop WHERE city_id = city.id)"),
    ("SELECT name FROM shop WHERE staff > 3", "SELECT name FROM shop WHERE staff >= 4"),
]  # fmt: skip


def test_suites_see_what_people_write(tmp_path):
    """All of MISTAKES are right by EX, none by TS; RIGHT is right by both."""
    path = write_database(tmp_path / "shop.sqlite", SHOP)
    with Sandbox() as sandbox:
        suite = load_suite(path, {g for g, _ in MISTAKES + RIGHT}, sandbox, cache=tmp_path / "c")
        assert all(execution_match(sandbox, path, *pair) for pair in MISTAKES + RIGHT)
        wrong = suite_matches(sandbox, [(suite, *pair) for pair in MISTAKES])
        assert [pair for pair, match in zip(MISTAKES, wrong) if match] == []
        assert all(suite_matches(sandbox, [(suite, *pair) for pair in RIGHT]))
