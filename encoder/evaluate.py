"""Measures an encoder on questions with gold SQL, best of databases that it was not trained on.

python -m encoder.evaluate --databases museum,railway,restaurants,zoo
python -m encoder.evaluate --encoder DIR --data ROOT --lang en,vi --json FILE --plot FILE.png
python -m encoder.evaluate --samples FILE     # real answers, from evaluate.py --save-predictions

For each language: how often gold scores above its near misses of each kind, above other SQL of its
database, and above what is made to please the encoder; whether a question finds its SQL and its
English translation; whether the calibrated score is the share that is right; and whether cosines
tell right from wrong answers of a real model. All with 95 % bootstrap intervals.
"""

import argparse
import random
import sys
from pathlib import Path

import numpy as np
import torch

from encoder.attacks import ATTACKS, TRAINED, Target
from encoder.calibration import Calibration
from encoder.evaluation.report import check_writable, plot, text_of
from encoder.evaluation.retrieval import (
    Embeddings,
    Question,
    choose_questions,
    english_metrics,
    english_questions,
    near_miss_metrics,
    retrieval_metrics,
    spread,
    summarize,
)
from encoder.evaluation.samples import auc_report, read_samples
from encoder.model import ContrastiveEncoder
from encoder.negatives import draw_negatives
from encoder.pairs import Entry, load_entries
from encoder.text import sql_text
from sqlenv import EMBEDDED, LANGUAGES, UserError, share
from sqlenv.errors import exit_code
from sqlenv.files import write_json
from sqlenv.metrics.bootstrap import resampled_means, summary

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "encoder"
ATTACKED = 200  # questions that the attacks are tried on
BINS = 10


def draw_wrong(question: Question, near: bool, rng: random.Random) -> str | None:
    """A near miss or another SQL of the database; the other of them if there is none; or None."""
    misses = draw_negatives(question.near_misses, 1, rng)
    if misses and (near or not question.others):
        return misses[0].sql
    return rng.choice(question.others) if question.others else None


def calibration_report(
    questions: list[Question], embeddings: Embeddings, calibration: Calibration, seed: int
) -> dict:
    """Whether SQL that scores p is right in a share p of cases, right and wrong being as many.

    {"bins": [{"low", "high": of the scores, "score": their mean, "right": share}, ...],
     "ece": {lang or "all": expected calibration error, the sum over bins of |sum of (right -
     score)|, divided by the number of all}}. The wrong ones are near misses and other SQL of the
    database in turn. The ECE's interval tends to lie high, as resampling adds noise to each bin.

    Scores of 0.92 and 0.72 for right SQL and 0.78 and 0.22 for wrong give an ECE of
    (|0.08| + |0.28 - 0.78| + |-0.22|) / 4 = 0.2.
    """
    rng, rows = random.Random(seed), []
    for number, question in enumerate(questions):
        wrong = draw_wrong(question, number % 2 == 0, rng)
        if wrong is not None:
            cosines = embeddings.cosines(question.text, [question.gold, wrong])
            for score, right in zip(calibration.score(cosines).tolist(), (1.0, 0.0)):
                rows.append((score, right, question.lang, question.cluster))
    if not rows:
        return {"bins": [], "ece": {}}
    scores, right, langs, clusters = zip(*rows)
    scores, right, langs = np.array(scores), np.array(right), np.array(langs)
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    gaps = np.zeros((len(rows), BINS))
    gaps[np.arange(len(rows)), bins] = right - scores
    ece = {
        name: summary(
            float(np.abs(gaps[of].mean(axis=0)).sum()), np.abs(drawn).sum(1), int(of.sum())
        )
        for groups in (langs, np.full(len(rows), "all"))
        for name, drawn in resampled_means(gaps, groups.tolist(), clusters, seed).items()
        for of in [groups == name]
    }
    observed = {
        number: {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "score": float(scores[of].mean()),
            "right": summary(float(right[of].mean()), drawn[:, 0], int(of.sum())),
        }
        for number, drawn in resampled_means(right[:, None], bins.tolist(), clusters, seed).items()
        for of in [bins == number]
    }
    return {"bins": [observed[number] for number in sorted(observed)], "ece": ece}


def attack_texts(
    questions: list[Question], with_schema: bool, seed: int
) -> list[tuple[Question, dict[str, str]]]:
    """The attacks on each question, as the encoder reads them, by name. The attacker's other
    question is a translation of the question if there is one, or else one on anything.
    """
    attacked = []
    for question in questions:
        entry = question.entry
        rng = random.Random(f"{seed} {question.lang} {question.text}")
        translations = [text for lang, text in entry.questions if lang != question.lang]
        other = rng.choice(translations or [one.text for one in questions])
        texts = {}
        for name, attack in ATTACKS.items():
            sql = attack(Target(question.text, other, entry.gold, entry.schema, rng))
            texts[name] = sql_text(sql, entry.schema if with_schema else None)
        attacked.append((question, texts))
    return attacked


def gaming_report(
    attacked: list[tuple[Question, dict[str, str]]], embeddings: Embeddings, seed: int
) -> dict:
    """{"attacks": {name: share of questions where it scores above gold, and "trained", whether
    encoders are trained against it}, "none_above": share of questions where no attack does,
    "none_held_out_above": where none does that training does not show}
    """
    above = []
    for question, texts in attacked:
        gold, *rivals = embeddings.cosines(question.text, [question.gold, *texts.values()]).tolist()
        above.append({name for name, rival in zip(texts, rivals) if rival > gold})
    return {
        "attacks": {
            name: {**share([name in one for one in above], seed), "trained": name in TRAINED}
            for name in ATTACKS
        },
        "none_above": share([not one for one in above], seed),
        "none_held_out_above": share([not one - set(TRAINED) for one in above], seed),
    }


def chosen_entries(data: str, langs: list[str], split: str, databases: list[str]) -> list[Entry]:
    """The dataset's SQLs with their questions. Raises UserError if a database is not among them."""
    entries = load_entries(data, langs, [split])
    present = sorted({entry.db_id for entry in entries})
    for name in databases:
        if name not in present:
            raise UserError(
                f"--databases {name}: the {split} split of {data} has {', '.join(present)}"
            )
    return [entry for entry in entries if not databases or entry.db_id in databases]


def embed_all(encoder, questions, english, attacked, samples) -> Embeddings:
    """All texts that are to be compared."""
    texts = [one.text for one in questions] + [one.question for one in samples]
    texts += [text for found in english.values() for text in found]
    sqls = [sql for one in questions for sql in (one.gold, *one.others)]
    sqls += [miss.sql for one in questions for miss in one.near_misses]
    sqls += [sql for _, attacks in attacked for sql in attacks.values()]
    return Embeddings(encoder, texts, sqls + [one.sql for one in samples])


def measure(encoder, args: argparse.Namespace) -> dict:
    """The report: report[lang or "average"][metric], and "calibration", "gaming" and "auc", where
    there is a calibration and a file of samples. Raises UserError.
    """
    langs = list(LANGUAGES) if args.lang == "all" else list(dict.fromkeys(args.lang.split(",")))
    databases = args.databases.split(",") if args.databases else []
    entries = chosen_entries(args.data, langs, args.split, databases)
    samples = []
    if args.samples:
        samples = read_samples(args.samples, args.data, langs, databases, encoder.with_schema)
    questions = choose_questions(entries, langs, args.limit, encoder.with_schema)
    attacked = attack_texts(spread(questions, ATTACKED), encoder.with_schema, args.seed)
    english = english_questions(entries)
    embeddings = embed_all(encoder, questions, english, attacked, samples)
    metrics = [
        near_miss_metrics(one, embeddings)
        | retrieval_metrics(one, embeddings)
        | english_metrics(one, english, embeddings)
        | {"gold_too_long": float(embeddings.is_too_long(one.gold))}
        for one in questions
    ]
    report = summarize(questions, metrics, args.seed)
    if encoder.calibration:
        report["calibration"] = calibration_report(
            questions, embeddings, encoder.calibration, args.seed
        )
    report["gaming"] = gaming_report(attacked, embeddings, args.seed)
    if samples:
        report["auc"] = auc_report(samples, embeddings, args.seed)
    return report


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m encoder.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--encoder", default=str(SHIPPED), help="directory or hub id (%(default)s)")
    add("--data", default=str(EMBEDDED), help="dataset root (%(default)s)")
    add("--lang", default="all", help="all, or a comma list such as en,vi")
    add("--split", default="dev", help="train, dev, sft or encoder (%(default)s)")
    add("--databases", help="a comma list, such as those left out of training (all)")
    add("--limit", type=int, default=0, help="questions a language, evenly spread, 0 for all")
    add("--samples", help="also judge these answers, written by evaluate.py --save-predictions")
    add("--json", help="write the report here")
    add("--plot", help="draw the shares and the calibration curve here, a PNG file")
    add("--seed", type=int, default=0, help="of the rivals that are drawn, and of the bootstrap")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    if args.limit < 0:
        parser.error("--limit must be from 0 up")
    return args


def run(args: argparse.Namespace) -> None:
    """Loads, measures, prints and writes. Raises UserError."""
    check_writable({"--json": args.json, "--plot": args.plot})
    encoder = ContrastiveEncoder.load(args.encoder)
    try:
        encoder.to(args.device)
    except (RuntimeError, AssertionError) as error:  # torch's, for one that is not there
        raise UserError(f"--device {args.device} cannot be used: {error}") from error
    report = measure(encoder, args)
    print(text_of(report))
    if args.json:
        write_json(Path(args.json), {"arguments": vars(args), **report})
    if args.plot:
        plot(Path(args.plot), report)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 0, or 2 after a one-line error."""
    return exit_code(lambda: run(parse_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
