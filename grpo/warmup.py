"""Supervised warm start: trains the small policy from scratch until it knows the task imperfectly.

Reinforcement learning from a model that never gets a reward cannot start, so the policy first
imitates gold on part of the train split. Many questions share a schema, so a batch is packed like
a GRPO group (grpo/packing.py): one schema, then many "question, SQL" continuations that do not see
each other.

    python -m grpo.warmup --output DIR

assets/README.md has the commands that made the shipped policy.
"""

import argparse
import math
import random
import re
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from grpo.checkpoint import write_directory
from grpo.logprobs import completion_logprobs
from grpo.models import load_policy
from grpo.prompt import question_text
from sqlenv import EMBEDDED, LANGUAGES, Example, UserError, load_dataset, load_schema, schema_text

SPECIAL = ["<s>", "</s>", "<pad>"]


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text in any language has tokens, digits stand alone."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def small_llama(tokenizer, hidden: int, layers: int) -> LlamaForCausalLM:
    """A Llama with grouped-query attention and tied embeddings, randomly initialised."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 64,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def swap_literals(question: str, sql: str, pool: list[str], rng: random.Random) -> tuple[str, str]:
    """The same question about other values: each text literal that stands word for word in both is
    replaced by one of ``pool`` in both. Teaches to copy literals from the question rather than to
    remember them.
    """
    for value in set(re.findall(r"'([^'%]+)'", sql)):
        if question.count(value) == 1:
            other = rng.choice(pool)
            question, sql = question.replace(value, other), sql.replace(f"'{value}'", f"'{other}'")
    return question, sql


def shuffled_schema(example: Example, rng: random.Random) -> str:
    """The schema text with tables and columns in random order, so that names count and places do
    not.
    """
    schema = load_schema(example.db_path)
    tables = [
        replace(table, columns=tuple(rng.sample(table.columns, len(table.columns))))
        for table in schema.tables
    ]
    return schema_text(replace(schema, tables=tuple(rng.sample(tables, len(tables)))), None, len)


class Packs:
    """Endless batches of (schemas, continuations, how many tokens of each continuation are the
    question).
    """

    def __init__(
        self, examples: list[Example], tokenizer, rows: int, size: int, rng: random.Random
    ):
        self.tokenizer, self.rows, self.size, self.rng = tokenizer, rows, size, rng
        self.by_db = defaultdict(list)
        for example in examples:
            self.by_db[example.db_id].append(example)
        self.literals = {
            db: re.findall(r"'([^'%]+)'", " ".join(e.gold_sql for e in group))
            for db, group in self.by_db.items()
        }
        self.queues = {db: [] for db in self.by_db}

    def _next(self, db: str) -> Example:
        if not self.queues[db]:
            self.queues[db] = self.rng.sample(self.by_db[db], len(self.by_db[db]))
        return self.queues[db].pop()

    def __iter__(self):
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
        databases = list(self.by_db)
        while True:
            prompts, groups, sizes = [], [], []
            for db in self.rng.sample(databases, self.rows):
                picked = [self._next(db) for _ in range(self.size)]
                prompts.append(
                    [self.tokenizer.bos_token_id] + encode(shuffled_schema(picked[0], self.rng))
                )
                group, size = [], []
                for example in picked:
                    pair = example.question, example.gold_sql
                    if self.rng.random() < 0.5:
                        pair = swap_literals(*pair, self.literals[db], self.rng)
                    asked = encode(question_text(pair[0]))
                    group.append(asked + encode(pair[1]) + [self.tokenizer.eos_token_id])
                    size.append(len(asked))
                groups.append(group)
                sizes.append(size)
            yield prompts, groups, torch.tensor(sizes)


def supervised_loss(
    logprobs: Tensor, groups: list[list[list[int]]], asked: Tensor, question_weight: float
) -> Tensor:
    """Mean negative log-likelihood of the SQL tokens, plus ``question_weight`` times that of the
    question's.
    """
    lengths = torch.tensor([[len(one) for one in group] for group in groups])  # (P, G)
    index = torch.arange(logprobs.shape[-1])
    question = index < asked[..., None]  # (P, G, T)
    sql = (index < lengths[..., None]) & ~question
    return -(logprobs[sql].mean() + question_weight * logprobs[question].mean())


def train(
    model, packs: Packs, steps: int, lr: float, question_weight: float, progress: str = ""
) -> None:
    """AdamW with warm-up and cosine decay, in place; bfloat16 matrix products, float32 weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(1, s / steps))))
    )
    model.train()
    bar = tqdm(range(steps), desc=progress, disable=not progress)
    for _, (prompts, groups, asked) in zip(bar, packs):
        with torch.autocast(model.device.type, dtype=torch.bfloat16):
            logprobs = completion_logprobs(model, prompts, groups)
        loss = supervised_loss(logprobs, groups, asked, question_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def from_scratch(arguments: argparse.Namespace, examples: list[Example], rng: random.Random):
    """A fresh model, and a tokenizer made for the questions, the SQL and the schemas."""
    texts = [text for e in examples for text in (e.question, e.gold_sql)]
    schemas = {e.db_id: shuffled_schema(e, rng) for e in examples}
    tokenizer = train_tokenizer(texts + list(schemas.values()) * 50, arguments.vocab)
    return small_llama(tokenizer, arguments.hidden, arguments.layers), tokenizer


def warmup(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if output.exists():
        raise UserError(f"--output {output} exists; name another or remove it")
    rng = random.Random(arguments.seed)
    torch.manual_seed(arguments.seed)
    parallel = [load_dataset(arguments.data, lang, "train") for lang in LANGUAGES]
    part = range(int(len(parallel[0]) * arguments.share))  # the same SQL in every language
    if arguments.model:
        policy = load_policy(arguments.model)
        model, tokenizer = policy.model, policy.tokenizer
    else:
        model, tokenizer = from_scratch(arguments, [e for each in parallel for e in each], rng)
    examples = [examples[i] for examples in parallel for i in part]
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.1f} M parameters, {len(examples)} examples")
    packs = Packs(examples, tokenizer, arguments.rows, arguments.per_row, rng)
    train(model, packs, arguments.steps, arguments.lr, arguments.question_weight, "warm-up")
    model = model.to(torch.bfloat16)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    write_directory(output, write)
    print(f"wrote {output}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=str(EMBEDDED), help="dataset directory")
    parser.add_argument("--output", required=True, help="new model directory")
    parser.add_argument("--model", help="go on from this model directory, not from scratch")
    parser.add_argument(
        "--share", type=float, default=0.6, help="part of the train split to imitate, 0 to 1"
    )
    parser.add_argument("--hidden", type=int, default=320)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rows", type=int, default=8, help="schemas in a batch")
    parser.add_argument("--per-row", type=int, default=8, help="questions behind each schema")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--question-weight", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    try:
        warmup(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
