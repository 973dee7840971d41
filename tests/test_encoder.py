"""The contrastive encoder: loss by hand, invariances, calibration, save and load."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import XLMRobertaConfig, XLMRobertaModel

from encoder import ContrastiveEncoder
from encoder.calibration import Calibration, fit_calibration
from encoder.loss import info_nce
from encoder.scratch import small_encoder
from sqlenv.errors import UserError

PAIRS = [
    ("List the age of all orders", "SELECT age FROM orders"),
    ("Liệt kê city của mọi teachers", "SELECT city FROM teachers"),
    ("Largest salary of customers?", "SELECT max(salary) FROM customers"),
]


def tiny_encoder() -> ContrastiveEncoder:
    torch.manual_seed(0)
    texts = [text for pair in PAIRS for text in pair]
    return small_encoder(texts * 5, dim=32, vocab_size=400, layers=2, hidden=64)


@pytest.fixture(scope="module")
def encoder() -> ContrastiveEncoder:
    return tiny_encoder()


def cosines(encoder: ContrastiveEncoder, questions: list[str], sqls: list[str]) -> torch.Tensor:
    return (encoder.embed(questions, "query") * encoder.embed(sqls, "sql")).sum(dim=1)


def info_nce_of(questions: torch.Tensor, sqls: torch.Tensor, positives: list[int], scale=1.0):
    return info_nce(questions, sqls, scale=torch.tensor(scale), positives=torch.tensor(positives))


def loss_of(cosines: list[list[float]], positives: list[int]) -> torch.Tensor:
    """The loss for given cosines: the SQL embeddings are unit vectors."""
    questions = torch.tensor(cosines)
    return info_nce_of(questions, torch.eye(questions.shape[1]), positives)[0]


def test_info_nce_by_hand():
    """The three cases that its docstring works out."""
    two = loss_of([[1.0, 0.0], [0.6, 0.8]], [0, 1])
    assert two.item() == pytest.approx(0.44888, abs=1e-5)
    near = loss_of([[1.0, 0.0, 0.5], [0.6, 0.8, 0.5]], [0, 1])
    assert near.item() == pytest.approx(0.62606, abs=1e-5)
    shared = loss_of([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 1])
    assert shared.item() == pytest.approx(0.35296, abs=1e-5)


def test_info_nce_says_whose_own_sql_is_closest():
    questions = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.3, 0.4]])
    _, is_closest = info_nce_of(questions, torch.eye(3), [0, 1])
    assert is_closest.tolist() == [True, False]


def test_info_nce_gradient_is_finite_and_pulls_together():
    questions = torch.tensor([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]], requires_grad=True)
    info_nce_of(questions, torch.eye(2)[:1], [0, 0, 0], scale=5.0)[0].backward()
    assert torch.equal(questions.grad, torch.zeros(3, 2))  # nothing to tell apart
    questions.grad = None
    info_nce_of(questions, torch.eye(2), [0, 1, 1], scale=5.0)[0].backward()
    assert questions.grad.isfinite().all() and questions.grad[0, 0] < 0  # moves to SQL 0


def test_info_nce_rejects_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\[N, D\]"):
        info_nce_of(torch.eye(3), torch.eye(3), [0, 1])


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


def test_what_is_too_long_to_read_does_not_fit(encoder):
    age = len(encoder.tokenizer("sql: age")["input_ids"])
    assert encoder.fits(["age", "age " * (257 - age), "age " * (258 - age)]) == [True, True, False]
    assert encoder.fits([]) == [] and encoder.fits([""]) == [False]


def test_embeddings_are_float32_even_under_autocast(encoder):
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.encode(["age"], "sql").dtype == torch.float32


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


def test_calibration_scores_by_hand():
    """sigmoid(10 * 0.5 - 5) = 0.5, sigmoid(2) = 0.88080, sigmoid(-15) = 3.06e-7."""
    curve = Calibration(10.0, -5.0)
    scores = curve.score(torch.tensor([0.5, 0.7, -1.0]))
    torch.testing.assert_close(scores, torch.tensor([0.5, 0.88080, 3.06e-7]), atol=1e-5, rtol=0)


def test_calibration_lies_midway_between_right_and_wrong_and_counts_both_alike():
    curve = fit_calibration(torch.tensor([0.8]), torch.tensor([0.2]))
    assert -curve.bias / curve.slope == pytest.approx(0.5) and 10 < curve.slope < 1000
    many = fit_calibration(torch.tensor([0.8]), torch.tensor([0.2] * 50))
    assert (many.slope, many.bias) == pytest.approx((curve.slope, curve.bias))


def test_calibration_gives_the_observed_shares():
    """At 0 a quarter of the pairs is right, at 1 three quarters: logits -ln 3 and ln 3, so slope
    2 ln 3 = 2.197 and bias -1.0986; the pull to 0 takes a little of it.
    """
    right, wrong = torch.tensor([0.0, 1, 1, 1]), torch.tensor([0.0, 0, 0, 1])
    curve = fit_calibration(right, wrong)
    assert curve.slope == pytest.approx(2 * math.log(3), rel=1e-2)
    assert curve.bias == pytest.approx(-math.log(3), rel=1e-2)


def test_an_encoder_that_has_it_backwards_earns_nothing():
    curve = fit_calibration(torch.tensor([0.1, 0.2]), torch.tensor([0.8, 0.9]))
    assert curve.score(torch.tensor([-1.0, 1.0])).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="right and wrong"):
        fit_calibration(torch.tensor([0.9]), torch.tensor([]))


def test_save_and_load_round_trip(encoder, tmp_path):
    texts = [question for question, _ in PAIRS], [sql for _, sql in PAIRS]
    encoder.calibrations = {"question": Calibration(20.0, -9.0), "gold": Calibration(9.0, -8.0)}
    encoder.with_schema = True
    encoder.save(tmp_path / "full")
    loaded = ContrastiveEncoder.load(tmp_path / "full")
    assert loaded.calibrations == encoder.calibrations and not loaded.training
    assert loaded.with_schema and loaded.calibration == Calibration(20.0, -9.0)
    assert torch.equal(cosines(loaded, *texts), cosines(encoder, *texts))
    assert torch.equal(loaded.log_scale, encoder.log_scale)
    encoder.save(tmp_path / "half", dtype=torch.float16)
    half = ContrastiveEncoder.load(tmp_path / "half")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    torch.testing.assert_close(cosines(half, *texts), cosines(encoder, *texts), atol=1e-3, rtol=0)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "half"]  # nothing left over
    with pytest.raises(UserError, match="already exists"):
        encoder.save(tmp_path / "full")


def test_a_failed_save_leaves_nothing_behind(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("encoder.model.save_file", lambda *_: (_ for _ in ()).throw(OSError(28)))
    with pytest.raises(UserError, match="cannot write .*output"):
        encoder.save(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


def test_plain_hugging_face_encoder(encoder, tmp_path):
    config = XLMRobertaConfig(
        vocab_size=len(encoder.tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    XLMRobertaModel(config).save_pretrained(tmp_path / "plain")  # with a pooler, as published
    with pytest.raises(UserError, match="has no tokenizer"):
        ContrastiveEncoder.load(tmp_path / "plain")
    encoder.tokenizer.save_pretrained(tmp_path / "plain")
    plain = ContrastiveEncoder.load(tmp_path / "plain")
    assert plain.projection is None and plain.embed(["age"], "sql").shape == (1, 32)
    assert plain.calibration is None and not plain.with_schema
    fresh = ContrastiveEncoder.load(tmp_path / "plain", dim=8)
    assert fresh.embed(["age"], "sql").shape == (1, 8)
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        ContrastiveEncoder.load(tmp_path / "plain")


def change_json(path, **changed):
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def change_tensor(path, name, tensor):
    save_file(load_file(path) | {name: tensor}, path)


def need_sentencepiece(folder):
    """Slow tokenizers need this library, which is not among the requirements."""
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"")
    change_json(folder / "tokenizer_config.json", tokenizer_class="BertGenerationTokenizer")


DAMAGES = {
    "wider": lambda folder: change_json(folder / "config.json", hidden_size=96),
    "projection": lambda folder: change_tensor(
        folder / "contrastive.safetensors", "projection.weight", torch.ones(32, 63)
    ),
    "scale": lambda folder: change_tensor(
        folder / "contrastive.safetensors", "log_scale", torch.ones(3)
    ),
    "tokenizer": need_sentencepiece,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_fit_together_are_one_line(encoder, tmp_path, damage):
    encoder.save(tmp_path / "saved")
    DAMAGES[damage](tmp_path / "saved")
    with pytest.raises(UserError, match="saved cannot be loaded as an encoder: .") as caught:
        ContrastiveEncoder.load(tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_no_such_encoder_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="neither a directory nor a model"):
        ContrastiveEncoder.load(tmp_path / "nowhere")
