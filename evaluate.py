"""Evaluates a policy, a run of train.py, or a predictions file on questions with gold SQL, or
compares two of them.

python evaluate.py --run runs/vi-1
python evaluate.py --model DIR --lang all --data ROOT --split dev --json out.json
python evaluate.py --predictions FILE --data ROOT
python evaluate.py --compare runs/vi-1 FILE
"""

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from encoder import ContrastiveEncoder, SemanticReward
from encoder.device import check_device, resolve_device
from encoder.gold_check import check_on_gold
from grpo.checkpoint import adapter_files, load_adapter
from grpo.command_line import add_prompt_options, prompt_settings
from grpo.config import (
    ASSETS,
    SQL_TIMEOUT,
    Config,
    read_settings,
)
from grpo.evaluation import report as report_files
from grpo.evaluation.analysis import check_same_questions, compare, full_report
from grpo.evaluation.measure import (
    Prediction,
    evaluate_policy,
    load_suites,
    prediction_lines,
    score,
)
from grpo.lora import lora_merged
from grpo.models import load_policy, read_tokenizer
from grpo.prompt import DEFAULTS, PromptSettings, check_context, saved_prompt
from sqlenv import (
    EMBEDDED,
    Dataset,
    Example,
    ExecutionVerifier,
    Sandbox,
    UserError,
    chosen_languages,
    open_dataset,
)
from sqlenv.dataset import parse_languages, spread
from sqlenv.errors import exit_code
from sqlenv.files import write_json, write_text
from sqlenv.metrics.predictions import (
    is_official,
    lines_for,
    read_official,
    read_predictions,
    repeated_lines,
    without_prediction,
)
from sqlenv.metrics.tables import text_table
from sqlenv.options import (
    COUNT,
    COUNT_OR_ZERO,
    OptionParser,
    Range,
    add_data_options,
    check_writable,
)

# What train.py writes (grpo/run.py).
RUN_FILES = """
    config.json questions.json metrics.jsonl rollouts.jsonl checkpoint adapter best_adapter
    last_adapter before.jsonl after.jsonl summary.json curves.png report.html""".split()
OUTPUTS = ("json", "csv", "markdown", "save_predictions")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(__doc__)
    add_sources(parser)
    add = parser.add_argument
    add("--adapter", help="adapter folder for --model")
    add("--encoder", help=f"contrastive encoder (the run's; otherwise {ASSETS / 'encoder'})")
    add("--lang", help="languages: a comma list, or all (the run's or file's; otherwise all)")
    add_data_options(parser, None, "the run's; otherwise the embedded one")
    add(
        "--split",
        choices=["train", "dev"],
        help="questions to answer (dev); a predictions file must answer each of them if this is "
        "given, and may hold any questions if not",
    )
    add(
        "--test-suite",
        action="store_true",
        help="also measure TS, on variants of the databases that are built and kept on first use",
    )
    add(
        "--limit",
        type=COUNT_OR_ZERO,
        help="questions a language, evenly spread, 0 for all (the run's --dev-limit on its dev "
        "split; otherwise all)",
    )
    add("--max-new-tokens", type=COUNT, help="longest answer (the run's; otherwise 96)")
    add(
        "--vote",
        type=Range(int, 2),
        default=0,
        metavar="N",
        help="answer by the SQL whose result most of N samples return (greedy SQL)",
    )
    prompt = parser.add_argument_group(
        "prompt", "the run's, or those that a model was trained with here; otherwise the defaults"
    )
    add_prompt_options(prompt)
    add(
        "--sql-timeout",
        type=SQL_TIMEOUT,
        help="seconds of CPU time for each query, gold's and the predicted one (the run's; "
        f"otherwise {Config.sql_timeout:g}; with --compare the longer one of two runs)",
    )
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the weights (the run's; otherwise auto, what is fast here)",
    )
    add_outputs(parser)
    return checked(parser, parser.parse_args(argv))


def add_sources(parser: OptionParser) -> None:
    """What is measured: one of these."""
    source = parser.add_mutually_exclusive_group(required=True)
    add = source.add_argument
    add("--run", help="folder that train.py wrote: its model, adapter, data and languages")
    add("--model", help="Hugging Face model directory or hub id")
    add(
        "--predictions",
        help="JSON lines with db_id, question, lang, gold, predicted; or SQL in the form of Spider "
        "(*.sql, *.txt) or BIRD (JSON)",
    )
    add(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two runs or predictions files on the same questions: what B gains over A",
    )


def add_outputs(parser: OptionParser) -> None:
    """The files that the measurements are written to."""
    add = parser.add_argument
    add("--json", help="write the report here, with examples of errors")
    add("--csv", help="write every number here, one a line")
    add("--markdown", help="write the tables here, with examples of errors")
    add("--save-predictions", help="write the predictions here, as --predictions reads them")


def checked(parser: OptionParser, arguments: argparse.Namespace) -> argparse.Namespace:
    """Refuses options that do not go together."""
    if arguments.adapter and not arguments.model:
        parser.error("--adapter goes with --model")
    if arguments.save_predictions and arguments.compare:
        parser.error("--save-predictions goes with one source, not with --compare")
    given = PromptSettings.of(vars(arguments)) != DEFAULTS
    models = not arguments.predictions if not arguments.compare else has_run(arguments.compare)
    if not models and (arguments.vote or given):
        parser.error("--vote and the prompt's options go with a model, not with predictions")
    if arguments.compare and len(set(arguments.compare)) == 1:
        parser.error("--compare needs two different runs or files")
    return arguments


def has_run(names: list[str]) -> bool:
    return any(Path(name).is_dir() for name in names)


def check_outputs(arguments: argparse.Namespace, systems: list[argparse.Namespace]) -> None:
    """Refuses what could not be written, or would overwrite what is read or another output, before
    there is anything to lose. A report of an earlier time in a run's folder may be overwritten.
    """
    names, written = ("data", "questions", "predictions", "run"), {}
    paths = [(name, getattr(system, name)) for system in systems for name in names]
    read = [(f"--{name}", Path(path).resolve()) for name, path in paths if path]
    for name in OUTPUTS:
        if path := getattr(arguments, name):
            option, real = f"--{name.replace('_', '-')}", Path(path).resolve()
            check_writable(option, path)
            if real in written:
                raise UserError(f"{option} {path}: {written[real]} names this file, too")
            written[real] = option
            for source, place in read:
                if real.exists() and place in (real, *real.parents):
                    inside = real.relative_to(place).parts
                    if source != "--run" or inside[0] in RUN_FILES:
                        raise UserError(f"{option} {path}: would overwrite what {source} names")


def with_run(arguments: argparse.Namespace) -> argparse.Namespace:
    """Fills what the command line leaves open from the run's config.json, if there is a run."""
    filled, saved = argparse.Namespace(**vars(arguments)), {}
    if filled.run:
        saved = read_settings("--run", Path(filled.run))
        filled.model, filled.adapter = saved["model"], str(Path(filled.run) / "adapter")
    elif filled.model:
        saved = saved_prompt(filled.model)
    filled.prompts = prompt_settings(arguments, saved)
    filled.temperature = saved.get("temperature", Config.temperature)
    if not filled.data:
        filled.data = saved.get("data", str(EMBEDDED))
        filled.questions = filled.questions or saved.get("questions")
    filled.encoder = filled.encoder or saved.get("encoder")
    filled.lang = filled.lang or saved.get("lang")
    filled.dtype = filled.dtype or saved.get("dtype", Config.dtype)
    if filled.limit is None:
        own = not arguments.data and filled.split != "train"  # the run's own dev questions
        filled.limit = saved.get("dev_limit", 0) if own else 0
    filled.max_new_tokens = filled.max_new_tokens or saved.get(
        "max_new_tokens", Config.max_new_tokens
    )
    if filled.sql_timeout is None:
        filled.sql_timeout = saved.get("sql_timeout", Config.sql_timeout)
    return filled


def with_data_of_run(systems: list[argparse.Namespace]) -> list[argparse.Namespace]:
    """A file that is compared with a run answers the questions of the run."""
    runs = [vars(system) for system in systems if system.run]
    names = ("data", "questions", "lang", "limit") if runs else ()
    return [
        argparse.Namespace(**vars(system) | {name: runs[0][name] for name in names})
        if system.predictions
        else system
        for system in systems
    ]


def one_encoder(systems: list[argparse.Namespace]) -> str:
    """The encoder of all systems; the shipped one if no run has any.

    Raises:
        UserError: two runs have different ones.
    """
    paths = sorted({system.encoder for system in systems if system.encoder})
    if len(paths) > 1:
        raise UserError(f"--compare: one run has --encoder {paths[0]}, one {paths[1]}; name one")
    return paths[0] if paths else str(ASSETS / "encoder")


def load_questions(arguments: argparse.Namespace) -> tuple[list[Example], Counter]:
    """Questions of every language, and how many were skipped for each missing database, with a
    line to say so.
    """
    examples, skipped, split = [], Counter(), arguments.split or "dev"
    dataset = open_dataset(arguments.data, arguments.questions, need_gold=False)
    for lang in chosen_languages(dataset, arguments.lang or "all", [split]):
        questions, missing = dataset.read(lang, split)
        report_missing(lang, missing)
        skipped.update(missing)
        questions = spread(questions, arguments.limit)  # as train.py does: before those without
        examples += [example for example in questions if example.gold_sql]
    if not examples:
        raise UserError(f"--data {arguments.data}: there is no question with SQL to measure on")
    return examples, skipped


def report_missing(lang: str, missing: Counter) -> None:
    """Prints a line if there are questions whose database is missing."""
    if missing:
        names = ", ".join(f"{db} ({count})" for db, count in sorted(missing.items()))
        print(f"{lang}: skipped {missing.total()} questions whose database is missing: {names}")


def load_predictions(
    arguments: argparse.Namespace,
) -> tuple[list[Example], list[str | None], Counter]:
    """The answers of a predictions file, and how many were skipped for each missing database, with
    a line to say so.
    """
    path, langs = arguments.predictions, parse_languages(arguments.lang or "all")
    dataset = open_dataset(arguments.data, arguments.questions, need_gold=False)
    if is_official(path):
        split = arguments.split or "dev"
        langs = chosen_languages(dataset, arguments.lang or "all", [split])
        if len(langs) > 1:
            raise UserError(
                f"{path}: answers questions in one language; give --lang, of {', '.join(langs)}"
            )
        options = {"limit": arguments.limit}
        examples, sqls, absent = read_official(path, dataset, langs[0], split, **options)
    else:
        examples, sqls, absent = read_predictions(path, dataset, langs=langs)
        asked = check_complete(arguments, dataset, examples)
        if arguments.limit:
            kept = lines_for(examples, asked) or spread_lines(examples, arguments.limit)
            examples, sqls = [examples[i] for i in kept], [sqls[i] for i in kept]
    for lang, missing in absent.items():
        report_missing(lang, missing)
    return examples, sqls, sum(absent.values(), Counter())


def spread_lines(examples: list[Example], limit: int) -> list[int]:
    """The indices of at most ``limit`` questions of each language, evenly spread over the file."""
    places = defaultdict(list)
    for i, example in enumerate(examples):
        places[example.lang].append(i)
    return sorted(i for own in places.values() for i in spread(own, limit))


def check_complete(
    arguments: argparse.Namespace, dataset: Dataset, examples: list[Example]
) -> list[Example]:
    """Prints a line if the file that ``examples`` are from lacks some of the dataset's questions.

    Returns:
        The questions asked for, with --limit those that are measured of a model; none if the file
        lacks some.
    Raises:
        UserError: with --split it must have all.
    """
    questions, split = [], arguments.split or "dev"
    langs = parse_languages(arguments.lang or "all") or [example.lang for example in examples]
    for lang in dict.fromkeys(langs):
        try:
            asked = spread(dataset.read(lang, split)[0], arguments.limit)
            questions += [question for question in asked if question.gold_sql]
        except UserError:
            if arguments.split:
                raise  # and without, the databases are enough
    if again := repeated_lines(examples, questions) if not arguments.limit else []:
        first = again[0]
        print(
            f"{arguments.predictions}: {len(again)} lines answer a question again, such as "
            f"{first.question!r} ({first.lang}, {first.db_id}): all count"
        )
    missing = without_prediction(examples, questions)
    if missing and (arguments.split or len(missing) < len(questions)):
        first = missing[0]
        message = (
            f"{arguments.predictions}: {len(missing)} of the {len(questions)} {split} questions of "
            f"{arguments.data} have no line, such as {first.question!r} ({first.lang}, "
            f"{first.db_id})"
        )
        if arguments.split:
            raise UserError(f"{message}; where a system gives no SQL, predicted is null")
        print(f"{message}: they are not counted (with --split {split}, this is an error)")
    return [] if missing else questions


def sources(arguments: argparse.Namespace) -> list[argparse.Namespace]:
    """The arguments for each source: one, or the two of --compare, a folder being a run."""
    if not arguments.compare:
        return [arguments]
    kinds = ["run" if Path(name).is_dir() else "predictions" for name in arguments.compare]
    return [
        argparse.Namespace(**{**vars(arguments), kind: name})
        for kind, name in zip(kinds, arguments.compare)
    ]


def load(
    arguments: argparse.Namespace,
) -> tuple[list[Example], list[str | None] | None, Counter]:
    """The questions of a source, their SQL if it comes from a file, and how many were skipped."""
    if arguments.predictions:
        return load_predictions(arguments)
    examples, skipped = load_questions(arguments)
    return examples, None, skipped


def check_system(arguments: argparse.Namespace, examples: list[Example]) -> None:
    """Refuses a model that lacks its adapter, or whose context is too short for a question, before
    a model is loaded.
    """
    if arguments.adapter:
        adapter_files(Path(arguments.adapter))
    model = read_tokenizer(arguments.model)
    options = {"settings": arguments.prompts, "max_new_tokens": arguments.max_new_tokens}
    check_context(arguments.model, *model, examples, **options)


def measure(
    arguments: argparse.Namespace,
    verifier: ExecutionVerifier,
    semantic: SemanticReward,
    examples: list[Example],
    sqls: list[str | None] | None,
) -> list[Prediction]:
    """The predictions of one source, measured."""
    suites = load_suites(verifier.sandbox, examples) if arguments.test_suite else None
    if sqls is not None:
        return score(verifier, semantic, examples, sqls, suites=suites)
    policy = load_policy(arguments.model, arguments.device, arguments.dtype)
    if arguments.adapter:
        load_adapter(policy.model, Path(arguments.adapter))
    options = {"settings": arguments.prompts, "max_new_tokens": arguments.max_new_tokens}
    options |= {"votes": arguments.vote, "temperature": arguments.temperature}
    options |= {"progress": "answers", "suites": suites}
    with lora_merged(policy.model):
        return evaluate_policy(policy, verifier, semantic, examples, **options)


def show(reports: dict, difference: dict | None) -> None:
    for title, rows in report_files.sections(reports, difference).items():
        print(f"{title}\n\n{text_table(rows)}\n")
    print("shares in percent with 95 % intervals")
    for note in report_files.notes(reports):
        print(note)


def write_outputs(arguments: argparse.Namespace, report: dict, reports: dict) -> None:
    """Writes the report in the forms asked for."""
    texts = {
        "csv": report_files.csv_text(reports, report.get("difference")),
        "markdown": report_files.markdown(reports, report.get("difference")),
    }
    if arguments.json:
        write_json(Path(arguments.json), report)
    for name, text in texts.items():
        if getattr(arguments, name):
            write_text(Path(getattr(arguments, name)), text)
    print(
        "".join(f"wrote {getattr(arguments, n)}\n" for n in OUTPUTS if getattr(arguments, n)),
        end="",
    )


def run(arguments: argparse.Namespace) -> int:
    check_device(arguments.device)
    systems = with_data_of_run([with_run(source) for source in sources(arguments)])
    check_outputs(arguments, systems)
    loaded = [load(system) for system in systems]
    if arguments.compare:
        keys = [
            [(e.lang, e.db_id, e.question, e.gold_sql) for e in examples] for examples, *_ in loaded
        ]
        check_same_questions(keys[0], keys[1], arguments.compare)
    path = one_encoder(systems)
    encoder = ContrastiveEncoder.load(path).to(arguments.device)
    if encoder.calibration is None:
        raise UserError(f"--encoder {path}: not calibrated; see encoder.train")
    semantic = SemanticReward(encoder)
    for system, (examples, sqls, _) in zip(systems, loaded):
        if sqls is None:
            check_system(system, examples)
    # The same for both systems, or a gold query could fail for one of them.
    with Sandbox(timeout=max(system.sql_timeout for system in systems)) as sandbox:
        verifier = ExecutionVerifier(sandbox)
        measured = [
            measure(system, verifier, semantic, examples, sqls)
            for system, (examples, sqls, _) in zip(systems, loaded)
        ]
    if arguments.save_predictions:
        write_text(Path(arguments.save_predictions), prediction_lines(measured[0]))
    if arguments.compare:
        report = compare(measured[0], measured[1], arguments.compare)
        reports = dict(zip(arguments.compare, (report["first"], report["second"])))
    else:
        report = full_report(measured[0])
        reports = {arguments.run or arguments.model or arguments.predictions: report}
    for system_report, (examples, _, skipped) in zip(reports.values(), loaded):
        system_report["skipped"] = skipped
        check = check_on_gold(semantic, examples)
        system_report["semantic_of_gold"] = check and asdict(check)
    show(reports, report.get("difference"))
    write_outputs(arguments, report, reports)
    return 0


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
