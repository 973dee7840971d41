"""Trains the contrastive encoder: python -m encoder.train --output DIR

A batch consists of SQL queries, questions of each in several languages, and hard negatives of each
(`batches.py`). The loss is symmetric InfoNCE (`loss.py`). A tenth of the SQL queries is held out to
calibrate the encoder; `python -m encoder.evaluate` measures it on the dev split. With `--fresh`,
some batches are about generated schemas (`fresh.py`). The state is saved in
OUTPUT.checkpoint.pt: to resume an interrupted run, repeat its command line.
"""

import argparse
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from encoder.batches import (
    Entry,
    draw_negatives,
    epoch_batches,
    hard_negatives,
    hash_of,
    hold_out,
    load_entries,
    make_batch,
    wrong_entries,
)
from encoder.calibration import Calibration, fit_calibration
from encoder.checkpoint import load_state, save_state
from encoder.device import check_device, fastest_dtype, resolve_device
from encoder.fresh import FreshEntries
from encoder.loss import info_nce
from encoder.model import MAX_LOG_SCALE, ContrastiveEncoder, require_new
from encoder.reward import TARGETS, SemanticReward
from encoder.rewrites import equivalent_rewrites
from encoder.scratch import small_encoder
from encoder.text import sql_text
from encoder.word_vectors import align
from sqlenv import EMBEDDED, by_database, chosen_languages, load_dataset, open_dataset
from sqlenv.embedded import LANGUAGES
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_json
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

# Of generated schemas: the tokenizer is made for the texts of so many entries, and the words of so
# many schemas are aligned.
TOKENIZER_ENTRIES, ALIGNED_SCHEMAS = 5000, 3000


def make_optimizer(encoder: ContrastiveEncoder, lr: float) -> torch.optim.AdamW:
    """AdamW without weight decay of biases, norms and the temperature."""
    decayed = [p for p in encoder.parameters() if p.ndim >= 2]
    others = [p for p in encoder.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=lr
    )


def train(
    encoder: ContrastiveEncoder,
    entries: list[Entry],
    args: argparse.Namespace,
    checkpoint: Path | None = None,
    fresh: FreshEntries | None = None,
    data_hash: str = "",
) -> Iterator[tuple[int, float, float]]:
    """Trains in place for `args.steps` batches.

    The learning rate rises linearly for 5 % of the steps, then decays to 0 along a cosine. The
    gradient norm is clipped at 1.

    Args:
        encoder: trained in place; left in eval mode.
        entries: what to train on.
        args: the command line's; `--dtype auto` is replaced by the number format in use.
        checkpoint: where to save the state. Training resumes from it if it exists, and ends with
            the same weights as without the interruption.
        fresh: draws the entries of a share `args.fresh` of the batches.
        data_hash: of all data, which a resumed run must have, too.
    Yields:
        (steps done, loss, accuracy) after each step. The accuracy is the share of questions whose
        own SQL is the closest in the batch, hard negatives included.
    Raises:
        UserError: the checkpoint is damaged, of other settings or data, or cannot be written.
    """
    optimizer = make_optimizer(encoder, args.lr)
    warmup = max(1, round(0.05 * args.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / args.steps)),
    )
    parts = {"encoder": encoder, "optimizer": optimizer, "schedule": schedule}
    start = load_checkpoint(checkpoint, parts, vars(args), data_hash) if checkpoint else 0
    if args.dtype == "auto":
        width = encoder.backbone.config.hidden_size
        args.dtype = fastest_dtype(args.device, width, 4 * width)
    encoder.train()
    epoch, batches = -1, []
    for step in range(start, args.steps):
        # Random draws depend on the seed and the step only, so a resumed run repeats them.
        per_epoch = math.ceil(len(entries) / args.batch_size)
        if step // per_epoch != epoch or step == start:
            epoch = step // per_epoch
            rng = random.Random(f"{args.seed} {epoch}")
            batches = epoch_batches(entries, args.batch_size, rng)
        rng = random.Random(f"{args.seed} {step} batch")
        torch.manual_seed(rng.getrandbits(63))  # dropout
        batch = batches[step % per_epoch]
        if fresh and rng.random() < args.fresh:
            batch = fresh.draw(args.batch_size, args.questions_per_query, rng)
        yield step + 1, *train_step(encoder, batch, optimizer, args, rng)
        schedule.step()
        if checkpoint and (step + 1) % args.save_every == 0:
            save_checkpoint(checkpoint, parts, vars(args), data_hash, step + 1)
    encoder.eval()


def train_step(
    encoder: ContrastiveEncoder,
    entries: list[Entry],
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    rng: random.Random,
) -> tuple[float, float]:
    """One optimizer step on a batch of these entries; returns its loss and accuracy."""
    batch = make_batch(
        entries,
        questions=args.questions_per_query,
        negatives=args.negatives,
        with_schema=encoder.with_schema,
        rng=rng,
    )
    device = encoder.log_scale.device
    with torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"):
        questions = encoder.encode(batch.questions, "query")  # (N, D)
        sqls = encoder.encode(batch.sqls, "sql")  # (M, D)
    positives = torch.tensor(batch.positives, device=device)  # (N,)
    loss, is_closest = info_nce(questions, sqls, scale=encoder.scale, positives=positives)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    optimizer.step()
    encoder.log_scale.data.clamp_(0.0, MAX_LOG_SCALE)
    return loss.item(), is_closest.float().mean().item()


def save_checkpoint(path: Path, parts: dict, settings: dict, data_hash: str, step: int) -> None:
    """Writes everything that the next step depends on."""
    states = {name: part.state_dict() for name, part in parts.items()}
    state = {"settings": settings, "data_hash": data_hash, "step": step, "parts": states}
    save_state(path, state)


def load_checkpoint(path: Path, parts: dict, settings: dict, data_hash: str) -> int:
    """Restores the parts, and the dtype if it is "auto"; returns the steps done, 0 without a file.

    Raises:
        UserError: the file is damaged, or of a run with other settings or data.
    """
    if not path.is_file():
        return 0
    state = load_state(path)
    if settings["dtype"] == "auto":  # a new measurement might choose another
        settings["dtype"] = state["settings"]["dtype"]
    # A tokenizer made of other texts has other tokens. Older checkpoints have no hash. --epochs
    # makes other steps of other data.
    same_but_steps = state["settings"] | {"steps": settings["steps"]} == settings
    if same_but_steps and state.get("data_hash", data_hash) != data_hash:
        raise UserError(
            f"{path} is of a run on other data: --data has changed since; restore it, or remove "
            "the checkpoint to start anew"
        )
    if state["settings"] != settings:
        raise UserError(f"{path} is of a run with other settings: repeat those, or remove it")
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return state["step"]


def calibrate(
    encoder: ContrastiveEncoder, held_out: list[Entry], entries: list[Entry], seed: int
) -> dict[str, Calibration]:
    """Fits a calibration for each target of the reward to held-out questions.

    Right SQL is gold or an equivalent rewrite of it, wrong SQL another SQL query of the database
    (with other questions) or a hard negative, drawn for each question, so that no kind belongs to a
    language.
    """
    rng, databases = random.Random(seed), by_database(entries)
    questions, golds, right, wrong = [], [], [], []
    for entry in held_out:
        read = partial(sql_text, schema=entry.schema, with_schema=encoder.with_schema)
        others = [other.gold for other in wrong_entries(entry, databases[entry.db_id])]
        negatives = hard_negatives(entry.gold, entry.schema)
        rewrites = [rewrite.sql for rewrite in equivalent_rewrites(entry.gold)]
        for _, question in entry.questions:
            right_sql, wrong_sql = entry.gold, rng.choice(others)
            if rewrites and rng.random() < 0.5:
                right_sql = rng.choice(rewrites)
            if negatives and rng.random() < 0.5:
                wrong_sql = draw_negatives(negatives, 1, rng)[0].sql
            questions.append(question)
            golds.append(read(entry.gold))
            right.append(read(right_sql))
            wrong.append(read(wrong_sql))
    curves = {}
    for target in TARGETS:
        reward = SemanticReward(encoder, target=target, score="cosine")
        curves[target] = fit_calibration(
            reward.cosines(questions, golds, right), reward.cosines(questions, golds, wrong)
        )
    return curves


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(__doc__, prog="python -m encoder.train")
    add = parser.add_argument
    add("--output", required=True, help="new directory for the encoder")
    add_data_options(parser, str(EMBEDDED), "%(default)s")
    add("--split", default="train", help="a comma list of train, sft and encoder (%(default)s)")
    add("--lang", default="all", help="all, or a comma list such as en,vi")
    add(
        "--base",
        help="Hugging Face encoder, directory or hub id, such as FacebookAI/xlm-roberta-base "
        "(default: a small one from scratch)",
    )
    add(
        "--fresh",
        type=Range(float, 0, 1),
        default=0.0,
        help="share of the batches with generated schemas (%(default)s)",
    )
    add("--with-schema", action="store_true", help="the SQL's tables and their columns follow it")
    add("--dim", type=COUNT, default=128, help="embedding size (%(default)s)")
    add(
        "--hidden",
        type=Range(int, 32, multiple_of=32),  # the width of an attention head
        default=128,
        help="width of an encoder from scratch (%(default)s)",
    )
    add("--epochs", type=COUNT, default=4, help="passes over the SQL queries (%(default)s)")
    add("--steps", type=COUNT_OR_ZERO, default=0, help="batches to train for, instead of --epochs")
    add("--batch-size", type=COUNT, default=32, help="SQL queries in a batch (%(default)s)")
    add(
        "--questions-per-query",
        type=COUNT,
        default=4,
        help="questions of each SQL query in a batch (%(default)s)",
    )
    add("--negatives", type=COUNT_OR_ZERO, default=6, help="hard negatives of each (%(default)s)")
    add("--lr", type=POSITIVE, help="peak learning rate (1e-3 from scratch, 5e-5 with --base)")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="of the arithmetic; auto measures which is faster",
    )
    add(
        "--save-every",
        type=COUNT,
        default=100,
        help="steps between checkpoints (%(default)s)",
    )
    add("--seed", type=SEED, default=0)
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    return parser.parse_args(arguments)


def new_encoder(
    args: argparse.Namespace, entries: list[Entry], fresh: FreshEntries | None = None
) -> ContrastiveEncoder:
    """The encoder to train: `--base` with a new projection, or a small one from scratch."""
    torch.manual_seed(args.seed)
    if args.base:
        encoder = ContrastiveEncoder.load(args.base, dim=args.dim)
    else:
        if fresh:
            rng = random.Random(f"{args.seed} tokenizer")
            entries = entries + fresh.draw(TOKENIZER_ENTRIES, args.questions_per_query, rng)
        texts = [text for entry in entries for _, text in entry.questions]
        texts += [sql_text(e.gold, e.schema, with_schema=args.with_schema) for e in entries]
        encoder = small_encoder(texts, dim=args.dim, hidden=args.hidden)
        if fresh:
            align_embeddings(encoder, fresh, args.seed)
    encoder.with_schema = args.with_schema
    return encoder.to(args.device)


def align_embeddings(encoder: ContrastiveEncoder, fresh: FreshEntries, seed: int) -> None:
    """Gives similar embeddings to the names and the wordings of a concept in all languages."""
    rng = random.Random(f"{seed} words")
    texts = fresh.questions.concepts(rng, ALIGNED_SCHEMAS).values()
    encode = partial(encoder.tokenizer.encode, add_special_tokens=False)
    concepts = [
        [ids for text in sorted(names | said) if (ids := encode(text))] for names, said in texts
    ]
    weight = encoder.backbone.get_parameter("embeddings.word_embeddings.weight")  # (V, H)
    weight.data = align(weight.data, concepts, torch.Generator().manual_seed(seed))


def fresh_entries(langs: Sequence[str]) -> FreshEntries:
    """Draws SQL about generated schemas, none of which is gold of the embedded dev questions.

    Raises:
        UserError: a language in which no questions can be generated.
    """
    unknown = [lang for lang in langs if lang not in LANGUAGES]
    if unknown:
        raise UserError(f"--fresh has questions in {', '.join(LANGUAGES)}, not in {unknown[0]}")
    return FreshEntries(langs, {e.gold_sql for e in load_dataset(EMBEDDED, "en", "dev")})


def run(args: argparse.Namespace) -> None:
    """Loads, trains, calibrates and saves. Raises UserError."""
    started, output = time.monotonic(), Path(args.output)
    if args.lr is None:
        args.lr = 5e-5 if args.base else 1e-3
    require_new(output)
    check_writable("--output", output.with_name(output.name + ".checkpoint.pt"))
    check_device(args.device)
    dataset, splits = open_dataset(args.data, args.questions), args.split.split(",")
    langs = chosen_languages(dataset, args.lang, splits)
    entries = load_entries(dataset, langs=langs, splits=splits)
    known, held_out = hold_out(entries, share=0.1, seed=args.seed)
    fresh = fresh_entries(langs) if args.fresh else None
    encoder = new_encoder(args, known, fresh)
    args.steps = args.steps or args.epochs * math.ceil(len(known) / args.batch_size)
    print(
        f"{len(known)} SQL queries to train on, {len(held_out)} held out, {args.steps} steps",
        flush=True,
    )
    checkpoint = output.with_name(output.name + ".checkpoint.pt")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.steps) as bar:
        data_hash = hash_of(known + held_out)
        for done, loss, accuracy in train(encoder, known, args, checkpoint, fresh, data_hash):
            if not bar.n:  # of a resumed run: the estimate of the time left counts its steps only
                bar.initial = bar.n = done - 1
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}", refresh=False)
            bar.update()
    encoder.calibrations = calibrate(encoder, held_out, entries, args.seed)
    encoder.save(output, dtype=torch.float16)
    seconds = round(time.monotonic() - started, 1)
    arguments = {name: value for name, value in vars(args).items() if name != "output"}
    summary = {"arguments": arguments, "seconds": seconds}
    write_json(output / "training.json", summary)
    checkpoint.unlink(missing_ok=True)
    print(f"{encoder.calibration}\nsaved to {output} in {seconds:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a one-line error."""
    return exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
