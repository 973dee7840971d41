"""Trains the contrastive encoder: python -m encoder.train --data data --output DIR.

Positives are a question in any language and its gold SQL in canonical form. Half of the batches
mix everything; the other half come from one database each, where all SQLs share tables and
columns and only the meaning tells them apart. A tenth of the SQL texts is held out: it calibrates
the encoder and says how well it retrieves SQL that it never saw.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from encoder.calibration import candidate_cosines, fit_calibration, retrieval_report
from encoder.loss import info_nce, masked_logits, same_sql
from encoder.model import MAX_LOG_SCALE, ContrastiveEncoder, require_new
from encoder.scratch import small_encoder
from sqlenv import LANGUAGES, load_dataset
from sqlenv.errors import UserError
from sqlenv.sql import canonical_sql

CANDIDATES = 32  # SQLs of one database that held-out questions choose from


@dataclass(frozen=True)
class TrainingPair:
    """A question and its gold SQL in canonical form."""

    question: str
    sql: str
    lang: str
    db_id: str


def load_pairs(data: str, langs: list[str]) -> list[TrainingPair]:
    """All pairs of the train split. Raises UserError if a language or a file is not there."""
    return [TrainingPair(example.question, canonical_sql(example.gold_sql), lang, example.db_id)
            for lang in langs for example in load_dataset(data, lang, "train")]


def split_by_sql(pairs: list[TrainingPair], share: float,
                 seed: int) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training and held-out pairs: all questions of a SQL text, in all languages, go together.

    Only SQL of a database that has several is held out, as there must be a wrong one to compare
    with. Raises UserError if that leaves nothing to train on or to hold out.
    """
    databases = {db_id: sqls for db_id, sqls in sqls_by_database(pairs).items() if len(sqls) > 1}
    sqls = sorted({sql for texts in databases.values() for sql in texts})
    held_out = set(random.Random(seed).sample(sqls, round(share * len(sqls))))
    known = [pair for pair in pairs if pair.sql not in held_out]
    if not held_out or not known:
        raise UserError(f"{len(sqls)} different SQL texts in the train split are too few to train "
                        "and calibrate an encoder")
    return known, [pair for pair in pairs if pair.sql in held_out and pair.db_id in databases]


def sqls_by_database(pairs: list[TrainingPair]) -> dict[str, list[str]]:
    """The distinct SQL texts of each database, in the order of `pairs`."""
    found: dict[str, dict[str, None]] = {}
    for pair in pairs:
        found.setdefault(pair.db_id, {})[pair.sql] = None
    return {db_id: list(sqls) for db_id, sqls in found.items()}


def epoch_batches(pairs: list[TrainingPair], size: int,
                  rng: random.Random) -> list[list[TrainingPair]]:
    """Every pair once, in batches of `size`: half mixed, half of one database.

    A database with fewer than `size` pairs left shares its batch with the next one.
    """
    pairs = rng.sample(pairs, len(pairs))
    mixed, grouped = pairs[: len(pairs) // 2], pairs[len(pairs) // 2 :]
    rank = {db_id: rng.random() for db_id in sorted({pair.db_id for pair in pairs})}
    grouped.sort(key=lambda pair: rank[pair.db_id])  # stable: stays shuffled within a database
    batches = [part[start : start + size] for part in (mixed, grouped)
               for start in range(0, len(part), size)]
    rng.shuffle(batches)
    return batches


def train(encoder: ContrastiveEncoder, pairs: list[TrainingPair], steps: int, batch_size: int,
          lr: float, seed: int) -> Iterator[tuple[float, float]]:
    """Trains in place for `steps` batches; yields (loss, in-batch accuracy) after each.

    AdamW, 5 % linear warm-up, then cosine decay to 0, gradient norm clipped at 1. The accuracy is
    the share of questions whose own SQL is the closest of the batch.
    """
    decayed = [p for p in encoder.parameters() if p.ndim >= 2]
    others = [p for p in encoder.parameters() if p.ndim < 2]  # biases, norms, temperature
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01},
                                   {"params": others, "weight_decay": 0.0}], lr=lr)
    warmup = max(1, round(0.05 * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(
        (step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps)))
    rng, batches = random.Random(seed), []
    encoder.train()
    for _ in range(steps):
        batches = batches or epoch_batches(pairs, batch_size, rng)
        batch = batches.pop()
        questions = encoder.encode([pair.question for pair in batch], "query")  # (B, D)
        sqls = encoder.encode([pair.sql for pair in batch], "sql")  # (B, D)
        positives = same_sql([pair.sql for pair in batch], questions.device)  # (B, B)
        loss = info_nce(questions, sqls, encoder.scale, positives)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        encoder.log_scale.data.clamp_(0.0, MAX_LOG_SCALE)
        closest = masked_logits(questions, sqls, encoder.scale, positives).argmax(dim=1)  # (B,)
        own = torch.arange(len(batch), device=closest.device)
        yield loss.item(), (closest == own).float().mean().item()
    encoder.eval()


def calibrate(encoder: ContrastiveEncoder, held_out: list[TrainingPair],
              sqls: dict[str, list[str]], seed: int) -> dict[str, dict[str, float]]:
    """Sets `encoder.calibration` from held-out pairs; returns their `retrieval_report`."""
    cosines = candidate_cosines(encoder, held_out, sqls, CANDIDATES, seed)  # (N, 32)
    encoder.calibration = fit_calibration(cosines[:, 0], cosines[:, 1])
    return retrieval_report(cosines, [pair.lang for pair in held_out])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m encoder.train", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="dataset directory (default: data)")
    parser.add_argument("--lang", default="all", help="all, or a comma list such as en,vi")
    parser.add_argument("--base", help="Hugging Face encoder, directory or name on the Hub, such "
                        "as FacebookAI/xlm-roberta-base (default: a small one from scratch)")
    parser.add_argument("--output", required=True, help="new directory for the encoder")
    parser.add_argument("--dim", type=int, default=128, help="embedding size (default: 128)")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the data (default: 4)")
    parser.add_argument("--steps", type=int, help="batches to train for, instead of --epochs")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs (default: 128)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 1e-3 from scratch, "
                        "5e-5 with --base)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Loads, trains, calibrates, reports and saves. Raises UserError."""
    started = time.monotonic()
    require_new(Path(args.output))
    torch.manual_seed(args.seed)
    langs = list(LANGUAGES) if args.lang == "all" else args.lang.split(",")
    pairs = load_pairs(args.data, langs)
    known, held_out = split_by_sql(pairs, 0.1, args.seed)
    if args.base:
        encoder = ContrastiveEncoder.load(args.base, args.dim)
    else:
        encoder = small_encoder((t for pair in known for t in (pair.question, pair.sql)), args.dim)
    encoder.to(args.device)
    steps = args.steps or args.epochs * len(epoch_batches(known, args.batch_size, random.Random()))
    lr = args.lr or (5e-5 if args.base else 1e-3)
    print(f"{len(known)} pairs to train on, {len(held_out)} held out, {steps} steps", flush=True)
    with tqdm(train(encoder, known, steps, args.batch_size, lr, args.seed), total=steps) as bar:
        for loss, accuracy in bar:
            bar.set_postfix(loss=f"{loss:.3f}", accuracy=f"{accuracy:.2f}")
    report = calibrate(encoder, held_out, sqls_by_database(pairs), args.seed)
    encoder.save(args.output, dtype=torch.float16)
    seconds = round(time.monotonic() - started, 1)
    summary = {"arguments": vars(args), "held_out": report, "seconds": seconds}
    (Path(args.output) / "training.json").write_text(json.dumps(summary, indent=2) + "\n")
    for lang, row in report.items():
        print(f"{lang:4} recall@1 of {CANDIDATES}: {row['recall@1']:.3f}  "
              f"above another SQL: {row['pair']:.3f}  n = {row['n']}")
    print(f"{encoder.calibration}\nsaved to {args.output} in {seconds:.0f} s")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a one-line error."""
    try:
        run(parse_arguments(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
