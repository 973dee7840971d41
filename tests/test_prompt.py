"""Prompts, plain and with a chat template."""

import hashlib
import json
import os
import sqlite3
from dataclasses import replace
from types import SimpleNamespace

import pytest
from model_kit import CHAT, SPECIAL, make_tokenizer
from transformers import AutoTokenizer

from grpo import prompt
from grpo.config import ASSETS
from grpo.prompt import PromptBuilder, PromptSettings, check_context, question_text, read_template
from sqlenv import EMBEDDED, Example, UserError, load_dataset, load_schema, schema_text
from sqlenv.embedded import LANGUAGES
from sqlenv.schema import fit_schema

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
        f"{length} tokens, more than {length - 1}, the model's context; lower --max-new-tokens or "
        "--schema-budget, leave out databases with large schemas, or choose another model"
    )


def test_a_schema_that_loses_columns_is_said_once(example, tmp_path, caplog):
    """Its text without types fits exactly, and one token less does not."""
    tokenizer, paths = make_tokenizer(), [example.db_path]
    for number in range(3):
        paths.append(tmp_path / f"shop{number}.sqlite")
        paths[-1].write_bytes(example.db_path.read_bytes())
    schema = load_schema(example.db_path)
    untyped = next(
        text for budget in range(1000, 0, -1)
        if "INTEGER" not in (text := schema_text(schema, budget=budget))
    )  # fmt: skip
    examples = [replace(example, db_path=path) for path in paths]
    for budget in (len(untyped), len(untyped) - 1, len(untyped) - 1):
        settings = PromptSettings(schema_budget=budget)
        for _ in range(2):
            check_context("m", tokenizer, SimpleNamespace(), examples, settings=settings)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"prompts lack columns to fit into --schema-budget {len(untyped) - 1}: databases concerts, "
        "shop0, shop1 and 1 more"
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
    assert tokenizer.decode(ids[2:-2]) == (
        f"Given the SQLite schema:\n{schema}\n\nWrite one SQL query that answers: {QUESTION}\n"
        "Answer with the SQL query only."
    )


def test_prompts_differ_by_their_question_and_share_their_schema(example, monkeypatch):
    """The schema text of each database is written once."""
    schemas = []

    def counting(schema, **options):
        schemas.append(schema)
        return fit_schema(schema, **options)

    monkeypatch.setattr(prompt, "fit_schema", counting)
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
    tight = PromptBuilder(tokenizer, PromptSettings(schema_budget=budget))(example)
    assert 0 < len(tight) - 1 - question <= budget
    assert "singer" in tokenizer.decode(tight)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "fb20c1ee2203f42f8bee055aaa29cc8ea750b900d962e30694c3f044590007d0"),
        (CHAT, "9ca979eb512af6a9ada2577c6cf6eac619e86c730d00303d4ddca485d05bcf7a"),
    ],
)
def test_the_default_prompts_are_those_that_the_shipped_policy_was_trained_on(template, expected):
    """A hash of the token ids of every twentieth dev question, as the code wrote them when
    the shipped policy was trained.
    """
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "policy")
    tokenizer.chat_template = template
    builder = PromptBuilder(tokenizer)
    ids = [builder(e) for lang in LANGUAGES for e in load_dataset(EMBEDDED, lang, "dev")[::20]]
    assert len(ids) == 357
    assert hashlib.sha256(json.dumps(ids).encode()).hexdigest() == expected


EVIDENCE = "old means\nover 50"


def test_evidence_is_a_comment_or_a_line_of_the_message(example):
    known = replace(example, evidence=EVIDENCE)
    tokenizer = make_tokenizer()
    plain = tokenizer.decode(PromptBuilder(tokenizer)(known)[1:])
    schema = schema_of(example, tokenizer)
    assert plain == f"{schema}\n-- Evidence: old means over 50\n-- {QUESTION}\n"
    assert question_text(QUESTION, EVIDENCE) == plain.removeprefix(schema)
    (message,) = PromptBuilder(make_tokenizer(chat_template=CHAT)).texts(known)
    assert message.endswith(
        f"answers: {QUESTION}\nEvidence: {EVIDENCE}\nAnswer with the SQL query only."
    )


TEMPLATE = "{{one}} {dialect} query\nHint: {evidence}\nQ: {question}\n{schema}\nSQL:\n"


def test_a_template_fills_its_fields(example):
    """Doubled braces are braces, a line with {evidence} is there for questions that have some, and
    braces in a question are its own. A chat message lacks the newline at the end of the file.
    """
    asked = replace(example, question="What\nis {schema}?")
    plain, chat = make_tokenizer(), make_tokenizer(chat_template=CHAT)
    settings = PromptSettings(prompt=TEMPLATE)
    schema = schema_of(example, plain)
    ids = PromptBuilder(plain, settings)(asked)
    assert (
        plain.decode(ids[1:]) == f"{{one}} SQLite query\nQ: What is {{schema}}?\n{schema}\nSQL:\n"
    )
    (message,) = PromptBuilder(chat, settings).texts(replace(asked, evidence="yes"))
    assert message == (f"{{one}} SQLite query\nHint: yes\nQ: What\nis {{schema}}?\n{schema}\nSQL:")


def test_the_default_as_a_file_gives_the_default(example, tmp_path):
    """With the newline that editors add, Windows' newlines, and a byte-order mark."""
    for text, template in ((prompt.PLAIN, None), (prompt.CHAT + "\n", CHAT)):
        path = tmp_path / "prompt.txt"
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
        tokenizer = make_tokenizer(chat_template=template)
        settings = PromptSettings(prompt=read_template("--prompt", str(path)))
        for asked in (example, replace(example, evidence=EVIDENCE)):
            assert PromptBuilder(tokenizer, settings)(asked) == PromptBuilder(tokenizer)(asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "{question}\n{schemas}\n",
            ":2: unknown field {schemas}; there are {schema}, {question}, ",
        ),
        ("{question} {}", ":1: unknown field {};"),
        ("{question!r}", ":1: unknown field {question!r};"),
        ("{question:>9}", ":1: unknown field {question:>9};"),
        ("{question.__class__}", ":1: unknown field {question.__class__};"),
        ('\n{question}\n{"sql": ', ":3: "),
        (
            "{question}\n}",
            ":2: Single '}' encountered in format string; a brace is written {{ or }}",
        ),
        ("{question:}", ":1: an empty format after ':'; a brace is written {{ or }}"),
        ("{{question: {question}}}\n{schema:}", ":2: an empty format"),
        (
            "{schema}\n{question} {evidence}",
            ":2: {evidence} needs a line of its own, which is left",
        ),
        ("{schema}", ": a template needs {question}"),
        ("", ": a template needs {question}"),
        (b"\xff{question}", ": cannot be read ("),
        (None, ": cannot be read ("),
    ],
)
def test_a_bad_template_is_one_line_with_file_and_line(tmp_path, text, message):
    path = tmp_path / "prompt.txt"
    if text is not None:
        path.write_bytes(text if type(text) is bytes else text.encode())
    with pytest.raises(UserError) as caught:
        read_template("--prompt", str(path))
    assert f"{path}{message}" in str(caught.value) and "\n" not in str(caught.value)
    if type(text) is str:
        with pytest.raises(UserError, match="^--prompt:"):  # as by an edited config.json
            PromptBuilder(make_tokenizer(), PromptSettings(prompt=text or " "))


THINKS = (  # as Qwen3's: with the switch off, the reasoning is there and empty
    CHAT + "{% if not enable_thinking|default(true) %}<think></think>{% endif %}"
)
NO_SYSTEM = (  # as Gemma's
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + CHAT
)


def test_system_message_and_thinking(example):
    """The system message has the same fields, and loses its last newline, too. The switch is the
    template's own: off unless asked for.
    """
    tokenizer = make_tokenizer(chat_template=THINKS)
    settings = PromptSettings(system_prompt="You write {dialect}.\n", prompt="{question}")
    text = tokenizer.decode(PromptBuilder(tokenizer, settings)(example))
    asked = f"<s><|system|>You write SQLite.<|turn|><|user|>{QUESTION}<|turn|><|assistant|>"
    assert text == f"{asked}<think></think>"
    on = replace(settings, thinking="on")
    assert tokenizer.decode(PromptBuilder(tokenizer, on)(example)) == asked


@pytest.mark.parametrize(
    ("template", "settings", "message"),
    [
        (None, {"thinking": "on"}, "--thinking on: the model has no chat template"),
        (None, {"system_prompt": "Hi"}, "--system-prompt: the model has no chat template"),
        (CHAT, {"thinking": "on"}, "--thinking on: the model's chat template has no such switch"),
        (
            NO_SYSTEM,
            {"system_prompt": "Hi"},
            "--system-prompt: the model's chat template does not ",
        ),
        (CHAT, {"system_prompt": "{x}"}, "--system-prompt:1: unknown field {x}"),
    ],
)
def test_settings_that_a_model_does_not_take_are_refused(template, settings, message):
    with pytest.raises(UserError) as caught:
        PromptBuilder(make_tokenizer(chat_template=template), PromptSettings(**settings))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_sample_values_of_a_question(example):
    """The first value of each column, and of the two singers the one whom the question names;
    --sample-values 0 shows none. In a budget, what the question names stays longest.
    """
    tokenizer = make_tokenizer()
    asked = replace(example, question="How old is Rosé?", descriptions={"Singer.AGE": "in years"})

    def schema(**settings) -> str:
        return PromptBuilder(tokenizer, PromptSettings(**settings)).schema(asked)

    def without_values(comment: str) -> str:
        return schema(schema_budget=1000).replace(" -- age (in years)", comment)

    assert schema().count(" -- age (in years)") == 1
    named = "\n-- Values in the question: singer.name = 'Rosé'"
    whole = schema(sample_values=1)
    assert whole.startswith(without_values(" -- singer_id: 1; name: Joe Sharp; age (in years): 52"))
    assert whole.endswith(named)

    def size(text: str) -> int:
        return len(text.encode())

    described, plain = without_values(" -- age (in years)") + named, without_values("") + named
    assert schema(sample_values=1, schema_budget=size(whole)) == whole
    assert schema(sample_values=1, schema_budget=size(whole) - 1) == described
    assert schema(sample_values=1, schema_budget=size(described) - 1) == plain
    assert schema(sample_values=1, schema_budget=size(plain) - 1) == without_values("")


def test_prompts_with_values_share_the_schema(example):
    """Whatever each question names, so that SFT computes the schema once (grpo/sft.py)."""
    builder = PromptBuilder(make_tokenizer(), PromptSettings(sample_values=1))
    asked = [replace(example, question=f"How old is {name}?") for name in ("Rosé", "Joe Sharp")]
    schemas = [builder.schema(question) for question in asked]
    common = os.path.commonprefix([builder(question) for question in asked])
    shared, _, named = schemas[0].rpartition("\n")
    assert "Rosé" in named and shared.count("CREATE TABLE") == 2 and schemas[1].startswith(shared)
    assert shared in builder.tokenizer.decode(common)


def test_settings_stay_with_a_model(tmp_path):
    """Defaults write no file; a damaged one is named."""
    PromptSettings().save(tmp_path)
    assert prompt.saved_prompt(str(tmp_path)) == {} and not list(tmp_path.iterdir())
    settings = PromptSettings(prompt="{question}", sample_values=3)
    settings.save(tmp_path)
    assert PromptSettings.of(prompt.saved_prompt(str(tmp_path))) == settings
    for text in ("{", "[]", '{"sample_values": "3"}', '{"colour": 1}'):
        (tmp_path / "prompt.json").write_text(text)
        with pytest.raises(UserError, match="prompt.json: not the settings of a prompt"):
            prompt.saved_prompt(str(tmp_path))
