"""Forms of a query that mean the same have the text of gold."""

import re
import sqlite3
from contextlib import closing

import pytest

from encoder.text import sql_text
from sqlenv import EMBEDDED, load_dataset, load_schema


@pytest.mark.parametrize(
    "sql, text",
    [
        (
            "SELECT x.a FROM x INNER JOIN y ON x.a == y.b",
            "SELECT t1.a FROM x AS t1 JOIN y AS t2 ON t1.a = t2.b",
        ),
        ("SELECT X.a FROM x, y z", "SELECT t1.a FROM x AS t1, y AS t2"),
        ("SELECT x.a FROM x NATURAL INNER JOIN y", "SELECT t1.a FROM x AS t1 NATURAL JOIN y AS t2"),
        ("SELECT a FROM x LIMIT 3 OFFSET 0", "SELECT a FROM x LIMIT 3"),
        ("SELECT a FROM x LIMIT 3 OFFSET 1", "SELECT a FROM x LIMIT 3 OFFSET 1"),
        ("SELECT x.a FROM x WHERE x.b > 3 ORDER BY x.a", "SELECT a FROM x WHERE b > 3 ORDER BY a"),
        ("SELECT count(x.a), x.* FROM x", "SELECT count(a), x.* FROM x"),
        (
            "SELECT a FROM x WHERE a IN (SELECT DISTINCT b FROM y)",
            "SELECT a FROM x WHERE a IN (SELECT b FROM y)",
        ),
        (
            "SELECT a FROM x WHERE a IN (SELECT DISTINCT b FROM y LIMIT 3)",
            "SELECT a FROM x WHERE a IN (SELECT DISTINCT b FROM y LIMIT 3)",
        ),
        # Where the column would then be another one, or the name of a result, it stays.
        (
            "SELECT a FROM x WHERE EXISTS (SELECT 1 FROM y WHERE x.a = y.a)",
            "SELECT a FROM x WHERE EXISTS (SELECT 1 FROM y WHERE x.a = y.a)",
        ),
        (
            "SELECT max(b) AS a FROM x GROUP BY x.a ORDER BY a",
            "SELECT max(b) AS c1 FROM x GROUP BY x.a ORDER BY c1",
        ),
        (
            "SELECT b, a FROM x UNION SELECT y.a, y.b FROM y ORDER BY y.b",
            "SELECT b, a FROM x UNION SELECT a, b FROM y ORDER BY y.b",
        ),
        (
            "SELECT 1 FROM x WHERE a IN (SELECT DISTINCT a FROM x UNION ALL SELECT 1 LIMIT 3)",
            "SELECT 1 FROM x WHERE a IN (SELECT DISTINCT a FROM x UNION ALL SELECT 1 LIMIT 3)",
        ),
        ("SELECT x.'a' FROM x", "SELECT x. 'a' FROM x"),
        ("SELECT x.current_date FROM x", "SELECT x. CURRENT_DATE FROM x"),  # and no function
        # A table may be called inner.
        (
            "SELECT z.a FROM x AS inner JOIN y AS z ON inner.a = z.b",
            "SELECT t2.a FROM x AS t1 JOIN y AS t2 ON t1.a = t2.b",
        ),
        (
            "WITH inner AS (SELECT a FROM x) SELECT z.a FROM inner JOIN y AS z ON inner.a = z.b",
            "WITH w1 AS (SELECT a FROM x) SELECT t2.a FROM w1 JOIN y AS t2 ON w1.a = t2.b",
        ),
        ("SELECT 1 FROM x LEFT OUTER JOIN y", "SELECT 1 FROM x AS t1 LEFT JOIN y AS t2"),
        # Tables of WITH, subqueries and functions are not those of the database.
        (
            "WITH w1 AS (SELECT a FROM x) SELECT w1.a FROM w1",
            "WITH w1 AS (SELECT a FROM x) SELECT w1.a FROM w1",
        ),
        ("SELECT 1 FROM x, (SELECT 1)", "SELECT 1 FROM x, (SELECT 1)"),
        ("SELECT main.x.a FROM main.x, y", "SELECT main.x.a FROM main.x, y"),
    ],
)
def test_forms_by_hand(sql, text):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("CREATE TABLE x (a, b, current_date); CREATE TABLE y (a, b)")
        connection.execute(sql)
        connection.execute(text)
    assert sql_text(sql) == text


def test_the_columns_of_a_subquery_are_no_strings(tmp_path):
    """A result without an alias is a column called count(*), which no schema has."""
    path = tmp_path / "x.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE x (a)")
    sql = "SELECT * FROM (SELECT a, count(*) FROM x) WHERE {} > a"
    column, string = (sql_text(sql.format(f"{q}count(*){q}"), load_schema(path)) for q in "\"'")
    assert column != string
    sql = "SELECT a FROM x, main.json_each('[1]') WHERE {} < a"
    column, string = (sql_text(sql.format(f"{q}value{q}"), load_schema(path)) for q in "\"'")
    assert column != string
    assert sql_text('SELECT a FROM x WHERE a = "it\'s"', load_schema(path), with_schema=False) == (
        "SELECT a FROM x WHERE a = 'it''s'"
    )


def without_aliases(sql: str) -> str:
    """T1.a FROM singer AS T1 -> singer.a FROM singer, unless a table is there twice."""
    tables = dict(re.findall(r"(?:FROM|JOIN) (\w+) AS (T\d)", sql))
    if len(tables) < len(re.findall(r"AS T\d", sql)):
        return sql
    sql = re.sub(r" AS T\d", "", sql)
    names = {alias: table for table, alias in tables.items()}
    return re.sub(r"\b(T\d)\.", lambda match: names[match[1]] + ".", sql)


FORMS = {
    "INNER JOIN": lambda sql: sql.replace(" JOIN ", " INNER JOIN "),
    "no aliases": without_aliases,
    "==": lambda sql: re.sub(r"(WHERE \S+) = ", r"\1 == ", sql),
    "OFFSET 0": lambda sql: re.sub(r"(LIMIT \d+)$", r"\1 OFFSET 0", sql),
    "double quotes": lambda sql: re.sub(r"'([^'%]*)'", r'"\1"', sql),
    "table before the column": lambda sql: re.sub(
        r"^SELECT (\w+) FROM (\w+) WHERE (\w+) ([<>=])", r"SELECT \2.\1 FROM \2 WHERE \2.\3 \4", sql
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_gold_in_another_form_has_golds_text(form):
    """On every tenth dev question whose gold can have the form; each returns gold's rows."""
    changed = 0
    for example in load_dataset(EMBEDDED, "en", "dev")[::10]:
        gold, sql = example.gold_sql, FORMS[form](example.gold_sql)
        if sql == gold:
            continue
        changed += 1
        schema = load_schema(example.db_path)
        assert sql_text(sql, schema) == sql_text(gold, schema)
        with closing(sqlite3.connect(f"file:{example.db_path}?mode=ro", uri=True)) as connection:
            rows = [connection.execute(each).fetchall() for each in (gold, sql)]
        assert rows[0] == rows[1]
    assert changed >= 5
