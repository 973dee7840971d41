"""Mutants and equivalent rewrites of SQL, and the parser that both use."""

import doctest
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encoder import rewrites
from encoder.rewrites import KINDS as REWRITE_KINDS
from encoder.rewrites import equivalent_rewrites
from sqlenv import (
    EMBEDDED,
    Column,
    ForeignKey,
    Schema,
    Table,
    canonical_sql,
    load_dataset,
    load_schema,
    make_mutants,
)
from sqlenv.query import parse
from sqlenv.testsuite import determinism, literals, mutants
from sqlenv.testsuite.edge_cases import EDGE_KINDS
from sqlenv.testsuite.mutants import KINDS
from tests.test_dataset import multispider


def table(name, columns, *foreign_keys):
    return Table(name, tuple(Column(*column) for column in columns), foreign_keys)


SCHEMA = Schema(
    (
        table("singer", [("id", "INT", True), ("name", "TEXT", False), ("age", "INT", False),
                         ("Birth Place", "TEXT", False)]),
        table("concert", [("cid", "INT", True), ("singer_id", "INT", False),
                          ("name", "TEXT", False), ("day", "DATE", False)],
              ForeignKey("singer_id", "singer", "id")),
        table("fan", [("id", "INT", True), ("name", "TEXT", False), ("age", "INT", False)]),
    )
)  # fmt: skip

# query: every mutant of these kinds, as canonical SQL
EXPECTED = {
    ("SELECT name FROM singer WHERE age > 20", "comparison"): [
        "SELECT name FROM singer WHERE age >= 20",
        "SELECT name FROM singer WHERE age < 20",
    ],
    ("SELECT name FROM singer WHERE age > 20", "distinct"): [
        "SELECT DISTINCT name FROM singer WHERE age > 20",
    ],
    ("SELECT id, name FROM singer", "distinct"): [],  # no row repeats
    ("SELECT name FROM singer WHERE age > 20", "literal"): [
        "SELECT name FROM singer WHERE age > 21",
        "SELECT name FROM singer WHERE age > 19",
    ],
    ("SELECT name FROM singer WHERE age > 20", "condition"): ["SELECT name FROM singer"],
    ("SELECT name FROM singer WHERE age > 20", "column"): [
        'SELECT "Birth Place" FROM singer WHERE age > 20',
        "SELECT name FROM singer WHERE id > 20",
    ],
    ("SELECT name FROM singer WHERE age > 20", "table"): ["SELECT name FROM fan WHERE age > 20"],
    ("SELECT count(*) FROM fan", "table"): [
        "SELECT count(*) FROM singer",
        "SELECT count(*) FROM concert",
    ],
    ("SELECT singer.name FROM singer WHERE singer.age = 1", "table"): [
        "SELECT fan.name FROM fan WHERE fan.age = 1",
    ],
    ("SELECT DISTINCT name FROM fan LIMIT 2", "distinct"): ["SELECT name FROM fan LIMIT 2"],
    ("SELECT count(DISTINCT age), count(name), count(*) FROM fan", "distinct"): [
        "SELECT count(age), count(name), count(*) FROM fan",
        "SELECT count(DISTINCT age), count(DISTINCT name), count(*) FROM fan",
    ],
    ("SELECT name FROM fan WHERE id IN (SELECT DISTINCT id FROM singer)", "distinct"): [
        "SELECT DISTINCT name FROM fan WHERE id IN (SELECT DISTINCT id FROM singer)",
    ],
    ("SELECT name FROM fan UNION SELECT DISTINCT name FROM singer", "distinct"): [],
    ("SELECT avg(age) FROM fan", "aggregate"): [
        f"SELECT {name}(age) FROM fan" for name in ("count", "sum", "min", "max")
    ],
    ("SELECT max(name), max(1, 2) FROM fan", "aggregate"): [  # texts have no sum
        f"SELECT {name}(name), max(1, 2) FROM fan" for name in ("count", "min")
    ],
    ("SELECT name FROM fan WHERE name LIKE '%ab%' OR age = -1.5", "literal"): [
        "SELECT name FROM fan WHERE name LIKE '%ab' OR age = -1.5",
        "SELECT name FROM fan WHERE name LIKE 'ab%' OR age = -1.5",
        "SELECT name FROM fan WHERE name LIKE '%ab%' OR age = -2.5",
    ],
    # "x y" is no column, so SQLite takes it for a text; "age" is one
    ("SELECT id FROM fan WHERE name = \"x y\" AND id = \"age\" AND name != 'it''s'", "literal"): [
        "SELECT id FROM fan WHERE name = \"x \" AND id = \"age\" AND name != 'it''s'",
        "SELECT id FROM fan WHERE name = \"x y\" AND id = \"age\" AND name != 'it''sx'",
    ],
    ("SELECT id FROM fan ORDER BY age, name DESC LIMIT 3", "sort"): [
        "SELECT id FROM fan ORDER BY age DESC, name DESC LIMIT 3",
        "SELECT id FROM fan ORDER BY age, name ASC LIMIT 3",
        "SELECT id FROM fan LIMIT 3",
    ],
    ("SELECT id FROM fan WHERE id IN (SELECT id FROM singer ORDER BY age)", "sort"): [],
    ("SELECT id FROM fan ORDER BY age LIMIT 3", "limit"): [
        "SELECT id FROM fan ORDER BY age LIMIT 4",
        "SELECT id FROM fan ORDER BY age LIMIT 2",
        "SELECT id FROM fan ORDER BY age",
    ],
    ("SELECT id FROM fan WHERE age = (SELECT age FROM fan ORDER BY id LIMIT 1)", "limit"): [],
    ("SELECT id FROM fan WHERE age BETWEEN 1 AND 5 AND id = 2 OR id = 3", "and_or"): [
        "SELECT id FROM fan WHERE age BETWEEN 1 AND 5 OR id = 2 OR id = 3",
        "SELECT id FROM fan WHERE age BETWEEN 1 AND 5 AND id = 2 AND id = 3",
    ],
    ("SELECT id FROM fan WHERE (id = 1 OR id = 2) AND age IN (3)", "condition"): [
        "SELECT id FROM fan",
        "SELECT id FROM fan WHERE age IN (3)",
        "SELECT id FROM fan WHERE (id = 1 OR id = 2)",
        "SELECT id FROM fan WHERE (id = 2) AND age IN (3)",
        "SELECT id FROM fan WHERE (id = 1) AND age IN (3)",
    ],
    ("SELECT name FROM fan WHERE age > 3 GROUP BY name HAVING count(*) > 1", "having"): [
        "SELECT name FROM fan GROUP BY name HAVING age > 3 AND count(*) > 1",
    ],
    ("SELECT name FROM fan GROUP BY name HAVING name > 'a' ORDER BY 1", "having"): [
        "SELECT name FROM fan WHERE name > 'a' GROUP BY name ORDER BY 1",
    ],
    ("SELECT id FROM fan UNION ALL SELECT id FROM singer", "set_operation"): [
        "SELECT id FROM fan UNION SELECT id FROM singer",
        "SELECT id FROM fan",
    ],
    ("SELECT id FROM fan EXCEPT SELECT id FROM singer ORDER BY 1", "set_operation"): [
        "SELECT id FROM fan UNION SELECT id FROM singer ORDER BY 1",
        "SELECT id FROM fan INTERSECT SELECT id FROM singer ORDER BY 1",
    ],
    ("SELECT id FROM fan WHERE name IS NULL AND id NOT IN (SELECT id FROM singer)", "negation"): [
        "SELECT id FROM fan WHERE name IS NOT NULL AND id NOT IN (SELECT id FROM singer)",
        "SELECT id FROM fan WHERE name IS NULL AND id IN (SELECT id FROM singer)",
    ],
    # singer is only looked up, so neither LEFT JOIN nor leaving it out would matter
    ("SELECT c.day FROM concert AS c JOIN singer AS s ON c.singer_id = s.id", "join"): [
        "SELECT c.day FROM concert AS c JOIN singer AS s ON c.singer_id != s.id",
        "SELECT c.day FROM concert AS c JOIN singer AS s",
        "SELECT c.day FROM concert AS c JOIN singer AS s ON c.cid = s.id",
        "SELECT c.day FROM concert AS c JOIN singer AS s ON c.singer_id = s.age",
    ],
    ("SELECT s.name FROM singer s JOIN concert c ON c.singer_id = s.id", "join"): [
        "SELECT s.name FROM singer s LEFT JOIN concert c ON c.singer_id = s.id",
        "SELECT s.name FROM singer s JOIN concert c ON c.singer_id != s.id",
        "SELECT s.name FROM singer s JOIN concert c",
        "SELECT s.name FROM singer s",
        "SELECT s.name FROM singer s JOIN concert c ON c.cid = s.id",
        "SELECT s.name FROM singer s JOIN concert c ON c.singer_id = s.age",
    ],
    ("SELECT c.cid FROM singer s LEFT JOIN concert c ON c.singer_id = s.id", "join"): [
        "SELECT c.cid FROM singer s JOIN concert c ON c.singer_id = s.id",
        "SELECT c.cid FROM singer s LEFT JOIN concert c ON c.singer_id != s.id",
        "SELECT c.cid FROM singer s LEFT JOIN concert c",
        "SELECT c.cid FROM singer s LEFT JOIN concert c ON c.cid = s.id",
        "SELECT c.cid FROM singer s LEFT JOIN concert c ON c.singer_id = s.age",
    ],
}


def of_kind(sql, kind, schema=SCHEMA):
    mutants = make_mutants(sql, schema, edge_cases=True)
    return [canonical_sql(mutant.sql) for mutant in mutants if mutant.kind == kind]


@pytest.mark.parametrize("sql, kind", EXPECTED)
def test_mutants_of_a_kind(sql, kind):
    expected = [canonical_sql(sql) for sql in EXPECTED[sql, kind]]
    assert sorted(of_kind(sql, kind)) == sorted(expected)


def test_every_kind_is_expected_somewhere():
    assert {kind for _, kind in EXPECTED} == set(KINDS)


def test_without_a_schema():
    """No other columns or tables; a join is dropped only if all columns are qualified."""
    kinds = {mutant.kind for mutant in make_mutants("SELECT name FROM singer WHERE age > 20")}
    assert kinds == {"comparison", "distinct", "literal", "condition"}
    qualified = "SELECT a.x FROM a JOIN b ON a.x = b.x"
    assert "SELECT a.x FROM a" in of_kind(qualified, "join", None)
    unqualified = "SELECT y FROM a JOIN b ON a.x = b.x"
    assert not any(sql.endswith("FROM a") for sql in of_kind(unqualified, "join", None))


def test_strings_names_and_comments_are_not_touched():
    """SQL inside them is not changed, nor is the notation of the rest."""
    sql = (
        "select  [a > b], 'x >= y AND DISTINCT' -- max(c) > 1\n"
        "FROM \"order by\" WHERE `limit 1` = 'not in (1)' /* OR d < 2 */"
    )
    mutants = make_mutants(sql)
    assert {mutant.kind for mutant in mutants} == {"comparison", "distinct", "literal", "condition"}
    for mutant in mutants:
        assert "[a > b], 'x >= y AND DISTINCT' -- max(c) > 1" in mutant.sql
        assert '"order by"' in mutant.sql
        assert mutant.sql.endswith("/* OR d < 2 */")


def test_mutants_are_different_and_always_the_same():
    for sql, _ in EXPECTED:
        mutants = make_mutants(sql, SCHEMA)
        canonical = [canonical_sql(mutant.sql) for mutant in mutants] + [canonical_sql(sql)]
        assert len(set(canonical)) == len(canonical)
        assert mutants == make_mutants(sql, SCHEMA)
        assert {mutant.kind for mutant in mutants} <= KINDS.keys()


REWRITTEN = {
    "SELECT a, b FROM t WHERE a > 1 AND b <= 2": [
        "SELECT a, b FROM t WHERE (a > 1) AND (b <= 2)",
        "SELECT a, b FROM t WHERE 1 < a AND 2 >= b",
        "SELECT a, b FROM t WHERE NOT (a <= 1) AND NOT (b > 2)",
        "SELECT a, b FROM t WHERE b <= 2 AND a > 1",
        "SELECT b, a FROM t WHERE a > 1 AND b <= 2",
    ],
    "SELECT a FROM t WHERE b BETWEEN 1 AND 5": [
        "SELECT a FROM t WHERE (b BETWEEN 1 AND 5)",
        "SELECT a FROM t WHERE (b >= 1 AND b <= 5)",
    ],
    "SELECT count(*) FROM t WHERE b >= 1 AND b <= 5": [
        "SELECT count(*) FROM t WHERE (b >= 1) AND (b <= 5)",
        "SELECT count(*) FROM t WHERE 1 <= b AND 5 >= b",
        "SELECT count(*) FROM t WHERE NOT (b < 1) AND NOT (b > 5)",
        "SELECT count(*) FROM t WHERE b <= 5 AND b >= 1",
        "SELECT count(*) FROM t WHERE b BETWEEN 1 AND 5",
        "SELECT count(1) FROM t WHERE b >= 1 AND b <= 5",
    ],
    "SELECT a FROM t WHERE b = 'x' OR b = 'y' ORDER BY a LIMIT 2": [
        "SELECT a FROM t WHERE (b = 'x') OR (b = 'y') ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE 'x' = b OR 'y' = b ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE NOT (b != 'x') OR NOT (b != 'y') ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE b = 'y' OR b = 'x' ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE b IN ('x', 'y') ORDER BY a LIMIT 2",
        "SELECT a FROM t WHERE b = 'x' OR b = 'y' ORDER BY a ASC LIMIT 2 OFFSET 0",
    ],
    "SELECT x.a FROM t AS x JOIN u AS y ON x.a = y.a": [
        "SELECT x.a FROM t AS x JOIN u AS y ON (x.a = y.a)",
        "SELECT x.a FROM t AS x JOIN u AS y ON y.a = x.a",
        "SELECT r1_t.a FROM t AS r1_t JOIN u AS r2_u ON r1_t.a = r2_u.a",
        "SELECT x.a FROM u AS y JOIN t AS x ON x.a = y.a",
        "SELECT x.a FROM t AS x JOIN u AS y WHERE x.a = y.a",
        "SELECT x.a FROM t AS x INNER JOIN u AS y ON x.a = y.a",
    ],
    "SELECT a FROM t INTERSECT SELECT b FROM u;": ["SELECT b FROM u INTERSECT SELECT a FROM t"],
    "SELECT a FROM t EXCEPT SELECT b FROM u": [],
}


@pytest.mark.parametrize("sql", REWRITTEN)
def test_equivalent_rewrites(sql):
    texts = [canonical_sql(rewrite.sql) for rewrite in equivalent_rewrites(sql)]
    assert texts == [canonical_sql(sql) for sql in REWRITTEN[sql]]


def questions(dataset, split):
    return dict.fromkeys((e.db_path, e.gold_sql) for e in load_dataset(dataset, "en", split))


def assert_all_run(pairs) -> Counter:
    """Mutants and rewrites of gold that runs, run too; returns the number of each kind."""
    connections, counts = {}, Counter()
    for path, gold in pairs:
        if path not in connections:
            connections[path] = sqlite3.connect(path)
        try:
            connections[path].execute("EXPLAIN " + gold)
        except sqlite3.Error:
            continue
        mutants = make_mutants(gold, load_schema(path), edge_cases=True)
        for changed in [*mutants, *equivalent_rewrites(gold)]:
            try:
                connections[path].execute("EXPLAIN " + changed.sql)
            except sqlite3.Error as error:
                raise AssertionError(f"{changed.kind}: {changed.sql}") from error
            counts[changed.kind] += 1
    return counts


def test_mutants_and_rewrites_of_the_embedded_questions_run():
    counts = assert_all_run(questions(EMBEDDED, "dev"))
    assert counts["comparison"] > 50 and counts["joins swapped"] > 20


def test_mutants_and_rewrites_of_real_questions_run():
    """All kinds but one occur: no gold query of Spider dev has >= and <= for BETWEEN."""
    counts = assert_all_run(questions(multispider() / "dev3", "dev"))
    kinds = KINDS | EDGE_KINDS | REWRITE_KINDS
    assert counts.keys() == kinds.keys() - {"BETWEEN for comparisons"}
    assert sum(counts[kind] for kind in KINDS) > 6000


def test_the_structure_of_a_query():
    sql = """WITH c AS (SELECT a FROM t WHERE x IS NOT DISTINCT FROM 3)
    SELECT DISTINCT m.a, count(*) FROM main.t AS m LEFT JOIN (SELECT b FROM u LIMIT 2) v
      ON m.a = v.b AND v.b IN (1, 2), w
    WHERE (a = 1 OR CASE WHEN b AND c THEN 1 END) AND d BETWEEN 1 AND (SELECT max(e) FROM [f g])
    GROUP BY m.a HAVING count(*) > 1 UNION ALL SELECT 1, row_number() OVER (ORDER BY h) FROM i
    ORDER BY 1 LIMIT 3"""
    query = parse(sql)
    cte, main, derived, scalar, last = query.selects
    text = {
        name: query.text(span.start, span.stop).split("\n")[0]
        for name, span in main.clauses.items()
    }
    assert text["select"] == "DISTINCT m.a, count(*)"
    assert text["group"] == "m.a"
    assert text["having"] == "count(*) > 1"
    assert query.text(last.clause("order").start, last.clause("order").stop) == "1"
    assert list(cte.clauses) == ["select", "from", "where"]
    assert [(s.table, s.alias) for s in main.sources] == [("t", "m"), (None, "v"), ("w", "w")]
    assert [(s.table, s.alias) for s in scalar.sources] == [("f g", "f g")]
    assert (scalar.parent, derived.opener, main.compound, last.compound, cte.compound) == (
        main, "join", True, True, False
    )  # fmt: skip
    leaves = [query.text(leaf.start, leaf.stop) for leaf in query.leaves(main.clause("where"))]
    assert leaves == [
        "d BETWEEN 1 AND (SELECT max(e) FROM [f g])",
        "a = 1",
        "CASE WHEN b AND c THEN 1 END",
    ]
    names = {(r.qualifier, r.column) for r in query.references(main)}
    assert names == {("m", "a"), ("v", "b"), (None, "a"), (None, "b"), (None, "c"), (None, "d")}


def test_tables_in_parentheses():
    sql = "SELECT 1 FROM a JOIN (b AS c LEFT JOIN (d) e ON c.x = e.x, (SELECT 2) f) ON a.x = c.x"
    query = parse(sql)
    outer, inner = query.selects[0].sources, query.selects[0].grouped
    assert [(s.table, s.alias, query.text(s.on.start, s.on.stop)) for s in outer] == [
        ("a", "a", ""),
        (None, "", "a.x = c.x"),
    ]
    assert [(s.table, s.alias, query.text(s.first, s.last)) for s in inner] == [
        ("b", "c", "b AS c"),
        (None, "e", "LEFT JOIN (d) e ON c.x = e.x"),
        (None, "f", ", (SELECT 2) f"),
        ("d", "d", "d"),
    ]
    deep = parse(f"SELECT 1 FROM {'(' * 5000}a{')' * 5000}").selects[0]
    assert len(deep.grouped) == 5000 and deep.grouped[-1].table == "a"


def test_tables_and_columns_that_are_called_like_a_join():
    sql = "SELECT 1 FROM left a JOIN right AS full ON full.left = a.right, cross NATURAL JOIN b"
    query = parse(sql)
    sources = [(s.table, s.alias) for s in query.selects[0].sources]
    assert sources == [("left", "a"), ("right", "full"), ("cross", "cross"), ("b", "b")]
    on = query.selects[0].sources[1].on
    assert query.text(on.start, on.stop) == "full.left = a.right"


def test_mutants_of_a_query_with_a_window_run():
    """WINDOW ends the clause before it; elsewhere it is a name."""
    sql = (
        "SELECT a, rank() OVER w FROM t window WHERE window.b > 1 AND a > 2 GROUP BY a"
        " WINDOW w AS (ORDER BY a) ORDER BY a LIMIT 3"
    )
    clauses = parse(sql).selects[0].clauses
    assert list(clauses) == ["select", "from", "where", "group", "window", "order", "limit"]
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        changes = [*make_mutants(sql, edge_cases=True), *equivalent_rewrites(sql)]
        for change in changes:
            connection.execute(change.sql)
    assert "having" in {change.kind for change in changes}


@pytest.mark.parametrize("module", [literals, mutants, determinism, rewrites])
def test_examples_in_docstrings(module):
    failed, tried = doctest.testmod(module)
    assert not failed and tried


FRAGMENTS = st.sampled_from(
    "SELECT select FROM from WHERE JOIN ON AS AND OR NOT IN ( ) ( ) , . ; * = > <> 'a' \"b\" [c"
    " `d` 1 2.5 a b t.a GROUP BY ORDER BY HAVING LIMIT UNION ALL EXCEPT BETWEEN CASE END DISTINCT"
    " count( max( LIKE IS NULL WITH -- /* */ '".split(" ")
)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(FRAGMENTS, max_size=25).map(" ".join)))
@example("")
@example(")" * 50)
@example("SELECT " * 50)
@example("SELECT (" * 500)
def test_no_text_makes_them_fail(text):
    """They terminate for any text, and their results differ from it."""
    mutants = [m for schema in (SCHEMA, None) for m in make_mutants(text, schema, edge_cases=True)]
    for changed in [*mutants, *equivalent_rewrites(text)]:
        assert canonical_sql(changed.sql) != canonical_sql(text)
