"""The contrastive encoder: loss by hand, invariances, calibration, save and load, training."""

import json
import math
import sqlite3

import pytest
import torch
import torch.nn.functional as F
from transformers import XLMRobertaConfig, XLMRobertaModel

from encoder import ContrastiveEncoder
from encoder import train as training
from encoder.calibration import Calibration, candidate_cosines, fit_calibration, retrieval_report
from encoder.loss import info_nce, same_sql
from encoder.scratch import small_encoder
from encoder.train import TrainingPair, epoch_batches, split_by_sql, sqls_by_database
from sqlenv.errors import UserError

TABLES = {"shop": ["customers", "orders"], "school": ["students", "teachers"]}
COLUMNS = ["name", "age", "city", "salary", "phone"]
PHRASES = {
    "en": {"list": "List the {column} of all {table}", "max": "Largest {column} of {table}?"},
    "vi": {"list": "Liệt kê {column} của mọi {table}", "max": "{column} lớn nhất {table}?"}}
QUERIES = {"list": "SELECT {column} FROM {table}", "max": "SELECT max({column}) FROM {table}"}


def synthetic_pairs() -> list[TrainingPair]:
    """80 pairs: 2 databases of 20 SQL texts, each asked in 2 languages."""
    return [TrainingPair(phrase.format(column=column, table=table),
                         QUERIES[shape].format(column=column, table=table), lang, db_id)
            for lang, phrases in PHRASES.items() for shape, phrase in phrases.items()
            for db_id, tables in TABLES.items() for table in tables for column in COLUMNS]


def tiny_encoder() -> ContrastiveEncoder:
    torch.manual_seed(0)
    texts = [text for pair in synthetic_pairs() for text in (pair.question, pair.sql)]
    return small_encoder(texts, dim=32, vocab_size=400, layers=2, hidden=64)


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    return tiny_encoder()


def test_info_nce_of_two_pairs_by_hand():
    questions = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    positives = same_sql(["a", "b"], torch.device("cpu"))
    loss = info_nce(questions, torch.eye(2), torch.tensor(1.0), positives)
    assert loss.item() == pytest.approx(0.44888, abs=1e-5)  # worked out in the docstring


def test_info_nce_masks_the_same_sql():
    one = torch.tensor(1.0)
    masked = info_nce(torch.eye(3), torch.eye(3), one, same_sql(["a", "a", "b"], one.device))
    assert masked.item() == pytest.approx(0.39266, abs=1e-5)  # worked out in the docstring
    plain = info_nce(torch.eye(3), torch.eye(3), one, same_sql(["a", "b", "c"], one.device))
    assert plain.item() == pytest.approx(math.log(1 + 2 * math.exp(-1)), abs=1e-5)


def test_info_nce_gradient_is_finite_and_pulls_together():
    questions = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]], requires_grad=True)
    positives = same_sql(["a", "a", "a"], questions.device)
    info_nce(questions, torch.eye(3, 2), torch.tensor(5.0), positives).backward()
    assert torch.equal(questions.grad, torch.zeros(3, 2))  # nothing to tell apart
    questions.grad = None
    info_nce(questions, torch.eye(3, 2), torch.tensor(5.0),
             same_sql(["a", "b", "c"], questions.device)).backward()
    assert questions.grad.isfinite().all() and questions.grad[0, 0] < 0  # moves to SQL 0


def test_info_nce_rejects_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        info_nce(torch.eye(3), torch.eye(2), torch.tensor(1.0), torch.eye(3).bool())


def test_padding_and_order_do_not_change_an_embedding(encoder):
    texts = ["List the age of all orders", "age?", "Liệt kê phone của mọi teachers " * 9, ""]
    together = encoder.embed(texts, "query")
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(encoder.embed([text], "query")[0], row, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(encoder.embed(texts * 30, "query")[-4:], together, atol=1e-5, rtol=0)


def test_pooling_is_the_mean_over_real_tokens_only(encoder):
    ids = torch.tensor([[0, 50, 60, 2, 1, 1]])
    mask = (ids != 1).long()
    states = encoder.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[0, :4]
    by_hand = F.normalize(encoder.projection(states.mean(dim=0)), dim=0)
    torch.testing.assert_close(encoder(ids, mask)[0], by_hand)


def test_prefix_tells_question_from_sql(encoder):
    assert not torch.allclose(encoder.embed(["age"], "query"), encoder.embed(["age"], "sql"))
    with pytest.raises(ValueError, match="kind"):
        encoder.embed(["age"], "answer")


def test_long_text_is_cut_and_no_text_is_fine(encoder):
    assert torch.equal(encoder.embed(["age " * 300], "sql"), encoder.embed(["age " * 999], "sql"))
    assert encoder.embed([], "sql").shape == (0, 32)
    assert encoder.similarity([], []).shape == (0,)


def test_similarity_is_a_cosine_and_embeds_repeats_once(encoder, monkeypatch):
    pairs = synthetic_pairs()[:3]
    questions = [pair.question for pair in pairs for _ in range(8)]
    sqls = [pair.sql for pair in pairs] * 8
    seen = []
    embed = encoder.embed
    monkeypatch.setattr(encoder, "embed", lambda texts, kind: seen.append(texts) or embed(texts,
                                                                                          kind))
    cosines = encoder.similarity(questions, sqls)
    assert [len(texts) for texts in seen] == [3, 3]
    assert cosines.shape == (24,) and cosines.dtype == torch.float32
    assert cosines.abs().max() <= 1
    expected = embed([questions[5]], "query") @ embed([sqls[5]], "sql").T
    assert cosines[5].item() == pytest.approx(expected.item(), abs=1e-5)
    with pytest.raises(ValueError, match="24 questions but 1 SQL"):
        encoder.similarity(questions, sqls[:1])


def test_dropout_is_off_even_in_training_mode_and_training_mode_is_kept():
    encoder = tiny_encoder()
    encoder.backbone.embeddings.dropout.p = 0.5
    encoder.train()
    assert not torch.equal(encoder.encode(["age"], "sql"), encoder.encode(["age"], "sql"))
    first, second = encoder.embed(["age"], "sql"), encoder.embed(["age"], "sql")
    assert encoder.training and torch.equal(first, second) and not first.requires_grad


def test_words_are_the_same_token_wherever_they_stand(encoder):
    def tokens(text):
        return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    age = tokens("age")
    for text in ["'age'", "city_age", "的age的", " age"]:
        assert "-".join(map(str, age)) in "-".join(map(str, tokens(text)))
    assert tokens("tie\u0302\u0301ng") == tokens("ti\u1ebfng")  # decomposed and composed Vietnamese


def test_calibration_by_hand():
    found = fit_calibration(torch.tensor([0.9, 0.5, 0.6]), torch.tensor([0.1, 0.55, 0.3]))
    assert found.threshold == pytest.approx(0.4)
    assert (found.low, found.high) == pytest.approx((0.3, 0.6))
    assert found.balanced_accuracy == pytest.approx(5 / 6)
    scores = Calibration(0.4, 0.2, 0.6, 1.0).score(torch.tensor([-1.0, 0.2, 0.5, 0.6, 1.0]))
    torch.testing.assert_close(scores, torch.tensor([0.0, 0.0, 0.75, 1.0, 1.0]))
    with pytest.raises(ValueError, match="right and wrong"):
        fit_calibration(torch.tensor([0.9]), torch.tensor([]))


def test_retrieval_report_by_hand():
    none = float("-inf")
    cosines = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.6], [0.1, 0.3, none], [0.7, 0.1, none]])
    report = retrieval_report(cosines, ["en", "en", "vi", "vi"])
    assert report == {"all": {"recall@1": 0.5, "pair": 0.75, "n": 4},
                      "en": {"recall@1": 0.5, "pair": 1.0, "n": 2},
                      "vi": {"recall@1": 0.5, "pair": 0.5, "n": 2}}


def test_candidates_are_gold_first_then_others_of_the_database(encoder):
    pairs = synthetic_pairs()
    sqls = sqls_by_database(pairs)
    sqls["shop"] = [pairs[0].sql, pairs[1].sql]
    cosines = candidate_cosines(encoder, pairs[:1], sqls, count=4, seed=0)
    expected = encoder.similarity([pairs[0].question] * 2, sqls["shop"])
    torch.testing.assert_close(cosines[0, :2], expected)
    assert cosines[0, 2:].tolist() == [float("-inf")] * 2


def test_an_epoch_shows_every_pair_once_and_half_the_batches_one_database():
    pairs = [TrainingPair(f"q{i}", f"s{i}", "en", f"db{i % 2}") for i in range(160)]
    batches = epoch_batches(pairs, 10, training.random.Random(0))
    assert sorted(p.question for b in batches for p in b) == sorted(p.question for p in pairs)
    assert sum(len({pair.db_id for pair in batch}) == 1 for batch in batches) >= 7  # of 16


def test_held_out_sql_is_never_trained_on_in_any_language():
    known, held_out = split_by_sql(synthetic_pairs(), 0.1, seed=0)
    assert not {pair.sql for pair in known} & {pair.sql for pair in held_out}
    # Both languages ask for a tenth of the 40 texts, 4.
    assert len(held_out) == 8 and {pair.lang for pair in held_out} == {"en", "vi"}
    with pytest.raises(UserError, match="too few"):
        split_by_sql([TrainingPair("q", "s", "en", "alone")] * 9, 0.1, seed=0)


def test_save_and_load_round_trip(encoder, tmp_path):
    pairs = synthetic_pairs()[:4]
    texts = [pair.question for pair in pairs], [pair.sql for pair in pairs]
    encoder.calibration = Calibration(0.5, 0.25, 0.75, 0.9)
    encoder.save(tmp_path / "full")
    loaded = ContrastiveEncoder.load(tmp_path / "full")
    assert loaded.calibration == encoder.calibration and not loaded.training
    assert torch.equal(loaded.similarity(*texts), encoder.similarity(*texts))
    assert torch.equal(loaded.score(*texts), encoder.score(*texts))
    assert torch.equal(loaded.log_scale, encoder.log_scale)
    encoder.save(tmp_path / "half", dtype=torch.float16)
    half = ContrastiveEncoder.load(tmp_path / "half")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(half.similarity(*texts), encoder.similarity(*texts), atol=1e-3,
                               rtol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "half"]  # nothing left over
    with pytest.raises(UserError, match="already exists"):
        encoder.save(tmp_path / "full")


def test_a_failed_save_leaves_nothing_behind(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.model.save_file", lambda *_: (_ for _ in ()).throw(OSError(28)))
    with pytest.raises(OSError):
        encoder.save(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


def test_plain_hugging_face_encoder(encoder, tmp_path):
    config = XLMRobertaConfig(vocab_size=len(encoder.tokenizer), hidden_size=32,
                              num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    XLMRobertaModel(config).save_pretrained(tmp_path / "plain")  # with a pooler, as published
    with pytest.raises(UserError, match="has no tokenizer"):
        ContrastiveEncoder.load(tmp_path / "plain")
    encoder.tokenizer.save_pretrained(tmp_path / "plain")
    plain = ContrastiveEncoder.load(tmp_path / "plain")
    assert plain.projection is None and plain.embed(["age"], "sql").shape == (1, 32)
    with pytest.raises(UserError, match="not calibrated"):
        plain.score(["age"], ["SELECT age"])
    fresh = ContrastiveEncoder.load(tmp_path / "plain", dim=8)
    assert fresh.embed(["age"], "sql").shape == (1, 8)
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        ContrastiveEncoder.load(tmp_path / "plain")


def test_no_such_encoder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="neither a directory nor a model"):
        ContrastiveEncoder.load(tmp_path / "nowhere")


def test_training_lowers_the_loss_and_improves_retrieval():
    encoder, pairs = tiny_encoder(), synthetic_pairs()
    sqls = sqls_by_database(pairs)

    def recall() -> float:
        cosines = candidate_cosines(encoder, pairs, sqls, 8, seed=0)
        return retrieval_report(cosines, [pair.lang for pair in pairs])["all"]["recall@1"]

    before = recall()
    scale = encoder.scale.item()
    losses = [loss for loss, _ in training.train(encoder, pairs, 60, 20, 2e-3, seed=0)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert recall() > max(0.9, before + 0.2)
    assert encoder.scale.item() != scale and not encoder.training


def write_dataset(root) -> None:
    """The synthetic pairs in MultiSpider's published layout."""
    folder = root / "dataset" / "multispider" / "with_English_value"
    folder.mkdir(parents=True)
    for lang in PHRASES:
        rows = [{"db_id": pair.db_id, "query": pair.sql, "question": pair.question}
                for pair in synthetic_pairs() if pair.lang == lang]
        (folder / f"train_{lang}.json").write_text(json.dumps(rows), encoding="utf-8")
    for db_id, tables in TABLES.items():
        place = root / "dataset" / "spider" / "database" / db_id
        place.mkdir(parents=True)
        connection = sqlite3.connect(place / f"{db_id}.sqlite")
        for table in tables:
            connection.execute(f"CREATE TABLE {table} ({', '.join(COLUMNS)})")
        connection.close()


def test_command_line_trains_from_scratch_and_from_its_own_output(tmp_path, capsys):
    write_dataset(tmp_path / "data")
    options = ["--data", str(tmp_path / "data"), "--lang", "en,vi", "--batch-size", "16"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert training.main([*options, "--output", first, "--steps", "3"]) == 0
    assert training.main([*options, "--output", second, "--steps", "1", "--base", first]) == 0
    assert "recall@1 of 32" in capsys.readouterr().out
    loaded = ContrastiveEncoder.load(second)
    assert 0 <= loaded.score(["List the age"], ["SELECT age FROM orders"]).item() <= 1
    summary = json.loads((tmp_path / "second" / "training.json").read_text())
    assert summary["held_out"]["vi"]["n"] == 4
    assert training.main([*options, "--output", first]) == 2
    assert "first already exists" in capsys.readouterr().err
