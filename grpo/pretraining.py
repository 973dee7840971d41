"""A small policy from scratch: its model, its tokenizer, and its batches.

Every schema is used once, so reading it is the only way to be right. What reading takes is learned
in stages, because from all of it at once a model learns the structure of SQL and the names that are
frequent, and never begins to look for the words of the question in the schema:

1. words: embeddings in which the wordings of a concept are near each other
   (encoder/word_vectors.py);
2. copying: in a prompt of random tokens, find a piece and repeat it;
3. matching: small schemas whose names are invented words, or words of the vocabulary without their
   meaning, which stand in the question as they stand in the schema but for their case. Half of the
   batches have questions that are nouns alone;
4. meaning: most names are known words, which a question says in its own language; from simple
   questions to all.
"""

import random
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from encoder.word_vectors import align
from grpo.prompt import question_text
from grpo.tokenizer import encode_wording, spellings, train_tokenizer, variants, vocabulary_words
from sqlenv import EMBEDDED, Example, by_database, load_dataset, load_schema, schema_text
from sqlenv.embedded.fresh import FreshQuestions
from sqlenv.embedded.schemas import invented_word
from sqlenv.embedded.shapes import SHAPES, SIMPLE
from sqlenv.schema import Schema

MATCH_STEPS = 2000  # after copying
INVENTED, WEIGHTS = (0.0, 0.3, 1.0), (4, 3, 3)  # then, shares of invented names of a schema
QUESTION_WEIGHT = 0.5  # of the questions' tokens in the loss, after matching
KNOWN_SHARE = 0.15  # of the schemas are of the embedded databases, with the questions of `sft`
SIMPLE_SHARE = 0.15  # of the steps after matching: the first have simple questions only
KEYWORDS, KEYWORDS_SHARE = 32, 0.2  # questions that are nouns behind a schema; share of the steps
LARGE_SHARE, USUAL = 0.2, 6  # of the schemas may have 12 tables, the others this many
SPELLED_ROWS, SPELLED_WORDS = 0.3, 0.15  # shares of rows, and of the words spelled in them
COPY_STEPS, COPY_ROWS, COPY_TOKENS = 900, 48, 20
REHEARSED = 0.3, 0.15  # shares of the later steps that are copying again, or it is forgotten
REHEARSED_ROWS, REHEARSED_TOKENS = 24, 120
TOKENIZER_SCHEMAS = 3000  # whose texts the tokenizer is made for; the words of as many are aligned
SHARED = 0.5  # of the variance of an embedding: what it has in common with a word's variants and
# with the wordings of its concept


def small_llama(tokenizer, hidden: int, layers: int, heads: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings. Each head has its own keys and values:
    heads that share them are slow to learn copying.
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def initialize_embeddings(model, tokenizer, langs: tuple[str, ...], seed: int) -> None:
    """Gives similar embeddings to the variants of a word, so that ``max price`` in a question
    matches ``MaxPrice`` in a schema, and to the wordings of a concept in all languages.
    """
    embeddings = model.get_input_embeddings().weight.data  # (V, D)
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(embeddings.shape, generator=generator) * embeddings.std()
    for group in variants(tokenizer):
        shared[group] = shared[group[0]].clone()
    questions, rng = FreshQuestions(langs), random.Random(f"words {seed}")
    concepts = [
        [tokenizer.encode(name, add_special_tokens=False) for name in sorted(names)]
        + [encode_wording(tokenizer, text) for text in sorted(wordings)]
        for names, wordings in questions.concepts(rng, TOKENIZER_SCHEMAS).values()
    ]
    shared = align(shared, concepts, generator)
    embeddings.copy_(SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * embeddings)


def shuffled(schema: Schema, rng: random.Random) -> Schema:
    """The schema with tables and columns in random order."""
    tables = [
        replace(table, columns=tuple(rng.sample(table.columns, len(table.columns))))
        for table in schema.tables
    ]
    return Schema(tuple(rng.sample(tables, len(tables))))


def make_tokenizer(langs: tuple[str, ...], vocab_size: int, seed: int) -> PreTrainedTokenizerFast:
    """A tokenizer for questions in these languages, whose vocabulary has no invented words."""
    questions, rng = FreshQuestions(langs), random.Random(f"tokenizer {seed}")
    texts = []
    for _ in range(TOKENIZER_SCHEMAS):
        schema, pairs = questions.draw(rng, 8)
        texts += [schema_text(schema), *(text for pair in pairs for text in pair)]
    return train_tokenizer(texts, vocab_size)


def invent(words: list[str], rng: random.Random) -> str:
    """A name without meaning: a word that does not exist, or one of these."""
    return rng.choice(words) if rng.random() < 0.5 else invented_word(rng)


class PretrainingBatches:
    """Batches for a model from scratch: P schemas, P x G continuations "question, SQL", and (P, G)
    how many tokens of each continuation are the question. A batch is a function of the seed and
    the step alone, so that training resumes exactly.

    In some of the rows some words of the vocabulary are spelled, wherever they occur in the row, as
    if the vocabulary did not have them: the model learns to read and to copy unknown words.

    Args:
        steps: of the curriculum, which begins with small schemas and simple questions.
    """

    data_hash = ""  # there is no data but what the arguments decide

    def __init__(
        self, langs: tuple[str, ...], tokenizer, *, rows: int, size: int, seed: int, steps
    ):
        self.tokenizer, self.rows, self.size, self.seed = tokenizer, rows, size, seed
        self.steps, self.spellings = steps, spellings(tokenizer)
        self.variants = {index: group for group in variants(tokenizer) for index in group}
        load = lambda split: [e for lang in langs for e in load_dataset(EMBEDDED, lang, split)]  # noqa: E731
        self.known: dict[str, list[Example]] = by_database(load("sft"))
        excluded = {e.gold_sql for split in ("train", "dev") for e in load(split)}
        words = vocabulary_words(tokenizer)
        self.fresh = FreshQuestions(langs, excluded, partial(invent, words))

    def question_weight(self, step: int) -> float:
        """The weight of the questions' tokens in the loss. Predicting a question from the schema
        teaches the words for its names; there is nothing to predict in an invented word.
        """
        return QUESTION_WEIGHT if step >= COPY_STEPS + MATCH_STEPS else 0.0

    def encode(self, text: str, spelled: dict[int, list[int]]) -> list[int]:
        """Token ids, those in ``spelled`` as its syllables."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return [part for index in ids for part in spelled.get(index, (index,))]

    def _rows(self, step: int, rng: random.Random) -> list[tuple[Schema, list[tuple[str, str]]]]:
        """The schemas of a batch, each with its pairs (question, SQL)."""
        progress = (step - COPY_STEPS - MATCH_STEPS) / max(1, self.steps - COPY_STEPS - MATCH_STEPS)
        matching = progress < 0
        keywords = rng.random() < (0.5 if matching else KEYWORDS_SHARE)
        rows = [self._row(progress, matching, keywords, rng) for _ in range(self.rows)]
        rows.sort(key=lambda row: len(row[0].tables))
        return rows[::2] + rows[1::2]  # halves of like size, for two processes

    def _row(
        self, progress: float, matching: bool, keywords: bool, rng: random.Random
    ) -> tuple[Schema, list[tuple[str, str]]]:
        if not matching and not keywords and rng.random() < KNOWN_SHARE:
            examples = rng.choices(self.known[rng.choice(list(self.known))], k=self.size)
            return load_schema(examples[0].db_path), [(e.question, e.gold_sql) for e in examples]
        (invented,) = rng.choices(INVENTED, (0, 0, 1) if matching else WEIGHTS)
        largest = rng.randint(2, 4)
        if progress > SIMPLE_SHARE:
            largest = 12 if rng.random() < LARGE_SHARE else USUAL
        if keywords:
            return self.fresh.keywords(rng, KEYWORDS, invented=invented, largest=largest)
        shapes = SIMPLE if progress < SIMPLE_SHARE else tuple(SHAPES)
        return self.fresh.draw(rng, self.size, invented=invented, largest=largest, shapes=shapes)

    def _copying(
        self, rng: random.Random, rows: int, longest: int
    ) -> tuple[list[list[int]], list[list[list[int]]], Tensor]:
        """Prompts of random tokens; each continuation is a piece of its prompt, of which the first
        one or two tokens are given, half of the time in any variants and before the piece.
        """
        bos, eos, pad = (
            getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")
        )
        ids = sorted(set(range(len(self.tokenizer))) - {bos, eos, pad})
        prompts, groups, sizes = [], [], []
        for _ in range(rows):
            drawn = rng.choices(ids, k=rng.randint(6, longest))
            end = rng.randint(5, min(len(drawn), 20))  # a piece of at most so many tokens
            start, given = rng.randrange(len(drawn) - 4), rng.randint(1, 2)
            prompts.append([bos, *drawn])
            cue = []
            if rng.random() < 0.5:
                cue = [rng.choice(self.variants.get(t, [t])) for t in drawn[start : start + given]]
                cue.append(pad)
            piece = drawn[start : start + end] + [eos] * (start + end >= len(drawn))
            groups.append([[pad, *cue, *piece]])
            sizes.append([1 + (len(cue) or given)])
        return prompts, groups, torch.tensor(sizes)

    def __getitem__(self, step: int) -> tuple[list[list[int]], list[list[list[int]]], Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        if step < COPY_STEPS:
            return self._copying(rng, COPY_ROWS, COPY_TOKENS)
        if rng.random() < REHEARSED[step >= COPY_STEPS + MATCH_STEPS]:
            return self._copying(rng, REHEARSED_ROWS, REHEARSED_TOKENS)
        prompts, groups, sizes = [], [], []
        for schema, pairs in self._rows(step, rng):
            if rng.random() < 0.5:
                schema = shuffled(schema, rng)
            share = SPELLED_WORDS if rng.random() < SPELLED_ROWS else 0
            spelled = {}
            for ids in self.spellings.values():
                if rng.random() < share:
                    spelled |= ids
            prompts.append(
                [self.tokenizer.bos_token_id, *self.encode(schema_text(schema), spelled)]
            )
            asked = [self.encode(question_text(question), spelled) for question, _ in pairs]
            golds = [self.encode(sql, spelled) for _, sql in pairs]
            groups.append([q + sql + [self.tokenizer.eos_token_id] for q, sql in zip(asked, golds)])
            sizes.append([len(ids) for ids in asked])
        return prompts, groups, torch.tensor(sizes)
