"""Prompts, plain and with a chat template, and the loading of policies with all that ends an
answer.
"""

import json
import sqlite3

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grpo import prompt
from grpo.models import choose_dtype, end_tokens, load_policy
from grpo.prompt import PromptBuilder, chat_text, question_text
from sqlenv import Example, UserError, load_schema, schema_text

QUESTION = "Có bao nhiêu ca sĩ?"
SPECIAL = ["<s>", "</s>", "<pad>", "<|turn|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "<|turn|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(**settings) -> PreTrainedTokenizerFast:
    """One token a byte, and the special ones; ids 0 to 5 are those of SPECIAL."""
    vocabulary = SPECIAL + sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({text: n for n, text in enumerate(vocabulary)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=SPECIAL[3:], **settings
    )


@pytest.fixture
def example(tmp_path) -> Example:
    path = tmp_path / "concerts.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(
        """CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, age INT);
        CREATE TABLE concert (concert_id INTEGER PRIMARY KEY,
            singer_id INT REFERENCES singer(singer_id));
        INSERT INTO singer VALUES (1, 'Joe Sharp', 52), (2, 'Rosé', 30);"""
    )
    connection.close()
    return Example(QUESTION, "vi", "concerts", "SELECT count(*) FROM singer", path)


def schema_of(example: Example, tokenizer, budget: int = prompt.SCHEMA_BUDGET) -> str:
    def count(text):
        return len(tokenizer.encode(text, add_special_tokens=False))

    return schema_text(load_schema(example.db_path), budget, count)


# --------------------------------------------------------------------------------- prompts


def test_plain_prompt(example):
    """BOS, the schema, and the question as an SQL comment with a line of its own, so that SQL
    follows; nothing at the end.
    """
    tokenizer = make_tokenizer()
    ids = PromptBuilder(tokenizer)(example)
    assert all(type(token) is int for token in ids)
    assert ids[0] == tokenizer.bos_token_id and not set(ids[1:]) & set(range(len(SPECIAL)))
    schema = schema_of(example, tokenizer)
    assert "singer" in schema and "concert" in schema
    assert tokenizer.decode(ids[1:]) == f"{schema}\n-- {QUESTION}\n"
    assert question_text(QUESTION) == f"\n-- {QUESTION}\n"


def test_plain_prompt_without_bos(example):
    tokenizer = make_tokenizer(bos_token=None)
    ids = PromptBuilder(tokenizer)(example)
    assert tokenizer.decode(ids) == f"{schema_of(example, tokenizer)}\n-- {QUESTION}\n"


def test_chat_prompt(example):
    """The template's own BOS only, a user message, and the start of the assistant's."""
    tokenizer = make_tokenizer(chat_template=CHAT)
    ids = PromptBuilder(tokenizer)(example)
    assert type(ids) is list and all(type(token) is int for token in ids)
    bos, turn, user, assistant = 0, 3, 4, 5
    assert [ids[0], ids[1], *ids[-2:]] == [bos, user, turn, assistant]
    assert not set(ids[2:-2]) & set(range(len(SPECIAL)))
    schema = schema_of(example, tokenizer)
    assert tokenizer.decode(ids[2:-2]) == chat_text(schema, QUESTION)
    assert schema in chat_text(schema, QUESTION) and QUESTION in chat_text(schema, QUESTION)


def test_prompts_differ_by_their_question_and_share_their_schema(example, monkeypatch):
    """The schema text of a database is made once, that of another database anew."""
    made = []

    def counting(schema, *arguments):
        made.append(schema)
        return schema_text(schema, *arguments)

    monkeypatch.setattr(prompt, "schema_text", counting)
    builder = PromptBuilder(make_tokenizer())
    other = Example("Wie viele?", "de", "concerts", "SELECT 1", example.db_path)
    assert builder(example) != builder(other)
    assert builder(example) == builder(example)
    assert len(made) == 1
    copy = example.db_path.with_name("copy.sqlite")
    copy.write_bytes(example.db_path.read_bytes())
    builder(Example(QUESTION, "vi", "copy", "SELECT 1", copy))
    assert len(made) == 2


def test_the_schema_fits_its_budget_of_tokens(example):
    tokenizer = make_tokenizer()
    whole = PromptBuilder(tokenizer)(example)
    question = len(tokenizer.encode(question_text(QUESTION), add_special_tokens=False))
    budget = (len(whole) - 1 - question) // 2
    tight = PromptBuilder(tokenizer, budget)(example)
    assert 0 < len(tight) - 1 - question <= budget
    assert "singer" in tokenizer.decode(tight)


# -------------------------------------------------------------------------------- policies


def make_model(**settings) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = dict(
        vocab_size=262,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        hidden_act="silu",
    )
    return LlamaForCausalLM(LlamaConfig(**shape | settings))


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
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}  # auto on a CPU
    assert torch.equal(policy.model.lm_head.weight, make_model().lm_head.weight)
    assert policy.eos_ids == {1}
    assert policy.tokenizer.decode(policy.tokenizer.encode("SELECT é")) == "SELECT é"


def test_a_named_dtype(folder):
    policy = load_policy(str(folder), "cpu", "bfloat16")
    assert {p.dtype for p in policy.model.parameters()} == {torch.bfloat16}


def test_choose_dtype():
    assert choose_dtype("auto", "cpu") == torch.float32
    assert choose_dtype("auto", "cuda:1") == torch.bfloat16
    assert choose_dtype("float32", "cuda") == torch.float32


def test_a_chat_template_is_loaded_with_the_tokenizer(tmp_path, example):
    make_model().save_pretrained(tmp_path / "chat")
    make_tokenizer(chat_template=CHAT).save_pretrained(tmp_path / "chat")
    policy = load_policy(str(tmp_path / "chat"), "cpu")
    assert PromptBuilder(policy.tokenizer)(example)[-1] == 5


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
