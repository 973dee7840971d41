"""SQL as text: extraction from completions, ORDER BY of the outermost query, canonical and readable
form."""

import doctest
import json
import sqlite3
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlenv import (
    EMBEDDED,
    Sandbox,
    canonical_sql,
    extract_sql,
    format_sql,
    is_ordered,
    load_dataset,
)
from sqlenv import text as text_module
from sqlenv.text import MAX_FORMATTED

HOSTILE = Path(__file__).with_name("hostile_sql.jsonl")
RIGHT = "SELECT a FROM t"

EXTRACTED = {
    "SELECT a FROM t": "SELECT a FROM t",
    "  select a from t;": "select a from t",
    "SELECT a FROM t;;\n": "SELECT a FROM t",
    "SELECT a FROM t\n```\nThat was easy.": "SELECT a FROM t",
    "SELECT a FROM t\n\nThis selects a.": "SELECT a FROM t",
    "SELECT a FROM t; This selects a.": "SELECT a FROM t",
    "SELECT a\nFROM t\nWHERE b = ';'": "SELECT a\nFROM t\nWHERE b = ';'",
    "SELECT ';\n\n```' FROM t; done": "SELECT ';\n\n```' FROM t",
    'SELECT "a;b", `c;d`, [e;f] FROM t -- ; no\n; x': 'SELECT "a;b", `c;d`, [e;f] FROM t -- ; no',
    "Sure:\n```sql\nSELECT a\n\nFROM t;\n```\nIt gives a.": "SELECT a\n\nFROM t",
    "I select it so:\n```\nSELECT a FROM t\n```": "SELECT a FROM t",
    "```sql\nSELECT a FROM t": "SELECT a FROM t",
    "```SQL\n-- all\nSELECT a FROM t\n```": "SELECT a FROM t",
    "```python\nselect()\n```\n```sqlite\nSELECT 1\n```": "SELECT 1",
    "```sql\nSELECT 1\n```\n```sql\nSELECT 2\n```": "SELECT 1",
    "SELECT 1\n```\n```sql\nSELECT 2\n```": "SELECT 1",
    "We select names. SQL: SELECT name FROM t": "SELECT name FROM t",
    "SQL：SELECT 姓名 FROM 学生": "SELECT 姓名 FROM 学生",
    "With care: WITH c AS (SELECT 1) SELECT * FROM c": "WITH c AS (SELECT 1) SELECT * FROM c",
    "WITH RECURSIVE c(x, y) AS (SELECT 1, 2) SELECT 1": None,  # None: the text as it is
    # A second statement stays, for the sandbox to refuse.
    "SELECT 1; DROP TABLE t": None,
    "SELECT 1; SELECT 2;": None,
    "SELECT 1; -- and\nDELETE FROM t": None,
    "SELECT 1; SELECT 2 -- ;": None,
    "SELECT 1;; DROP TABLE t": None,
    "SELECT 1;\n\nDROP TABLE t": None,
    "SELECT 1\n\nDROP TABLE t": None,
    "SELECT 1\n\n-- and\n; VALUES (1)": None,
    "SELECT '--'; DELETE /* -- */ FROM t": None,
    "SELECT 1; ANALYZE": None,
    "SELECT 1; USE t": None,
    "SELECT 1; end;": None,
    "```sql\nSELECT 1;\nDROP TABLE t;\n```": "SELECT 1;\nDROP TABLE t;",
    # What only begins like a statement is prose.
    "SELECT 1; Explain: it gives 1.": "SELECT 1",
    "SELECT 1; With this, we update the set.": "SELECT 1",
    "SELECT 1\n\nValues are in the end; create nothing.": "SELECT 1",
    "Let me explain with care; to begin: SELECT 1": "SELECT 1",
    "We create a table of names, delete from it and update the set. SELECT 1": "SELECT 1",
    "The steps: begin; analyze it; end.\nSELECT 1": "SELECT 1",
    # In a later block it is another answer, which does not count.
    "```sql\nSELECT 1;\n```\n```sql\nDROP TABLE t;\n```": "SELECT 1",
    # A blank line may stand in a query before another SELECT.
    "SELECT 1\nUNION\n\nSELECT 2\n\nSo.": None,
    "VALUES (1), (2);": "VALUES (1), (2)",
    "VALUES ((SELECT 1\n\n))": "VALUES ((SELECT 1",
    ";SELECT 1": "SELECT 1",
    'WITH "a b" AS (SELECT 1) SELECT * FROM "a b"': None,
    "WITH/**/c AS NOT MATERIALIZED (SELECT 1) SELECT 1": None,
    # Prose inside stays too, and fails.
    "SELECT a FROM t which is the table": None,
}


@pytest.mark.parametrize("completion", EXTRACTED)
def test_extract(completion):
    assert extract_sql(completion) == (EXTRACTED[completion] or completion)


@pytest.mark.parametrize(
    "completion",
    [
        "",
        "I cannot answer this.",
        "With pleasure! Here it is.",
        "The selected rows",
        "Delete from the list what you like.",
        "```sql\n```",
        "SQL: ;",
    ],
)
def test_nothing_to_extract(completion):
    assert extract_sql(completion) is None


# With the right query inside or behind it; none of these answers a question.
NOT_A_QUERY = [
    "CREATE TABLE t AS {}",
    "create temp table t as {}",
    "CREATE TABLE IF NOT EXISTS `t` AS {}",
    'CREATE/**/TABLE"t"AS {}',
    "CREATE -- a\nTABLE t AS {}",
    "CREATE OR REPLACE VIEW v AS {}",
    "CREATE MATERIALIZED VIEW v AS {}",
    "CREATE TRIGGER g AFTER INSERT ON t BEGIN\n\n{};\nEND",
    "INSERT INTO t {}",
    "INSERT OR REPLACE INTO t(a, b) {}",
    "replace /* c */ into t {}",
    "DELETE FROM t WHERE a IN ({}\n\n)",
    "delete from t; {}",
    "UPDATE t SET a = ({}\n\n)",
    'update"t"set a = 1; {}',
    "UPDATE OR IGNORE main.t AS u SET a = 1 FROM ({}\n\n) AS s",
    "WITH c AS (SELECT 1) DELETE FROM t WHERE a IN ({})",
    "WITH c AS (SELECT 1) INSERT INTO t {}",
    'WITH "a b" AS (SELECT 1) INSERT INTO t {}',
    "EXPLAIN {}",
    "EXPLAIN QUERY PLAN {}",
    "explain/**/query/**/plan {}",
    "DROP TABLE t; {}",
    "DROP VIEW v;\n\n{}",
    "ALTER TABLE t ADD COLUMN b; {}",
    "VACUUM INTO 'f'; {}",
]
# Words that may also begin an English sentence count where a statement is expected.
NOT_A_QUERY_AT_THE_START = [
    "PRAGMA foreign_keys\n{}",
    "pragma user_version = 1; {}",
    "ATTACH 'f' AS a; {}",
    "attach database 'f' as a; {}",
    "BEGIN; {}; COMMIT",
    "begin transaction; {}",
    "savepoint s; {}",
    "ANALYZE {}",
    "analyze; {}",
    "USE concert_singer; {}",
    "TRUNCATE t; {}",
    "SET @x = ({}\n\n)",
    "MERGE INTO t USING ({}\n\n) AS s ON 1",
    "DECLARE c CURSOR FOR {}",
]
FRAMES = ["{}", " -- c\n{}", "```sql\n{}\n```", "```\n{};\n```\nDone.", "SQL: {}"]


@pytest.mark.parametrize("frame", [*FRAMES, "Sure! {}", "Here you are:\n\n{}\n\nIt's done."])
@pytest.mark.parametrize("statement", NOT_A_QUERY)
def test_no_query_is_taken_out_of_another_statement(statement, frame):
    extracted = extract_sql(frame.format(statement.format(RIGHT)))
    assert extracted.startswith(statement.partition("{}")[0][:10])


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("statement", NOT_A_QUERY_AT_THE_START)
def test_no_query_is_taken_out_of_a_command(statement, frame):
    extracted = extract_sql(frame.format(statement.format(RIGHT)))
    assert extracted.startswith(statement[:5])


def test_what_is_taken_out_of_another_statement_does_not_run(tmp_path):
    """Whatever of it is extracted, the sandbox refuses it, so that it cannot count as right."""
    path = tmp_path / "t.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    texts = [statement.format(RIGHT) for statement in NOT_A_QUERY + NOT_A_QUERY_AT_THE_START]
    texts = [frame.format(text) for frame in FRAMES for text in texts]
    with Sandbox(workers=1) as sandbox:
        assert sandbox.run(path, RIGHT).status == "ok"
        for text, execution in zip(
            texts, sandbox.run_many([(path, extract_sql(text)) for text in texts])
        ):
            assert execution.status in ("denied", "error"), text


def test_a_long_completion_takes_no_time():
    """100,000 characters of what the patterns could run into, each within a second of CPU time."""
    for piece in (
        "create/*",
        "```/*",
        "with a (",
        'update "',
        "delete from ",
        "create ",
        "- -",
        "(",
    ):
        start = time.process_time()
        extract_sql(piece * (100_000 // len(piece)))
        assert time.process_time() - start < 1, piece


@pytest.mark.parametrize(
    ("sql", "ordered"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order /* c */ \n by a desc limit 1", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY 1", True),
        ("WITH c AS (SELECT a FROM t ORDER BY a) SELECT a FROM c", False),
        ("WITH c AS (SELECT a FROM t) SELECT a FROM c ORDER BY a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT a FROM t WHERE b = (SELECT max(b) FROM t ORDER BY 1)", False),
        ("SELECT rank() OVER (ORDER BY a) FROM t", False),
        ("SELECT ' ORDER BY a' FROM t", False),
        ('SELECT " ORDER BY a" FROM t', False),
        ("SELECT a FROM t -- ORDER BY a", False),
        ("SELECT a FROM t /* ORDER BY a */", False),
        ("SELECT 'it''s (' FROM t ORDER BY a", True),
        ('SELECT a AS "order" FROM t', False),
        ("SELECT " + "a, " * 20_000 + "a FROM t ORDER BY a", True),
    ],
    ids=lambda value: str(value)[:40],
)
def test_is_ordered(sql, ordered):
    assert is_ordered(sql) is ordered


@pytest.mark.parametrize(
    ("sql", "canonical"),
    [
        ("select  Count( * )\n from Singer -- all\n;", "SELECT count(*) FROM singer"),
        ("SELECT T1.Name FROM t AS T1", "SELECT t1.name FROM t AS t1"),
        ("select 'It''s  A' , \"X  Y\"", "SELECT 'It''s  A', \"X  Y\""),
        ("select a where b=-1 and c>=2-1", "SELECT a WHERE b = -1 AND c >= 2 - 1"),
        ("select - -1, a.*", "SELECT - - 1, a.*"),
        ("select a in(1,2)", "SELECT a IN (1, 2)"),
        ("select 0x1F, 1e-3, x'0A'", "SELECT 0x1F, 1e-3, x'0A'"),
        ("SELECT Ärzte FROM t; -- c", "SELECT Ärzte FROM t"),
        ("/* c */ select/**/1", "SELECT 1"),
        ("", ""),
    ],
)
def test_canonical(sql, canonical):
    assert canonical_sql(sql) == canonical


PIECES = [
    "select",
    "FROM",
    "Name",
    "t",
    ".",
    ",",
    "(",
    ")",
    "*",
    "+",
    "-",
    "/",
    ";",
    "1",
    ".5",
    "1.",
]
PIECES += ["'a  B'", '"Q"', "`q`", "[w]", "--", "/*", "*/", "\n", "x'", "'", "=", "<", "|"]


@given(st.lists(st.sampled_from(PIECES)))
def test_canonical_is_canonical_already(tokens):
    for text in (" ".join(tokens), "".join(tokens)):
        canonical = canonical_sql(text)
        assert canonical_sql(canonical) == canonical


@given(st.text())
def test_any_text_can_be_read(text):
    for sql in (text, f"SELECT {text}", f"```sql\nSELECT {text}"):
        extracted = extract_sql(sql)
        assert extracted is None or extracted in sql
        assert is_ordered(sql) in (True, False)
        assert canonical_sql(canonical_sql(sql)) == canonical_sql(sql)
        assert canonical_sql(format_sql(sql)) == canonical_sql(sql)


def test_examples_in_docstrings():
    assert doctest.testmod(text_module) == (0, 6)  # (failed, tried)


FORMATTED = """\
SELECT T1.name, T1.type, count(*)
FROM singer AS T1
JOIN concert AS T2 ON T1.id = T2.singer_id
WHERE T1.note = 'and  or'
  AND T2.year IN
    (SELECT year
     FROM tour)
GROUP BY T1.id
HAVING count(*) > 2
ORDER BY T1.order DESC
LIMIT 3 -- Three"""


def test_formatted_sql():
    """Keywords in upper case; names, also those that sqlparse takes for keywords, strings and
    comments unchanged."""
    line = (
        "select T1.name, T1.type, count(*) from singer as T1 join concert as T2"
        " on T1.id = T2.singer_id where T1.note = 'and  or' and T2.year in (select year from tour)"
        " group by T1.id having count(*) > 2 order by T1.order desc limit 3 -- Three"
    )
    assert format_sql(line) == FORMATTED
    assert format_sql(FORMATTED) == FORMATTED


def test_formatted_sql_has_the_same_meaning():
    """Gold queries and the hostile texts keep their canonical form, and most gold queries get more
    than one line."""
    golds = [example.gold_sql for example in load_dataset(EMBEDDED, "en", "dev")]
    lines = [json.loads(line)["sql"] for line in HOSTILE.read_text("utf-8").splitlines()]
    for sql in [*golds, *(sql for sql in lines if isinstance(sql, str))]:
        assert canonical_sql(format_sql(sql)) == canonical_sql(sql)
    assert all("\n" in format_sql(sql) for sql in golds)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT " + "(" * 1000 + "1" + ")" * 1000,
        "SELECT * FROM (" * 300 + "t" + ")" * 300,
        "SELECT a" + " + a" * 1000,
        "SELECT " + "a, " * MAX_FORMATTED + "a FROM t",
    ],
    ids=["parentheses", "subqueries", "operators", "long"],
)
def test_what_cannot_be_formatted_is_returned_unchanged(sql):
    assert format_sql(sql) == sql


@pytest.mark.parametrize(
    "piece",
    ["(", ")", "[", "'", '"', "/*", "--", "CASE ", "BEGIN ", "END ", "\0", "\ud800", "$$", ";"],
)
def test_broken_text_is_formatted_at_once(piece):
    """However long: without an exception, within a second of CPU time."""
    for length in (100, MAX_FORMATTED, 20 * MAX_FORMATTED):
        start = time.process_time()
        format_sql("select a from t " + piece * (length // len(piece)))
        assert time.process_time() - start < 1
