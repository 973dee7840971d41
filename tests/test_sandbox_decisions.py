"""What the sandbox allows and how deep: each function is decided, and ordinary SQL is not refused.

``docs/evaluation.md`` has the decisions; the tests compare it with the code and with the SQLite of
this machine.
"""

import re
import sqlite3
from pathlib import Path

import pytest
from dataset_kit import make_database

from sqlenv import Sandbox, load_schema
from sqlenv.query import parse
from sqlenv.sandbox import worker
from sqlenv.testsuite.determinism import perturbed_queries
from sqlenv.testsuite.mutants import make_mutants

DOCS = Path(__file__).parents[1] / "docs" / "evaluation.md"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("databases") / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE item (id INTEGER PRIMARY KEY, price INT, tags TEXT);
        INSERT INTO item VALUES (1, 3, '["a", "b"]'), (2, 5, '{"size": {"cm": 7}}'), (3, 8, '[]');
        CREATE VIEW dated AS SELECT date('2020-01-01') AS day FROM item;"""
    )
    connection.close()
    return path


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, timeout=60) as sandbox:
        yield sandbox


# ------------------------------------------------------------------------------------ functions


def decided(allowed: str) -> set[str]:
    """The names in the rows of the table of functions with "yes" or "no"."""
    section = DOCS.read_text(encoding="utf-8").split("### Functions")[1].split("\n## ")[0]
    rows = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows if row[1] == allowed for name in re.findall(r"`([^`]+)`", row[0])}


def test_the_table_in_the_docs_is_what_the_sandbox_allows():
    assert decided("yes") == worker.FUNCTIONS | worker.TABLE_FUNCTIONS
    assert not decided("yes") & decided("no")


def test_every_function_of_this_sqlite_is_decided():
    """A function that a newer SQLite has is denied until someone decides; this test asks for it."""
    connection = sqlite3.connect(":memory:")
    functions = {name for (name,) in connection.execute("SELECT name FROM pragma_function_list")}
    tables = {name for (name,) in connection.execute("SELECT name FROM pragma_module_list")}
    tables = {name for name in tables if not name.startswith("pragma_")}
    assert functions > {"abs", "random", "load_extension"}
    assert (functions | tables) - decided("yes") - decided("no") == set()


HAS_JSON = "json_each" in {
    name for (name,) in sqlite3.connect(":memory:").execute("SELECT name FROM pragma_module_list")
}


@pytest.mark.skipif(not HAS_JSON, reason="this SQLite is built without JSON")
@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT json_extract(tags, '$.size.cm') FROM item WHERE id = 2", [(7,)]),
        ("SELECT tags -> 1, tags ->> 1 FROM item WHERE id = 1", [('"b"', "b")]),
        ("SELECT value FROM item, json_each(tags) WHERE item.id = 1 ORDER BY 1", [("a",), ("b",)]),
        (
            "SELECT count(*) FROM item, json_tree(tags) WHERE item.id = 2",
            [(3,)],
        ),
        ("SELECT id FROM item WHERE EXISTS (SELECT 1 FROM json_each(tags)) AND id <> 2", [(1,)]),
        ("SELECT json_group_array(price) FROM item", [("[3,5,8]",)]),
        ("SELECT json_array_length(tags) FROM item WHERE id = 3", [(0,)]),
    ],
)
def test_json_is_allowed(sandbox, database, sql, rows):
    """json_tree has a row for the object, for "size" and for "cm"."""
    execution = sandbox.run(database, sql)
    assert (execution.status, execution.rows) == ("ok", rows), execution.error
    assert {table for table, _ in execution.reads} <= {"item"}  # JSON is no table of the database


def test_a_table_with_the_name_of_a_table_function_is_a_table(sandbox, tmp_path):
    path = tmp_path / "named.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE json_each (value); INSERT INTO json_each VALUES (4)")
    connection.close()
    execution = sandbox.run(path, "SELECT value FROM json_each")
    assert (execution.rows, execution.reads) == ([(4,)], {("json_each", "value")})


@pytest.mark.skipif(not HAS_JSON, reason="this SQLite is built without JSON")
def test_json_in_an_index_or_a_column_does_not_hide_the_database(sandbox, tmp_path):
    """SQLite does not trust the function there: only what calls it is denied."""
    path = make_database(
        tmp_path / "order.sqlite",
        """CREATE TABLE orders (id INTEGER PRIMARY KEY, data TEXT,
            stored TEXT AS (json_extract(data, '$.city')) STORED,
            computed TEXT AS (json_extract(data, '$.city')));
        INSERT INTO orders (id, data) VALUES (1, '{"city": "Lima"}');
        CREATE INDEX by_city ON orders (json_extract(data, '$.city'));""",
    )
    sql = "SELECT id FROM orders WHERE json_extract(data, '$.city') = 'Lima'"
    assert sandbox.run(path, sql).rows == [(1,)]
    assert sandbox.run(path, "SELECT stored FROM orders").rows == [("Lima",)]
    assert sandbox.run(path, "SELECT computed FROM orders").status in ("ok", "denied")


def test_a_function_that_sqlite_does_not_trust_in_a_view_is_denied(sandbox, database):
    assert sandbox.run(database, "SELECT day FROM dated").status == "denied"


# ------------------------------------------------------------------------------------ depth

ORS = " OR ".join(f"price = {i}" for i in range(1, 31))
NESTED = "SELECT max(price) FROM item WHERE price = (" * 8
DEEP = {
    f"SELECT count(*) FROM item WHERE {ORS}": [(3,)],
    "SELECT 0" + "".join(f" + {i}" for i in range(1, 32)): [(496,)],
    f"{NESTED}8" + ")" * 8: [(8,)],
    "SELECT 1" + " + 1" * 98: [(99,)],
}
DEEP["SELECT count(*) FROM item WHERE " + "(price = 3 AND (" * 15 + ORS + "))" * 15] = [(1,)]


@pytest.mark.parametrize("sql", DEEP, ids=lambda sql: sql[:60])
def test_ordinary_sql_is_not_too_deep(sandbox, database, sql):
    """30 ORs, 31 added terms, a column compared with a subquery eight times, one inside the other,
    a tree of depth 99, and 15 conditions around 30 ORs. The second is 31 * 32 / 2.
    """
    execution = sandbox.run(database, sql)
    assert (execution.status, execution.rows) == ("ok", DEEP[sql]), execution.error


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1" + " + 1" * 100,
        "SELECT 1" + " UNION ALL SELECT 1" * 100,
        "SELECT 'a' LIKE '" + "%a" * 501 + "'",
        "SELECT zeroblob(2147483647)",
    ],
    ids=lambda sql: sql[:40],
)
def test_beyond_a_limit_of_the_sandbox_is_too_large(sandbox, database, sql):
    """And no error of SQLite, which has higher limits: 1,000, 500 and 50,000."""
    assert sandbox.run(database, sql).status == "too_large"


def test_a_name_that_reads_like_a_limit_is_an_error(sandbox, database):
    execution = sandbox.run(database, 'SELECT "Expression tree is too large".x FROM item')
    assert execution.status == "error"


def test_deep_gold_can_be_changed(database):
    """The parser of gold goes into every pair of parentheses: 40 conditions before the last."""
    sql = "SELECT id FROM item WHERE " + "(id = 1 AND " * 40 + "price > 1" + ")" * 40
    (select,) = parse(sql).selects
    assert len(list(parse(sql).leaves(select.clause("where")))) == 41
    schema = load_schema(database)
    assert make_mutants(sql, schema)
    perturbed_queries(sql, 1, schema)
