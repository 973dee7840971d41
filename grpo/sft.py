"""Supervised fine-tuning (SFT): trains a policy on gold SQL until some of its completions are
right. A model that never gets a reward cannot learn by RL.

    python -m grpo.sft --output DIR                                          from scratch
    python -m grpo.sft --model M --data ROOT --output DIR                    an existing model

Many questions share a schema, so a batch is packed like a GRPO group (grpo/packing.py): one
schema, then many "question, SQL" continuations that do not see each other. An existing model gets
the prompts of train.py, with its chat template if it has one. It is trained with LoRA, which is
merged at the end, or in all its weights (--lora-rank 0).

Several processes can share the rows of a batch
(torchrun --nproc-per-node 2 -m grpo.sft --output DIR). assets/README.md says how the shipped policy
was made.
"""

import argparse
import os
import random
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from encoder.checkpoint import load_state, save_state
from encoder.device import check_device, has_bfloat16, resolve_device
from grpo.checkpoint import SAFETENSORS_ERRORS
from grpo.command_line import add_prompt_options, prompt_settings
from grpo.distributed.parallel import SINGLE_PROCESS, Distributed, open_distributed
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, merge_lora
from grpo.models import (
    Policy,
    checkpoint_activations,
    load_policy,
    model_dtype,
    read_tokenizer,
)
from grpo.muon import Muon
from grpo.pretraining import PretrainingBatches, initialize_embeddings, make_tokenizer, small_llama
from grpo.prompt import (
    DEFAULTS,
    PromptBuilder,
    PromptSettings,
    answer_end,
    check_context,
    saved_prompt,
)
from grpo.questions import hash_of
from grpo.schedules import trapezoid_schedule
from sqlenv import (
    EMBEDDED,
    Example,
    UserError,
    by_database,
    chosen_languages,
    open_dataset,
)
from sqlenv.dataset import parse_languages
from sqlenv.embedded import LANGUAGES
from sqlenv.errors import exit_code
from sqlenv.files import write_directory
from sqlenv.options import (
    COUNT,
    COUNT_OR_ZERO,
    POSITIVE,
    SEED,
    OptionParser,
    Range,
    add_data_options,
    check_writable,
)

PASS_TOKENS, GPU_PASS_TOKENS = 256, 2**15


class SftBatches:
    """Batches for an existing policy, in the form of ``PretrainingBatches``: train.py's prompts and
    gold as completions. The common prefix of a row's prompts, the schema, is in it once.

    Raises:
        UserError: by an index, if prompts have no common prefix.
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
        self.by_db, self.data_hash = by_database(examples), hash_of(examples)
        self.prompts = PromptBuilder(policy.tokenizer, settings)
        self.end = answer_end(policy.tokenizer, policy.eos_ids)

    def question_weight(self, step: int) -> float:
        return 0.0

    def __getitem__(self, step: int) -> tuple[list[list[int]], list[list[list[int]]], Tensor]:
        rng = random.Random(f"{self.seed} {step}")
        starts, groups, sizes = [], [], []
        for first in rng.choices(self.examples, k=self.rows):
            picked = rng.choices(self.by_db[first.db_id], k=self.size)
            prompts = [self.prompts(example) for example in picked]
            common = len(os.path.commonprefix(prompts))
            if not common:
                raise UserError(
                    "the prompts about a database have to begin alike: put {question} behind "
                    "{schema} in --prompt"
                )
            starts.append(prompts[0][:common])
            golds = [self.prompts.encode(example.gold_sql) + [self.end] for example in picked]
            groups.append([prompt[common:] + gold for prompt, gold in zip(prompts, golds)])
            sizes.append([len(prompt) - common for prompt in prompts])
        return starts, groups, torch.tensor(sizes)


def batch_loader(batches, steps: range, device: str) -> DataLoader:
    """The batches of these steps. For a GPU, CPU cores make them ahead, in processes of their own;
    on a CPU the model needs the cores.
    """
    cores = (os.cpu_count() or 1) // max(1, torch.cuda.device_count())
    workers = 0 if device == "cpu" else max(1, cores - 2)
    if workers and steps:
        batches[steps.start]  # an error of the user's is one line here, and a traceback there
    options = {"batch_size": None, "collate_fn": unchanged, "num_workers": workers}
    return DataLoader(batches, sampler=steps, **options)


def unchanged(batch: tuple) -> tuple:
    """A batch as it is: DataLoader would walk through its lists to look for arrays."""
    return batch


def backward(
    model,
    batch: tuple,
    distributed: Distributed = SINGLE_PROCESS,
    dtype: str = "float32",
    question_weight: float = 0.0,
) -> float:
    """Adds the gradients of a batch's loss: the mean negative log-likelihood of its SQL tokens, and
    with ``question_weight`` that of the questions' tokens, which teaches the words of names, too.
    Returns that of the SQL. A pass takes up to ``PASS_TOKENS`` tokens of prompts, or one row:
    schemas differ in length, and on a CPU padding costs more than passes.

    Args:
        batch: from ``PretrainingBatches`` or ``SftBatches``: P prompts, P x G continuations, and
            (P, G) int64, how many tokens of each continuation are the question.
        dtype: of the matrix products, "float32" or "bfloat16".
    """
    starts, groups, asked = batch
    questions = int(asked.sum())
    count = sum(len(ids) for group in groups for ids in group) - questions
    total, bfloat16 = torch.zeros(()), dtype == "bfloat16"
    tokens = PASS_TOKENS if model.device.type == "cpu" else GPU_PASS_TOKENS
    rows = max(1, tokens // max(map(len, starts)))
    for some in distributed.micro_batches(len(starts), rows):
        sizes = asked[some].to(model.device)  # (p, G)
        skipped = sizes
        if question_weight:  # the questions of every second continuation
            skipped = sizes * (torch.arange(sizes.shape[1], device=sizes.device) % 2)
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            logprobs = completion_logprobs(model, starts[some], groups[some], skipped=skipped)
        assert isinstance(logprobs, Tensor)
        is_sql = torch.arange(logprobs.shape[-1], device=sizes.device) >= sizes[..., None]
        loss = -torch.sum(logprobs * is_sql) / count
        total = total.to(loss.device) + loss.detach()
        loss = loss - question_weight * torch.sum(logprobs * ~is_sql) / max(1, questions / 2)
        loss.backward()
    distributed.all_reduce_gradients(p for p in model.parameters() if p.requires_grad)
    return sum(distributed.all_gather(total.item()))


def make_optimizers(
    model, lr: float, scratch: bool, distributed: Distributed = SINGLE_PROCESS
) -> list[torch.optim.Optimizer]:
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
        Muon(blocks.values(), lr, momentum=0.95, weight_decay=0.05, distributed=distributed),
        torch.optim.AdamW(rest, lr=lr * 0.15, weight_decay=0.0, betas=(0.9, 0.95)),
    ]


def train(
    model,
    batches: PretrainingBatches | SftBatches,
    arguments: argparse.Namespace,
    checkpoint: Path,
    distributed: Distributed,
) -> None:
    """Trains in place, with bfloat16 matrix products where these are faster; the trained weights
    are float32. Every ``save_every`` steps the state is written to ``checkpoint``, from which a run
    with equal arguments and data continues.

    Raises:
        UserError: the checkpoint is of other ones, or has more steps than are asked for.
    """
    free = dict.fromkeys(("output", "stop", "save_every", "device"))
    free["data"] = batches.data_hash  # and not where it is
    steps, settings = arguments.steps, vars(arguments) | free
    optimizers = make_optimizers(model, arguments.lr, not arguments.model, distributed)
    schedules = [trapezoid_schedule(optimizer, steps) for optimizer in optimizers]
    parts = [model, *optimizers, *schedules]
    dtype = model_dtype("auto", str(model.device), model.config.get_text_config())
    start, dtype = 0, distributed.all_gather(dtype)[0]
    if checkpoint.is_file():
        state = load_state(checkpoint)
        if state["settings"] != settings:
            raise UserError(f"{checkpoint} is from a run with other settings or data; remove it")
        start, dtype = state["step"], state["dtype"]
        if start > (arguments.stop or steps):
            raise UserError(f"{checkpoint} has {start} steps, more than --stop; remove it")
        for part, saved in zip(parts, state["parts"]):
            part.load_state_dict(saved)
    model.train()
    stop = arguments.stop or steps
    is_main = distributed.is_main
    bar = tqdm(range(start, stop), desc="SFT", initial=start, total=stop, disable=not is_main)
    loader = batch_loader(batches, range(start, stop), str(model.device))
    for step, batch in zip(bar, loader):
        weight = batches.question_weight(step)
        loss = backward(model, batch, distributed, dtype, weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if is_main and (step + 1) % arguments.save_every == 0 and step + 1 < stop:
            state = [part.state_dict() for part in parts]
            done = {"settings": settings, "step": step + 1, "dtype": dtype, "parts": state}
            save_state(checkpoint, done)
    model.eval()


def from_scratch(arguments: argparse.Namespace) -> tuple:
    """A new model, its tokenizer, and its batches."""
    langs = parse_languages(arguments.lang) or LANGUAGES
    if unknown := [lang for lang in langs if lang not in LANGUAGES]:
        raise UserError(
            f"--lang {unknown[0]}: a new model learns languages of the embedded dataset, "
            f"{', '.join(LANGUAGES)}; with --model, those of your data"
        )
    tokenizer = make_tokenizer(tuple(langs), arguments.vocab, arguments.seed)
    model = small_llama(tokenizer, arguments.hidden, arguments.layers, arguments.heads)
    if not Path(f"{arguments.output}.checkpoint.pt").is_file():
        initialize_embeddings(model, tokenizer, tuple(langs), arguments.seed)
    options = {"rows": arguments.rows, "size": arguments.per_row, "seed": arguments.seed}
    batches = PretrainingBatches(tuple(langs), tokenizer, steps=arguments.steps, **options)
    return model.to(arguments.device), tokenizer, batches


def existing(arguments: argparse.Namespace, settings: PromptSettings) -> tuple:
    """A model to go on with, its tokenizer, and its batches."""
    dataset = open_dataset(arguments.data or EMBEDDED, arguments.questions)
    has_sft = "sft" in dataset.splits and dataset.languages("sft")
    split = arguments.split or ("sft" if has_sft else "train")
    langs = chosen_languages(dataset, arguments.lang, [split])
    examples = [example for lang in langs for example in dataset.load(lang, split)]
    check_context(arguments.model, *read_tokenizer(arguments.model), examples, settings=settings)
    # All weights are trained in float32: bfloat16 would round small steps of Adam away. So is LoRA
    # where there is no bfloat16: the gradients of a mean over many tokens are 0 in float16.
    half = arguments.lora_rank and has_bfloat16(arguments.device)
    policy = load_policy(arguments.model, arguments.device, "auto" if half else "float32")
    sizes = arguments.rows, arguments.per_row
    batches = SftBatches(examples, policy, *sizes, arguments.seed, settings)
    if rank := arguments.lora_rank:
        add_lora(policy.model, rank=rank, alpha=2 * rank, seed=arguments.seed)
    checkpoint_activations(policy.model)
    print(f"{len(examples)} examples")
    return policy.model, policy.tokenizer, batches


def sft(arguments: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)  # numbers near 0 are slow on a CPU
    try:
        with open_distributed(arguments.device) as (distributed, arguments.device):
            run(arguments, distributed)
    finally:
        torch.set_flush_denormal(False)  # it is a setting of the process


def run(arguments: argparse.Namespace, distributed: Distributed) -> None:
    output = Path(arguments.output)
    if output.exists():
        raise UserError(f"--output {output} exists; name another or remove it")
    check_writable("--output", output)
    check_device(arguments.device)
    torch.manual_seed(arguments.seed)
    if arguments.model:
        settings = prompt_settings(arguments, saved_prompt(arguments.model))
        model, tokenizer, batches = existing(arguments, settings)
    else:
        settings, (model, tokenizer, batches) = DEFAULTS, from_scratch(arguments)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad) / 1e6
    print(f"{size:.1f} M parameters to train")
    checkpoint = output.with_name(output.name + ".checkpoint.pt")
    train(model, batches, arguments, checkpoint, distributed)
    if not distributed.is_main:
        return
    model = merge_lora(model, torch.bfloat16)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        settings.save(folder)

    write_directory(output, write, SAFETENSORS_ERRORS)
    checkpoint.unlink(missing_ok=True)
    print(f"wrote {output}")


def fill_in(parser: OptionParser, arguments: argparse.Namespace) -> None:
    """Refuses options of the other kind of model, and gives those that are missing a default."""
    size = {"hidden": 256, "layers": 6, "heads": 8, "vocab": 12000}
    if arguments.model:
        foreign, where = size, "an existing model has its own"
    else:
        foreign = ("data", "questions", "split", "lora_rank")
        where = "goes with --model: a new model is trained on generated schemas, in all weights"
        if PromptSettings.of(vars(arguments)) != DEFAULTS:
            parser.error("the prompt's options go with --model")
    for name in foreign:
        if getattr(arguments, name) is not None:
            parser.error(f"--{name.replace('_', '-')}: {where}")
    defaults = {**size, "steps": 10000, "rows": 16, "lr": 0.02}
    if arguments.model:
        lr = 2e-5 if arguments.lora_rank == 0 else 2e-4
        defaults |= {"lora_rank": 32, "steps": 1000, "rows": 4, "lr": lr}
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add_data_options(parser, None, "with --model, the embedded one")
    add("--output", required=True, help="new model directory")
    add("--model", help="model directory or hub id to train (a new model, from scratch)")
    add("--lang", default="all", help="all, or a comma list such as en,vi")
    add("--split", help="(sft; train in a dataset that has no sft)")
    add(
        "--lora-rank",
        type=COUNT_OR_ZERO,
        help="LoRA rank, with --model; 0 trains all weights (32)",
    )
    add_prompt_options(parser.add_argument_group("prompt", "with --model"))
    add("--hidden", type=Range(int, 64, multiple_of=64), help="of a new model (256)")
    add("--layers", type=COUNT, help="of a new model (6)")
    add("--heads", type=COUNT, help="of a new model (8)")
    add("--vocab", type=COUNT, help="of a new model (12000)")
    add("--steps", type=COUNT, help="of the learning rate's schedule (10000; with --model 1000)")
    add("--stop", type=COUNT_OR_ZERO, default=0, help="end after this many of the steps")
    add("--save-every", type=COUNT, default=20, help="steps between checkpoints (%(default)s)")
    add("--rows", type=COUNT, help="schemas in a batch (16; with --model 4)")
    add("--per-row", type=COUNT, default=16, help="questions behind each schema")
    add("--lr", type=POSITIVE, help="0.02; with --model 2e-4 for LoRA, 2e-5 without")
    add("--seed", type=SEED, default=0)
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    arguments = parser.parse_args(argv)
    fill_in(parser, arguments)
    if not arguments.model:
        if arguments.hidden % (2 * arguments.heads):
            parser.error(f"--heads: must divide half of --hidden, {arguments.hidden // 2}")
    if arguments.stop > arguments.steps:  # where the learning rate has fallen to 0
        parser.error("--stop: must not be above --steps")
    return arguments


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: sft(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
