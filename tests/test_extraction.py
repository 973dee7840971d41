"""Extraction of SQL from completions: formats of models, other statements, time and bound."""

import doctest
import random
import sqlite3
import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_kit import make_tokenizer

from grpo.evaluation import measure
from grpo.rewards import Rewards
from sqlenv import Example, ExecutionVerifier, Sandbox, extract_sql
from sqlenv import extraction as extraction_module
from sqlenv.extraction import MAX_ANSWER

RIGHT = "SELECT a FROM t"
DRAFT = "SELECT draft FROM t"

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
    # A blank line may stand in a query before another SELECT.
    "SELECT 1\nUNION\n\nSELECT 2\n\nSo.": None,
    # To SQLite an ideographic space is a letter; a line of it is blank all the same.
    "SELECT a FROM t\u3000\n\u3000\n这是 SQL。": "SELECT a FROM t",
    "SELECT a FROM t\n\xa0\n\nSo.": "SELECT a FROM t",
    "SELECT a\n\u3000FROM t\n": "SELECT a\n\u3000FROM t",
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
        "<answer></answer>",
    ],
)
def test_nothing_to_extract(completion):
    assert extract_sql(completion) is None


# (name, completion, SQL), most with a draft. docs/evaluation.md has the same table in words.
THINKS = f"Okay, the user asks for a. Maybe {DRAFT}?\n\n```sql\n{DRAFT};\n```\n\nNo: all of t."
FORMATS = [
    ("Qwen3", f"<think>\n{THINKS}\n</think>\n\n```sql\n{RIGHT};\n```", RIGHT),
    (
        "Qwen3, explained",
        f"<think>\n{THINKS}\n</think>\n\nHere it is:\n\n```sql\n{RIGHT};\n```\n\n### Explanation:\n"
        "- `SELECT a`: the column.\n- `FROM t`: the table.",
        RIGHT,
    ),
    ("Qwen3, thinking off", f"<think>\n\n</think>\n\n{RIGHT}", RIGHT),
    ("Qwen3, cut off", f"<think>\n{THINKS}", None),
    ("DeepSeek-R1 distill", f"{THINKS}\n</think>\n\n**Answer:**\n\n```sql\n{RIGHT}\n```", RIGHT),
    (
        "DeepSeek-R1 distill, steps",
        f"{THINKS}\n</think>\n\nTo find a:\n\n1. **Select the column a.**\n2. **Use t.**\n\n"
        f"```sql\n{DRAFT}\n```\n\n3. **Take all rows:**\n\n   ```sql\n   {RIGHT};\n   ```",
        RIGHT,
    ),
    ("DeepSeek-R1 distill, boxed", f"{THINKS}\n</think>\n\n\\boxed{{{RIGHT}}}", RIGHT),
    (
        "SQL-R1",
        f"<think>{THINKS}</think>\n<answer>\n```sql\n{RIGHT}\n```\n</answer>",
        RIGHT,
    ),
    ("SQL-R1, no fence", f"<think>{THINKS}</think>\n<answer>{RIGHT};</answer>", RIGHT),
    ("SQL-R1, cut off", f"<think>{THINKS} So <answer>{DRAFT}</answer>, I think", None),
    (
        "Arctic-Text2SQL-R1",
        f"{THINKS}\n</think>\n<answer>\nWe select a from t.\n\n```sql\n{RIGHT}\n```\n</answer>",
        RIGHT,
    ),
    (
        "OmniSQL",
        f"To answer this, we follow these steps:\n\n1. **Find the column**: it is `a`.\n```sql\n"
        f"{DRAFT};\n```\n\n2. **Final query**: all rows.\n\n```sql\n-- all rows\n{RIGHT};\n```\n\n"
        "With this query, we get a.",
        RIGHT,
    ),
    (
        "OmniSQL, a result at the end",
        f"```sql\n{RIGHT};\n```\nThis gives:\n```\na\n-\n1\n```\nIt took `ORDER BY` out.",
        RIGHT,
    ),
    (
        "OmniSQL, cut off in its last block",
        f"1. First:\n```sql\n{DRAFT}\n```\n2. Then:\n```sql\nSELECT a FROM t WHERE",
        "SELECT a FROM t WHERE",
    ),
    (
        "SkyRL-SQL",
        f"<think>{THINKS}</think><sql>{DRAFT}</sql>\n<think>So</think><solution>{RIGHT}</solution>",
        RIGHT,
    ),
    (
        "Llama",
        f"To get a, you can use the following SQL query:\n\n```\n{RIGHT};\n```\n\nThis query "
        "selects a from the table. With t as (the) base, it works.",
        RIGHT,
    ),
    ("Llama, inline code", f"You can use `{RIGHT};` to get a. Here `SELECT a` is the list.", RIGHT),
    ("Llama, header", f"assistant\n\n{RIGHT};", RIGHT),
    ("Llama, end of turn", f"{RIGHT}<|eot_id|><|start_header_id|>user", RIGHT),
    ("plain model", f"{RIGHT};\n\n-- Which draft?\n\nWe answer.", RIGHT),
]


@pytest.mark.parametrize(("name", "completion", "sql"), FORMATS, ids=[row[0] for row in FORMATS])
def test_formats_of_models(name, completion, sql):
    assert extract_sql(completion) == sql


@pytest.mark.parametrize(
    ("completion", "sql"),
    [
        # Reasoning that the prompt has opened ends with its closing tag only.
        (f"{THINKS}\n</think>\n\n{RIGHT}", RIGHT),
        (THINKS, None),
        (f"Maybe {DRAFT}. So: <answer>{DRAFT}</answer>", None),
        ("</think>\n\n", None),
        # A model that was fine-tuned on gold answers at once.
        (RIGHT, RIGHT),
        (f" {RIGHT};\n", RIGHT),
    ],
)
@pytest.mark.parametrize("prompt", ["<｜User｜>Which a?<｜Assistant｜><think>\n", "so.\n<think>"])
def test_the_prompt_opens_the_reasoning(prompt, completion, sql):
    assert extract_sql(completion, prompt=prompt) == sql


@pytest.mark.parametrize(
    "prompt", ["", "Think in <think> tags. Which a?\n", "<think>\n\n</think>\n\n"]
)
def test_other_prompts_open_no_reasoning(prompt):
    assert extract_sql(f"We take {RIGHT};", prompt=prompt) == RIGHT


def test_rewards_and_evaluation_know_what_the_prompt_opened(tmp_path, monkeypatch):
    """A right query in reasoning that does not end earns nothing; after it, or at once, it does."""
    path = tmp_path / "t.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE t (a); INSERT INTO t VALUES (1)")
    connection.close()
    example = Example("Which a?", "en", "t", RIGHT, path)
    texts = [f"Maybe {RIGHT}", f"Maybe. </think>{RIGHT}", RIGHT]
    template = "{{ messages[0].content }}<think>\n"
    policy = SimpleNamespace(tokenizer=make_tokenizer(chat_template=template))
    monkeypatch.setattr(measure, "generate", lambda *_, **__: [[text] for text in texts])
    with Sandbox(workers=1) as sandbox:
        verifier = ExecutionVerifier(sandbox)
        rewards = Rewards(verifier, None, {"execution": 1.0})
        assert rewards([example], [texts], prompts=["Which a?<think>\n"]).tolist() == [
            [[0], [1], [1]]
        ]
        assert rewards([example], [texts], prompts=["Which a?"]).tolist() == [[[1], [1], [1]]]
        rows = measure.evaluate_policy(policy, verifier, None, [example] * 3, max_new_tokens=9)
        assert [row.execution for row in rows] == [False, True, True]


@pytest.mark.parametrize(
    ("completion", "sql"),
    [
        # The last reasoning counts, and one that begins again after the answer.
        (f"<think>x</think>{DRAFT}\n<think>y</think>{RIGHT}", RIGHT),
        (f"</think>\n{RIGHT}\n<think>\nWait", None),
        (f"<THINK>{DRAFT}</THINK>{RIGHT}", RIGHT),
        (f"<thinking>{DRAFT}</thinking>{RIGHT}", RIGHT),
        (f"<reasoning>\n{DRAFT}\n</reasoning>\n<answer>\n{RIGHT}\n</answer>", RIGHT),
        (f"<thought>{DRAFT}", None),
        (f"<think>a = 'x'</think>{RIGHT}", RIGHT),
        # A tag in quotes is mentioned or compared with, not used.
        (f"I write no `<think>` but:\n{RIGHT}", RIGHT),
        (f"Between `<answer>` and `</answer>`:\n<answer>{RIGHT}</answer>", RIGHT),
        ("SELECT a FROM t WHERE b = '</think>'", "SELECT a FROM t WHERE b = '</think>'"),
        ("SELECT a FROM t WHERE b LIKE '%<sql>%'", "SELECT a FROM t WHERE b LIKE '%<sql>%'"),
        # Tags: the last that holds a statement, before any fence; closed or not.
        (f"<sql>{RIGHT}</sql>", RIGHT),
        (f"<SQL>\n{RIGHT}\n</SQL>", RIGHT),
        (f"<answer>{DRAFT}</answer> No: <answer>{RIGHT}</answer>", RIGHT),
        (f"<answer>{RIGHT}</answer>\n```sql\n{DRAFT}\n```", RIGHT),
        (f"<answer>It is <sql>{RIGHT}</sql>.</answer>", RIGHT),
        (f"```sql\n{RIGHT}\n```\n<answer>See above.</answer>", RIGHT),
        (f"<answer>\n```sql\n{DRAFT}\n```\n```sql\n{RIGHT}", RIGHT),
        (f"<answer>{RIGHT}", RIGHT),
        (f"{RIGHT}</answer>", RIGHT),
        (f"SQL: {RIGHT}</s>", RIGHT),
        (f"{RIGHT};</sql> DROP TABLE t", RIGHT),
        (f"{RIGHT}<｜end▁of▁sentence｜>", RIGHT),
        # Tags and marks inside strings belong to the SQL.
        ("SELECT '</s>', '<|x|>' FROM t", "SELECT '</s>', '<|x|>' FROM t"),
        ("SELECT a FROM t WHERE a <b", "SELECT a FROM t WHERE a <b"),
        # Fences: the last that holds a statement.
        (f"```sql\n{DRAFT}\n```\n```sql\n{RIGHT}\n```", RIGHT),
        ("```sql\nSELECT 1;\n```\n```sql\nDROP TABLE t;\n```", "DROP TABLE t"),
        (f"```sql\n{RIGHT}\n```\nSelect gives the rows.\n```python\nselect(a)\n```", RIGHT),
        (f"```sql\n{RIGHT}\n```\n```sql\n-- 1 row\n```", RIGHT),
        (f"```sql {RIGHT}```", RIGHT),
        (f"````sqlite3\r\n{RIGHT}\r\n````\r\n", RIGHT),
        (f"```\n{RIGHT}\n```\nwith this, ```a``` and ```t``` are read.", RIGHT),
        (f"Select the names:\n```\n{RIGHT}\n```", RIGHT),
        (f"Select a.\n```sql\n{RIGHT}\n```", RIGHT),
        # The prompt may have opened the fence.
        ("SELECT 1\n```\n```sql\nSELECT 2\n```", "SELECT 1"),
        (f"{RIGHT}\n```\nSelect gives the rows.", RIGHT),
        (f"{RIGHT}\n```\n\n```sql\n{DRAFT}", RIGHT),
        # Prose around inline code, quotes and bold text.
        (f"`{RIGHT}`", RIGHT),
        (f"SQL: `{RIGHT}`.", RIGHT),
        (f"The query `{RIGHT}` reads `t`.", RIGHT),
        (f"Not `{DRAFT}` but `{RIGHT}`, where `SELECT` and `FROM` are keywords.", RIGHT),
        ("`SELECT `a` FROM `t``, I think", "SELECT `a` FROM `t`"),
        ("Take ``SELECT `a b` FROM t`` here", "SELECT `a b` FROM t"),
        (f'The query "{RIGHT}" answers it.', RIGHT),
        (f'{{"sql": "{RIGHT}"}}', RIGHT),
        ('"SELECT "a" FROM t" it is', 'SELECT "a" FROM t'),
        ("'SELECT a FROM t WHERE b = 'x'' it is", "SELECT a FROM t WHERE b = 'x'"),
        (f"The query is **{RIGHT}**.", RIGHT),
        (f"我会用“{RIGHT}”。", RIGHT),
        # The keyword in an English sentence is no statement.
        (f"We need to select the name of all.\n\n{RIGHT}", RIGHT),
        (f"We use a SELECT statement to read t:\n{RIGHT}", RIGHT),
        (f"The `SELECT` keyword reads: {RIGHT}", RIGHT),
        ("SELECT statement FROM t", "SELECT statement FROM t"),
        ("SELECT query, the FROM t", "SELECT query, the FROM t"),
    ],
)
def test_what_surrounds_the_sql(completion, sql):
    assert extract_sql(completion) == sql


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
FRAMES += [f"<think>{THINKS}</think>{{}}", f"```\n{DRAFT}\n```\nNo: <answer>\n{{}}\n</answer>"]
PROSE = ["Sure! {}", "Here you are:\n\n{}\n\nIt's done.", "It is `{}`.", 'It is "{}".', "**{}**"]


@pytest.mark.parametrize("frame", [*FRAMES, *PROSE])
@pytest.mark.parametrize("statement", NOT_A_QUERY)
def test_no_query_is_taken_out_of_another_statement(statement, frame):
    extracted = extract_sql(frame.format(statement.format(RIGHT)))
    start = statement.partition("{}")[0][:10]
    assert extracted[:10].startswith(start[: len(extracted)])


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


# What the patterns could run into.
PIECES = ["select ", "SELECT a FROM t", "with a (", "with a as (", "create ", "create/*", "temp "]
PIECES += ["update ", 'update "', "as", "or ", "set ", "delete from ", "use ", "begin ", "a.", "."]
PIECES += ["insert or ", "explain ", "pragma ", "sql", "SQL:", "query", "x", "1", "0x", " ", "\n"]
PIECES += ["```", "```sql\n", "`", "``", " `", "'", '"', " '", "[", "(", ")", "{", "}", "**", "“"]
PIECES += ["<think>", "</think>", "<sql>", "</sql>", "<answer>", "<", "</", "<|", ">", "=", ","]
PIECES += ["--", "- -", "/*", "*/", ";", ";;", "!", "$", "%", "the ", "query ", "é", "\0", "\ud800"]


def seconds(text: str) -> float:
    start = time.process_time()
    extract_sql(text)
    return time.process_time() - start


@pytest.mark.parametrize("start", ["", "use ", "```sql\nupdate ", "SQL: with ", "`select a ", "( "])
def test_time_is_linear_in_each_piece(start):
    """10,000 characters of one piece, each within a second of CPU time: fifty times what it takes.
    A pattern whose time is quadratic took four.
    """
    for piece in PIECES:
        text = start + piece * (10_000 // len(piece))
        for end in ("", "!", "`"):
            assert seconds(text + end) < 1, piece


def test_use_and_a_long_name():
    assert seconds("use " + "a" * 16_000 + "!") < 1  # was 10 s


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6), st.text(max_size=3))
def test_time_is_linear_in_repeated_pieces(pieces, end):
    piece = "".join(pieces)
    assert seconds(piece * (20_000 // len(piece)) + end) < 0.4


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32))
def test_time_is_linear_in_mixed_pieces(seed):
    assert seconds("".join(random.Random(seed).choices(PIECES, k=20_000))[:20_000]) < 0.4


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5))), st.booleans())
def test_any_text_can_be_extracted_from(pieces, opened):
    """What is extracted is a part of the text, and extracted from itself unless it names tags."""
    text = "".join(pieces)
    sql = extract_sql(text, prompt="<think>\n" * opened)
    assert sql is None or (sql in text and sql == sql.strip() and sql)


def test_a_long_answer_is_none():
    """The bound holds for the answer, not for the reasoning before it."""
    assert extract_sql(f"<think>{'long ' * MAX_ANSWER}</think>{RIGHT}") == RIGHT
    assert extract_sql(f"{RIGHT};{' ' * (MAX_ANSWER - len(RIGHT) - 1)}") == RIGHT
    assert extract_sql(f"{RIGHT};{' ' * (MAX_ANSWER - len(RIGHT))}") is None


def test_examples_in_docstrings():
    assert doctest.testmod(extraction_module) == (0, 3)  # (failed, tried)
