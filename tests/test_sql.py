"""SQL as text: ORDER BY of the outermost query, canonical and readable form."""

import doctest
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlenv import (
    EMBEDDED,
    canonical_sql,
    format_sql,
    is_ordered,
    load_dataset,
)
from sqlenv import text as text_module
from sqlenv.text import MAX_FORMATTED, tokenize

HOSTILE = Path(__file__).with_name("hostile_sql.jsonl")


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
        ("SELECT Te\u0302n, Título FROM t", "SELECT te\u0302n, título FROM t"),  # ê in NFD
        ("SELECT नाम,ชื่อ FROM किताब", "SELECT नाम, ชื่อ FROM किताब"),  # with vowel signs
        ("SELECT می\u200cخواهم FROM t", "SELECT می\u200cخواهم FROM t"),  # a joiner
        ("SELECT 이름 FROM 책 WHERE 값>-1", "SELECT 이름 FROM 책 WHERE 값 > -1"),
        ("SELECT a FROM t WHERE b>-５", "SELECT a FROM t WHERE b > - ５"),  # a name to SQLite
        ("SELECT a AS ¿Cuántos？ from t", "SELECT a AS ¿cuántos？ FROM t"),
        ("SELECT a AS How\xa0many\u3000are FROM t", "SELECT a AS how\xa0many\u3000are FROM t"),
        ("\ufeffSELECT \ufeff A,1 AS b\ufeffFROM", "SELECT a, 1 AS b\ufefffrom"),
        ("", ""),
    ],
)
def test_canonical(sql, canonical):
    assert canonical_sql(sql) == canonical


def test_names_end_where_sqlite_ends_them():
    """One of a hundred characters, the white space and punctuation among them, and some others."""
    others = "\x80\x85\xa0¿’\u200b\u200c\u2028\u3000・，？\ufeff\ufffe🎵"
    characters = [chr(code) for code in range(0x80, 0x110000, 97)] + list(others)
    with closing(sqlite3.connect(":memory:")) as connection:
        for character in characters:
            if "\ud800" <= character <= "\udfff":
                continue
            for name in (f"a{character}b", f"{character}b"):
                sql = f"SELECT 1 AS {name}"
                words = [m.group() for m in tokenize(sql) if m.lastgroup == "word"]
                column = connection.execute(sql).description[0][0]
                assert words == ["SELECT", "AS", column], ascii(sql)


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
PIECES += ["é", "¿", "\xa0", "\u3000", "\ufeff", "\v", "\x1c", "$"]


@given(st.lists(st.sampled_from(PIECES)))
def test_canonical_is_canonical_already(tokens):
    for text in (" ".join(tokens), "".join(tokens)):
        canonical = canonical_sql(text)
        assert canonical_sql(canonical) == canonical


@given(st.text())
def test_any_text_can_be_read(text):
    for sql in (text, f"SELECT {text}"):
        assert is_ordered(sql) in (True, False)
        assert canonical_sql(canonical_sql(sql)) == canonical_sql(sql)
        assert canonical_sql(format_sql(sql)) == canonical_sql(sql)


def test_examples_in_docstrings():
    assert doctest.testmod(text_module) == (0, 3)  # (failed, tried)


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


def test_a_name_with_a_no_break_space_is_not_split():
    sql = "select a as how\xa0many from t where b > 1"
    assert format_sql(sql) == sql  # sqlparse would break the line there


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
