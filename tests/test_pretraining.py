"""Pretraining of a small policy: its stages, fresh schemas, spelled words, similar embeddings, and
batches that repeat exactly.
"""

import pickle
import random
import re

import pytest
import torch
from torch.nn import functional as F

from encoder import word_vectors
from grpo import pretraining
from grpo.pretraining import (
    PretrainingBatches,
    initialize_embeddings,
    make_tokenizer,
    shuffled,
    small_llama,
)
from grpo.tokenizer import encode_wording, variants
from sqlenv import EMBEDDED, load_dataset, load_schema, schema_text
from sqlenv.embedded.fresh import FreshQuestions

LANGS = ("en", "vi")
STEPS = {"COPY_STEPS": 10, "MATCH_STEPS": 20}
MATCHING, SIMPLE, ALL = range(10, 30), range(30, 50), range(60, 200)


@pytest.fixture(scope="module")
def tokenizer():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "TOKENIZER_SCHEMAS", 60)
        return make_tokenizer(LANGS, 3000, 0)


@pytest.fixture(scope="module")
def batches(tokenizer):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in STEPS.items():
            patch.setattr(pretraining, name, value)
        yield PretrainingBatches(LANGS, tokenizer, rows=4, size=3, seed=0, steps=200)


def decoded(batches, step) -> list[tuple[str, list[tuple[str, str]]]]:
    """The rows of a batch: the schema's text, and questions with SQL."""
    decode = batches.tokenizer.decode
    return [
        (
            decode(prompt, skip_special_tokens=True),
            [(decode(ids[:size]), decode(ids[size:-1])) for ids, size in zip(group, sizes)],
        )
        for prompt, group, sizes in zip(*batches[step][:2], batches[step][2].tolist())
    ]


@pytest.mark.parametrize("step", [3, 15, 40, 150])
def test_a_batch_is_a_function_of_seed_and_step(batches, step):
    first, again, other = batches[step], batches[step], batches[step + 1]
    assert first[0] == again[0] and first[1] == again[1] and first[2].equal(again[2])
    assert first[0] != other[0]


def test_other_processes_can_make_the_batches(batches):
    assert pickle.loads(pickle.dumps(batches))[40][:2] == batches[40][:2]


def test_first_comes_copying(batches, tokenizer):
    """The continuation is a piece of the prompt, and ends where the prompt ends. Its first one or
    two tokens are given, half of the time before the piece, in any variant.
    """
    group_of = {index: group for group in variants(tokenizer) for index in group}
    pad, cued = tokenizer.pad_token_id, 0
    ended = 0
    for step in range(STEPS["COPY_STEPS"]):
        prompts, groups, given = batches[step]
        assert len(prompts) == pretraining.COPY_ROWS
        for prompt, (ids,), (size,) in zip(prompts, groups, given.tolist()):
            assert ids[0] == pad
            has_cue = ids[size - 1] == pad and size > 1
            piece = ids[size:] if has_cue else ids[1:]
            text = [*prompt, tokenizer.eos_token_id]
            assert piece in [text[i : i + len(piece)] for i in range(len(text))]
            ended += piece[-1] == tokenizer.eos_token_id
            if has_cue:
                cued += 1
                cue = ids[1 : size - 1]
                assert all(c in group_of.get(t, [t]) for c, t in zip(cue, piece))
            assert size in ((3, 4) if has_cue else (2, 3))
    rows = STEPS["COPY_STEPS"] * pretraining.COPY_ROWS
    assert 0.4 < cued / rows < 0.6 and 0.2 < ended / rows < 0.8


@pytest.mark.parametrize("steps", [MATCHING, SIMPLE, ALL])
def test_a_row_is_a_schema_and_pairs_of_question_and_sql(batches, tokenizer, steps):
    """Decoded, whether words are spelled or not: the SQL uses the tables of its schema. The other
    batches are copying again.
    """
    copying = 0
    for step in steps[:20]:
        copying += len(batches[step][1][0]) == 1
        for schema, pairs in decoded(batches, step):
            if len(pairs) == 1:
                continue
            assert schema.startswith("CREATE TABLE ")
            assert len(pairs) in (3, pretraining.KEYWORDS)
            for question, sql in pairs:
                assert question.startswith("\n-- ") and question.endswith("\n")
                assert sql.startswith("SELECT ")
                table = sql.partition(" FROM ")[2].split()[0].strip("()")
                assert f"CREATE TABLE {table} (" in schema
    assert 0 < copying < 12


def test_names_are_invented_while_matching_is_learned(batches):
    """They stand in the questions as in the schema, but for their case. Labels keep a known name,
    such as "name". Half of the batches have nouns alone.
    """
    keywords, named = 0, []
    for step in MATCHING:
        rows = decoded(batches, step)
        assert all(schema.count("CREATE TABLE") <= 4 for schema, _ in rows)
        if len(rows[0][1]) == pretraining.KEYWORDS:
            keywords += 1
            for question, sql in (pair for _, pairs in rows for pair in pairs):
                names = re.findall(r"\w+", sql.partition(" FROM ")[0])[1:]
                named += [name.lower() in question.lower() for name in names]
    assert 4 <= keywords <= 16
    assert sum(named) / len(named) > 0.6


def test_questions_become_harder_and_schemas_larger(batches):
    """Fewer joins at first, and no schema of more than six tables but the embedded ones."""
    early = [row for step in SIMPLE[:15] for row in decoded(batches, step)]
    late = [row for step in ALL[:60] for row in decoded(batches, step)]
    count = lambda rows: max(schema.count("CREATE TABLE") for schema, _ in rows)  # noqa: E731
    assert count(late) > pretraining.USUAL
    joins = lambda rows: [" JOIN " in sql for _, pairs in rows for _, sql in pairs]  # noqa: E731
    share = lambda rows: sum(joins(rows)) / len(joins(rows))  # noqa: E731
    early, late = ([row for row in rows if len(row[1]) == 3] for rows in (early, late))
    assert share(late) > share(early) + 0.1


def test_questions_count_after_matching(batches):
    weights = [batches.question_weight(step) for step in (0, 9, 10, 29, 30, 199)]
    assert weights == [0, 0, 0, 0, pretraining.QUESTION_WEIGHT, pretraining.QUESTION_WEIGHT]


def test_spelled_words_are_spelled_everywhere(batches, tokenizer):
    spelled = batches.spellings["name"]
    ids = batches.encode("the name FROM name_name", spelled)
    assert tokenizer.get_vocab()["name"] not in ids
    assert tokenizer.decode(ids) == "the name FROM name_name"
    assert ids.count(tokenizer.get_vocab()["na"]) == 3


def test_wordings_of_a_concept_and_variants_of_a_word_begin_with_similar_embeddings(tokenizer):
    torch.manual_seed(0)
    model = small_llama(tokenizer, 64, 1, 2)
    embeddings = model.get_input_embeddings().weight
    lengths = embeddings.norm(dim=1).mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "TOKENIZER_SCHEMAS", 60)
        patch.setattr(word_vectors, "STEPS", 150)
        initialize_embeddings(model, tokenizer, LANGS, 0)

    def similarity(left: str, right: str) -> float:
        ids = [encode_wording(tokenizer, text) for text in (left, right)]
        means = [embeddings[torch.tensor(own)].mean(0) for own in ids]
        return F.cosine_similarity(*means, dim=0).item()

    assert similarity("name", "tên") > 0.2 > abs(similarity("name", "giá"))
    assert similarity("price", "giá") > 0.2 > abs(similarity("price", "tên"))
    a, b = (tokenizer.get_vocab()[word] for word in ("name", "NAME"))
    assert F.cosine_similarity(embeddings[a], embeddings[b], dim=0) > 0.3
    assert 0.8 < embeddings.norm(dim=1).mean() / lengths < 1.5


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
