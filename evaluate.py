"""Measures a policy, a trained run, or anyone's predictions on dev questions.

python evaluate.py --run runs/vi-1
python evaluate.py --model DIR --lang all --data ROOT --split dev --json out.json
python evaluate.py --predictions FILE --data ROOT
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch

from encoder import ContrastiveEncoder
from grpo.checkpoint import load_adapter, write_file, write_json
from grpo.config import ASSETS, Config
from grpo.evaluation import (
    Prediction,
    evaluate_policy,
    failed_gold,
    prediction_rows,
    score,
    summarize,
)
from grpo.lora import lora_folded
from grpo.models import Policy, load_policy
from grpo.report import report_table
from grpo.rewards import Judge
from sqlenv import EMBEDDED, Example, Sandbox, UserError, database_path, read_dataset
from train import chosen_languages


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--run", help="folder that train.py wrote: its model, adapter, data and languages"
    )
    source.add_argument("--model", help="Hugging Face model directory or hub id")
    source.add_argument(
        "--predictions", help="JSON lines with db_id, question, lang, gold, predicted"
    )
    parser.add_argument("--adapter", help="adapter folder for --model")
    parser.add_argument(
        "--encoder",
        default=str(ASSETS / "encoder"),
        help="contrastive encoder directory (%(default)s)",
    )
    parser.add_argument("--lang", help="languages: a comma list, or all (the run's; otherwise all)")
    parser.add_argument("--data", help="dataset root (the run's; otherwise the embedded one)")
    parser.add_argument("--split", default="dev", choices=["train", "dev"])
    parser.add_argument("--limit", type=int, default=0, help="questions a language, 0 for all")
    parser.add_argument(
        "--max-new-tokens", type=int, default=0, help="longest answer (the run's; otherwise 96)"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"]
    )
    parser.add_argument("--json", help="write the report here")
    parser.add_argument(
        "--save-predictions", help="write the predictions here, as --predictions reads them"
    )
    arguments = parser.parse_args(argv)
    if arguments.adapter and not arguments.model:
        parser.error("--adapter goes with --model")
    return arguments


def complete(arguments: argparse.Namespace) -> None:
    """Fills what the command line leaves open, from the run's config.json if there is a run."""
    saved = {}
    if arguments.run:
        path = Path(arguments.run) / "config.json"
        if not path.is_file():
            raise UserError(
                f"--run {arguments.run}: {path} does not exist; give the folder that train.py wrote"
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        arguments.model, arguments.adapter = saved["model"], str(Path(arguments.run) / "adapter")
    arguments.lang = arguments.lang or saved.get("lang", "all")
    arguments.data = arguments.data or saved.get("data", str(EMBEDDED))
    arguments.max_new_tokens = arguments.max_new_tokens or saved.get(
        "max_new_tokens", Config.max_new_tokens
    )
    if arguments.device == "auto":
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"


def load_questions(arguments: argparse.Namespace) -> tuple[list[Example], Counter]:
    """Questions of every language, and how many were skipped for each missing database, with a
    line to say so.
    """
    examples, skipped = [], Counter()
    for lang in chosen_languages(arguments.lang):
        found, missing = read_dataset(arguments.data, lang, arguments.split)
        if missing:
            names = ", ".join(f"{db} ({count})" for db, count in sorted(missing.items()))
            print(f"{lang}: skipped {missing.total()} questions whose database is missing: {names}")
        skipped.update(missing)
        examples += found[: arguments.limit or None]
    return examples, skipped


def read_predictions(path: Path, data: str) -> tuple[list[Example], list[str]]:
    """Examples and predicted SQL of a predictions file.

    Raises:
        UserError: the file is missing, a line is no JSON object or lacks a field, or its database
        is missing.
    """
    if not path.is_file():
        raise UserError(f"--predictions {path}: no such file")
    examples, predicted = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            fields = [row[name] for name in ("question", "lang", "db_id", "gold")]
            predicted.append(row["predicted"] or "")
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from error
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: needs db_id, question, lang, gold and predicted"
            ) from error
        db_path = database_path(data, fields[2])
        if not db_path.is_file():
            raise UserError(f"{path}, line {number}: no database {fields[2]!r} at {db_path}")
        examples.append(Example(*fields, db_path))
    return examples, predicted


def answer(
    arguments: argparse.Namespace, policy: Policy, judge: Judge, encoder
) -> tuple[list[Prediction], Counter]:
    """Lets the policy answer the questions of --data."""
    examples, skipped = load_questions(arguments)
    if arguments.adapter:
        load_adapter(policy.model, Path(arguments.adapter))
    with lora_folded(policy.model):
        return evaluate_policy(
            policy, judge, encoder, examples, arguments.max_new_tokens, "answers"
        ), skipped


def average(report: dict) -> dict:
    """The mean over languages of each metric; its interval is the mean of theirs, which is exact if
    the languages rise and fall together, as parallel questions tend to, and else too wide."""
    means = {}
    for metric in next(iter(report.values())):
        values = [row[metric] for row in report.values() if row[metric]["n"]]
        means[metric] = {"value": None, "low": None, "high": None, "n": sum(v["n"] for v in values)}
        for key in ("value", "low", "high") if values else ():
            means[metric][key] = sum(value[key] for value in values) / len(values)
    return means


def run(arguments: argparse.Namespace) -> int:
    complete(arguments)
    encoder = ContrastiveEncoder.load(arguments.encoder).to(arguments.device)
    with Sandbox() as sandbox:
        judge = Judge(sandbox)
        if arguments.predictions:
            predictions, skipped = (
                score(
                    judge, encoder, *read_predictions(Path(arguments.predictions), arguments.data)
                ),
                Counter(),
            )
        else:
            policy = load_policy(arguments.model, arguments.device, arguments.dtype)
            predictions, skipped = answer(arguments, policy, judge, encoder)
    if not predictions:
        raise UserError("there is no question to measure on")
    report = summarize(predictions)
    report["average"] = average(report)
    print(report_table(report))
    for lang, count in failed_gold(predictions).items():
        print(f"{lang}: left out {count} questions whose gold query fails")
    if arguments.json:
        write_json(
            Path(arguments.json),
            {**report, "skipped": skipped, "failed_gold": failed_gold(predictions)},
        )
        print(f"wrote {arguments.json}")
    if arguments.save_predictions:
        lines = "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in prediction_rows(predictions)
        )
        write_file(
            Path(arguments.save_predictions), lambda path: path.write_text(lines, encoding="utf-8")
        )
    return 0


def main(argv: list[str] | None = None) -> int:
    try:
        return run(parse_arguments(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
