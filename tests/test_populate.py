"""Databases drawn for test suites: their constraints, and results that are not deterministic."""

import random
import sqlite3
from collections import Counter

import pytest

from sqlenv import Column, Sandbox, Schema, Table, load_schema, load_suite, suite_matches
from sqlenv.testsuite import distill
from sqlenv.testsuite.determinism import perturbed_queries
from sqlenv.testsuite.distill import DrawnDatabase, GoldQuery, Search
from sqlenv.testsuite.mutants import make_mutants
from sqlenv.testsuite.populate import draw_database, synthetic_value
from sqlenv.testsuite.profile import ColumnProfile, read_profile
from tests.test_testsuite import write_database


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as sandbox:
        yield sandbox


ODD = """
CREATE TABLE "order" ("select" INTEGER PRIMARY KEY, "a b" TEXT NOT NULL, "q""uote" REAL,
                      [bra cket] DATE, `tick` BLOB, größe INT DEFAULT 3,
                      CHECK ("q""uote" BETWEEN 0 AND 1000));
CREATE TABLE item (order_id INTEGER, line INTEGER, name VARCHAR(9) UNIQUE, price DECIMAL(9, 2),
                   total AS (price * line) STORED, PRIMARY KEY (order_id, line),
                   FOREIGN KEY (order_id) REFERENCES "order") WITHOUT ROWID;
CREATE TABLE part (order_id INTEGER NOT NULL, line INTEGER NOT NULL, code TEXT,
                   FOREIGN KEY (order_id, line) REFERENCES item (order_id, line));
CREATE TABLE staff (id INTEGER PRIMARY KEY, boss INTEGER REFERENCES staff(id),
                    dept TEXT REFERENCES dept(code));
CREATE TABLE dept (code TEXT PRIMARY KEY NOT NULL, head INTEGER NOT NULL REFERENCES staff(id));
CREATE TABLE checked (code TEXT CHECK (length(code) = 7 AND code LIKE 'AB-%-Z'),
                      low INTEGER NOT NULL, high INTEGER NOT NULL, CHECK (low < high));
CREATE TABLE nil (x, y, z);
CREATE TABLE lost (id INT REFERENCES gone(id), other INT REFERENCES nil(w));
CREATE UNIQUE INDEX two ON part (code, line);
CREATE VIEW dear AS SELECT name, price FROM item WHERE price > 10;
CREATE TRIGGER busy AFTER INSERT ON staff BEGIN DELETE FROM "order"; END;
INSERT INTO "order" VALUES (1, 'x', 0.5, '2020-02-02', x'00ff', 1), (2, 'y', 9.25, NULL, 'txt', 2);
INSERT INTO item (order_id, line, name, price) VALUES (1, 1, 'pen', 1.5), (1, 2, 'ink', 12.5),
  (2, 1, 'nib', 30);
INSERT INTO part VALUES (1, 1, 'p'), (2, 1, 'q'), (2, 1, NULL);
INSERT INTO staff VALUES (1, NULL, 'D1'), (2, 1, 'D1'), (3, 1, 'D2');
INSERT INTO dept VALUES ('D1', 1), ('D2', 3);
INSERT INTO checked VALUES ('AB-xx-Z', 1, 2), ('AB-yy-Z', -5, 5);
"""
ODD_GOLDS = [
    'SELECT "a b" FROM "order" WHERE "q""uote" > 0.5 ORDER BY größe DESC LIMIT 2',
    "SELECT o.[bra cket], count(*) FROM item AS i JOIN `order` AS o ON i.order_id = o.\"select\""
    " GROUP BY o.\"select\" HAVING count(*) >= 2",
    "SELECT name FROM dear WHERE price < 30",
    "SELECT a.id FROM staff AS a JOIN staff AS b ON a.boss = b.id WHERE b.dept = 'D1'",
    "SELECT d.code FROM dept AS d JOIN staff AS s ON d.head = s.id WHERE s.id > 1",
    "SELECT count(*) FROM checked WHERE high > 2 AND low <= 1",
    "SELECT p.code FROM part AS p JOIN item AS i ON p.order_id = i.order_id AND p.line = i.line",
    "SELECT count(*) FROM nil WHERE x = 4 OR y = 'z'",
]  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    return write_database(tmp_path_factory.mktemp("odd") / "a 'b'%?#.sqlite", ODD)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_databases_keep_the_constraints(odd, seed):
    profile = read_profile(odd, ODD_GOLDS)
    connection = draw_database(profile, range(seed % len(ODD_GOLDS)), random.Random(seed))
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]  # also NOT NULL
    connection.execute("DROP TABLE lost")  # its foreign keys are broken in the given database, too
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    primary = connection.execute("SELECT * FROM item WHERE order_id IS NULL OR line IS NULL")
    assert primary.fetchall() == []
    connection.execute("INSERT INTO staff VALUES (1000, NULL, NULL)")
    assert connection.execute("SELECT total = price * line FROM item").fetchall().count((0,)) == 0


@pytest.mark.parametrize(
    ("value", "drawn"),
    [
        ('{"n": 2}', '{"n": 2}   '),
        ("[1]", "[1]   "),
        (b"\x00\xff", b"\x00\xff3"),
        ("ab", "ab 3"),
        ("[unknown]", "[unknown] 3"),
    ],
)
def test_synthetic_values_are_of_the_same_kind(value, drawn):
    """JSON can be read as JSON, and bytes stay bytes."""
    column = ColumnProfile("c", "", True, False, False, False, [value])
    assert synthetic_value(column, 3) == drawn


def test_drawn_databases_have_rows_everywhere_mostly(odd):
    """Also with cyclic and composite foreign keys, and with a CHECK that random rows rarely meet:
    rows of the given database replace those that are refused."""
    profile, counts, codes = read_profile(odd, ODD_GOLDS), Counter(), set()
    for seed in range(30):
        connection = draw_database(profile, [0, 3], random.Random(seed))
        for name in ("order", "item", "part", "staff", "dept", "checked", "nil"):
            counts[name] += connection.execute(f'SELECT count(*) > 1 FROM "{name}"').fetchone()[0]
        codes |= set(connection.execute("SELECT code FROM checked"))
    assert all(count >= 20 for count in counts.values()), counts
    assert {("AB-xx-Z",), ("AB-yy-Z",)} <= codes


@pytest.mark.parametrize(
    "table",
    [
        "CREATE TABLE e (n INT, data TEXT CHECK (json_type(data) = 'object'))",
        "CREATE TABLE e (n INT, data TEXT, id INT AS (json_extract(data, '$.id')) STORED)",
        "CREATE TABLE e (n INT, data TEXT); CREATE INDEX i ON e (json_extract(data, '$.id'))",
    ],
)
def test_rows_that_a_function_of_the_schema_cannot_read_are_replaced(tmp_path, table):
    """Drawn texts such as '{"id": 1} 1' are no JSON: an error, not a violated constraint."""
    script = f"""{table}; INSERT INTO e (n, data) VALUES (1, '{{"id": 1}}'), (2, '{{"id": 2}}');"""
    profile = read_profile(write_database(tmp_path / "json.sqlite", script), ["SELECT n FROM e"])
    counts = []
    for seed in range(10):
        connection = draw_database(profile, [0], random.Random(seed))
        counts += connection.execute("SELECT count(*) FROM e WHERE json_valid(data)").fetchone()
    assert sum(count >= 3 for count in counts) >= 8  # the smallest of SIZES; a table may be empty


def test_a_suite_for_an_odd_database(sandbox, odd, tmp_path):
    suite = load_suite(odd, ODD_GOLDS, sandbox, cache=tmp_path)
    assert all(suite.variants_by_gold[gold] for gold in ODD_GOLDS)
    assert all(suite_matches(sandbox, [(suite, gold, gold) for gold in ODD_GOLDS]))
    wrong = ODD_GOLDS[5].replace("<=", "<")
    assert suite_matches(sandbox, [(suite, ODD_GOLDS[5], wrong)]) == [False]


def test_keys_are_null_only_where_the_given_database_has_it(tmp_path):
    script = """
    CREATE TABLE p (id INTEGER PRIMARY KEY, note TEXT);
    CREATE TABLE c (full INT REFERENCES p(id), holed INT REFERENCES p(id), loose INT, note TEXT);
    INSERT INTO p VALUES (1, 'a'), (2, 'b');
    INSERT INTO c VALUES (1, 1, 2, 'x'), (2, NULL, 2, 'y');
    """
    path = write_database(tmp_path / "null.sqlite", script)
    gold = "SELECT p.note FROM c JOIN p ON c.loose = p.id"  # no key says so, but the rows do
    profile, nulls = read_profile(path, [gold]), Counter()
    for seed in range(40):
        connection = draw_database(profile, [], random.Random(seed))
        sums = ", ".join(f"sum({name} IS NULL)" for name in ("full", "holed", "loose", "note"))
        row = connection.execute(f"SELECT {sums} FROM c").fetchone()
        nulls.update({k: v or 0 for k, v in zip(("full", "holed", "loose", "note"), row)})
        dangling = "SELECT count(*) FROM c WHERE loose NOT IN (SELECT id FROM p)"
        assert connection.execute(dangling).fetchone() == (0,)
    assert nulls["full"] == nulls["loose"] == 0
    assert nulls["holed"] > 0 and nulls["note"] > 0


def test_foreign_keys_that_name_no_column_refer_to_the_primary_key(tmp_path):
    """A parent's own foreign keys are none of it, and its columns are in the order of the key."""
    script = """
    CREATE TABLE customers (id INTEGER PRIMARY KEY);
    CREATE TABLE orders (customer_id REFERENCES customers(id), id INTEGER PRIMARY KEY);
    CREATE TABLE items (order_id REFERENCES orders);
    CREATE TABLE pair (a INT, b INT, PRIMARY KEY (b, a));
    CREATE TABLE ref (x INT, y INT, FOREIGN KEY (x, y) REFERENCES pair);
    """
    tables = read_profile(write_database(tmp_path / "keys.sqlite", script), []).tables
    links = {n: [(k.columns, k.parent, k.parent_columns) for k in tables[n].links] for n in tables}
    assert links["items"] == [(("order_id",), "orders", ("id",))]
    assert links["ref"] == [(("x", "y"), "pair", ("b", "a"))]


TIED = """CREATE TABLE t (name TEXT, age INT, city TEXT); INSERT INTO t VALUES {};
CREATE TABLE k (id INTEGER PRIMARY KEY, city TEXT); INSERT INTO k VALUES (1, 'x'), (2, 'x')"""
TOP_CITY = """WITH top AS (SELECT city FROM t GROUP BY city ORDER BY count(*) DESC LIMIT 1)
SELECT name, age, city FROM t WHERE city IN (SELECT city FROM top)"""
UP_TO_3 = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 3)"
ARBITRARY = [
    # (rows, query, whether its answer is arbitrary)
    ("('a', 1, 'x'), ('b', 1, 'x')", "SELECT name FROM t ORDER BY age LIMIT 1", True),
    ("('a', 1, 'x'), ('a', 1, 'y')", "SELECT name FROM t ORDER BY age LIMIT 1", False),
    ("('a', 1, 'x'), ('b', 2, 'x'), ('c', 2, 'x')",
     "SELECT name FROM t ORDER BY age LIMIT 1", False),
    ("('a', 1, 'x'), ('b', 1, 'x')", "SELECT name FROM t ORDER BY age", True),
    ("('a', 1, 'x'), ('b', 1, 'x')", "SELECT name FROM t ORDER BY name", False),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT name FROM t LIMIT 1", True),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT name, city FROM t GROUP BY city", True),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT name, max(age) FROM t GROUP BY city", False),
    ("('a', 2, 'x'), ('b', 2, 'x')", "SELECT name, max(age) FROM t GROUP BY city", True),
    ("('a', 1, 'x'), ('b', 2, 'y')",
     "SELECT city FROM t GROUP BY city ORDER BY count(*) LIMIT 1", True),
    ("('a', 1, 'x'), ('b', 2, 'y')",
     "SELECT name FROM t WHERE city ="
     " (SELECT city FROM t GROUP BY city ORDER BY count(*) LIMIT 1)", True),
    ("('a', 1, 'x'), ('a', 2, 'x')", "SELECT name, city FROM t GROUP BY city", False),
    ("('a', 1, 'x'), (NULL, 2, 'x')", "SELECT name, city FROM t GROUP BY city", True),
    ("('a', 1, 'x')", "SELECT id, city FROM k GROUP BY city", True),
    ("('a', 1, 'x')", "SELECT name, id FROM t JOIN k AS l ON t.city = l.city GROUP BY name", True),
    ("('a', 1, 'x')", "SELECT name, id FROM t, main.k GROUP BY id", False),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT DISTINCT city FROM t ORDER BY age", False),
    ("('a', 1, 'x'), ('b', 2, 'y'), ('b', 0, 'x')",
     "SELECT DISTINCT city FROM t WHERE age != 0 OR name != 'c' ORDER BY age > 0", True),
    ("('a', 1, 'x'), ('b', 2, 'y')", "SELECT name FROM t WHERE age > 0", False),
    ("('a', 1, 'x'), ('b', 1, 'y')",
     "SELECT name FROM t UNION SELECT city FROM t ORDER BY 1 LIMIT 2", False),
    # GROUP BY an ordinal, an alias or an expression. Both groups of ages and lengths have the sum
    # 3, though the least age 0 and the least length 1 do not.
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT city, count(*) FROM t GROUP BY 1", False),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT name, count(*) FROM t GROUP BY city", True),
    ("('a', 1, 'xy'), ('b', 2, 'xz')",
     "SELECT substr(city, 1, 1) AS c, count(*) FROM t GROUP BY c", False),
    ("('a', 1, 'xy'), ('b', 2, 'xz')",
     "SELECT substr(city, 1, 1) c, city, count(*) FROM t GROUP BY c", True),
    ("('a', 1, 'x'), ('b', 2, 'x')", "SELECT name AS n, count(*) FROM t GROUP BY 'n'", True),
    ("('a', 1, 'x'), ('a', 2, 'y')",  # the column before the alias
     "SELECT upper(city) AS name, count(*) FROM t GROUP BY name", True),
    ("('a', 2, 'x'), ('bbb', 0, 'x')", "SELECT age + length(name), count(*) FROM t GROUP BY 1",
     False),
    ("('a', 2, 'x'), ('bbb', 0, 'x')",
     "SELECT age + length(name), count(*) FROM t GROUP BY age + length(name)", False),
    ("('a', 2, 'x'), ('bbb', 0, 'x')",
     "SELECT age + length(name) * 2, count(*) FROM t GROUP BY age + length(name)", True),
    ("('ab', 1, 'x'), ('ac', 2, 'x')",
     "SELECT substr(name, 1, 1), count(*) FROM t GROUP BY substr(name, 1, 1)", False),
    ("('ab', 1, 'x'), ('ac', 2, 'x')",
     "SELECT name, count(*) FROM t GROUP BY substr(name, 1, 1)", True),
    # Table expressions: as wide as they are, and recursive ones are not read in another order.
    ("('a', 1, 'x'), ('b', 2, 'x'), ('c', 3, 'y')", TOP_CITY, False),
    ("('a', 1, 'x'), ('c', 3, 'y')", TOP_CITY, True),
    ("('a', 1, 'x'), ('b', 2, 'x')", f"{UP_TO_3} SELECT x FROM n ORDER BY x LIMIT 2", False),
    ("('a', 1, 'x'), ('b', 2, 'x')", f"{UP_TO_3} SELECT name, x FROM t, n ORDER BY x LIMIT 1",
     True),
]  # fmt: skip


@pytest.mark.parametrize("rows, sql, arbitrary", ARBITRARY)
def test_arbitrary_answers_are_recognised(tmp_path, rows, sql, arbitrary):
    path = write_database(tmp_path / "tied.sqlite", TIED.format(rows))
    connection = sqlite3.connect(path)
    gold = GoldQuery(sql, len(connection.execute(sql).description), load_schema(path))
    assert (DrawnDatabase(connection).gold_result(gold) is None) == arbitrary


def test_a_rewrite_that_sqlite_rejects_says_nothing():
    """One with another result does, and so do those with more than 2,000 rows or without end."""
    numbers = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT {} FROM n"
    for rewrite, is_arbitrary in [
        ("SELECT nothing", False),
        ("SELECT 2", True),
        (numbers.format("x"), True),
        (numbers.format("max(x)"), True),
    ]:
        gold, drawn = GoldQuery("SELECT 1", 1, Schema(())), DrawnDatabase(sqlite3.connect(""))
        gold.perturbed = ["SELECT 1", rewrite]
        assert (drawn.gold_result(gold) is None) == is_arbitrary


def test_perturbed_queries():
    schema = Schema((Table("T", (Column("a", "", False), Column("b", "", False)), ()),))
    sql = "SELECT a, b FROM t AS x, u WHERE c = (SELECT d, e FROM main.t LIMIT 1) ORDER BY f;"
    assert perturbed_queries(sql, 2, schema)[0] == (
        "SELECT a, b FROM (SELECT * FROM t ORDER BY 1 ASC, 2 ASC LIMIT -1) AS x,"
        " (SELECT * FROM u ORDER BY 1 ASC LIMIT -1) AS u WHERE c = (SELECT d, e FROM"
        " (SELECT * FROM main.t ORDER BY 1 ASC, 2 ASC LIMIT -1) AS t"
        " ORDER BY 1 ASC, 2 ASC LIMIT 1) ORDER BY f, 1 ASC, 2 ASC ;"
    )
    sql = "SELECT a, count(b) FROM t GROUP BY t.a ORDER BY b LIMIT 3"
    assert perturbed_queries(sql, 2, schema)[3] == (
        "SELECT a, count(b) FROM (SELECT * FROM t ORDER BY 1 DESC, 2 DESC LIMIT -1) AS t"
        " GROUP BY t.a ORDER BY CASE WHEN count(b) = count(*) THEN max(b) END ,"
        " 1 DESC, 2 DESC LIMIT 3"
    )
    *sorted_, any_row = perturbed_queries("SELECT a FROM t WHERE b = (SELECT a FROM t)", 1, schema)
    assert any_row == "SELECT a FROM t WHERE b IN (SELECT a FROM t)"
    assert [sql.endswith("AS t ORDER BY 1 ASC )") for sql in sorted_] == [True, True, False, False]
    for determined in (
        "SELECT a FROM t WHERE b = (SELECT sum(a) FROM t)",
        "SELECT a FROM t WHERE b > 3",
        "SELECT a, sum(b) FROM t GROUP BY a",
    ):
        assert perturbed_queries(determined, 2, schema) == []


def test_a_query_that_takes_too_long_on_a_drawn_database_is_stopped():
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    drawn = DrawnDatabase(sqlite3.connect(":memory:"))
    assert drawn.run(endless).status == "timeout"
    assert drawn.run(endless.replace("max(x)", "x")).status == "too_large"
    assert drawn.run("SELECT 1").rows == [(1,)]


def test_the_search_ends_after_its_work(odd, monkeypatch):
    """A database of few rows costs two units a column, 52 for 26 columns. A search that may do 900
    units ends with the query that reaches them, after at most one more database in each of eight
    idle rounds, and keeps what it has chosen before."""
    schema, profile = load_schema(odd), read_profile(odd, ODD_GOLDS)
    golds = [
        GoldQuery(gold, 1, schema, make_mutants(gold, schema, edge_cases=True))
        for gold in ODD_GOLDS
    ]
    monkeypatch.setattr(distill, "MAX_WORK", 900)
    monkeypatch.setattr(distill, "MANY_ROWS", 8)
    search = Search(profile, golds, seed=0)
    search.choose_large()
    search.choose()
    columns = sum(len(table.columns) for table in profile.tables.values())
    assert columns == 26
    assert search.variants and 900 < search.work < 900 + 9 * 52 + 100
    assert any(search.survivors)
