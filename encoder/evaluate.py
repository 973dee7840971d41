"""Measures an encoder on questions with gold SQL, best on databases that it was not trained on.

python -m encoder.evaluate --databases museum,railway,restaurants,zoo
python -m encoder.evaluate --encoder DIR --data ROOT --lang en,vi --json FILE --plot FILE.png
python -m encoder.evaluate --samples FILE     # a model's answers: evaluate.py --save-predictions

For each language: how often gold scores above its hard negatives of each kind, above other SQL of
its database and above attacks on the encoder; whether a question retrieves its SQL and its English
translation; whether the calibrated score is the share of SQL that is right; and whether cosines
separate right from wrong answers of a real model. All with 95 % bootstrap intervals.
"""

import argparse
import fnmatch
import sys
from pathlib import Path

from encoder.batches import Entry, load_entries
from encoder.device import check_device, resolve_device
from encoder.evaluation.calibration import calibration_report
from encoder.evaluation.gaming import attack_texts, gaming_report
from encoder.evaluation.report import plot, text_of
from encoder.evaluation.retrieval import (
    Embeddings,
    Question,
    choose_questions,
    english_metrics,
    english_questions,
    hard_negative_metrics,
    retrieval_metrics,
    summarize,
)
from encoder.evaluation.samples import Sample, auc_report, read_samples
from encoder.model import ContrastiveEncoder
from sqlenv import EMBEDDED, Dataset, UserError, chosen_languages, open_dataset
from sqlenv.dataset import spread
from sqlenv.errors import exit_code
from sqlenv.files import write_json
from sqlenv.options import COUNT_OR_ZERO, SEED, OptionParser, add_data_options, check_writable

SHIPPED = Path(__file__).resolve().parents[1] / "assets" / "encoder"
ATTACKED = 200  # questions that are attacked


def chosen_entries(
    dataset: Dataset, *, langs: list[str], split: str, databases: list[str]
) -> list[Entry]:
    """The entries of a split on the databases that these patterns name, or on all if there is none.

    Raises:
        UserError: the split has no such database, or no SQL.
    """
    entries = load_entries(dataset, langs=langs, splits=[split])
    if not entries:
        raise UserError(f"the {split} split of {dataset.root} has no SQL to measure on")
    names = sorted({entry.db_id for entry in entries})
    chosen = set()
    for pattern in databases or ["*"]:
        matching = fnmatch.filter(names, pattern)
        if not matching:
            raise UserError(
                f"--databases {pattern}: the {split} split of {dataset.root} has {', '.join(names)}"
            )
        chosen.update(matching)
    return [entry for entry in entries if entry.db_id in chosen]


def embed_all(
    encoder: ContrastiveEncoder,
    questions: list[Question],
    english: dict[str, dict[str, set[str]]],
    attacked: list[tuple[Question, dict[str, str]]],
    samples: list[Sample],
) -> Embeddings:
    """Embeds all texts that are to be compared."""
    texts = [question.text for question in questions] + [sample.question for sample in samples]
    texts += [text for golds_of in english.values() for text in golds_of]
    sqls = [sql for question in questions for sql in (question.gold, *question.others)]
    sqls += [negative.sql for question in questions for negative in question.hard_negatives]
    sqls += [sql for _, attacks in attacked for sql in attacks.values()]
    return Embeddings(encoder, texts, sqls + [sample.sql for sample in samples])


def measure(encoder: ContrastiveEncoder, args: argparse.Namespace) -> dict:
    """Makes the report.

    Returns:
        report[lang or "average"][metric] as in `summarize`, and "gaming". "calibration" and "auc"
        are added if the encoder is calibrated and if there are samples.
    Raises:
        UserError: the data, the samples or the options cannot be used.
    """
    dataset = open_dataset(args.data, args.questions, need_gold=False)
    langs = chosen_languages(dataset, args.lang, [args.split])
    patterns = args.databases.split(",") if args.databases else []
    entries = chosen_entries(dataset, langs=langs, split=args.split, databases=patterns)
    databases = sorted({entry.db_id for entry in entries}) if patterns else []
    with_schema, samples = encoder.with_schema, []
    if args.samples:
        samples = read_samples(
            args.samples, dataset, langs=langs, databases=databases, with_schema=with_schema
        )
    questions = choose_questions(entries, langs, limit=args.limit, with_schema=with_schema)
    attacked = attack_texts(spread(questions, ATTACKED), with_schema=with_schema, seed=args.seed)
    english = english_questions(entries)
    embeddings = embed_all(encoder, questions, english, attacked, samples)
    metrics = [
        hard_negative_metrics(question, embeddings)
        | retrieval_metrics(question, embeddings)
        | english_metrics(question, english, embeddings)
        | {"gold_too_long": float(embeddings.is_too_long(question.gold))}
        for question in questions
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
    parser = OptionParser(__doc__, prog="python -m encoder.evaluate")
    add = parser.add_argument
    add("--encoder", default=str(SHIPPED), help="directory or hub id (%(default)s)")
    add_data_options(parser, str(EMBEDDED), "%(default)s")
    add("--lang", default="all", help="all, or a comma list such as en,vi")
    add("--split", default="dev", help="train, dev, sft or encoder (%(default)s)")
    add("--databases", help="a comma list of names or patterns, such as museum,dev_* (all)")
    add(
        "--limit",
        type=COUNT_OR_ZERO,
        default=0,
        help="questions per language, evenly spread, 0 for all",
    )
    add("--samples", help="a model's answers, written by evaluate.py --save-predictions")
    add("--json", help="write the report here")
    add("--plot", help="draw the shares and the calibration curve here, a PNG file")
    add("--seed", type=SEED, default=0, help="of the wrong SQL that is drawn, and of the bootstrap")
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> None:
    """Loads, measures, prints and writes. Raises UserError."""
    for option, path in {"--json": args.json, "--plot": args.plot}.items():
        if path:
            check_writable(option, path)
    check_device(args.device)
    encoder = ContrastiveEncoder.load(args.encoder).to(args.device)
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
