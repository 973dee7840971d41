"""What SQLite parses and never looks up does not reach the encoder."""

import doctest
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from encoder import unused
from encoder.text import sql_text
from encoder.unused import without_unused
from sqlenv.query import parse


def removed(sql: str) -> str:
    return " ".join(without_unused(parse(sql)).sql.split()).replace("( ", "(")


@pytest.fixture(scope="module")
def connection():
    """t has the columns a and b, and three rows."""
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a, b)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, 2), (3, 4), (5, 1)])
    yield connection
    connection.close()


def test_docstring():
    assert doctest.testmod(unused).failed == 0


@pytest.mark.parametrize(
    "sql, kept",
    [
        ("WITH x AS (SELECT foo FROM bar) SELECT a FROM t", "SELECT a FROM t"),
        ("WITH x AS (SELECT foo), y AS (SELECT * FROM x) SELECT a FROM t", "SELECT a FROM t"),
        ("WITH RECURSIVE x AS (SELECT foo FROM x) SELECT a FROM t", "SELECT a FROM t"),
        ("WITH t AS (SELECT foo FROM bar) SELECT a FROM main.t", "SELECT a FROM main.t"),
        ("SELECT a FROM t WINDOW w AS (ORDER BY foo)", "SELECT a FROM t"),
        (
            "WITH p AS (SELECT foo), x AS (SELECT a FROM t), q AS (SELECT bar), r AS MATERIALIZED"
            " (SELECT baz), y(n) AS (SELECT 7) SELECT * FROM x, y",
            "WITH x AS (SELECT a FROM t), y(n) AS (SELECT 7) SELECT * FROM x, y",
        ),
        (
            "WITH x AS (SELECT a FROM t), p AS (SELECT foo FROM x) SELECT a FROM t WHERE a IN x",
            "WITH x AS (SELECT a FROM t) SELECT a FROM t WHERE a IN x",
        ),
        (
            "WITH x AS (SELECT foo) SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x)",
            "SELECT * FROM (WITH x AS (SELECT 1) SELECT * FROM x)",
        ),
        (
            "WITH x AS (SELECT 1), y AS (WITH x AS (SELECT foo) SELECT 2) SELECT * FROM x, y",
            "WITH x AS (SELECT 1), y AS (SELECT 2) SELECT * FROM x, y",
        ),
        (
            "SELECT sum(b) OVER v FROM t WINDOW w AS (ORDER BY foo), v AS (ORDER BY a)",
            "SELECT sum(b) OVER v FROM t WINDOW v AS (ORDER BY a)",
        ),
    ],
)
def test_what_nothing_reads_is_removed(sql, kept, connection):
    """Such SQL runs although foo, bar and baz do not exist, and its rows stay the same."""
    assert removed(sql) == kept and connection.execute(sql).fetchall()
    assert connection.execute(sql).fetchall() == connection.execute(kept).fetchall()
    assert sql_text(sql) == sql_text(kept)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH x AS (SELECT a FROM t) SELECT * FROM x",
        'WITH "x" AS (SELECT a FROM t) SELECT * FROM [X]',
        "WITH x AS (SELECT y.n FROM y), y AS (SELECT 5 AS n) SELECT n FROM x",
        "WITH RECURSIVE x AS (SELECT 1 AS n UNION SELECT n + 1 FROM x WHERE n < 5) SELECT n FROM x",
        "WITH x AS (VALUES (1), (2)) SELECT * FROM (t JOIN x)",
        "WITH x AS (SELECT a FROM t) SELECT a, EXISTS (SELECT 1 FROM x) FROM t",
        "SELECT sum(b) OVER (w ROWS 1 PRECEDING) FROM t WINDOW w AS (ORDER BY a)",
        "SELECT a AS x FROM t WHERE (a) IN (SELECT 1) ORDER BY x",
    ],
)
def test_what_something_reads_stays(sql, connection):
    assert removed(sql) == sql and connection.execute(sql).fetchall()


@st.composite
def queries(draw, depth: int = 2) -> str:
    """A query with tables of WITH called x and y, each of one column, at any depth."""
    inner = queries(depth - 1) if depth else st.just("SELECT a FROM t")
    words = ""
    if names := draw(st.permutations(["x", "y"]))[: draw(st.integers(0, 2))]:
        words = f"WITH {', '.join(f'{n} AS ({draw(inner)})' for n in names)} "
    source = draw(st.sampled_from(["t", "x", "y", "main.t", f"({draw(inner)})"]))
    where = draw(st.sampled_from(["", " WHERE 1 IN x", f" WHERE 3 IN ({draw(inner)})"]))
    return f"{words}SELECT * FROM {source}{where}"


@settings(deadline=None, max_examples=150)
@given(sql=queries())
def test_the_rows_stay_the_same(sql, connection):
    """Where SQLite runs the query, even though it names tables at random."""
    try:
        before = connection.execute(sql).fetchall()
    except sqlite3.OperationalError:
        return
    assert connection.execute(removed(sql)).fetchall() == before
    assert removed(removed(sql)) == removed(sql)


@pytest.mark.parametrize(
    "sql", ["a AS (SELECT * FROM b), b AS (SELECT * FROM a), ", "a AS (SELECT b IN a), ", "x IN ("]
)
def test_many_definitions_are_read_in_time(sql):
    many = (sql * (20_000 // len(sql))).removesuffix(", ")
    assert len(sql_text(f"WITH {many[:19_950]} SELECT * FROM a")) <= 25_000
