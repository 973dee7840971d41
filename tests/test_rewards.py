"""The rewards on real databases and real worker processes: numbers computed by hand, and attempts
to earn rewards with something else than right answers.
"""

import doctest
import json
import sqlite3
import textwrap
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import train
from encoder import SemanticReward
from grpo import rewards as rewards_module
from grpo.advantages import group_advantages
from grpo.rewards import (
    WEIGHTS,
    Rewards,
    check_weights,
    fill_not_applicable,
    is_label_free,
    needs_gold,
    overlong_penalty,
    schema_match,
)
from sqlenv import Example, ExecutionVerifier, Sandbox, UserError, extract_sql, load_suite

ANY_SPEED = settings(deadline=None)  # a busy machine is not a failure
GOLD = "SELECT name FROM singer WHERE age > 30"  # Bob, Cid and Dee
ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
RIGHT, FAILED = [1, 1, 1, 0.5], [0, 0, 0, 0]  # 0.5 is the fake encoder's score


class CountingSandbox(Sandbox):
    """A real sandbox that records the queries that it runs."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.ran = []

    def run_each(self, queries, use, **options):
        queries = list(queries)
        self.ran += [sql for _, sql in queries]
        super().run_each(queries, use, **options)


class FakeEncoder(SemanticReward):
    """Scores every query 0.5, or as ``scores`` says, and records what it scores."""

    def __init__(self, scores: dict[str, float] | None = None):
        self.scores, self.seen = scores or {}, []
        self.encoder = SimpleNamespace(with_schema=False, fits=lambda texts: [True] * len(texts))
        self.target, self.score, self.gate = "question", "cosine", True

    def cosines(self, questions, golds, sqls):
        assert len(questions) == len(sqls) and not golds  # of no use for questions
        self.seen += zip(questions, sqls)
        return torch.tensor([self.scores.get(sql, 0.5) for sql in sqls])


@pytest.fixture(scope="module")
def processes():
    with CountingSandbox(timeout=10) as sandbox:
        yield sandbox


@pytest.fixture
def sandbox(processes):
    processes.ran.clear()
    return processes


@pytest.fixture
def db(tmp_path):
    path = tmp_path / "concerts.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INT);
        CREATE TABLE concert (concert_id INTEGER PRIMARY KEY, singer_id INT, year INT);
        INSERT INTO singer VALUES (1, 'Ann', 'France', 25), (2, 'Bob', 'France', 35),
            (3, 'Cid', 'Japan', 40), (4, 'Dee', NULL, 50);
        INSERT INTO concert VALUES (1, 2, 2014), (2, 2, 2015), (3, 3, 2015);"""
    )
    connection.close()
    return path


def ask(db, gold: str = GOLD, question: str = "Who is older than 30?") -> Example:
    return Example(question, "en", "concerts", gold, db)


def score(sandbox, examples, texts, encoder=None, weights=WEIGHTS):
    """The rewards as nested lists [P][G][R]."""
    terms = Rewards(ExecutionVerifier(sandbox), encoder or FakeEncoder(), weights)(examples, texts)
    assert terms.dtype == torch.float32
    return terms.tolist()


def execution(sandbox, db, gold: str, *texts: str) -> list[float]:
    """The execution rewards of completions."""
    (group,) = score(sandbox, [ask(db, gold)], [list(texts)], weights={"execution": 1.0})
    return [term for (term,) in group]


# ----------------------------------------------------------------------------- the four rewards


def test_four_rewards_by_hand(sandbox, db):
    """Gold reads singer.name and singer.age, so `SELECT name FROM singer` shares 1 column of 2, and
    `SELECT *` shares 2 of 4. Every query that runs, and no other, gets the encoder's 0.5.
    """
    cases = {
        GOLD: [1, 1, 1, 0.5],
        "select NAME from Singer where 30 < age": [1, 1, 1, 0.5],  # gold in other words
        "SELECT name FROM singer WHERE age > 40": [0, 1, 1, 0.5],  # runs, wrong rows
        "SELECT name FROM singer": [0, 1, 0.5, 0.5],
        "SELECT * FROM singer WHERE age > 30": [0, 1, 0.5, 0.5],
        "SELECT year FROM concert": [0, 1, 0, 0.5],  # nothing in common
        "SELECT 1": [0, 1, 0, 0.5],  # reads nothing
        "SELECT nam FROM singer": [0, 0, 0, 0],  # no such column
        "SELECT name FROM singer WHERE": [0, 0, 0, 0],  # syntax
        "I do not know.": [0, 0, 0, 0],
        "": [0, 0, 0, 0],
    }
    assert score(sandbox, [ask(db)], [list(cases)]) == [list(cases.values())]


def test_overlap_by_hand(sandbox, db):
    """Gold returns Bob, Cid and Dee. Of 3 + 4 rows 2 x 3 have a partner, of 3 + 1 rows 2 x 1."""
    cases = {
        GOLD: 1.0,
        "SELECT name FROM singer": 6 / 7,
        "SELECT name FROM singer WHERE age = 40": 2 / 4,
        "SELECT name FROM singer WHERE age = 40 UNION ALL SELECT 'Cid'": 2 / 5,  # Cid once in gold
        "SELECT country FROM singer": 0.0,
        "SELECT name FROM singer WHERE age > 90": 0.0,
        "SELECT name, age FROM singer WHERE age > 30": 0.0,  # another number of columns
        "SELECT nam FROM singer": 0.0,
        "I do not know.": 0.0,
    }
    weights = {"execution": 1.0, "overlap": 0.2}
    (group,) = score(sandbox, [ask(db)], [list(cases)], weights=weights)
    assert group == [[float(n == 0), pytest.approx(v)] for n, v in enumerate(cases.values())]


def test_consensus_by_hand(sandbox, db):
    """Two groups of six. In the first, three return Cid and Dee in three ways (one twice: four of
    six), one returns Bob; one fails, one says nothing. In the second nothing counts: no rows, no
    table, no SQL, and what aggregates over no rows return.
    """
    texts = [
        [
            "SELECT name FROM singer WHERE age >= 40",
            "select NAME from singer where age > 39",
            "SELECT name FROM singer WHERE age >= 40",
            "SELECT name FROM singer WHERE age > 35 AND age < 90",
            "SELECT name FROM singer WHERE age = 35",
            "SELECT nam FROM singer",
        ],
        [
            "SELECT name FROM singer WHERE age > 90",
            "SELECT name FROM singer WHERE age > 91",
            "SELECT 1",
            "SELECT count(*), max(age) FROM singer WHERE age > 90",
            "SELECT max(age), count(*) FROM singer WHERE age > 91",
            "DELETE FROM singer",
        ],
    ]
    examples = [ask(db, ""), ask(db, "", "Who is oldest?")]  # without gold
    terms = score(sandbox, examples, texts, weights={"consensus": 1.0, "syntax": 0.1})
    shares = [[consensus for consensus, _ in group] for group in terms]
    assert shares == [[pytest.approx(v) for v in [4 / 6] * 4 + [1 / 6, 0]], [0] * 6]
    assert [syntax for _, syntax in terms[0]] == [1, 1, 1, 1, 1, 0]


def test_overlap_of_two_columns_in_another_order_and_of_an_ordered_result(sandbox, db):
    """Rows are compared as multisets of cells: right rows in a wrong order overlap in full, and
    are wrong.
    """
    gold = "SELECT name, age FROM singer WHERE age > 30 ORDER BY age"
    texts = ["SELECT age, name FROM singer WHERE age > 35", gold + " DESC"]
    weights = {"execution": 1.0, "overlap": 0.2}
    (group,) = score(sandbox, [ask(db, gold)], [texts], weights=weights)
    assert group == [[0, pytest.approx(4 / 5)], [0, 1]]


def test_overlap_is_not_computed_unless_asked_for(sandbox, db):
    """It needs the rows of gold, which are not read for a result of another size."""
    verifier = ExecutionVerifier(sandbox)
    sqls = ["SELECT name FROM singer", GOLD]
    examples = [ask(db), ask(db)]
    assert [v.overlap for v in verifier.verify(examples, sqls)] == [0, 1]
    asked = verifier.verify(examples, sqls, with_overlap=True)
    assert [v.overlap for v in asked] == [pytest.approx(6 / 7), 1]


def test_the_result_has_prompts_groups_and_terms_in_that_order(sandbox, db):
    """Two prompts with three completions each; the terms in the order in which they are named."""
    weights = {"syntax": 0.5, "execution": 1.0}
    rewards = Rewards(ExecutionVerifier(sandbox), None, weights)
    terms = rewards(
        [ask(db), ask(db, "SELECT count(*) FROM concert")],
        [[GOLD, "nothing", "SELECT 1"], ["SELECT 3", "SELECT 2", GOLD]],
    )
    assert terms.shape == (2, 3, 2)
    assert fill_not_applicable(terms).tolist() == [
        [[1, 1], [0, 0], [1, 0]],
        [[1, 1], [1, 0], [1, 0]],
    ]
    assert rewards.names == ["syntax", "execution"]
    assert rewards.weights.tolist() == [0.5, 1.0]
    assert (terms @ rewards.weights).tolist() == [[1.5, 0, 0.5], [1.5, 0.5, 0.5]]


def test_weights_may_be_integers(sandbox, db):
    rewards = Rewards(ExecutionVerifier(sandbox), None, {"execution": 1, "syntax": 0})
    terms = rewards([ask(db)], [[GOLD, "SELECT 1"]])
    assert (terms @ rewards.weights).tolist() == [[1.0, 0.0]]


def test_a_reward_of_weight_0_is_not_computed(sandbox, db):
    encoder = FakeEncoder()
    weights = {"execution": 1.0, "schema": 0, "semantic": 0.0}
    assert score(sandbox, [ask(db)], [[GOLD, "SELECT 1"]], encoder, weights) == [[[1], [0]]]
    assert encoder.seen == []


def test_a_right_answer_is_told_by_its_result_not_by_its_text(sandbox, db):
    """A join, a set operation and a subquery: only the rows count."""
    assert execution(
        sandbox,
        db,
        "SELECT name FROM singer WHERE singer_id IN (SELECT singer_id FROM concert)",
        "SELECT DISTINCT T1.name FROM singer AS T1 JOIN concert AS T2 USING (singer_id)",
        "SELECT name FROM singer EXCEPT SELECT name FROM singer WHERE name IN ('Ann', 'Dee')",
        "SELECT T1.name FROM singer AS T1 JOIN concert AS T2 USING (singer_id)",  # Bob twice
    ) == [1, 1, 0]


def test_row_order_counts_if_gold_orders(sandbox, db):
    ordered = GOLD + " ORDER BY age DESC"
    backwards = GOLD + " ORDER BY age"
    assert execution(sandbox, db, ordered, ordered, backwards) == [1, 0]
    assert execution(sandbox, db, GOLD, ordered, backwards) == [1, 1]


def test_where_gold_fails_nothing_is_right(sandbox, db):
    """Not even a query that fails in the same way. A query that runs still earns its syntax reward;
    the columns that gold would have read are unknown.
    """
    failing = "SELECT nam FROM singer"
    ((same, runs),) = score(sandbox, [ask(db, failing)], [[failing, GOLD]])
    assert same == [0, 0, 0, 0]
    assert runs[:2] == [0, 1]


@pytest.mark.parametrize(
    ("completion", "sql"),
    [
        (f"```sql\n{GOLD}\n```", GOLD),
        (f"Sure! Here it is:\n\n```\n{GOLD};\n```\nIt lists the names.", GOLD),
        (f"SQL: {GOLD}", GOLD),
        (f"The answer is {GOLD};", GOLD),
        (f"-- who is older?\n{GOLD}", GOLD),
        (f"{GOLD}\n\nThis lists the names.", GOLD),
    ],
)
def test_the_sql_is_found_in_the_completion(sandbox, db, completion, sql):
    assert score(sandbox, [ask(db)], [[completion]]) == [[RIGHT]]
    (verdict,) = ExecutionVerifier(sandbox).verify([ask(db)], [extract_sql(completion)])
    assert (verdict.sql, verdict.valid, verdict.correct) == (sql, True, True)


def test_the_verdict_on_a_completion_without_sql(sandbox, db):
    (verdict,) = ExecutionVerifier(sandbox).verify([ask(db)], [extract_sql("I do not know.")])
    assert (verdict.sql, verdict.execution, verdict.valid) == (None, None, False)
    assert not verdict.correct


# ------------------------------------------------------------------------------ schema match


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ({"name", "age"}, {"name", "age"}, 1),
        ({"name"}, {"name", "age"}, 1 / 2),  # a column missed
        ({"name", "age", "country"}, {"name", "age"}, 2 / 3),  # an extra column costs, too
        ({"name", "country"}, {"name", "age"}, 1 / 3),
        ({"country"}, {"name", "age"}, 0),
        (set(), {"name"}, 0),
        ({"name"}, set(), 0),
        (set(), set(), 1),  # SELECT 1 for SELECT 1
    ],
)
def test_schema_match_by_hand(predicted, gold, expected):
    """|both| / |either|."""
    predicted, gold = (frozenset(("singer", c) for c in names) for names in (predicted, gold))
    assert schema_match(predicted, gold) == pytest.approx(expected)


def test_the_same_column_name_of_another_table_is_another_column():
    of_singer = frozenset({("singer", "singer_id")})
    of_concert = frozenset({("concert", "singer_id")})
    assert schema_match(of_singer, of_concert) == 0


def test_schema_reward_looks_through_aliases_and_subqueries(sandbox, db):
    """Gold reads singer.name, singer.singer_id, concert.singer_id and concert.year: 4 columns.
    Aliases and nesting read the same 4. `SELECT a.name FROM singer AS a` reads 1 of the 4.
    `count(*)` reads no column but the table: nothing in common, ("concert", "") being a fifth.
    """
    gold = """SELECT T1.name FROM singer AS T1 JOIN concert AS T2 ON T1.singer_id = T2.singer_id
        WHERE T2.year = 2014"""
    nested = """SELECT x.name FROM (SELECT name, singer_id AS i FROM singer) AS x
        WHERE x.i IN (SELECT singer_id FROM concert WHERE year = 2014)"""
    texts = [nested, "SELECT a.name FROM singer AS a", "SELECT count(*) FROM concert"]
    terms = score(sandbox, [ask(db, gold)], [texts], weights={"execution": 1.0, "schema": 0.5})
    assert terms == [[[1, 1], [0, 0.25], [0, 0]]]


def test_a_right_query_matches_the_schema_whatever_it_reads(sandbox, db):
    """`count(*)` reads the table, ("singer", ""), and `count(name)` singer.name: nothing in common,
    and right. `SELECT 99 FROM singer` reads what gold reads, and is wrong.
    """
    texts = ["SELECT count(name) FROM singer", "SELECT count(age) FROM singer WHERE age > 30"]
    texts.append("SELECT 99 FROM singer LIMIT 1")
    gold = "SELECT count(*) FROM singer"
    terms = score(sandbox, [ask(db, gold)], [texts], weights={"execution": 1.0, "schema": 0.5})
    assert terms == [[[1, 1], [0, 0], [0, 1]]]


# --------------------------------------------------------------------- queries that do not run


@pytest.mark.parametrize(
    "text",
    [
        "DROP TABLE singer",
        "DELETE FROM singer",
        "WITH c AS (SELECT 1) DELETE FROM singer",
        "SELECT name FROM singer; DROP TABLE singer",
        "SELECT name FROM sqlite_master",
        "SELECT name FROM singer WHERE random() > 0",
        "SELECT * FROM pragma_database_list",
    ],
)
def test_denied_sql_earns_nothing_and_changes_nothing(sandbox, db, text):
    before = db.read_bytes()
    encoder = FakeEncoder()
    assert score(sandbox, [ask(db)], [[text, GOLD]], encoder) == [[FAILED, RIGHT]]
    assert len(encoder.seen) == 1
    assert db.read_bytes() == before and list(db.parent.iterdir()) == [db]


def test_sql_that_does_not_end_earns_nothing_and_the_next_runs(db):
    encoder = FakeEncoder()
    with Sandbox(workers=1, timeout=1.0) as sandbox:
        terms = score(sandbox, [ask(db)], [[ENDLESS, GOLD, ENDLESS + " LIMIT 1", GOLD]], encoder)
        assert terms == [[FAILED, RIGHT, FAILED, RIGHT]]
        (verdict,) = ExecutionVerifier(sandbox).verify([ask(db)], [ENDLESS])
    assert verdict.execution.status == "timeout" and not verdict.valid
    assert len(encoder.seen) == 2


def test_a_timeout_of_gold_and_of_the_answer_is_no_match(db):
    with Sandbox(workers=2, timeout=0.5) as sandbox:
        assert execution(sandbox, db, ENDLESS, ENDLESS) == [0]


def test_a_missing_database_is_a_user_error(sandbox, tmp_path):
    with pytest.raises(UserError, match="nowhere.sqlite"):
        score(sandbox, [ask(tmp_path / "nowhere.sqlite")], [[GOLD]])


# ----------------------------------------------------------------------- the semantic reward


def test_only_sql_that_runs_reaches_the_encoder(sandbox, db):
    """Whatever score the encoder would give the others. Each score goes to its own completion."""
    encoder = FakeEncoder({"SELECT name FROM singer": 0.75, "SELECT age FROM singer": 0.25})
    texts = [
        ["SELECT nam FROM singer", "SELECT name FROM singer", "Who is older than 30?"],
        ["SELECT age FROM singer", ENDLESS.replace("count", "cnt"), "SELECT name FROM singer"],
    ]
    examples = [ask(db, question="first?"), ask(db, question="second?")]
    terms = score(sandbox, examples, texts, encoder, {"execution": 1, "semantic": 0.5})
    assert [[semantic for _, semantic in group] for group in terms] == [
        [0, 0.75, 0],
        [0.25, 0, 0.75],
    ]
    assert encoder.seen == [
        ("first?", "SELECT name FROM singer"),
        ("second?", "SELECT age FROM singer"),
        ("second?", "SELECT name FROM singer"),
    ]


def test_the_encoder_scores_nothing_where_nothing_runs(sandbox, db):
    encoder = FakeEncoder()
    assert score(sandbox, [ask(db)], [["no", "SELECT nam FROM singer"]], encoder) == [[FAILED] * 2]
    assert encoder.seen == []


@pytest.mark.parametrize(
    "text",
    [
        "Who is older than 30? These singers are older than 30: " + GOLD,
        f"{GOLD}; Who is older than 30? Singers older than 30!",
        f"```sql\n{GOLD}\n```\nWho is older than 30? " * 3,
        f"-- Who is older than 30?\n{GOLD}",
        f"{GOLD} -- Who is older than 30?",
        "SELECT /* Who is older than 30? */ name FROM singer WHERE age > 30",
        "select  NAME\nfrom SINGER\twhere AGE>30 ;;",
    ],
)
def test_prose_and_comments_do_not_reach_the_encoder(sandbox, db, text):
    """Nor do case and spacing: the encoder reads the query in its normalised form."""
    encoder = FakeEncoder()
    assert score(sandbox, [ask(db)], [[text]], encoder) == [[RIGHT]]
    assert encoder.seen == [("Who is older than 30?", GOLD)]


# ---------------------------------------------------------------------------- run once only


def test_equal_completions_run_once(sandbox, db, tmp_path):
    """Whatever prose surrounds them, but once on each database."""
    other = tmp_path / "other.sqlite"
    other.write_bytes(db.read_bytes())
    query = "SELECT age FROM singer"
    texts = [query, query + ";", f"```sql\n{query}\n```", "SELECT 1"]
    weights = {"execution": 1, "syntax": 1}
    terms = score(sandbox, [ask(db), ask(other)], [texts, texts], weights=weights)
    assert [[syntax for _, syntax in group] for group in terms] == [[1] * 4] * 2
    assert sorted(sandbox.ran) == sorted([GOLD, query, "SELECT 1"] * 2)


def test_gold_runs_once(sandbox, db):
    """Not once for each completion, for each reward or for each step."""
    rewards = Rewards(ExecutionVerifier(sandbox), FakeEncoder(), WEIGHTS)
    for step in range(3):
        rewards([ask(db), ask(db, question="again?")], [[f"SELECT {step}", "SELECT 9"]] * 2)
    assert sandbox.ran.count(GOLD) == 1


def test_gold_is_kept_for_each_database(sandbox, db, tmp_path):
    """The same gold text on another database has another result."""
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.executescript("CREATE TABLE singer (name, age); INSERT INTO singer VALUES ('E', 9)")
    connection.close()
    gold = "SELECT max(age) FROM singer"
    texts = [["SELECT 50", "SELECT 9"]] * 2
    terms = score(sandbox, [ask(db, gold), ask(other, gold)], texts, weights={"execution": 1.0})
    assert terms == [[[1], [0]], [[0], [1]]]


# ------------------------------------------------------------------------------ reward hacks


def test_hack_every_column(sandbox, db):
    """`SELECT *` always has gold's column among its own. The order of columns does not count, but
    their number does.
    """
    every = "SELECT *, * FROM singer"
    assert execution(
        sandbox, db, "SELECT name FROM singer", "SELECT * FROM singer", every, "SELECT name, name"
    ) == [0, 0, 0]
    ((terms,),) = score(sandbox, [ask(db, "SELECT name FROM singer")], [["SELECT * FROM singer"]])
    assert terms[2] == 0.25  # schema match: 1 of the 4 columns read
    gold = "SELECT name, country FROM singer"
    swapped = "SELECT country, name FROM singer"
    assert execution(sandbox, db, gold, swapped, "SELECT * FROM singer") == [1, 0]


def test_hack_columns_permuted_row_by_row(sandbox, db):
    """All rows must have the same order of columns."""
    gold = "SELECT name, country FROM singer WHERE singer_id IN (2, 3)"
    mixed = "SELECT 'Bob', 'France' UNION ALL SELECT 'Japan', 'Cid'"
    assert execution(sandbox, db, gold, mixed) == [0]


def test_hack_set_instead_of_multiset(sandbox, db):
    """France occurs twice: once or three times is another answer."""
    gold = "SELECT country FROM singer"
    distinct = "SELECT DISTINCT country FROM singer"
    thrice = gold + " UNION ALL SELECT 'France'"
    assert execution(sandbox, db, gold, gold, distinct, thrice) == [1, 0, 0]
    assert execution(sandbox, db, distinct, gold) == [0]
    moved = "SELECT country FROM singer WHERE age != 35 UNION ALL SELECT 'Japan'"  # as many rows
    assert execution(sandbox, db, gold, moved) == [0]


@pytest.mark.parametrize(
    "text",
    [
        "CREATE TEMP TABLE singer (name); SELECT name FROM singer",
        "CREATE TEMP TABLE singer AS SELECT 'x' AS name, 99 AS age; SELECT name FROM singer",
        "SELECT 1; CREATE TEMP VIEW singer AS SELECT 'x' AS name, 99 AS age",
        "SELECT 1; ATTACH ':memory:' AS main2",
    ],
)
def test_hack_temporary_table_in_place_of_the_real_one(db, text):
    """One worker, so that gold and the whole group would see a table left behind."""
    with Sandbox(workers=1, timeout=10) as sandbox:
        rewards = Rewards(ExecutionVerifier(sandbox), FakeEncoder(), {"execution": 1.0})
        other = "SELECT name FROM singer WHERE age > 40"
        assert rewards([ask(db)], [[text, GOLD, "SELECT 'x'"]]).tolist() == [[[0], [1], [0]]]
        terms = rewards([ask(db, other)], [[text, other, "SELECT 'x'", "SELECT 'Dee'"]])
        assert terms.tolist() == [[[0], [1], [0], [1]]]


@pytest.mark.parametrize(
    "text",
    [
        f"{GOLD}; SELECT 1",
        f"SELECT 1; {GOLD}",
        f"{GOLD}; DROP TABLE singer",
        f"```sql\n{GOLD};\n{GOLD}\n```",
        f"{GOLD}; -- and\n DELETE FROM singer",
    ],
)
def test_hack_second_statement(sandbox, db, text):
    """A completion with several queries earns nothing."""
    assert score(sandbox, [ask(db)], [[text]]) == [[FAILED]]


def test_hack_prose_inside_the_sql(sandbox, db):
    assert score(sandbox, [ask(db)], [[f"SELECT name, I think, {GOLD[7:]} or so"]]) == [[FAILED]]


# ------------------------------------------------------------------------------ the weights

SHARES = st.integers(0, 8).map(lambda n: n / 8)  # exact in float32, as are sums and products here
SOME_WEIGHTS = st.dictionaries(
    st.sampled_from(list(WEIGHTS)), st.integers(0, 16).map(lambda n: n / 8)
)


def total(weights: dict, execution=0.0, syntax=0.0, schema=0.0, semantic=0.0) -> float:
    terms = dict(execution=execution, syntax=syntax, schema=schema, semantic=semantic)
    return sum(weight * terms[name] for name, weight in weights.items())


def allowed(weights: dict) -> bool:
    try:
        check_weights(weights)
    except UserError:
        return False
    return True


@ANY_SPEED
@given(SOME_WEIGHTS.filter(lambda w: w.get("execution", 0) > 0), *[SHARES] * 3, st.booleans())
@example(WEIGHTS, 0.0, 1.0, 1.0, True)
@example(WEIGHTS | {"schema": 5.0}, 0.0, 1.0, 1.0, True)
def test_no_wrong_answer_scores_above_a_right_one(weights, semantic, schema, liked, runs):
    """A right query runs and has `schema` in full, whatever its semantic score. A wrong one may
    have all other terms in full. Weights under which the wrong one could score higher are refused.
    """
    right = total(weights, 1, 1, 1, semantic)
    wrong = total(weights, 0, 1, schema, liked) if runs else 0
    assert right > wrong or not allowed(weights)
    worst_right, best_wrong = total(weights, 1, 1, 1), total(weights, 0, 1, 1, 1)
    assert allowed(weights) == (worst_right > best_wrong)


@pytest.mark.parametrize(
    "weights",
    [
        {"syntax": 0.1, "schema": 0.2},
        {"execution": 0.0, "schema": 1},
        {"schema": 0.2, "semantic": 1.0},
        {"schema": 0.2, "consensus": 1.0},
        {"overlap": 1.0, "consensus": 1.0},
        {"syntax": 0.1},
        {"overlong": 0.1},
    ],
)
def test_weights_without_execution_are_refused(weights):
    """A wrong query that reads the right columns would score 1, a right one through a view 0."""
    with pytest.raises(UserError):
        check_weights(weights)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(name, value):
    """Every comparison with NaN is false, and a NaN weight makes every total NaN."""
    with pytest.raises(UserError):
        check_weights({**WEIGHTS, name: value})


@pytest.mark.parametrize(
    "weights", [{"semantic": 1.0}, {"consensus": 1.0, "syntax": 0.1}, {"consensus": 1, "a.py:f": 1}]
)
def test_without_any_gold_nothing_has_to_weigh_more(weights):
    """What is right is not known. Beside execution, consensus is limited as the others are."""
    check_weights(weights | {"execution": 0.0, "schema": 0.0})
    assert is_label_free(weights) and not needs_gold(weights)
    if "semantic" in weights:  # compared with gold instead
        assert not is_label_free(weights, "gold") and needs_gold(weights, "gold")
        with pytest.raises(UserError, match="must weigh less than execution"):
            check_weights(weights, "gold")
    check_weights({"execution": 1.0, "consensus": 0.5})
    with pytest.raises(UserError, match="consensus.*execution"):
        check_weights({"execution": 1.0, "consensus": 1.0})


def test_which_rewards_need_gold():
    """The semantic reward does if it compares with gold."""
    for name in ("execution", "test_suite", "overlap", "schema"):
        assert needs_gold({name: 0.1}) and not needs_gold({name: 0.0, "syntax": 1.0})
    assert [needs_gold({"semantic": 1}, target) for target in ("question", "gold", "both")] == [
        False, True, True,
    ]  # fmt: skip


def test_the_default_weights_are_allowed():
    check_weights(WEIGHTS)
    check_weights({"execution": 1.0})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"execution": 1, "overlong": 0.5, "semantic": 0.5}, "semantic . overlong .1..*execution"),
        ({"execution": 0.2, "semantic": 0.3}, "wrong query"),
        ({"execution": 1, "style": 0.1}, "style.*execution, syntax, schema, semantic"),
        ({"execution": 1, "syntax": -0.1}, "syntax=-0.1.*from 0 up"),
    ],
)
def test_refused_weights_are_named(weights, message):
    with pytest.raises(UserError, match=message):
        Rewards(None, None, weights)


# ------------------------------------------------ length, missing values and custom rewards

NAN = float("nan")
TERMS_WITH_GAPS = st.lists(  # (P, G, R) = (3, 5, 2), as a flat list
    st.one_of(st.just(NAN), st.integers(-80, 80).map(lambda n: n / 8)), min_size=30, max_size=30
)
WORDS = """
    import json
    from pathlib import Path

    def words(completions, **columns):
        path = Path(__file__).with_name("calls.jsonl")
        with path.open("a") as file:
            file.write(json.dumps({"completions": completions, **columns}) + "\\n")
        return [len(c.split()) if sql else None for c, sql in zip(completions, columns["sql"])]

    def fails(completions, **columns):
        raise RuntimeError("no")

    def execution(completions, **columns):
        return [1] * len(completions)
"""


@pytest.fixture
def own(tmp_path):
    """A file with three custom rewards."""
    folder = tmp_path / "own"
    folder.mkdir()
    path = folder / "my_rewards.py"
    path.write_text(textwrap.dedent(WORDS))
    return path


def test_examples_in_docstrings():
    results = doctest.testmod(rewards_module)
    assert results.failed == 0 and results.attempted >= 2


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, 0), (79, 0), (80, 0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1), (130, -1)],
)
def test_overlong_penalty_by_hand(length, expected):
    """Cut at 100 with a buffer of 20: 0 up to 80, then -1/20 for each token, never below -1."""
    assert overlong_penalty(length, max_new_tokens=100, buffer=20) == pytest.approx(expected)


def test_overlong_penalty_with_a_buffer_longer_than_the_completion():
    """Cut at 10 with a buffer of 40: the line from -1 at 10 back to 0 at -30 has -0.75 at 0."""
    penalties = [overlong_penalty(n, max_new_tokens=10, buffer=40) for n in (0, 2, 10)]
    assert penalties == pytest.approx([-0.75, -0.8, -1])


def test_fill_not_applicable_by_hand():
    """Group 1, term 1: 1, 4, NaN -> (1 + 4) / 2 = 2.5; term 2 applies to none -> 0. Group 2 has
    no NaN in term 1, which stays as it is; term 2: only 7 -> 7 for the others.
    """
    terms = torch.tensor([[[1, NAN], [4, NAN], [NAN, NAN]], [[0.0, NAN], [9.0, 7.0], [-9.0, NAN]]])
    before = terms.clone()
    assert fill_not_applicable(terms).tolist() == [
        [[1, 0], [4, 0], [2.5, 0]],
        [[0, 7], [9, 7], [-9, 7]],
    ]
    assert torch.equal(terms.isnan(), before.isnan())  # the input is not changed


@ANY_SPEED
@given(TERMS_WITH_GAPS)
def test_a_term_that_does_not_apply_neither_helps_nor_hurts(flat):
    """Its completion gets advantage 0 from it, and the others of the group the advantage that they
    would have among themselves.
    """
    terms = torch.tensor(flat).reshape(3, 5, 2)
    filled = fill_not_applicable(terms)
    gap = terms.isnan()
    assert not filled.isnan().any() and torch.equal(filled[~gap], terms[~gap])
    for r, kind in product(range(2), ("centered", "group", "rloo")):
        applicable = ~gap[..., r]
        advantages = group_advantages(filled[..., r], kind=kind, applicable=applicable)
        assert (advantages[gap[..., r]].abs() < 1e-3).all()
        for p in range(3):
            if applicable[p].sum() >= 2:
                alone = group_advantages(terms[p, applicable[p], r][None], kind=kind)[0]
                ours = advantages[p, applicable[p]]
                torch.testing.assert_close(ours, alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "weights",
    [
        {"execution": 1, "overlong": 0.9},
        {"execution": 1, "schema": 5, "overlap": 5, "semantic": 0.3, "overlong": 0.5},
        {"execution": 1, "overlong": 0},
        {"execution": 0, "test_suite": 1, "semantic": 0.3},
        {"execution": 1, "a.py:f": 5},  # not limited
        {"execution": 0, "a.py:f": 5, "syntax": 0.1},  # as questions without gold need it
        {"execution": 1, "a.py:f": -5, "semantic": 0.9},
    ],
)
def test_weights_of_length_and_custom_rewards_that_are_allowed(weights):
    check_weights(weights)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"execution": 1, "overlong": 1}, "overlong .1. must weigh less than execution .1."),
        ({**WEIGHTS, "overlong": 0.7}, "semantic . overlong .1. must"),  # 0.3 + 0.7 = 1
        ({"execution": 1, "overlong": -0.1}, "overlong=-0.1.*from 0 up"),
        ({"execution": 1, "overlong": NAN}, "overlong=nan"),
        ({"execution": 1, "a.py:f": NAN}, "a.py:f=nan"),
        ({"execution": 1, "a.py:f": float("-inf")}, "a.py:f=-inf"),
        ({"execution": 1, "test_suite": 0.4, "semantic": 0.5}, "less than test_suite .0.4."),
        ({"a.py:f": 5, "schema": 0.1}, "execution must weigh more than 0"),
        ({"a.py:f": 0, "syntax": 0.1}, "execution must weigh more than 0"),
        ({"execution": 1, "a.py": 1}, "unknown reward.*FILE.py:FUNCTION"),
        ({"execution": 1, "f:a": 1}, "unknown reward"),
    ],
)
def test_weights_of_length_and_custom_rewards_that_are_refused(weights, message):
    with pytest.raises(UserError, match=message):
        check_weights(weights)


def test_the_test_suite_reward_is_0_for_the_right_rows_of_a_mutant(sandbox, db):
    """Nobody is 30, so > 29 gives gold's rows; on a variant of the database it does not."""
    texts = [GOLD, "SELECT name FROM singer WHERE age > 29", "SELECT age FROM singer", "no SQL"]
    rewards = Rewards(
        ExecutionVerifier(sandbox),
        None,
        {"execution": 0.5, "test_suite": 1.0},
        suites={db: load_suite(db, [GOLD], sandbox)},
    )
    assert rewards([ask(db)], [texts]).tolist() == [[[1, 1], [1, 0], [0, 0], [0, 0]]]


def test_a_wrong_short_answer_stays_below_a_right_one_that_is_cut():
    """0.2 + 0.3 + 0.4 = 0.9 < 1. Right and cut, with schema match and semantic score 0: 1 + 0.1 -
    0.4 = 0.7. Wrong and short, with all other terms in full: 0.1 + 0.2 + 0.3 = 0.6.
    """
    weights = {**WEIGHTS, "overlong": 0.4}
    check_weights(weights)
    limits = {"max_new_tokens": 96, "buffer": 16}
    right = total(WEIGHTS, 1, 1) + 0.4 * overlong_penalty(96, **limits)
    wrong = total(WEIGHTS, 0, 1, 1, 1) + 0.4 * overlong_penalty(10, **limits)
    assert (right, wrong) == (pytest.approx(0.7), pytest.approx(0.6))


def test_custom_reward_and_length_beside_the_others(sandbox, db, own):
    """Cut at 10 with a buffer of 4: 6, 8, 10 tokens give 0, -0.5, -1. `words` counts 8 words in
    GOLD and 2 in "SELECT 1", and does not apply without SQL: then it is the group's mean,
    (8 + 2) / 2 = 5, or 0 where it applies to no completion.
    """
    weights = {"overlong": 0.5, f"{own}:words": -0.25, "semantic": 0, "execution": 1.0}
    rewards = Rewards(
        ExecutionVerifier(sandbox), None, weights, max_new_tokens=10, overlong_buffer=4
    )
    try:
        assert rewards.names == ["overlong", "words", "execution"]
        assert rewards.weights.tolist() == [0.5, -0.25, 1.0]
        terms = rewards(
            [ask(db), ask(db, "SELECT 1", question="what is 1?")],
            [[GOLD, "none", "SELECT 1"], ["no", "nothing", "never"]],
            prompts=["prompt 1", "prompt 2"],
            lengths=[[8, 6, 10], [1, 10, 9]],
        )
        assert terms.dtype == torch.float32
        assert fill_not_applicable(terms).tolist() == [
            [[-0.5, 8, 1], [0, 5, 0], [-1, 2, 0]],
            [[0, 0, 0], [-1, 0, 0], [-0.75, 0, 0]],
        ]
        assert rewards.failures() == {"reward_failures/words": 0}
    finally:
        rewards.close()
    (line,) = (own.parent / "calls.jsonl").read_text().splitlines()  # one call for the batch
    assert json.loads(line) == {
        "prompts": ["prompt 1"] * 3 + ["prompt 2"] * 3,
        "completions": [GOLD, "none", "SELECT 1", "no", "nothing", "never"],
        "question": ["Who is older than 30?"] * 3 + ["what is 1?"] * 3,
        "evidence": [""] * 6,
        "lang": ["en"] * 6,
        "db_id": ["concerts"] * 6,
        "db_path": [str(db)] * 6,
        "gold_sql": [GOLD] * 3 + ["SELECT 1"] * 3,
        "sql": [GOLD, None, "SELECT 1", None, None, None],
    }


def test_a_custom_reward_that_fails_does_not_change_the_others(sandbox, db, own):
    rewards = Rewards(ExecutionVerifier(sandbox), None, {"execution": 1.0, f"{own}:fails": 2.0})
    try:
        for count in (1, 2):
            terms = rewards([ask(db)], [[GOLD, "SELECT 1"]], prompts=["prompt"])
            assert terms.tolist() == [[[1, 0], [0, 0]]]
            assert rewards.failures() == {"reward_failures/fails": count}
    finally:
        rewards.close()
    assert rewards.custom[f"{own}:fails"].worker is None


def test_two_rewards_with_the_same_name_are_refused(own, monkeypatch):
    """Their metrics would share a name. The check comes before a process is started."""

    def started(*_):
        raise AssertionError("started a process")

    monkeypatch.setattr(rewards_module, "CustomReward", started)
    for weights in (
        {"execution": 1.0, f"{own}:execution": 0.5},
        {"execution": 1.0, f"{own}:words": 0.5, "other.py:words": 0.5},
    ):
        with pytest.raises(UserError, match="two rewards are called '(execution|words)'"):
            Rewards(None, None, weights)
    without = {"execution": 1.0, f"{own}:words": 0.0, "other.py:words": 0.0}  # weight 0: not loaded
    assert Rewards(None, None, without).names == ["execution"]


def test_a_broken_file_ends_the_command_line_with_code_2(tmp_path, own, capsys):
    own.write_text("def length(:")
    arguments = ["--reward", f"{own}:length=0.1", "--output", str(tmp_path / "run")]
    assert train.main([*arguments, "--device", "cpu"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: --reward {own}:length: SyntaxError")
    assert not (tmp_path / "run").exists()
