"""The evaluation of the encoder: every number by hand with chosen embeddings, and a run of the
shipped encoder.
"""

import json
import math
import re
import sqlite3
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, XLMRobertaConfig, XLMRobertaModel

from encoder import ContrastiveEncoder, SemanticReward, evaluate
from encoder.attacks import ATTACKS
from encoder.batches import Entry
from encoder.evaluation import gaming
from encoder.evaluation.calibration import calibration_report
from encoder.evaluation.gaming import attack_texts, gaming_report
from encoder.evaluation.report import cell, text_of
from encoder.evaluation.retrieval import (
    Embeddings,
    Mean,
    Question,
    choose_questions,
    english_metrics,
    english_questions,
    hard_negative_metrics,
    mean_of,
    retrieval_metrics,
    summarize,
)
from encoder.evaluation.samples import Sample, auc_counts, auc_report, read_samples
from encoder.text import sql_text
from sqlenv import EMBEDDED, Mutant, UserError, load_dataset, load_schema, open_dataset
from sqlenv.dataset import spread


class Identity:
    """A calibration whose score is the cosine."""

    def score(self, cosines):
        return cosines


class FakeEncoder:
    """Texts have the cosine with the x axis that they are given; questions lie on it by default."""

    with_schema = False

    def __init__(self, cosines: dict[str, float], max_tokens: int = 1000):
        self.cosines, self.max_tokens, self.embedded = cosines, max_tokens, []
        self.calibration = Identity()

    def embed(self, texts, kind):
        self.embedded += texts
        cosines = [self.cosines.get(text, 1.0 if kind == "query" else None) for text in texts]
        return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])

    def fits(self, texts):
        return [len(text) <= self.max_tokens for text in texts]


def entry(gold: str = "gold", *questions: tuple[str, str], db_id: str = "shop") -> Entry:
    return Entry(gold, db_id, None, questions)


def embed(questions: list[str], **cosines: float) -> Embeddings:
    return Embeddings(FakeEncoder(cosines), questions, list(cosines))


def test_each_text_is_embedded_once_and_equal_embeddings_tie():
    encoder = FakeEncoder({"a": 0.3, "b": 0.3, "too long": 0.9}, max_tokens=5)
    embeddings = Embeddings(encoder, ["q", "q"], ["a", "b", "a", "too long"])
    assert sorted(encoder.embedded) == ["a", "b", "q", "too long"]
    first, second, third, long = embeddings.cosines("q", ["a", "b", "a", "too long"]).tolist()
    assert first == second == third == pytest.approx(0.3)
    assert long == -1.0 and embeddings.is_too_long("too long") and not embeddings.is_too_long("a")
    assert embeddings.cosines("q", ["q"], "query").tolist() == [1.0]


def test_hard_negatives_by_hand():
    negatives = [Mutant("l1", "limit"), Mutant("l2", "limit"), Mutant("s", "sort")]
    embeddings = embed(["q"], gold=0.5, l1=0.4, l2=0.6, s=0.5)  # as in the docstring
    question = Question("q", "en", entry(), "gold", tuple(negatives))
    assert hard_negative_metrics(question, embeddings) == {
        "limit": 0.5,
        "sort": 0,
        "all_hard_negatives": 0,
    }
    question = Question("q", "en", entry(), "gold", tuple(negatives[:1]))
    assert hard_negative_metrics(question, embeddings) == {"limit": 1, "all_hard_negatives": 1}
    assert hard_negative_metrics(Question("q", "en", entry(), "gold"), embeddings) == {}


def test_retrieval_by_hand():
    embeddings = embed(["q"], gold=0.5, a=0.9, b=0.5, c=0.1)  # as in the docstring: rank 3
    question = Question("q", "en", entry(), "gold", others=("a", "b", "c"))
    assert retrieval_metrics(question, embeddings) == pytest.approx(
        {"other_sql": 1 / 3, "mrr": 1 / 3, "recall@1": 0}
    )
    question = Question("q", "en", entry(), "gold", others=("c",))
    assert retrieval_metrics(question, embeddings) == {"other_sql": 1, "mrr": 1, "recall@1": 1}
    assert retrieval_metrics(Question("q", "en", entry(), "gold"), embeddings) == {}


def test_english_question_by_hand():
    """Two English questions have gold "first", at cosines 0.2 and 0.8; another gold's is at 0.5."""
    first = entry("first", ("en", "e1"), ("en", "e2"), ("vi", "v"))
    second = entry("second", ("en", "e3"), ("vi", "w"))
    elsewhere = entry("third", ("en", "e4"), ("vi", "x"), db_id="zoo")
    english = english_questions([first, second, elsewhere])
    assert english["shop"] == {"e1": {"first"}, "e2": {"first"}, "e3": {"second"}}
    encoder = FakeEncoder({"e1": 0.2, "e2": 0.8, "e3": 0.5, "e4": 1.0})
    embeddings = Embeddings(encoder, ["v", "w", "x", "e1", "e2", "e3", "e4"], [])

    def recall(text, lang, of):
        return english_metrics(Question(text, lang, of, of.gold), english, embeddings)

    assert recall("v", "vi", first) == {"english_recall@1": 1.0}  # 0.8 above 0.5
    assert recall("w", "vi", second) == {"english_recall@1": 0.0}  # 0.5 below 0.8
    assert recall("x", "vi", elsewhere) == {}  # no other to confuse it with
    assert recall("e1", "en", first) == {}
    assert (
        english_metrics(Question("v", "vi", first, "first"), english_questions([]), embeddings)
        == {}
    )


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "shop.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE goods (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
    connection.close()
    return load_schema(path)


def test_no_answer_to_the_same_question_is_a_rival(schema):
    above, least, name = (
        "SELECT name FROM goods WHERE price > 3",
        "SELECT name FROM goods WHERE price >= 3",
        "SELECT name FROM goods",
    )
    entries = [
        Entry(above, "shop", schema, (("en", "dear?"), ("en", "over 3?"))),
        Entry(least, "shop", schema, (("en", "dear?"), ("vi", "từ 3?"))),
        Entry(name, "shop", schema, (("en", "all?"),)),
    ]
    dear, over, dear_too, everything, vi = choose_questions(
        entries, ["en", "vi"], limit=0, with_schema=False
    )
    assert [dear.text, dear_too.text, over.text] == ["dear?", "dear?", "over 3?"]
    assert (dear.gold, vi.lang, vi.gold) == (sql_text(above), "vi", sql_text(least))
    # ">= 3" is a right answer to "dear?", and a hard negative and another SQL to "over 3?".
    rivals = {negative.sql for negative in over.hard_negatives}
    assert rivals - {negative.sql for negative in dear.hard_negatives} == {sql_text(least)}
    assert set(over.others) == {sql_text(least), sql_text(name)}
    assert dear.others == dear_too.others == (sql_text(name),)
    assert sql_text(above) not in {negative.sql for negative in dear_too.hard_negatives}
    assert {negative.sql: negative.kind for negative in over.hard_negatives}[
        sql_text(least)
    ] == "comparison"
    assert [q.text for q in choose_questions(entries, ["en"], limit=2, with_schema=False)] == [
        "dear?",
        "dear?",
    ]
    (with_schema, *_) = choose_questions(entries, ["vi"], limit=1, with_schema=True)
    assert with_schema.gold == sql_text(least, schema) != sql_text(least)


def test_summary_by_hand():
    """English: comparison (1 + 0.5) / 2, sort 1, hence 0.875 over kinds; Vietnamese: comparison 0,
    no sort, 0 over kinds. Average: comparison 0.375, sort 1, over kinds 0.4375.
    """
    first, second = entry("first"), entry("second")
    questions = [Question(text, text[:2], e, "") for text, e in [("en1", first), ("en2", second)]]
    questions.append(Question("vi1", "vi", first, ""))
    report = summarize(
        questions,
        [
            {"comparison": 1.0, "sort": 1.0, "all_hard_negatives": 1.0},
            {"comparison": 0.5, "all_hard_negatives": 0.0},
            {"comparison": 0.0, "all_hard_negatives": 0.0},
        ],
        seed=0,
    )
    values = {
        lang: {metric: share["value"] for metric, share in row.items()}
        for lang, row in report.items()
    }
    assert values == {
        "en": {"comparison": 0.75, "sort": 1, "all_hard_negatives": 0.5, "mean_over_kinds": 0.875},
        "vi": {"comparison": 0, "all_hard_negatives": 0, "mean_over_kinds": 0},
        "average": {
            "comparison": 0.375,
            "sort": 1,
            "all_hard_negatives": 0.25,
            "mean_over_kinds": 0.4375,
        },
    }
    # A resample has both entries, or one of them twice.
    assert report["en"]["comparison"] == {"value": 0.75, "low": 0.5, "high": 1.0, "n": 2}
    assert report["en"]["sort"] == {"value": 1, "low": 1, "high": 1, "n": 1}
    assert report["en"]["mean_over_kinds"]["n"] == 2 and report["average"]["comparison"]["n"] == 3
    assert summarize([], [], seed=0) == {}


def test_a_resample_that_lacks_a_kind_does_not_count():
    """The mean of the other kinds alone, 1 here, would be another statistic."""
    means = [
        Mean(0.0, np.array([0.0, np.nan, np.nan]), 2),
        Mean(1.0, np.array([1.0, 1, np.nan]), 1),
    ]
    mean = mean_of(means, 2)
    np.testing.assert_array_equal(mean.resampled, [0.5, np.nan, np.nan])
    assert mean.interval() == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 2}


def test_translations_are_resampled_together():
    """Questions that fare alike in both languages say no more than those of one."""
    entries = [entry(str(number)) for number in range(40)]
    questions = [Question("q", lang, e, "") for lang in ("en", "vi") for e in entries]
    outcomes = [{"mrr": float(number % 40 < 30)} for number in range(80)]
    report = summarize(questions, outcomes, seed=0)
    bounds = [(report[key]["mrr"]["low"], report[key]["mrr"]["high"]) for key in report]
    assert list(report) == ["en", "vi", "average"] and len(set(bounds)) == 1
    assert bounds[0][0] == pytest.approx(0.6, abs=0.03) and bounds[0][1] < 0.9


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 3))
def test_summary_is_the_mean_within_its_interval(values, seed):
    questions = [Question("q", "en", entry(str(n)), "") for n in range(len(values))]
    summary = summarize(questions, [{"mrr": value} for value in values], seed)["en"]["mrr"]
    assert summary["value"] == pytest.approx(np.mean(values)) and summary["n"] == len(values)
    assert min(values) - 1e-9 <= summary["low"] <= summary["high"] <= max(values) + 1e-9


def test_calibration_by_hand():
    """Scores 0.92 and 0.72 of right SQL, 0.78 and 0.22 of wrong: an ECE of 0.2 (docstring). By
    language: English (|0.08| + |-0.78|) / 2 = 0.43, Vietnamese (|0.28| + |-0.22|) / 2 = 0.25.
    """
    embeddings = embed(["q", "v"], g1=0.92, g2=0.72, hard=0.78, other=0.22)
    questions = [
        Question("q", "en", entry("1"), "g1", hard_negatives=(Mutant("hard", "sort"),)),
        Question("v", "vi", entry("2"), "g2", others=("other",)),
        Question("q", "en", entry("3"), "g1"),  # nothing wrong to set beside it
    ]
    report = calibration_report(questions, embeddings, Identity(), seed=0)
    ece = {name: share["value"] for name, share in report["ece"].items()}
    assert ece == pytest.approx({"en": 0.43, "vi": 0.25, "all": 0.2})
    assert report["ece"]["all"]["n"] == 4
    shown = [(row["low"], row["score"], row["right"]["value"]) for row in report["bins"]]
    assert np.array(shown) == pytest.approx(
        np.array([[0.2, 0.22, 0], [0.7, 0.75, 0.5], [0.9, 0.92, 1]])
    )
    assert [row["right"]["n"] for row in report["bins"]] == [1, 2, 1]
    nothing = calibration_report(questions[2:], embeddings, Identity(), seed=0)
    assert nothing == {"bins": [], "ece": {}}


def test_wrong_sql_is_a_hard_negative_and_another_sql_in_turn():
    """Three questions with gold at 1: a hard negative at 0.25, another SQL at 0.45, and a hard
    negative.
    """
    embeddings = embed(["q"], gold=1.0, hard=0.25, other=0.45)
    both = (Mutant("hard", "sort"),), ("other",)
    questions = [Question("q", "en", entry(str(n)), "gold", *both) for n in range(3)]
    report = calibration_report(questions, embeddings, Identity(), seed=0)
    assert [(row["low"], row["right"]["n"]) for row in report["bins"]] == [
        (0.2, 2), (0.4, 1), (0.9, 3)
    ]  # fmt: skip


def test_gaming_by_hand(monkeypatch):
    """Of two questions, "copy" is above the gold of one, "tie" equals that of the other, and
    "long" is nearest, but too long to be read.
    """
    attacks = {
        "copy": lambda target: f"copy {target.question}",
        "tie": lambda target: "tie",
        "long": lambda target: "long " * 9,
    }
    monkeypatch.setattr(gaming, "ATTACKS", attacks)
    monkeypatch.setattr(gaming, "TRAINED", ("copy",))
    monkeypatch.setattr(gaming, "sql_text", lambda sql, schema, with_schema: sql)
    questions = [
        Question("q", "en", entry("g1", ("en", "q"), ("vi", "v")), "g1"),
        Question("p", "en", entry("g2", ("en", "p"), ("vi", "w")), "g2"),
    ]
    cosines = {"g1": 0.6, "g2": 0.5, "copy q": 0.7, "copy p": 0.4, "tie": 0.5, "long " * 9: 1.0}
    attacked = attack_texts(questions, with_schema=False, seed=0)
    assert attacked[0][1] == {"copy": "copy q", "tie": "tie", "long": "long " * 9}
    embeddings = Embeddings(FakeEncoder(cosines, max_tokens=20), ["q", "p"], list(cosines))
    report = gaming_report(attacked, embeddings, seed=0)
    shares = {name: share["value"] for name, share in report["attacks"].items()}
    assert shares == {"copy": 0.5, "tie": 0, "long": 0}
    assert [share["trained"] for share in report["attacks"].values()] == [True, False, False]
    assert report["none_held_out_above"]["value"] == 1
    assert report["none_above"]["value"] == 0.5 and report["none_above"]["n"] == 2


def test_the_attacker_knows_a_translation_where_there_is_one(monkeypatch, schema):
    monkeypatch.setattr(gaming, "ATTACKS", {"other": lambda target: target.other_question})
    monkeypatch.setattr(gaming, "sql_text", lambda sql, schema, with_schema: sql)
    first = Question("q", "en", entry("g", ("en", "q"), ("vi", "v")), "g")
    second = Question("p", "en", entry("h", ("en", "p")), "h")
    texts = [
        texts["other"] for _, texts in attack_texts([first, second], with_schema=False, seed=0)
    ]
    assert texts[0] == "v" and texts[1] in ("q", "p")


def test_auc_by_hand():
    cosines, right = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    above, pairs = auc_counts(cosines, right, np.array([[1, 1, 1, 1], [0, 2, 1, 0], [1, 1, 0, 0]]))
    assert above.tolist() == [3.5, 1, 0] and pairs.tolist() == [4, 2, 0]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), max_size=12))
def test_auc_counts_pairs(answers):
    """Against counting each pair."""
    fields = zip(*answers) if answers else [()] * 3
    cosines, right, weights = map(np.array, fields, (float, bool, int))
    above, pairs = auc_counts(cosines, right, weights[None])
    pairs_of = [(a, b) for a in answers for b in answers if a[1] and not b[1]]
    assert pairs[0] == sum(a[2] * b[2] for a, b in pairs_of)
    expected = sum(a[2] * b[2] * ((a[0] > b[0]) + 0.5 * (a[0] == b[0])) for a, b in pairs_of)
    assert above[0] == pytest.approx(expected)


def test_auc_report_by_hand():
    """English: right 0.6 against wrong 0.7 and 0.1, one of two. Vietnamese: right 0.95 and 0.9
    against wrong 0.8, both. Together 3 of 4: pairs across languages are not counted. Question 1 has
    right 0.6 and 0.95, wrong 0.8: 1/2; question 2 right 0.9, wrong 0.7: 1; their mean is 0.75.
    """
    rows = [
        ("en", 1, 0.6, True), ("en", 2, 0.7, False), ("en", 3, 0.1, False), ("vi", 1, 0.95, True),
        ("vi", 1, 0.8, False), ("vi", 2, 0.9, True), ("ja", 4, 0.5, True),
    ]  # fmt: skip
    samples = [Sample("q", lang, ("shop", n), f"{lang}{c}", right) for lang, n, c, right in rows]
    embeddings = embed(["q"], **{f"{lang}{c}": c for lang, _, c, _ in rows})
    report = auc_report(samples, embeddings, seed=0)
    values = {name: share["value"] for name, share in report.items()}
    assert values == {"en": 0.5, "vi": 1.0, "ja": None, "all": 0.75, "within_questions": 0.75}
    assert [share["n"] for share in report.values()] == [3, 3, 1, 7, 2]
    assert report["all"]["right"] == 4 and report["en"]["right"] == 1
    assert report["all"]["low"] < 0.75 < report["all"]["high"] and report["vi"]["low"] == 1
    only_right = auc_report(samples[:1], embeddings, seed=0)
    assert {share["value"] for share in only_right.values()} == {None}


def sample_rows() -> list[dict]:
    """A right, a wrong, a failed and another wrong answer to three questions."""
    examples = load_dataset(EMBEDDED, "vi", "dev")[:3] + load_dataset(EMBEDDED, "en", "dev")[:1]
    outcomes = [(True, True), (True, False), (False, False), (True, False)]
    return [
        {
            "db_id": example.db_id, "question": example.question, "lang": example.lang,
            "gold": example.gold_sql,
            "predicted": example.gold_sql if right else "select COUNT(*) from zoo",
            "gold_ok": True, "valid": valid, "execution": right, "test_suite": None,
        }
        for example, (valid, right) in zip(examples, outcomes)
    ]  # fmt: skip


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    return path


def all_samples(path) -> list[Sample]:
    options = {"langs": ["en", "vi"], "databases": [], "with_schema": False}
    return read_samples(path, open_dataset(EMBEDDED), **options)


def test_samples_are_valid_answers_right_by_the_test_suite(tmp_path):
    rows = sample_rows()
    rows[0]["test_suite"] = False  # its execution is right
    path = write_rows(tmp_path / "samples.jsonl", rows)
    samples = all_samples(path)
    assert [(sample.lang, sample.right) for sample in samples] == [
        ("en", False), ("vi", False), ("vi", False)
    ]  # fmt: skip
    assert samples[0].sql == "SELECT count(*) FROM '…'"  # its database has no table zoo
    assert samples[0].cluster == (rows[3]["db_id"], rows[3]["gold"])
    samples = read_samples(
        path, open_dataset(EMBEDDED), langs=["vi"], databases=[rows[0]["db_id"]], with_schema=True
    )
    example = load_dataset(EMBEDDED, "vi", "dev")[0]
    assert [sample.sql for sample in samples] == [
        sql_text(rows[0]["predicted"], load_schema(example.db_path))
    ]
    rows[0]["gold_ok"] = False  # there is nothing to compare its answer with
    path = write_rows(path, rows)
    assert len(all_samples(path)) == 2


def test_samples_that_were_not_executed_are_named(tmp_path):
    rows = sample_rows()
    del rows[1]["valid"]
    path = write_rows(tmp_path / "samples.jsonl", rows)
    with pytest.raises(UserError, match=r"samples.jsonl, line 2: 'valid' and 'execution' must"):
        all_samples(path)
    path = write_rows(path, [{**row, "valid": False} for row in sample_rows()])
    with pytest.raises(UserError, match="no answer is valid"):
        all_samples(path)


def test_cells():
    assert cell({"value": 0.6142, "low": 0.561, "high": 0.667, "n": 9}) == "61.4 (56-67)"
    assert cell({"value": None, "low": None, "high": None, "n": 0}) == cell(None) == "-"


def test_shipped_encoder(tmp_path, capsys):
    """The real thing; the shares of one language are computed again, question by question."""
    samples = write_rows(tmp_path / "samples.jsonl", sample_rows())
    outputs = ["--json", str(tmp_path / "out" / "a.json"), "--plot", str(tmp_path / "a.png")]
    options = ["--limit", "3", "--samples", str(samples), "--device", "cpu", *outputs]
    assert evaluate.main(options) == 0
    report = json.loads((tmp_path / "out" / "a.json").read_text())
    langs = ["en", "de", "es", "fr", "ja", "vi", "zh"]
    assert [key for key in report if key in langs] == langs
    assert report["average"]["mrr"]["n"] == 21 and report["zh"]["english_recall@1"]["n"] == 3
    assert (
        "english_recall@1" not in report["en"] and report["average"]["english_recall@1"]["n"] == 18
    )
    assert list(report["gaming"]["attacks"]) == list(ATTACKS) and len(ATTACKS) == 25
    assert report["gaming"]["none_above"]["n"] == 21
    assert report["calibration"]["ece"]["all"]["n"] == 42
    assert sum(row["right"]["n"] for row in report["calibration"]["bins"]) == 42
    assert report["auc"]["vi"]["n"] == 2 and report["auc"]["vi"]["value"] in (0, 0.5, 1)
    assert report["auc"]["en"]["value"] is None  # its only answer is wrong

    examples = load_dataset(EMBEDDED, "vi", "dev")
    reward = SemanticReward(ContrastiveEncoder.load(evaluate.SHIPPED))
    reciprocal_ranks = []
    for example in spread(examples, 3):
        read = partial(sql_text, schema=load_schema(example.db_path), with_schema=False)
        golds = dict.fromkeys(
            read(other.gold_sql) for other in examples if other.db_id == example.db_id
        )
        cosines = reward.cosines([example.question] * len(golds), [], list(golds))
        own = cosines[list(golds).index(read(example.gold_sql))]
        reciprocal_ranks.append(1 / (1 + int((cosines > own).sum())))
    assert report["vi"]["mrr"]["value"] == pytest.approx(sum(reciprocal_ranks) / 3)

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len(list(tmp_path.iterdir())) == 3 and len(list((tmp_path / "out").iterdir())) == 1
    printed = capsys.readouterr().out
    assert text_of(report) in printed and "| mean over kinds" in printed


def test_plain_encoder_has_no_calibration(tmp_path, capsys):
    folder = tmp_path / "plain"
    tokenizer = AutoTokenizer.from_pretrained(evaluate.SHIPPED)
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=258,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    options = ["--encoder", str(folder), "--lang", "vi", "--databases", "museum", "--limit", "2"]
    outputs = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    assert evaluate.main([*options, "--device", "cpu", *outputs]) == 0
    report = json.loads((tmp_path / "a.json").read_text())
    assert not {"calibration", "auc", "en"} & set(report) and report["vi"]["mrr"]["n"] == 2
    assert "english_recall@1" not in report["vi"] and (tmp_path / "a.png").is_file()
    assert "Calibration" not in capsys.readouterr().out


def test_questions_without_sql_are_not_measured(tmp_path, capsys):
    """Of three dev questions one has no SQL; the samples are answers to the two others."""
    shop, questions = tmp_path / "shop.sqlite", tmp_path / "pairs.csv"
    connection = sqlite3.connect(shop)
    connection.execute("CREATE TABLE book (title TEXT, price INT)")
    connection.close()
    golds = {"How many?": "SELECT count(*) FROM book", "Which?": "SELECT title FROM book"}
    lines = ["split,question,sql", "dev,Why?,", *(f"dev,{q},{sql}" for q, sql in golds.items())]
    questions.write_text("\n".join(lines))
    options = ["--data", str(shop), "--questions", str(questions), "--device", "cpu"]
    rows = [
        {"db_id": "shop", "question": question, "lang": "und", "gold": gold, "predicted": gold,
         "valid": True, "execution": question == "Which?"}
        for question, gold in golds.items()
    ]  # fmt: skip
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    out = tmp_path / "out.json"
    assert evaluate.main([*options, "--samples", str(samples), "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["und"]["gold_too_long"]["n"] == 2 == report["auc"]["all"]["n"]
    questions.write_text("split,question,sql\ndev,Why?,\ntrain,Which?,SELECT title FROM book\n")
    assert evaluate.main(options) == 2
    assert "the dev split of" in (error := capsys.readouterr().err) and "has no SQL" in error


def test_databases_are_named_by_patterns():
    def chosen(*patterns):
        dataset = open_dataset(EMBEDDED)
        entries = evaluate.chosen_entries(
            dataset, langs=["en"], split="dev", databases=list(patterns)
        )
        return {entry.db_id for entry in entries}

    assert chosen("dev_00[01]", "zoo") == {"dev_000", "dev_001", "zoo"}
    assert len(chosen("dev_*")) == 28 and chosen() > chosen("dev_*")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--databases", "museum,moon"], "--databases moon: the dev split of .* has charity, "),
        (["--lang", "xx"], "--lang xx: not a language of .*dev: en, de"),
        (["--encoder", "no/such/encoder"], "no/such/encoder is neither a directory nor"),
        (["--json", "."], r"--json \.: cannot be written"),
        (["--samples", "no.jsonl"], "no.jsonl: cannot read this predictions file"),
        (["--device", "moon"], "--device moon cannot be used"),
        (["--data", "no/such/data"], "no/such/data: not a dataset: .* it does not exist"),
    ],
)
def test_errors_are_one_line(options, message, capsys):
    assert evaluate.main(["--limit", "1", *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("error: ")]
    assert re.search(message, line)
