"""Spider's four levels: queries counted by hand, and the published numbers of its dev set."""

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.clauses import parts
from sqlenv.dataset.entries import read_entries
from sqlenv.metrics.hardness import LEVELS, counts, hardness

JOINED = "SELECT T2.name FROM a AS T1 JOIN b AS T2 ON T1.id = T2.id"
# components, nested, others
COUNTED = [
    ("SELECT count(*) FROM t", (0, 0, 0), "easy"),
    ("SELECT name FROM t WHERE x = 'or like union'", (1, 0, 0), "easy"),
    ("SELECT a, b, c FROM t", (0, 0, 1), "medium"),
    ("SELECT min(a), max(a) FROM t", (0, 0, 2), "medium"),
    ("SELECT name FROM t ORDER BY age LIMIT 1", (2, 0, 0), "medium"),
    (f"{JOINED} WHERE T1.x = 1", (2, 0, 0), "medium"),
    ("SELECT a, b FROM t WHERE x BETWEEN 1 AND 2", (1, 0, 1), "medium"),
    ("SELECT a, b FROM t WHERE x = 1 AND y = 2", (1, 0, 2), "medium"),
    ("SELECT a FROM t WHERE x LIKE 'a%' OR x LIKE 'b%'", (4, 0, 1), "extra"),
    ("SELECT a, count(*) FROM t GROUP BY a, b HAVING count(*) > 1", (1, 0, 2), "medium"),
    ("SELECT sum(a), b FROM t GROUP BY b ORDER BY count(*)", (2, 0, 2), "extra"),
    ("SELECT sum(a), b FROM t GROUP BY b, c ORDER BY count(*)", (2, 0, 3), "hard"),
    (f"{JOINED} WHERE T1.x = 1 ORDER BY T2.age", (3, 0, 0), "hard"),
    (f"{JOINED} JOIN c AS T3 ON T2.id = T3.id GROUP BY T2.name ORDER BY 1", (4, 0, 0), "extra"),
    ("SELECT name FROM t WHERE age > (SELECT avg(age) FROM t)", (1, 1, 0), "hard"),
    ("SELECT a FROM t WHERE b IN (SELECT b FROM u WHERE c = (SELECT 1))", (1, 1, 0), "hard"),
    ("SELECT a FROM t WHERE b IN (SELECT b FROM u UNION SELECT c FROM u)", (1, 1, 0), "hard"),
    ("SELECT a FROM t UNION SELECT b FROM u WHERE c = 1 ORDER BY b LIMIT 1", (0, 1, 0), "hard"),
    ("SELECT a FROM t WHERE x = 1 EXCEPT SELECT a FROM t WHERE x = 2", (1, 1, 0), "hard"),
    ("SELECT a FROM t WHERE b IN (SELECT 1) AND c IN (SELECT 2)", (1, 2, 1), "extra"),
    ("SELECT count(*) FROM (SELECT a FROM t GROUP BY a) AS u", (0, 0, 0), "easy"),
    ("SELECT a FROM t, u", (1, 0, 0), "easy"),
    # Peculiarities of Spider's script: NOT in WHERE and AND in HAVING count as aggregates.
    ("SELECT count(*) FROM t WHERE a NOT IN (SELECT a FROM u)", (1, 1, 1), "extra"),
    ("SELECT max(a) FROM t GROUP BY b HAVING a > 1 AND a < 9", (1, 0, 1), "medium"),
    ("SELECT max(a) FROM t GROUP BY b HAVING a BETWEEN 1 AND 9", (1, 0, 0), "easy"),
    # What it cannot read.
    ("WITH u AS (SELECT a FROM t) SELECT a FROM u", (0, 1, 0), "hard"),
    ("SELECT (SELECT max(a) FROM t)", (0, 1, 0), "hard"),
    ("no query at all", (0, 0, 0), "easy"),
]


@pytest.mark.parametrize(("sql", "counted", "level"), COUNTED)
def test_counted_by_hand(sql, counted, level):
    assert (counts(sql), hardness(sql)) == (counted, level)
    assert hardness(f" {sql.replace(' ', '  ')} ;") == level


@given(st.text(alphabet="()selectfromwhere and,union'\"", max_size=60))
def test_any_text_has_a_level(text):
    assert hardness(text) in LEVELS


@pytest.mark.parametrize("lang", ["en", "vi", "zh"])
def test_published_numbers_of_the_dev_set(lang):
    """Spider's evaluation script counts 248, 446, 174 and 166 of 1,034 questions."""
    default = Path(__file__).parents[2] / "shared" / "data" / "multispider"
    root = Path(os.environ.get("TEXT2SQL_DATA", default))
    file = root / "dev3" / "dataset" / "multispider" / "with_English_value" / f"dev_{lang}.json"
    if not file.is_file():
        pytest.skip(f"no MultiSpider data in {root}; set TEXT2SQL_DATA to its folder")
    levels = Counter(hardness(row["gold_sql"]) for row in read_entries(file))
    assert levels == {"easy": 248, "medium": 446, "hard": 174, "extra": 166}


@pytest.mark.parametrize(
    "sql, expected",
    [
        ("SELECT a FROM t", {"easy"}),
        (
            "SELECT T1.a, count(DISTINCT T2.b) FROM t AS T1 JOIN u AS T2 ON T1.i = T2.i "
            "GROUP BY T1.a HAVING count(*) > 2",
            {"join", "aggregate", "distinct", "group by", "having", "medium"},
        ),
        (
            "SELECT a FROM t WHERE b NOT IN (SELECT b FROM u WHERE c BETWEEN 1 AND 2) "
            "UNION SELECT a FROM v",
            {"where", "nested query", "not", "between", "union", "extra"},
        ),
    ],
)
def test_parts_of_a_query(sql, expected):
    """What benchmarks.clauses counts."""
    assert parts(sql) == expected
