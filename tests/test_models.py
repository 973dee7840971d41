"""Policies from directories and .gguf files: what ends an answer, and what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from model_kit import CHAT, SHAPE, make_model, make_tokenizer, write_gguf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from encoder.device import product_seconds
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, lora_parameters
from grpo.memory import read_shape
from grpo.models import choose_dtype, end_tokens, load_policy, model_dtype
from grpo.sampler import sample_groups
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
    assert policy.model.dtype in (torch.float32, torch.bfloat16)  # whichever is faster here
    head = make_model().lm_head.weight.to(policy.model.dtype)
    assert torch.equal(policy.model.lm_head.weight, head)
    assert policy.eos_ids == {1}
    assert policy.tokenizer.decode(policy.tokenizer.encode("SELECT é")) == "SELECT é"


def test_answers_are_decoded_as_they_were_written(folder):
    """A tokenizer may ask for a text without spaces before punctuation, in which another string
    stands in the SQL.
    """
    vocabulary = {word: i for i, word in enumerate("? <eos> x = ' . ,".split())}
    words = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    options = {"eos_token": "<eos>", "clean_up_tokenization_spaces": True}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **options)
    ids = [2, 3, 4, 5, 4, 1]  # x = ' . ' <eos>
    assert tokenizer.decode(ids, skip_special_tokens=True) == "x = '. '"
    tokenizer.save_pretrained(folder)
    assert load_policy(str(folder)).decode(ids) == "x = ' . '"
    tokenizer.add_special_tokens({"additional_special_tokens": ["</think>"]})
    tokenizer.save_pretrained(folder)
    assert load_policy(str(folder)).decode([2, 7, *ids]) == "x </think> x = ' . '"


def test_a_named_dtype(folder):
    policy = load_policy(str(folder), "cpu", "bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "device, has, fast, expected",
    [
        ("cpu", True, "bfloat16", "bfloat16"),  # AMX
        ("cpu", True, "float32", "float32"),  # AVX512-BF16 alone
        ("cpu", False, "bfloat16", "float32"),  # emulated, so not measured
        ("cuda:1", True, "bfloat16", "bfloat16"),
        ("cuda", False, "float32", "float16"),
        ("mps", False, "bfloat16", "float32"),
    ],
)
def test_auto_is_the_dtype_that_measures_faster(monkeypatch, device, has, fast, expected):
    """The slow one takes 1.3 times as long; at 1.1 times, it is float32."""

    def seconds(dtype, *_):
        return 1.0 if dtype == getattr(torch, fast) else slow

    slow = 1.3
    monkeypatch.setattr("grpo.models.has_bfloat16", lambda device: has)
    monkeypatch.setattr("encoder.device.has_bfloat16", lambda device: has)
    monkeypatch.setattr("encoder.device.product_seconds", seconds)
    assert choose_dtype("auto", device, 64, 256) == expected
    assert choose_dtype("float16", device, 64, 256) == "float16"
    slow = 1.1
    if device == "cpu":
        assert choose_dtype("auto", device, 64, 256) == "float32"


def test_the_measurement_takes_milliseconds():
    """512 tokens of a small model; of one with 3B parameters only as many as a short time allows,
    which are more operations all the same.
    """
    small, large = (
        product_seconds(torch.float32, "cpu", w, i) for w, i in ((64, 160), (2048, 8192))
    )
    assert 0 < small < large


def test_a_model_without_an_intermediate_size():
    """Its feed-forward layers are taken for four times as wide as its states."""
    assert model_dtype("auto", "cpu", SimpleNamespace(hidden_size=8)) in ("float32", "bfloat16")


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


def test_the_folder_of_a_run_is_no_model(folder):
    (folder / "adapter").mkdir()
    (folder / "questions.json").write_text("{}")
    with pytest.raises(UserError, match="the folder of a run; .*grpo.merge .*policy DIR"):
        load_policy(str(folder), "cpu")


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


# ------------------------------------------------------------------------- weights


def change_weights(folder, change) -> None:
    """Calls ``change`` with the dict of the weights, and writes them again."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def without(part: str):
    """Leaves out the weights with this in their names."""

    def change(weights):
        for name in [name for name in weights if part in name]:
            del weights[name]

    return change


@pytest.mark.parametrize(
    "part", ["lm_head", "embed_tokens", "norm", "layers.0.mlp", "layers.0.self_attn.q_proj", ""]
)
def test_missing_weights_are_a_user_error(folder, part):
    """They would be random. An untied head, embeddings, a layer's parts, and all of them."""
    change_weights(folder, without(part))
    with pytest.raises(UserError, match=rf"policy: .*missing.*{part}") as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["experts.1.w1", "experts.1.", "experts."])
def test_missing_weights_of_experts_are_a_user_error(folder, part, caplog):
    """transformers puts the matrices of all experts into one."""
    config = AutoConfig.for_model("mixtral", **SHAPE, num_local_experts=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    change_weights(folder, without(part))
    with pytest.raises(UserError, match="policy: .*experts.*use the files of one model") as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value) and "REPORT" not in caplog.text


def test_a_tied_head_is_not_missing(folder):
    make_model(tie_word_embeddings=True).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    policy = load_policy(str(folder), "cpu", "float32")
    assert torch.equal(policy.model.lm_head.weight, policy.model.model.embed_tokens.weight)


@pytest.mark.parametrize("more", ["layers.1.mlp.up_proj.weight", "layers.0.self_attn.q_proj.bias"])
def test_weights_that_the_configuration_has_no_place_for_are_a_user_error(folder, more):
    """A layer more, or biases: the model that was trained was another one."""
    change_weights(folder, lambda weights: weights.update({f"model.{more}": torch.zeros(16)}))
    with pytest.raises(UserError, match=f"policy: .*config.json.*model.{more}"):
        load_policy(str(folder))


def test_weights_outside_the_language_model_are_left_out(folder):
    change_weights(folder, lambda weights: weights.update({"score.weight": torch.zeros(2, 16)}))
    assert "score.weight" not in load_policy(str(folder)).model.state_dict()


def test_weights_of_another_size_are_a_user_error(folder, caplog):
    """In one line, without the table of transformers."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 24}))
    expected = r"policy: .*layers.0.mlp.down_proj.weight.* \(16, 16\).* \(16, 24\)"
    with pytest.raises(UserError, match=expected) as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value) and not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight"])
def test_weights_that_are_not_finite_are_a_user_error(folder, name, value):
    """Even of a token that the check of the model does not see."""
    change_weights(folder, lambda weights: weights[name][-1:].fill_(value))
    with pytest.raises(UserError, match=f"policy: .*{name}.*not finite"):
        load_policy(str(folder))


def test_numbers_too_large_for_float16_are_a_user_error(folder):
    """1e5 is infinite in float16; 6e4 is not, but products with it are."""
    change_weights(folder, lambda weights: weights["lm_head.weight"].fill_(1e5))
    with pytest.raises(UserError, match="policy: lm_head.weight.*not finite in float16.*--dtype"):
        load_policy(str(folder), "cpu", "float16")
    change_weights(
        folder, lambda weights: weights["lm_head.weight"].copy_(6e4 * torch.eye(262, 16))
    )
    change_weights(folder, lambda weights: weights["model.norm.weight"].fill_(100))
    with pytest.raises(UserError, match="logits are not finite in float16.*--dtype"):
        load_policy(str(folder), "cpu", "float16")


def test_quantised_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="policy: its weights are quantised"):
        load_policy(str(folder))


# ------------------------------------------------------------------------- kinds of models

GPT = dict(vocab_size=262, n_embd=16, n_layer=1, n_head=2, eos_token_id=1)


@pytest.mark.parametrize("name", ["gpt2", "gptj", "gpt_bigcode"])
def test_a_model_whose_blocks_cannot_get_lora_is_refused_before_its_weights_are_read(folder, name):
    AutoConfig.for_model(name, **GPT, rotary_dim=4).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="policy: GPT.*cannot be used.*choose another"):
        load_policy(str(folder))
    with pytest.raises(UserError, match="policy: GPT.*cannot be used"):  # train.py --plan
        read_shape(str(folder), "")


@pytest.mark.parametrize("name", ["bloom", "mamba", "stablelm", "openai-gpt", "gpt_neo", "bert"])
def test_models_that_compute_otherwise_are_a_user_error(folder, name):
    """Attention with ALiBi or none, masks of a model's own, other position ids, ...: whatever
    exception they raise.
    """
    more = {"openai-gpt": GPT, "bert": SHAPE | {"is_decoder": True}}
    more["gpt_neo"] = SHAPE | dict(num_layers=1, attention_types=[[["global"], 1]])
    config = AutoConfig.for_model(name, **more.get(name, SHAPE))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UserError, match="choose another model") as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value)


WINDOW = {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["sliding_attention"]}
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16,
           "shared_expert_intermediate_size": 16}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("doge", {}, "has a mask of its own in its attention"),
        ("qwen2_moe", EXPERTS | WINDOW, "keeps its sliding window from its attention"),
        ("falcon_h1", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}, "has hybrid"),
    ],
)
def test_attention_that_would_be_computed_otherwise_is_a_user_error(folder, name, more, message):
    """What the mask would add, or another layer beside attention, is not seen here."""
    config = AutoConfig.for_model(name, **SHAPE | {"max_position_embeddings": 64} | more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with pytest.raises(UserError, match=message):
        load_policy(str(folder))


def test_sampling_in_float16_does_not_overflow_where_training_does_not():
    """A query and a key whose product is 148,000, above 65,504, and scaled 18,500."""
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 64}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(**shape, **heads)).eval()
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        for slow in range(24, 32):  # pairs of dimensions that rotary embeddings hardly turn
            attention.q_proj.bias[[slow, 64 + slow]] = 68
            attention.k_proj.bias[slow] = 272
    model.half()
    assert completion_logprobs(model, [[5, 6, 7]], [[[8, 9]]]).isfinite().all()
    options = {"group_size": 2, "max_new_tokens": 4, "seeds": [1]}
    assert sample_groups(model, [[5, 6, 7]], eos_ids={63}, **options).logprobs.isfinite().all()


def test_a_configuration_that_contradicts_itself_is_a_user_error(folder):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_attention_heads": "two"}))
    with pytest.raises(UserError, match="policy: cannot load the model") as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value)


def test_an_adapter_is_no_model(folder):
    """Beside a whole model, transformers would add it in silence, if PEFT is installed."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="policy: .*adapter"):
        load_policy(str(folder))


# ------------------------------------------------------------------------- tokenizers


def test_a_tokenizer_larger_than_the_model_is_refused_before_its_weights_are_read(folder):
    make_model(vocab_size=200).config.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="policy: the tokenizer.* 261,.*only 200"):
        load_policy(str(folder))


def test_a_special_token_that_no_prompt_contains_may_lie_beyond_the_model(folder):
    """As that for images in Gemma 3's tokenizer."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>"]})
    assert tokenizer.encode("<image>") == [262]
    tokenizer.save_pretrained(folder)
    assert len(load_policy(str(folder)).tokenizer) == 263


@pytest.mark.parametrize("where", ["chat template", "bos_token"])
def test_a_special_token_of_every_prompt_may_not(folder, where):
    """Such as <|im_start|>, added to a tokenizer whose model was not resized."""
    template = CHAT.replace("<|turn|>", "<|new|>") if where == "chat template" else None
    tokenizer = make_tokenizer(chat_template=template)
    special = {"bos_token": "<|new|>"} if where == "bos_token" else {}
    tokenizer.add_special_tokens(special or {"extra_special_tokens": ["<|new|>"]})
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"policy: the tokenizer.*'<\|new\|>'.* 262,.*only 262"):
        load_policy(str(folder))


@pytest.mark.parametrize("template", ["{{ raise_exception('no system\\nmessage') }}", "{% if"])
def test_a_chat_template_that_takes_no_question_is_a_user_error(folder, template):
    make_tokenizer(chat_template=template).save_pretrained(folder)
    with pytest.raises(UserError, match="policy: the chat template.*user message") as error:
        load_policy(str(folder))
    assert "\n" not in str(error.value)
