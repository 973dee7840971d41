"""Finding SQL in completions, ORDER BY of the outermost query, and the canonical way of writing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlenv import canonical_sql, extract_sql, is_ordered

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
        "DROP TABLE t",
        "```sql\n```",
        "SQL: ;",
    ],
)
def test_nothing_to_extract(completion):
    assert extract_sql(completion) is None


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
        once = canonical_sql(text)
        assert canonical_sql(once) == once


@given(st.text())
def test_any_text_can_be_read(text):
    for sql in (text, f"SELECT {text}", f"```sql\nSELECT {text}"):
        extracted = extract_sql(sql)
        assert extracted is None or extracted in sql
        assert is_ordered(sql) in (True, False)
        assert canonical_sql(canonical_sql(sql)) == canonical_sql(sql)
