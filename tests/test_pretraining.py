"""Pretraining of a small policy: fresh schemas, spelled words, and batches that repeat exactly."""

import random

import pytest

from grpo import pretraining
from grpo.pretraining import PretrainingBatches, make_tokenizer, shuffled
from sqlenv import EMBEDDED, load_dataset, load_schema, schema_text
from sqlenv.embedded.fresh import FreshQuestions

LANGS = ("en", "vi")


@pytest.fixture(scope="module")
def tokenizer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "TOKENIZER_SCHEMAS", 60)
        return make_tokenizer(LANGS, 3000, 0)


@pytest.fixture(scope="module")
def batches(tokenizer) -> PretrainingBatches:
    return PretrainingBatches(LANGS, tokenizer, rows=4, size=3, seed=0, steps=600)


def test_a_batch_is_a_function_of_seed_and_step(batches):
    first, again, other = batches[605], batches[605], batches[606]
    assert first[0] == again[0] and first[1] == again[1] and first[2].equal(again[2])
    assert first[0] != other[0]


def test_a_row_is_a_schema_and_pairs_of_question_and_sql(batches, tokenizer):
    """Decoded, whether words are spelled or not: the SQL uses the tables of its schema."""
    for step in range(510, 550):
        for prompt, group, asked in zip(*batches[step]):
            schema = tokenizer.decode(prompt, skip_special_tokens=True)
            assert schema.startswith("CREATE TABLE ") and len(group) == 3
            for ids, size in zip(group, asked.tolist()):
                assert ids[-1] == tokenizer.eos_token_id
                question, sql = tokenizer.decode(ids[:size]), tokenizer.decode(ids[size:-1])
                assert question.startswith("\n-- ") and question.endswith("\n")
                assert sql.startswith("SELECT ")
                table = sql.partition(" FROM ")[2].split()[0].strip("()")
                assert f"CREATE TABLE {table} (" in schema


def test_spelled_words_are_spelled_everywhere(batches, tokenizer):
    spelled = batches.spellings["name"]
    ids = batches.encode("the name FROM name_name", spelled)
    assert tokenizer.get_vocab()["name"] not in ids
    assert tokenizer.decode(ids) == "the name FROM name_name"
    assert ids.count(tokenizer.get_vocab()["na"]) == 3


def test_the_first_batches_are_copying(batches, tokenizer):
    """The continuation repeats a piece of its prompt, to the prompt's end."""
    prompts, groups, given = batches[0]
    assert len(prompts) == pretraining.COPY_ROWS
    for prompt, (ids,), (size,) in zip(prompts, groups, given.tolist()):
        assert ids[0] == tokenizer.pad_token_id and ids[-1] == tokenizer.eos_token_id
        assert prompt[-(len(ids) - 2) :] == ids[1:-1] and size in (2, 3)


def test_schemas_are_small_at_first(batches):
    count = lambda step: max(  # noqa: E731
        tables for i in range(step, step + 15) for tables in tables_of(batches, i)
    )
    assert count(500) <= 6 and count(560) > 8


def tables_of(batches, step) -> list[int]:
    tokenizer = batches.tokenizer
    return [tokenizer.decode(prompt).count("CREATE TABLE") for prompt in batches[step][0]]


def test_fresh_questions_are_not_the_excluded_ones():
    """With the same generator state, the SQL drawn before does not come again."""
    _, pairs = FreshQuestions(LANGS).draw(random.Random(3), 6)
    excluded = {sql for _, sql in pairs}
    _, others = FreshQuestions(LANGS, excluded).draw(random.Random(3), 6)
    assert excluded.isdisjoint(sql for _, sql in others)


def test_a_shuffled_schema_names_the_same_tables_and_columns():
    schema = load_schema(load_dataset(EMBEDDED, "en", "sft")[0].db_path)
    texts = {schema_text(shuffled(schema, random.Random(seed))) for seed in range(4)}
    assert len(texts) > 1
    for table in schema.tables:
        for text in texts:
            assert table.name in text and all(column.name in text for column in table.columns)
