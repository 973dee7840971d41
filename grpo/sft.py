"""Supervised fine-tuning (SFT): trains a policy on gold SQL until some of its completions are
right. A model that never gets a reward cannot learn by RL.

    python -m grpo.sft --output DIR                                          from scratch
    python -m grpo.sft --model M --data ROOT --split train --output DIR      an existing model

Many questions share a schema, so a batch is packed like a GRPO group (grpo/packing.py): one
schema, then many "question, SQL" continuations that do not see each other. An existing model gets
the prompts of train.py, with its chat template if it has one. It is trained with LoRA, which is
merged at the end, or in all its weights (--lora-rank 0).

assets/README.md has the command that made the shipped policy.
"""

import argparse
import itertools
import os
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from encoder.bpe import train_bpe
from encoder.checkpoint import load_state, save_state
from encoder.device import check_device, resolve_device
from grpo.checkpoint import SAFETENSORS_ERRORS
from grpo.command_line import add_prompt_options, prompt_settings
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, merge_lora
from grpo.models import (
    Policy,
    checkpoint_activations,
    load_policy,
    model_dtype,
    read_tokenizer,
)
from grpo.prompt import (
    DEFAULTS,
    PromptBuilder,
    PromptSettings,
    answer_end,
    check_context,
    question_text,
    saved_prompt,
)
from grpo.schedules import trapezoid_schedule
from sqlenv import (
    EMBEDDED,
    Example,
    UserError,
    by_database,
    chosen_languages,
    load_schema,
    open_dataset,
    schema_text,
)
from sqlenv.errors import exit_code
from sqlenv.files import write_directory
from sqlenv.options import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    OptionParser,
    Range,
    add_data_options,
    check_writable,
)

SPECIAL = ["<s>", "</s>", "<pad>"]
SAVE_EVERY = 100  # steps
QUOTED = re.compile(r"'((?:[^']|'')*)'")  # a string literal; '' is a quote inside it


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: it covers all languages; each digit is a token."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer = train_bpe(
        texts, vocab_size=vocab_size, special_tokens=SPECIAL, split=digits, use_regex=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def small_llama(tokenizer, hidden: int, layers: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings and multi-query attention."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=1,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def text_values(sql: str) -> list[str]:
    """The string literals of a query, without the wildcards of LIKE.

    >>> text_values("SELECT a FROM t WHERE b LIKE 'Mai%' AND c = 'O''Hara' AND d = ''")
    ['Mai', "O'Hara"]
    """
    inside = (value.strip("%").replace("''", "'") for value in QUOTED.findall(sql))
    return [value for value in inside if value]


def swap_values(question: str, sql: str, pool: list[str], rng: random.Random) -> tuple[str, str]:
    """The same question about other values: each string literal that occurs verbatim and once in
    the question is replaced by one of ``pool``, there and in the SQL. The model learns to copy
    values from the question rather than to remember them.
    """
    for value in dict.fromkeys(text_values(sql)):
        if question.count(value) == 1:
            other = rng.choice(pool)
            question = question.replace(value, other)
            for left, right in itertools.product(("", "%"), repeat=2):
                was, now = (f"'{left}{quote(text)}{right}'" for text in (value, other))
                sql = sql.replace(was, now)
    return question, sql


def quote(value: str) -> str:
    """A value as it is written between the quotes of a string literal."""
    return value.replace("'", "''")


def shuffled_schema(example: Example, rng: random.Random) -> str:
    """The schema text with tables and columns in random order, so that the model attends to names
    rather than positions.
    """
    schema = load_schema(example.db_path)
    tables = [
        replace(table, columns=tuple(rng.sample(table.columns, len(table.columns))))
        for table in schema.tables
    ]
    return schema_text(replace(schema, tables=tuple(rng.sample(tables, len(tables)))))


class PretrainingBatches:
    """Batches for a model from scratch: P schemas, P x G continuations "question, SQL", and (P, G)
    how many tokens of each continuation are the question. A batch is a function of the seed and
    the step alone, so that training resumes exactly.
    """

    def __init__(self, examples: list[Example], tokenizer, rows: int, size: int, seed: int):
        self.tokenizer, self.rows, self.size, self.seed = tokenizer, rows, size, seed
        self.rows_per_pass = rows  # these schemas are about equally long
        self.by_db = by_database(examples)
        if len(self.by_db) < rows:
            raise UserError(f"--rows {rows}: there are only {len(self.by_db)} databases")
        self.values = [value for example in examples for value in text_values(example.gold_sql)]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def __getitem__(self, step: int) -> tuple[list[list[int]], list[list[list[int]]], Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        prompts, groups, sizes = [], [], []
        for db in rng.sample(list(self.by_db), self.rows):
            picked = rng.choices(self.by_db[db], k=self.size)
            schema = shuffled_schema(picked[0], rng)
            prompts.append([self.tokenizer.bos_token_id] + self.encode(schema))
            group, size = [], []
            for example in picked:
                pair = example.question, example.gold_sql
                if rng.random() < 0.5:
                    pair = swap_values(*pair, self.values, rng)
                asked = self.encode(question_text(pair[0], example.evidence))
                group.append(asked + self.encode(pair[1]) + [self.tokenizer.eos_token_id])
                size.append(len(asked))
            groups.append(group)
            sizes.append(size)
        return prompts, groups, torch.tensor(sizes)


class SftBatches:
    """Batches for an existing policy, in the form of ``PretrainingBatches``: train.py's prompts and
    gold as completions. The common prefix of a row's prompts, the schema, is in it once.
    """

    def __init__(
        self,
        examples: list[Example],
        policy: Policy,
        rows: int,
        size: int,
        seed: int,
        settings: PromptSettings = DEFAULTS,
    ):
        self.examples, self.rows, self.size, self.seed = examples, rows, size, seed
        self.rows_per_pass = 1  # real schemas differ in length, and padding would cost more
        self.by_db = by_database(examples)
        self.prompts = PromptBuilder(policy.tokenizer, settings)
        self.end = answer_end(policy.tokenizer, policy.eos_ids)

    def __getitem__(self, step: int) -> tuple[list[list[int]], list[list[list[int]]], Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        starts, groups, sizes = [], [], []
        for first in rng.choices(self.examples, k=self.rows):
            picked = rng.choices(self.by_db[first.db_id], k=self.size)
            prompts = [self.prompts(example) for example in picked]
            common = len(os.path.commonprefix(prompts))
            starts.append(prompts[0][:common])
            golds = [self.prompts.encode(example.gold_sql) + [self.end] for example in picked]
            groups.append([prompt[common:] + gold for prompt, gold in zip(prompts, golds)])
            sizes.append([len(prompt) - common for prompt in prompts])
        return starts, groups, torch.tensor(sizes)


def supervised_loss(
    logprobs: Tensor,
    groups: list[list[list[int]]],
    asked: Tensor,
    question_weight: float,
    counts: tuple[int, int],
) -> Tensor:
    """Mean negative log-likelihood of the SQL tokens, plus ``question_weight`` times that of the
    question's, a scalar.

    Args:
        logprobs: (P, G, T) of the continuations' tokens, anything beyond their ends.
        groups: P lists of G continuations, question and SQL.
        asked: (P, G), how many tokens of each are the question.
        counts: the SQL and the question tokens of the whole batch. They divide the sums, so that
            the losses of its parts add up to its own.
    """
    lengths = torch.tensor([[len(ids) for ids in group] for group in groups])  # (P, G)
    index = torch.arange(logprobs.shape[-1])
    question = index < asked[..., None]  # (P, G, T)
    sql = (index < lengths[..., None]) & ~question
    of_sql, of_question = logprobs[sql].sum(), logprobs[question].sum()
    return -of_sql / counts[0] - question_weight * of_question / max(1, counts[1])


def backward(
    model, batch: tuple, question_weight: float, rows: int, dtype: str = "float32"
) -> float:
    """Adds the gradients of a batch's loss, ``rows`` of its rows at a time; returns the loss.

    Args:
        dtype: of the matrix products, "float32" or "bfloat16".
        batch: from ``PretrainingBatches`` or ``SftBatches``: P prompts, P x G continuations, and
            (P, G) int64, how many tokens of each are the question.
    """
    starts, groups, asked = batch
    questions = int(asked.sum())
    counts = sum(len(ids) for group in groups for ids in group) - questions, questions
    total, device, bfloat16 = 0.0, model.device.type, dtype == "bfloat16"
    for first in range(0, len(starts), rows):
        some = slice(first, first + rows)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=bfloat16):
            logprobs = completion_logprobs(model, starts[some], groups[some])
        loss = supervised_loss(logprobs, groups[some], asked[some], question_weight, counts)
        loss.backward()
        total += loss.item()
    return total


def make_optimizers(model, lr: float, scratch: bool) -> list[torch.optim.Optimizer]:
    """From scratch: Muon (orthogonalised momentum; Jordan et al. 2024) for the matrices of the
    decoder blocks and AdamW for embeddings and norms, which needs about half as many steps as AdamW
    alone. For an existing model: AdamW on its trainable weights.
    """
    if not scratch:
        trained = [p for p in model.parameters() if p.requires_grad]
        return [torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)]
    blocks = {id(p): p for p in model.get_decoder().layers.parameters() if p.dim() == 2}
    rest = [p for p in model.parameters() if id(p) not in blocks]
    return [
        torch.optim.Muon(blocks.values(), lr=lr, momentum=0.95, weight_decay=0.05),
        torch.optim.AdamW(rest, lr=lr * 0.15, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def train(
    model, batches: PretrainingBatches | SftBatches, arguments: argparse.Namespace, checkpoint: Path
) -> None:
    """Trains in place, with float32 weights, and bfloat16 matrix products where these are faster.
    Every ``SAVE_EVERY`` steps the state is written to ``checkpoint``, from which a run with equal
    arguments continues.
    """
    steps, settings = arguments.steps, vars(arguments) | {"output": "", "stop": 0}
    optimizers = make_optimizers(model, arguments.lr, not arguments.model)
    schedules = [trapezoid_schedule(optimizer, steps) for optimizer in optimizers]
    parts = [model, *optimizers, *schedules]
    start, dtype = 0, model_dtype("auto", str(model.device), model.config.get_text_config())
    if checkpoint.is_file():
        state = load_state(checkpoint)
        if state["settings"] != settings:
            raise UserError(f"{checkpoint} is from a run with other settings; remove it")
        start, dtype = state["step"], state["dtype"]
        for part, saved in zip(parts, state["parts"]):
            part.load_state_dict(saved)
    model.train()
    stop = arguments.stop or steps
    bar = tqdm(range(start, stop), desc="SFT", initial=start, total=stop)
    for step in bar:
        options = arguments.question_weight, batches.rows_per_pass, dtype
        loss = backward(model, batches[step], *options)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 and step + 1 < stop:
            state = [part.state_dict() for part in parts]
            done = {"settings": settings, "step": step + 1, "dtype": dtype, "parts": state}
            save_state(checkpoint, done)
    model.eval()


def from_scratch(arguments: argparse.Namespace, examples: list[Example], rng: random.Random):
    """A new model, and a tokenizer trained on the questions, the SQL and the schemas."""
    texts = [text for e in examples for text in (e.question, e.gold_sql)]
    schemas = {e.db_id: shuffled_schema(e, rng) for e in examples}
    tokenizer = train_tokenizer(texts + list(schemas.values()) * 50, arguments.vocab)
    return small_llama(tokenizer, arguments.hidden, arguments.layers), tokenizer


def sft(arguments: argparse.Namespace) -> None:
    output = Path(arguments.output)
    if arguments.lr is None:
        arguments.lr = 0.02 if not arguments.model else 2e-4 if arguments.lora_rank else 2e-5
    if output.exists():
        raise UserError(f"--output {output} exists; name another or remove it")
    check_writable("--output", output)
    check_device(arguments.device)
    torch.manual_seed(arguments.seed)
    dataset, split = open_dataset(arguments.data, arguments.questions), arguments.split
    langs = chosen_languages(dataset, arguments.lang, [split])
    examples = [example for lang in langs for example in dataset.load(lang, split)]
    if arguments.model:
        settings = prompt_settings(arguments, saved_prompt(arguments.model))
        check_context(
            arguments.model, *read_tokenizer(arguments.model), examples, settings=settings
        )
        # All weights are trained in float32: bfloat16 would round small steps of Adam away.
        dtype = "auto" if arguments.lora_rank else "float32"
        policy = load_policy(arguments.model, arguments.device, dtype)
        model, tokenizer = policy.model, policy.tokenizer
        arguments.question_weight = 0.0  # the loss is taken over answers only
        sizes = arguments.rows, arguments.per_row
        batches = SftBatches(examples, policy, *sizes, arguments.seed, settings)
        if arguments.lora_rank:
            rank = arguments.lora_rank
            add_lora(model, rank=rank, alpha=2 * rank, seed=arguments.seed)
        checkpoint_activations(model)
    else:
        settings = DEFAULTS
        model, tokenizer = from_scratch(arguments, examples, random.Random(arguments.seed))
        model.to(arguments.device)
        batches = PretrainingBatches(
            examples, tokenizer, arguments.rows, arguments.per_row, arguments.seed
        )
    size = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    print(f"{size:.1f} M parameters to train, {len(examples)} examples")
    checkpoint = output.with_name(output.name + ".checkpoint.pt")
    train(model, batches, arguments, checkpoint)
    model = merge_lora(model, torch.bfloat16)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings.save(folder)

    write_directory(output, write, SAFETENSORS_ERRORS)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {output}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add_data_options(parser, str(EMBEDDED), "the embedded one")
    add("--output", required=True, help="new model directory")
    add("--model", help="model directory or hub id to train (a new model, from scratch)")
    add("--lang", default="all", help="all, or a comma list such as en,vi")
    add("--split", default="sft", help="sft, or train where there is none")
    add(
        "--lora-rank",
        type=COUNT_OR_ZERO,
        default=32,
        help="LoRA rank, with --model; 0 trains all weights (32)",
    )
    add_prompt_options(parser.add_argument_group("prompt", "with --model"))
    add("--hidden", type=Range(int, 64, multiple_of=64), default=320)
    add("--layers", type=COUNT, default=5)
    add("--vocab", type=COUNT, default=5000)
    add("--steps", type=COUNT, default=1300, help="of the learning rate's schedule")
    add("--stop", type=COUNT_OR_ZERO, default=0, help="end after this many of the steps")
    add("--rows", type=COUNT, default=8, help="schemas in a batch")
    add("--per-row", type=COUNT, default=8, help="questions behind each schema")
    add("--lr", type=POSITIVE, help="0.02; with --model 2e-4 for LoRA, 2e-5 without")
    add("--question-weight", type=NON_NEGATIVE, default=0.2)
    add("--seed", type=SEED, default=0)
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    arguments = parser.parse_args(argv)
    if not arguments.model and PromptSettings.of(vars(arguments)) != DEFAULTS:
        parser.error("the prompt's options go with --model")
    if arguments.stop > arguments.steps:  # where the learning rate has fallen to 0
        parser.error("--stop: must not be above --steps")
    return arguments


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: sft(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
