"""Prompts, plain and with a chat template."""

import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest
from model_kit import CHAT, SPECIAL, make_tokenizer

from grpo import prompt
from grpo.prompt import PromptBuilder, chat_text, check_context, question_text
from sqlenv import Example, UserError, load_schema, schema_text

QUESTION = "Có bao nhiêu ca sĩ?"


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

    return schema_text(load_schema(example.db_path), budget=budget, count_tokens=count)


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


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\x0b", "\x85", "\u2028"])
def test_a_question_of_several_lines_stays_in_its_comment(example, end):
    """What follows a line break would be SQL that the model is to go on with."""
    question = f"How many{end}; DROP TABLE singer{end}"
    assert question_text(question) == "\n-- How many ; DROP TABLE singer\n"
    assert question_text("Two  spaces ") == "\n-- Two  spaces \n"
    ids = PromptBuilder(make_tokenizer())(replace(example, question=question))
    assert make_tokenizer().decode(ids).endswith(");\n-- How many ; DROP TABLE singer\n")


@pytest.mark.parametrize("template", [None, CHAT])
def test_prompts_beyond_the_context_are_refused(example, template):
    """At the number of tokens of the longest prompt and completion, and one below."""
    tokenizer = make_tokenizer(chat_template=template)
    longer = replace(example, question=QUESTION * 2)
    length = len(PromptBuilder(tokenizer)(longer)) + 7
    for examples in ([example, longer], []):
        for context in (length, None):
            config = SimpleNamespace(max_position_embeddings=context)
            check_context("m", tokenizer, config, examples, max_new_tokens=7)
    config = SimpleNamespace(max_position_embeddings=length - 1)
    check_context("m", tokenizer, config, [example], max_new_tokens=7)
    with pytest.raises(UserError) as caught:
        check_context("m", tokenizer, config, [example, longer], max_new_tokens=7)
    assert str(caught.value) == (
        f"--model m: the prompt of {QUESTION * 2!r} (vi, concerts) and --max-new-tokens 7 have "
        f"{length} tokens, more than {length - 1}, the model's context; lower --max-new-tokens, "
        "leave out databases with large schemas, or choose another model"
    )


def test_gold_beyond_the_context_is_refused(example):
    """It is a byte a token, and one token ends it."""
    tokenizer = make_tokenizer()
    length = len(PromptBuilder(tokenizer)(example)) + len(example.gold_sql) + 1
    check_context("m", tokenizer, SimpleNamespace(max_position_embeddings=length), [example])
    config = SimpleNamespace(max_position_embeddings=length - 1)
    with pytest.raises(UserError, match=f"and gold SQL have {length} tokens"):
        check_context("m", tokenizer, config, [example])


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
    """The schema text of each database is written once."""
    schemas = []

    def counting(schema, **options):
        schemas.append(schema)
        return schema_text(schema, **options)

    monkeypatch.setattr(prompt, "schema_text", counting)
    builder = PromptBuilder(make_tokenizer())
    other = Example("Wie viele?", "de", "concerts", "SELECT 1", example.db_path)
    assert builder(example) != builder(other)
    assert builder(example) == builder(example)
    assert len(schemas) == 1
    copy = example.db_path.with_name("copy.sqlite")
    copy.write_bytes(example.db_path.read_bytes())
    builder(Example(QUESTION, "vi", "copy", "SELECT 1", copy))
    assert len(schemas) == 2


def test_the_schema_fits_its_budget_of_tokens(example):
    tokenizer = make_tokenizer()
    whole = PromptBuilder(tokenizer)(example)
    question = len(tokenizer.encode(question_text(QUESTION), add_special_tokens=False))
    budget = (len(whole) - 1 - question) // 2
    tight = PromptBuilder(tokenizer, budget)(example)
    assert 0 < len(tight) - 1 - question <= budget
    assert "singer" in tokenizer.decode(tight)
