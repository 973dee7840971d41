"""Policies from directories and .gguf files: what ends an answer, and what is refused."""

import json

import pytest
import torch
from model_kit import CHAT, SHAPE, make_model, make_tokenizer, write_gguf
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GraniteConfig,
    GraniteForCausalLM,
)

from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, lora_parameters
from grpo.models import choose_dtype, end_tokens, has_fast_bfloat16, load_policy
from sqlenv import UserError


@pytest.fixture
def folder(tmp_path):
    """A model directory with its tokenizer."""
    folder = tmp_path / "policy"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_load_policy(folder):
    policy = load_policy(str(folder), "cpu")
    assert not policy.model.training
    fast = has_fast_bfloat16("cpu")
    assert policy.model.dtype == (torch.bfloat16 if fast else torch.float32)  # auto
    head = make_model().lm_head.weight.to(policy.model.dtype)
    assert torch.equal(policy.model.lm_head.weight, head)
    assert policy.eos_ids == {1}
    assert policy.tokenizer.decode(policy.tokenizer.encode("SELECT é")) == "SELECT é"


def test_a_named_dtype(folder):
    policy = load_policy(str(folder), "cpu", "bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "device, fast, expected",
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda:1", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("mps", False, torch.float32),
    ],
)
def test_auto_is_the_dtype_that_is_fast(monkeypatch, device, fast, expected):
    monkeypatch.setattr("grpo.models.has_fast_bfloat16", lambda device: fast)
    assert choose_dtype("auto", device) == expected
    assert choose_dtype("float16", device) == torch.float16


def test_a_gguf_file_is_loaded(tmp_path):
    """The same logits and token ids as the model that it was written from."""
    merges = [("S", "E"), ("SE", "L")]
    tokenizer = make_tokenizer(merges)
    model = make_model(num_hidden_layers=2, vocab_size=264).eval()
    write_gguf(tmp_path / "model.gguf", model, tokenizer, merges)
    policy = load_policy(str(tmp_path / "model.gguf"), "cpu", "float32")
    ids = torch.tensor([[5, 6, 7, 200, 9]])
    assert torch.allclose(policy.model(ids).logits, model(ids).logits, atol=1e-5)
    assert 263 in (expected := tokenizer.encode("SELECT é FROM t"))
    assert policy.tokenizer.encode("SELECT é FROM t") == expected
    assert policy.eos_ids == {1}


def test_a_gguf_file_that_cannot_be_read_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nowhere.gguf: no such file"):
        load_policy(str(tmp_path / "nowhere.gguf"))
    for text in (b"GGUF and no more", b"another file"):
        (tmp_path / "damaged.gguf").write_bytes(text)
        with pytest.raises(UserError, match="damaged.gguf: cannot load the model"):
            load_policy(str(tmp_path / "damaged.gguf"))


def test_of_a_model_with_pictures_the_language_model_is_trained(tmp_path):
    """Gemma 3 from 4B on has a vision tower. It gets no LoRA and is not run: log-probs equal those
    of the whole model on text.
    """
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = Gemma3Config(
        text_config=SHAPE | {"num_hidden_layers": 2},
        vision_config=vision | dict(image_size=28, patch_size=14),
        mm_tokens_per_image=4,
        image_token_index=261,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = load_policy(str(tmp_path), "cpu", "float32").model
    names = list(lora_parameters(add_lora(model, rank=2, alpha=4)))
    assert len(names) == 2 * 7 * 2 and all("language_model.layers" in name for name in names)
    logprobs = completion_logprobs(model, [[5, 6, 7]], [[[8, 9]]]).flatten()
    plain = model(torch.tensor([[5, 6, 7, 8]])).logits[0, 2:].log_softmax(-1)
    assert torch.allclose(logprobs, plain[[0, 1], [8, 9]], atol=1e-5)


def test_logits_that_are_more_than_a_product_are_a_user_error(folder):
    """Granite divides its logits by a setting; without this check, log-probs would be wrong."""
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="GraniteForCausalLM: its logits are scaled or capped"):
        load_policy(str(folder), "cpu")


def test_attention_of_another_kind_is_a_user_error_at_once(folder):
    model = Gemma2ForCausalLM(Gemma2Config(**SHAPE, attn_logit_softcapping=30.0))
    model.save_pretrained(folder)
    with pytest.raises(UserError, match="Gemma2Attention has softcap"):
        load_policy(str(folder), "cpu")


def test_a_chat_template_is_loaded_with_the_tokenizer(tmp_path):
    make_model().save_pretrained(tmp_path / "chat")
    make_tokenizer(chat_template=CHAT).save_pretrained(tmp_path / "chat")
    assert load_policy(str(tmp_path / "chat"), "cpu").tokenizer.chat_template == CHAT


def write_eos(folder, name: str, value) -> None:
    """Sets the EOS of config.json or generation_config.json, as published models have it."""
    settings = json.loads((folder / name).read_text())
    settings["eos_token_id"] = value
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer", "expected"),
    [
        ([3, 4], 5, "</s>", {1, 3, 4, 5}),  # all of them, as Llama 3 needs it
        ([3, 4], [3], "<|turn|>", {3, 4}),
        (3, None, None, {3}),
        (None, [4, 5], None, {4, 5}),
        (None, None, "</s>", {1}),
    ],
)
def test_all_eos_ids_are_collected(folder, generation, config, tokenizer, expected):
    """A list or a number, in the generation settings, the configuration and the tokenizer."""
    write_eos(folder, "generation_config.json", generation)
    write_eos(folder, "config.json", config)
    make_tokenizer(eos_token=tokenizer).save_pretrained(folder)
    assert load_policy(str(folder), "cpu").eos_ids == expected


def test_end_tokens_does_not_change_the_settings():
    model, tokenizer = make_model(eos_token_id=[3, 4]), make_tokenizer()
    assert end_tokens(model, tokenizer) == end_tokens(model, tokenizer) == {1, 3, 4}
    assert model.config.eos_token_id == [3, 4]


def test_a_model_that_never_ends_is_a_user_error(folder):
    write_eos(folder, "generation_config.json", None)
    write_eos(folder, "config.json", None)
    make_tokenizer(eos_token=None).save_pretrained(folder)
    with pytest.raises(UserError, match="policy.*end-of-sequence"):
        load_policy(str(folder), "cpu")


def test_a_missing_directory_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="nowhere.*no such"):
        load_policy(str(tmp_path / "nowhere"), "cpu")
    with pytest.raises(UserError, match="no such"):
        load_policy("./nowhere", "cpu")


def test_a_directory_without_a_configuration_is_a_user_error(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="policy: no config.json; --model takes"):
        load_policy(str(folder), "cpu")


def test_a_directory_without_a_tokenizer_is_a_user_error(tmp_path):
    make_model().save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="bare.*no tokenizer"):
        load_policy(str(tmp_path / "bare"), "cpu")


def test_a_directory_without_weights_is_a_user_error(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="policy.*cannot load"):
        load_policy(str(folder), "cpu")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_damaged_file_is_a_user_error(folder, name):
    """Cut in half, as by a download that broke off."""
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="policy"):
        load_policy(str(folder), "cpu")


def test_an_unknown_architecture_is_a_user_error(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "abacus"}))
    with pytest.raises(UserError, match="policy"):
        load_policy(str(folder), "cpu")
