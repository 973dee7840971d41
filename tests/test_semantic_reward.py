"""The semantic reward by hand, with an encoder whose embeddings are chosen."""

import functools
import math
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
import torch

from encoder import ContrastiveEncoder, SemanticReward, gold_check
from encoder.calibration import Calibration
from encoder.gold_check import check_on_gold
from encoder.reward import CACHED
from encoder.text import sql_text
from grpo.config import ASSETS
from sqlenv import EMBEDDED, Example, UserError, load_dataset
from sqlenv.embedded import LANGUAGES

GOLD, HARD, OTHER = "SELECT a FROM t WHERE b > 1", "SELECT a FROM t WHERE b >= 1", "SELECT c FROM u"


class ChosenEncoder:
    """Cosines of the question with gold, the hard negative and the other SQL: 0.8, 0.6 and -0.6;
    of gold with itself, the hard negative and the other: 1, 0.96 and 0.
    """

    with_schema = False
    calibrations = {"question": Calibration(10.0, -7.0), "gold": Calibration(50.0, -49.0)}

    def __init__(self):
        self.embedded = []

    def fits(self, texts):
        return [0 < len(text) < 1000 for text in texts]

    def embed(self, texts, kind):
        self.embedded.append((kind, texts))
        angles = {GOLD: math.acos(0.8), HARD: math.acos(0.6), OTHER: math.acos(-0.6)}
        rows = [angles.get(text, 0.0) if kind == "sql" else 0.0 for text in texts]
        return torch.tensor([[math.cos(x), math.sin(x)] for x in rows]).reshape(-1, 2)


@functools.cache
def database(name: str = "a") -> Path:
    path = Path(tempfile.mkdtemp()) / f"{name}.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a, b)")
        connection.execute("CREATE TABLE u (c)")
    return path


def score(reward, sqls, valid=None, question="q"):
    count = len(sqls)
    valid = [True] * count if valid is None else valid
    scores = reward([question] * count, [GOLD] * count, sqls, valid, [database()] * count)
    return [round(value, 6) for value in scores]


def sigmoid(x: float) -> float:
    return round(1 / (1 + math.exp(-x)), 6)


def test_the_calibrated_score_of_the_question_by_hand():
    """10 * 0.8 - 7 = 1, 10 * 0.6 - 7 = -1, 10 * -0.6 - 7 = -13."""
    reward = SemanticReward(ChosenEncoder())
    assert score(reward, [GOLD, HARD, OTHER]) == [sigmoid(1), sigmoid(-1), sigmoid(-13)]


def test_the_three_targets_by_hand():
    """acos(0.6) - acos(0.8) = 0.2838 and its cosine 0.96; acos(-0.6) is a right angle further than
    acos(0.8). "both" is the mean: (0.8 + 1) / 2, (0.6 + 0.96) / 2, and (-0.6 + 0) / 2, cut at 0.
    """
    sqls = [GOLD, HARD, OTHER]
    encoder = ChosenEncoder()
    assert score(SemanticReward(encoder, score="cosine"), sqls) == [0.8, 0.6, 0.0]
    assert score(SemanticReward(encoder, target="gold", score="cosine"), sqls) == [1.0, 0.96, 0.0]
    assert score(SemanticReward(encoder, target="both", score="cosine"), sqls) == [0.9, 0.78, 0.0]
    calibrated = score(SemanticReward(encoder, target="gold"), sqls)
    assert calibrated == [sigmoid(1), sigmoid(-1), sigmoid(-49)]


def test_only_sql_that_runs_is_scored_unless_the_gate_is_off():
    assert score(SemanticReward(ChosenEncoder()), [GOLD, GOLD], [False, True])[0] == 0
    ungated = SemanticReward(ChosenEncoder(), gate=False)
    assert score(ungated, [GOLD, None], [False, False]) == [sigmoid(1), 0.0]


def test_sql_too_long_to_be_read_scores_nothing():
    long = GOLD + " AND 1 = 1" * 100
    assert score(SemanticReward(ChosenEncoder()), [long, GOLD]) == [0.0, sigmoid(1)]
    padded = f"{GOLD} /* {'x' * 20_000} */ EXCEPT {OTHER}"  # read as gold if it were cut
    deep = f"SELECT {'(' * 51}a{')' * 51} AS what_was_asked FROM t"
    assert score(SemanticReward(ChosenEncoder()), [padded, deep, GOLD]) == [0.0, 0.0, sigmoid(1)]


def test_text_in_double_quotes_is_read_only_if_the_database_has_such_a_name(tmp_path):
    """SQLite takes any other for a string, which could be the question."""
    path, encoder = tmp_path / "t.sqlite", ChosenEncoder()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a, [b c])")
    sqls = ['SELECT "what was asked" FROM t', 'SELECT "b c" FROM "t" WHERE a = "x"']
    SemanticReward(encoder)(["q"] * 2, [GOLD] * 2, sqls, [True] * 2, [path] * 2)
    encoder.with_schema = True
    SemanticReward(encoder)(["q"] * 2, [GOLD] * 2, sqls, [True] * 2, [path] * 2)
    texts = ["SELECT '…' FROM t", "SELECT \"b c\" FROM t WHERE a = 'x'"]
    read = [embedded for kind, embedded in encoder.embedded if kind == "sql"]
    assert read == [texts, [f"{text} | t(a, b c)" for text in texts]]


@pytest.mark.parametrize(
    "sql",
    [
        "select A from T where B>1;",
        "SELECT a FROM t WHERE b > 1 -- what was asked",
        "SELECT a AS what_was_asked FROM t WHERE b > 1",
    ],
)
def test_what_does_not_change_the_meaning_does_not_change_the_score(sql):
    assert score(SemanticReward(ChosenEncoder()), [sql]) == [sigmoid(1)]


def test_a_text_is_embedded_once_and_the_cache_is_bounded():
    encoder = ChosenEncoder()
    reward = SemanticReward(encoder)
    score(reward, [GOLD, GOLD, HARD])
    score(reward, [HARD, OTHER])
    assert [texts for kind, texts in encoder.embedded if kind == "sql"] == [[GOLD, HARD], [OTHER]]
    many = [f"SELECT {n}" for n in range(CACHED)]
    score(reward, [*many, GOLD])
    assert len(reward.embeddings) <= CACHED + 2
    assert score(reward, [GOLD, HARD]) == [sigmoid(1), sigmoid(-1)]


def test_nothing_to_score():
    assert SemanticReward(ChosenEncoder())([], [], [], [], []) == []
    assert score(SemanticReward(ChosenEncoder()), [None], [False]) == [0.0]


def test_an_encoder_that_is_not_calibrated_for_a_target_is_refused():
    with pytest.raises(UserError, match="'both'.*encoder.train"):
        SemanticReward(ChosenEncoder(), target="both")


@pytest.mark.parametrize("options", [{"target": "answer"}, {"score": "raw"}])
def test_an_unknown_target_or_score_is_refused(options):
    with pytest.raises(ValueError, match="answer.*question, gold, both|raw.*calibrated, cosine"):
        SemanticReward(ChosenEncoder(), **options)


PAPER = "SELECT COUNT(DISTINCT status) FROM appointments WHERE fee > 350"
PAPER_QUESTIONS = {
    "en": "Count the distinct statuses of the appointments that cost more than 350.",
    "de": "Betrachte nur die Termine, die mehr als 350 kosten: "
    "Wie viele unterschiedliche Statuswerte kommen vor?",
    "es": "Entre las citas que cuestan más de 350, ¿cuántos estados distintos aparecen?",
    "fr": "Pour les rendez-vous qui coûtent plus de 350, combien y a-t-il de statuts différents ?",
    "ja": "診察予約のうち、診察料が350を超えるものに限ると、"
    "ステータスは重複を除いて何種類ありますか？",
    "vi": "Trong số các lịch hẹn có phí khám trên 350, có bao nhiêu trạng thái khác nhau?",
    "zh": "统计费用高于350的预约中不重复的状态的个数。",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_shipped_encoder_has_the_papers_example_right(lang):
    """More than 350 is not 350 or more, and different statuses are counted, not rows: gold is above
    the hard negatives with one of these mistakes, and above the one with both.
    """
    encoder = ContrastiveEncoder.load("assets/encoder")
    assert set(encoder.calibrations) == {"question", "gold", "both"}
    rows, more = PAPER.replace("DISTINCT ", ""), PAPER.replace(">", ">=")
    sqls = [PAPER, rows, more, rows.replace(">", ">=")]
    gold, *negatives = (
        SemanticReward(encoder)
        .cosines([PAPER_QUESTIONS[lang]] * 4, [], [sql_text(sql) for sql in sqls])
        .tolist()
    )
    assert gold > max(negatives)


# ------------------------------------------------------------------- what it can tell apart


def asked(gold: str, db: str = "a") -> Example:
    return Example("q", "en", db, gold, database(db))


def test_gold_against_the_gold_of_others_by_hand():
    """Every question has cosine 0.8 with GOLD, 0.6 with HARD and -0.6 with OTHER; each is compared
    with the next gold of its database that differs: GOLD with HARD (1 beats -1 before the sigmoid),
    HARD with OTHER (-1 beats -13), OTHER with GOLD (-13 loses to 1). Two of three are higher, and
    one, GOLD, is above a half. The question on database b has no other.
    """
    examples = [asked(GOLD), asked(HARD), asked(OTHER), asked(GOLD, "b")]
    check = check_on_gold(SemanticReward(ChosenEncoder()), examples)
    right = [sigmoid(1), sigmoid(-1), sigmoid(-13)]
    assert (check.count, check.higher, check.accepted) == (3, pytest.approx(2 / 3), 1 / 3)
    assert check.gold == pytest.approx(sum(right) / 3, abs=1e-6)
    assert check.other == pytest.approx(sum(right) / 3, abs=1e-6)  # the same three, shifted
    assert not check.trusted and "67 % of 3 questions" in str(check)
    assert "of my-data; train an encoder" in check.report("my-data")
    assert check_on_gold(SemanticReward(ChosenEncoder()), examples[3:]) is None


def test_gold_is_checked_in_all_parts_of_the_questions(monkeypatch):
    """Of four the first and the third, GOLD, which beats HARD, and OTHER, which loses to GOLD; the
    first two would both win.
    """
    monkeypatch.setattr(gold_check, "QUESTIONS", 2)
    examples = [asked(GOLD), asked(HARD), asked(OTHER), asked(GOLD)]
    check = check_on_gold(SemanticReward(ChosenEncoder()), [asked("SELECT 9", "b"), *examples])
    assert (check.count, check.higher) == (2, 0.5)


def test_the_shipped_encoder_tells_gold_apart_and_an_untrained_one_does_not():
    examples = load_dataset(EMBEDDED, "en", "train")[::20]
    encoder = ContrastiveEncoder.load(ASSETS / "encoder")
    check = check_on_gold(SemanticReward(encoder), examples)
    assert check.higher > 0.95 and check.report("my-data") == str(check)
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    spoilt = check_on_gold(SemanticReward(encoder), examples)
    assert not spoilt.trusted and spoilt.higher < 0.7
