"""A run as an ordinary model directory, read back by transformers alone."""

import json

import pytest
import torch
from trainer_kit import TOKENIZER, make_policy
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo import merge
from grpo.checkpoint import load_adapter, save_adapter
from grpo.config import Config
from grpo.lora import lora_layers, merge_lora
from sqlenv.metrics.bootstrap import paired_difference, share

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def run(tmp_path):
    """What train.py leaves: a base directory, an adapter on it, settings and measurements."""
    model = make_policy().model
    save_adapter(model, tmp_path / "run" / "adapter", str(tmp_path / "base"))
    for _, layer in lora_layers(model):
        layer.lora_B.data.zero_()
    merge_lora(model, torch.float32).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    config = Config(model=str(tmp_path / "base"), lang="vi").to_dict()
    right = {"valid": share([1, 1, 0]), "execution": share([1, 0, 0])}
    gained = {name: paired_difference([0, 0, 1], [1, 0, 1]) for name in right}
    summary = {"before": {"vi": right}, "after": {"vi": right}, "difference": {"vi": gained}}
    for name, value in (("config", config), ("summary", summary)):
        (tmp_path / "run" / f"{name}.json").write_text(json.dumps(value))
    return tmp_path / "run"


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.02)])
def test_plain_transformers_reads_what_was_trained(run, tmp_path, capsys, dtype, tolerance):
    assert merge.main([str(run), str(tmp_path / "out"), "--dtype", dtype]) == 0
    assert f"out, {dtype}, with 100.0 % of the update" in capsys.readouterr().out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="float32").eval()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32").eval()
    plain = base(IDS).logits
    load_adapter(base, run / "adapter")
    with torch.no_grad():
        logits, expected = merged(IDS).logits, base(IDS).logits
    assert (logits - expected).norm() <= tolerance * expected.norm()
    assert (plain - expected).norm() > 0.2 * expected.norm()  # the adapter does something
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("how many singers ?") == TOKENIZER("how many singers ?")


def test_the_card_has_settings_data_and_metrics(run, tmp_path):
    merge.main([str(run), str(tmp_path / "out")])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "queries for questions in vi; `" in text
    assert "- lang: vi" in text and "- lr: 0.0006" in text and "33.3" in text
    assert f"base_model: {tmp_path / 'base'}" in text


def test_bad_input_is_one_line(run, tmp_path, capsys):
    (tmp_path / "old").mkdir()
    for words, message in (
        ([run, tmp_path / "old"], "old exists"),
        ([tmp_path / "base", tmp_path / "out"], "not the folder of a finished run"),
    ):
        assert merge.main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (run / "summary.json").unlink()
    assert merge.main([str(run), str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
