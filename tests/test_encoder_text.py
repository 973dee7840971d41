"""The normalised text of a query, and the attacks that it and the encoder have to withstand."""

import doctest
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import text as text_module
from encoder.attacks import ATTACKS, TRAINED, AttackInput, attack
from encoder.rewrites import equivalent_rewrites
from encoder.text import sql_text
from sqlenv import EMBEDDED, load_dataset, load_schema


@pytest.fixture(scope="module")
def examples():
    return load_dataset(EMBEDDED, "en", "dev")[::15]


def rows_of(path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql).fetchmany(1000)


def test_docstring():
    assert doctest.testmod(text_module).failed == 0


@pytest.mark.parametrize(
    "sql, other",
    [
        ("SELECT s.name FROM singer AS s", 'select "x".name as "all names" from singer x'),
        ("SELECT s.a FROM t AS s", "SELECT question_words.a FROM t question_words"),
        ("SELECT a, count(*) FROM t", "SELECT a AS words, count(*) how_many FROM t"),
        ("SELECT a AS x FROM t ORDER BY x", "SELECT a AS words FROM t ORDER BY words"),
        ("WITH x AS (SELECT 1) SELECT * FROM x", "WITH q AS (SELECT 1) SELECT * FROM q -- q"),
        (
            "SELECT a.x FROM (SELECT x FROM t) AS a JOIN t AS b ON a.x = b.x",
            "SELECT p.x FROM (SELECT x AS words FROM t) AS p JOIN t AS q ON p.x = q.x",
        ),
        (
            "SELECT d.x FROM (SELECT count(*) AS x FROM t) AS d",
            "SELECT d.words FROM (SELECT count(*) AS words FROM t) AS d",
        ),
        (
            "SELECT x AS y FROM (SELECT count(*) AS x FROM t)",
            "SELECT words AS more FROM (SELECT count(*) AS words FROM t)",
        ),
        (
            "SELECT a AS x FROM t UNION SELECT b FROM t ORDER BY x",
            "SELECT a AS words FROM t UNION SELECT b FROM t ORDER BY words",
        ),
        (
            "WITH x(y) AS (SELECT 1), z AS (SELECT y FROM x) SELECT y, z.y FROM x JOIN z",
            "WITH q(words) AS (SELECT 1), r AS (SELECT words FROM q)"
            " SELECT words, r.words FROM q JOIN r",
        ),
        (
            "WITH x AS NOT MATERIALIZED (SELECT 1 AS y) SELECT x.y FROM x",
            "WITH q AS NOT MATERIALIZED (SELECT 1 AS words) SELECT q.words FROM q",
        ),
        (
            "SELECT rank() OVER x, sum(a) OVER (x) FROM t WINDOW x AS (ORDER BY a), y AS (x)",
            "SELECT rank() OVER q, sum(a) OVER (q) FROM t WINDOW q AS (ORDER BY a), words AS (q)",
        ),
        ("SELECT x.value FROM json_each(1) x", "SELECT q.value FROM json_each(1) q"),
        ("SELECT CAST(a AS x y) FROM t", "SELECT CAST(a AS many words) FROM t"),
    ],
)
def test_names_that_a_query_gives_do_not_count(sql, other):
    assert sql_text(sql) == sql_text(other)


@pytest.mark.parametrize(
    "sql, text",
    [
        # A name without quotes has any character beyond ASCII.
        ("SELECT a AS ¿cuántos_hay FROM t", "SELECT a FROM t"),
        ("SELECT a AS 有多少？本书 FROM t", "SELECT a FROM t"),
        ("SELECT a nombre_d’albums FROM t", "SELECT a FROM t"),
        ("SELECT a AS how\xa0many\u3000🎵・\u200bare FROM t", "SELECT a FROM t"),
        ("SELECT \ufeffa AS how\ufeffmany FROM t", "SELECT a FROM t"),
        ("SELECT ¿x.a FROM t AS ¿x ORDER BY ¿x.a", "SELECT t1.a FROM t AS t1 ORDER BY t1.a"),
        # Tables in parentheses have names of their own, and so has what is in the parentheses.
        ("SELECT count(*) FROM (t AS how_many)", "SELECT count(*) FROM (t AS t1)"),
        ("SELECT count(*) FROM (((t) how)) many", "SELECT count(*) FROM (((t) AS t1)) AS t2"),
        (
            "SELECT how.a FROM u JOIN (t how JOIN (SELECT 1 AS many) m ON how.a = many) x",
            "SELECT t1.a FROM u JOIN (t AS t1 JOIN (SELECT 1 AS c1) AS t2 ON t1.a = c1) AS t3",
        ),
        (
            "SELECT 1 FROM (t JOIN u ON 'how' = a OR 'many')",
            "SELECT 1 FROM (t JOIN u ON 'how' = a OR '…')",
        ),
        (
            "WITH left AS (SELECT a FROM t) SELECT 1 FROM left how JOIN left many",
            "WITH w1 AS (SELECT a FROM t) SELECT 1 FROM w1 AS t2 JOIN w1 AS t3",
        ),
        ("SELECT 1 FROM t window JOIN u AS full", "SELECT 1 FROM t AS t1 JOIN u AS t2"),
        (
            "WITH left(how) AS (SELECT a FROM t) SELECT left.how FROM left JOIN left AS right",
            "WITH w1(c1) AS (SELECT a FROM t) SELECT w1.c1 FROM w1 JOIN w1 AS t2",
        ),
        # Where only a name can stand, a string is one.
        (
            "SELECT 'how'.a, sum(a) OVER 'many' FROM t AS 'how' WINDOW 'many' AS (ORDER BY a)",
            "SELECT t1.a, sum(a) OVER w1 FROM t AS t1 window w1 AS (ORDER BY a)",
        ),
        (
            "SELECT 1 FROM (WITH 'how'('many') AS (SELECT a FROM t) SELECT how.'many' FROM 'how')",
            "SELECT 1 FROM (WITH w1(c1) AS (SELECT a FROM t) SELECT w1.c1 FROM w1)",
        ),
        # Some words are never looked up.
        ("SELECT 1 FROM how.json_each('[1]')", "SELECT 1 FROM '…' .json_each('…')"),
        ("SELECT 1 FROM \"how\".json_each('[1]')", "SELECT 1 FROM '…' .json_each('…')"),
        ("SELECT main.t.a FROM main.t", "SELECT main.t.a FROM main.t"),
        (
            "SELECT a COLLATE how_many, a COLLATE 'b c' FROM t",
            "SELECT a COLLATE '…', a COLLATE '…' FROM t",
        ),
        ("SELECT 'how' COLLATE rtrim FROM t", "SELECT '…' COLLATE rtrim FROM t"),
        # A result's name may follow a keyword.
        ("SELECT NULL how_many FROM t", "SELECT NULL FROM t"),
        (
            "SELECT a IS NOT NULL how, a NOTNULL many FROM t",
            "SELECT a IS NOT NULL, a NOTNULL FROM t",
        ),
        ("SELECT CURRENT_DATE how_many, 1 AS left", "SELECT CURRENT_DATE, 1"),
        ("SELECT filter how FROM (SELECT 1 AS filter)", "SELECT FILTER FROM (SELECT 1)"),
        ("SELECT over how FROM (SELECT 1 AS over)", "SELECT OVER FROM (SELECT 1)"),
        ("SELECT NOT like how FROM (SELECT 1 AS like)", "SELECT NOT LIKE FROM (SELECT 1)"),
        (
            "SELECT count(*) OVER w how, 1 many WINDOW w AS ()",
            "SELECT count(*) OVER w1, 1 window w1 AS ()",
        ),
    ],
)
def test_a_name_that_sqlite_accepts_is_not_read(sql, text):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript("CREATE TABLE t (a); CREATE TABLE u (b)")
        connection.execute(sql)
    assert sql_text(sql) == text


@pytest.mark.parametrize(
    "result",
    [
        "DISTINCT a",
        "ALL a",
        "- a",
        "1 + a",
        "NOT a",
        "1 IN t",
        "1 NOT IN t",
        "1 AND a",
        "1 IS a",
        "1 IS NOT a",
        "1 IS DISTINCT FROM a",
        "1 LIKE a",
        "1 NOT LIKE a",
        "1 BETWEEN 0 AND a",
        "a COLLATE nocase",
        "a ->> 'b'",
        "a || 'b'",
        "a LIKE '%' ESCAPE 'b'",
    ],
)
def test_an_operand_is_not_the_name_of_a_result(result):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a)")
        connection.execute(f"SELECT {result} FROM t")
    assert sql_text(f"SELECT {result} FROM t") == f"SELECT {result} FROM t"
    assert sql_text(f"SELECT {result} how_many FROM t") == f"SELECT {result} FROM t"


@pytest.mark.parametrize(
    "sql, text",
    [
        ("SELECT count(*) AS count FROM t", "SELECT count(*) FROM t"),
        ("SELECT max(a) AS a FROM t", "SELECT max(a) FROM t"),
        (
            "SELECT max(a) AS a FROM t WHERE a > 3 ORDER BY a",  # the result, as SQLite reads it
            "SELECT max(a) AS c1 FROM t WHERE a > 3 ORDER BY c1",
        ),
        ("SELECT avg(a) AS a FROM t ORDER BY avg(a)", "SELECT avg(a) FROM t ORDER BY avg(a)"),
        (
            "SELECT a FROM t WHERE a > (SELECT avg(a) AS a FROM t)",
            "SELECT a FROM t WHERE a > (SELECT avg(a) FROM t)",
        ),
        (
            "SELECT t.a, m.a FROM t AS t JOIN (SELECT max(a) AS a FROM t) AS m",
            "SELECT t1.a, t2.c1 FROM t AS t1 JOIN (SELECT max(a) AS c1 FROM t) AS t2",
        ),
        (
            "SELECT b AS a FROM t UNION SELECT a FROM u WHERE a > 3",
            "SELECT b FROM t UNION SELECT a FROM u WHERE a > 3",
        ),
    ],
)
def test_functions_columns_and_tables_that_are_also_aliases_stay(sql, text):
    assert sql_text(sql) == text


def test_what_is_longer_than_any_value_is_left_out():
    """50 bytes with the quotes; 48 stay. An alias as long has its new name."""
    long, short = "x" * 48, "x" * 46
    assert sql_text(f"SELECT a FROM t WHERE b = '{long}'") == "SELECT a FROM t WHERE b = '…'"
    assert f"'{short}'" in sql_text(f"SELECT a FROM t WHERE b = '{short}'")
    assert sql_text(f"SELECT '{'東' * 16}' FROM t") == "SELECT '…' FROM t"
    renamed = sql_text(f'SELECT a AS "{long}" FROM t ORDER BY "{long}"')
    assert renamed == "SELECT a AS c1 FROM t ORDER BY c1"


@pytest.mark.parametrize(
    "sql, other",
    [
        ("SELECT a FROM t", "SELECT b FROM t"),
        ("SELECT a FROM t", "SELECT DISTINCT a FROM t"),
        ("SELECT T1.a FROM t AS T1 JOIN u AS T2", "SELECT T2.a FROM t AS T1 JOIN u AS T2"),
        ("SELECT a FROM t WHERE b = 'AS c'", "SELECT a FROM t WHERE b = ''"),
        ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC"),
    ],
)
def test_what_changes_the_meaning_changes_the_text(sql, other):
    assert sql_text(sql) != sql_text(other)


def test_texts_of_gold_give_golds_rows_and_do_not_depend_on_aliases(examples):
    renamed = 0
    for example in examples:
        sql = sql_text(example.gold_sql)
        assert rows_of(example.db_path, sql) == rows_of(example.db_path, example.gold_sql)
        for rewrite in equivalent_rewrites(example.gold_sql):
            if rewrite.kind == "aliases renamed":
                assert sql_text(rewrite.sql) == sql
                renamed += 1
    assert renamed > 5


def test_the_tables_that_a_query_names_stand_beside_it(examples):
    example = next(e for e in examples if e.db_id == "museum" and " JOIN " not in e.gold_sql)
    schema = load_schema(example.db_path)
    sql, tables = sql_text(example.gold_sql, schema).split(" | ")
    assert sql == sql_text(example.gold_sql)
    named = [table for table in schema.tables if f"FROM {table.name}" in example.gold_sql]
    assert tables.split("(")[0] in [table.name for table in named]
    assert all(column.name in tables for column in named[0].columns)
    assert sql_text("SELECT 1", schema) == "SELECT 1"


@settings(deadline=None)
@given(st.text() | st.text(st.characters()) | st.text("SELCTFROMaswith ,.()'\"`[];*=0-"))
def test_any_text_is_accepted(sql):
    assert isinstance(sql_text(sql), str)


@pytest.mark.parametrize(
    "sql",
    [
        *("SELECT a,", "(", "SELECT (", "a b ", "SELECT a b FROM t,", "(SELECT a b FROM t),"),
        f"SELECT 1 FROM {'t, ' * 2000}t ON {'a * ' * 3000}a",
        f"{('SELECT 1 FROM ' + 't, ' * 100 + 't WHERE (') * 40}{'a, ' * 2000}",
    ],
)
def test_text_of_any_length_is_read_in_time(sql):
    assert len(sql_text(sql * (20_000 // len(sql)))) <= 50_000


def test_what_cannot_be_read_to_its_end_has_no_text():
    """20,000 characters and 50 parentheses can be read."""
    assert sql_text("SELECT 1".ljust(20_000)) == "SELECT 1"
    assert sql_text("SELECT 1".ljust(20_001)) == ""
    assert sql_text(f"SELECT {'(' * 50}1{')' * 50} AS words").startswith("SELECT ((")
    assert sql_text(f"SELECT {'(' * 51}1{')' * 51} AS words") == ""
    assert sql_text(f"{')' * 1000} SELECT a WHERE {'(' * 1000}a{')' * 1000}") == ""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A database whose tables are t(a, b) and u(c, d)."""
    path = tmp_path_factory.mktemp("zoo") / "zoo.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.execute("CREATE TABLE u (c, d)")
        connection.execute("INSERT INTO t VALUES (1, 2)")
    return path


@pytest.mark.parametrize(
    "sql",
    [
        # Names that SQLite does not look up.
        "SELECT a FROM t WHERE a = 1 OR 0 AND zebra",
        "SELECT a FROM t WHERE a = 1 OR 0 AND zebra(1)",
        "SELECT a FROM t WHERE a = 1 OR 0 AND EXISTS (SELECT zebra FROM zebras)",
        "SELECT a FROM t WHERE a = 1 OR 0 AND RAISE(ABORT, 'zebra')",
        "SELECT 0 AND [zebra], a FROM t LIMIT 10 + (0 AND zebra)",
        "SELECT a FROM t WHERE zebra NOT IN ()",
        'SELECT a FROM t WHERE "how"."many zebras" NOT IN ()',
        'SELECT a FROM t WHERE "how many zebras" NOT IN ()',
        "SELECT a FROM t WHERE zebra() NOT IN ()",
        "SELECT a FROM t WHERE (1, 2, 3, 4, 5, 6, 7, 8) NOT IN zebra.json_each('[1]')",
        "SELECT row_number() OVER (ORDER BY a ROWS zebra PRECEDING) FROM t",
        'SELECT rank() OVER w FROM t WINDOW w AS (ORDER BY a GROUPS "zebra" PRECEDING)',
        "SELECT sum(a) OVER w FROM t WINDOW w AS (ORDER BY zebra), w AS (ORDER BY a)",
        'SELECT a FROM t WHERE "how many zebras"() NOT IN ()',
        'SELECT a FROM t WHERE a = 1 OR 0 AND "zebra"(1)',
        'SELECT a FROM t WHERE sum(1) OVER "how many zebras" NOT IN ()',
        'SELECT a FROM t WHERE a = 1 OR 0 AND sum(1) OVER ("zebra" ORDER BY 1)',
        # Names that the query gives.
        "SELECT a || x'''zebra' FROM t",
        "WITH zebra AS (SELECT 1) SELECT a FROM t WHERE a IN zebra",
        'WITH "how many zebras" AS (SELECT 1) SELECT a FROM t WHERE a NOT IN "how many zebras"',
        "WITH zebra AS (SELECT 1) SELECT a FROM t WHERE a IN 'zebra'",
        'SELECT zebra FROM (SELECT "zebra" FROM t)',
        'SELECT x."how many zebras" FROM (SELECT "how many zebras" FROM t) x',
        "SELECT ['zebra'] FROM (SELECT 'zebra')",
        "SELECT [1 /* zebra */] FROM (SELECT 1 /* zebra */)",
        "SELECT [CAST(1 AS zebra)] FROM (SELECT CAST(1 AS zebra))",
        'SELECT a AS zebra, "zebra" FROM t WHERE zebra = 1',
        "SELECT a AS zebra FROM t UNION SELECT c FROM u ORDER BY (zebra)",
        "SELECT q.zebra FROM (SELECT 1 AS zebra) q, t q",
        "SELECT (SELECT q.zebra FROM t q) FROM (SELECT 1 AS zebra) q",
        "SELECT '[1]' AS zebra FROM json_each(zebra)",
        # Strings that are compared with nothing.
        "SELECT a FROM (SELECT a FROM t LIMIT length('zebra') * 100)",
        "SELECT a FROM t WHERE a IN (SELECT c FROM u LIMIT length('zebra'))",
        "SELECT a FROM t LIMIT (SELECT count(a) FROM t) OFFSET length('zebra') - 5",
        "SELECT a FROM (SELECT a FROM t, main.json_each('[\"zebra\"]'))",
        "SELECT end.a FROM t AS end WHERE end.a > 0 AND 'zebra' <> ''",
        "SELECT a FROM t ORDER BY a, 'zebra' NULLS LAST",
        "SELECT a FROM t WHERE true <> 'zebra'",
        "WITH w AS (SELECT 1) SELECT a FROM t WHERE 'zebra' NOT IN w",
        "SELECT count(*) OVER (ORDER BY 'zebra' ROWS UNBOUNDED PRECEDING) FROM t",
        "SELECT r FROM (SELECT rank() OVER (PARTITION BY a ORDER BY 'zebra') AS r FROM t)",
        "SELECT r FROM (SELECT rank() OVER w AS r, a FROM t WINDOW w AS (ORDER BY 'zebra'))",
        "SELECT count(a) FILTER (WHERE 'zebra' = 'zebra') FROM t",
        "SELECT a FROM t JOIN (VALUES ('zebra'), (length('x')), ('zebra')) x ON t.a = 1",
        "SELECT a FROM (SELECT a FROM t UNION VALUES ('zebra'))",
        "SELECT a FROM (t JOIN json_each('[\"zebra\"]') ON a = 1)",
        "SELECT a FROM t WHERE EXISTS (SELECT value FROM json_each('[\"zebra\"]'))",
    ],
)
def test_words_that_the_database_does_not_have_do_not_reach_the_encoder(sql, zoo):
    """SQLite runs all of these; an attacker found them. No table or value is called zebra."""
    rows_of(zoo, sql)
    assert "zebra" not in sql_text(sql, load_schema(zoo)).lower()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT a FROM t WHERE b = 'x' OR b IN ('y', lower('Z')) ORDER BY a DESC LIMIT 3",
        "SELECT t1.a FROM main.t AS t1 JOIN u ON t1.a = c WHERE t1.b = 'Ann' AND u.d LIKE 'z%'",
        "WITH w1 AS (SELECT a FROM t) SELECT c FROM u WHERE c IN w1",
        "SELECT strftime('%Y', a) AS c1, count(*) FROM t GROUP BY c1 HAVING c1 > '2000'",
        "SELECT c1 FROM (SELECT a, row_number() OVER (PARTITION BY a ORDER BY b rows BETWEEN 1"
        " preceding AND current row) AS c1 FROM t) WHERE c1 = 1",
        "SELECT rowid, iif(a > 1, 'hi', b) FROM t WHERE b IS NOT true AND a IN (SELECT c FROM u)",
        "SELECT count(a) FILTER (WHERE b = 'x'), rank() OVER (ORDER BY b = 'x') FROM t",
    ],
)
def test_names_that_sqlite_looks_up_stay(sql, zoo):
    rows_of(zoo, sql)
    assert sql_text(sql, load_schema(zoo), with_schema=False) == sql == sql_text(sql)


def test_there_are_25_attacks_and_fourteen_are_not_trained_against():
    assert len(ATTACKS) == 25 and len(TRAINED) == 11 and set(TRAINED) < set(ATTACKS)


@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_runs_and_hardly_ever_gives_golds_rows(kind, examples):
    """Some golds have no row, and a few ask for all columns of a table."""
    alike = 0
    for example in examples:
        schema = load_schema(example.db_path)
        inputs = AttackInput(example.question, 'Où est l\'"autre" */ ?', example.gold_sql, schema)
        rows = rows_of(example.db_path, attack(kind, inputs))
        gold_rows = rows_of(example.db_path, example.gold_sql)
        alike += sorted(map(repr, rows)) == sorted(map(repr, gold_rows))
    assert alike <= 0.1 * len(examples)


@pytest.mark.parametrize(
    "kind",
    [
        "question as an alias",
        "question as an alias without quotes",
        "question as an alias of NULL",
        "question as a table's alias",
        "question as a table's alias in parentheses",
        "question as a table of WITH",
        "question in a table of WITH that nothing reads",
        "question in a window that nothing uses",
    ],
)
def test_words_in_a_comment_or_an_alias_do_not_reach_the_encoder(kind, examples):
    example = examples[0]
    inputs = AttackInput("Which zebra?", "", example.gold_sql, load_schema(example.db_path))
    other = attack(kind, replace(inputs, question="x"))
    assert "zebra" in attack(kind, inputs) and sql_text(attack(kind, inputs)) == sql_text(other)
    assert "zebra" not in sql_text(attack(kind, inputs))
    assert "zebra" not in sql_text(attack("question in a comment", inputs))


def test_a_string_that_is_compared_with_nothing_is_not_read():
    """In an expression without a column; what a function or operator takes beside one stays."""
    assert sql_text("SELECT 'ab', a || 'cd' FROM t") == "SELECT '…', a || 'cd' FROM t"
    assert sql_text("SELECT upper('ab') AS x FROM t") == "SELECT upper('…') FROM t"
    assert sql_text("SELECT a FROM t WHERE 'ab' LIKE '%' AND b = 'x'") == (
        "SELECT a FROM t WHERE '…' LIKE '…' AND b = 'x'"
    )
    assert sql_text("SELECT strftime('%Y', b) FROM t") == "SELECT strftime('%Y', b) FROM t"
    assert sql_text("SELECT a FROM t, (VALUES ('ab')) GROUP BY 'ab' ORDER BY b = 'x', 'cd'") == (
        "SELECT a FROM t, (VALUES ('…')) GROUP BY '…' ORDER BY b = 'x', '…'"
    )
    kept = "SELECT a FROM t WHERE b IN ('x', 'y') OR (c = 'z' AND d LIKE '%w')"
    assert sql_text(kept) == kept


@pytest.mark.parametrize(
    "sql, kind",
    [
        ("SELECT name, title FROM singer JOIN song USING (id)", "columns turned"),
        ("SELECT T1.name FROM main.singer AS T1 WHERE T1.id > 1", "aliases renamed"),
    ],
)
def test_rewrites_of_using_and_of_a_table_with_its_database_run(sql, kind):
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(
            "CREATE TABLE singer AS SELECT 1 AS id, 'Ann' AS name UNION SELECT 2, 'Bo'"
        )
        connection.execute("CREATE TABLE song AS SELECT 2 AS id, 'A' AS title")
        rows = {frozenset(row) for row in connection.execute(sql)}
        rewrites = equivalent_rewrites(sql)
        for rewrite in rewrites:
            assert {frozenset(row) for row in connection.execute(rewrite.sql)} == rows, rewrite
    assert rows and kind in {rewrite.kind for rewrite in rewrites}
