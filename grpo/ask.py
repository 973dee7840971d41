"""Asks a run, or any model, about a database: writes SQL for a question, runs it read-only in the
sandbox, and prints SQL and rows.

    python -m grpo.ask runs/shop-1 "How many books are there?"
    python -m grpo.ask runs/shop-1 --db other.sqlite --vote 8 "How many books are there?"
    python -m grpo.ask --model DIR --db shop.sqlite          question after question; Ctrl-D ends
"""

import argparse
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from encoder.device import check_device, resolve_device
from grpo.checkpoint import adapter_files, load_adapter
from grpo.command_line import add_prompt_options, prompt_settings
from grpo.config import Config, read_settings
from grpo.evaluation.vote import SURE, Vote, vote
from grpo.lora import lora_merged
from grpo.models import Policy, load_policy, read_tokenizer
from grpo.prompt import PromptBuilder, check_context, saved_prompt
from grpo.questions import load_questions
from grpo.rollout import constrained_rows
from grpo.sampler import sample_groups
from sqlenv import Example, Sandbox, UserError, extract_sql, format_sql
from sqlenv.errors import exit_code
from sqlenv.files import cache_folder
from sqlenv.metrics.tables import text_table
from sqlenv.options import COUNT, OptionParser, Range
from sqlenv.schema import check_has_table

ROWS, CELL = 50, 60  # rows of a result and characters of a cell that are shown
SHOWN = 300  # characters shown of an answer without SQL
HISTORY = 1000  # questions that are kept
SURROGATE = re.compile("[\ud800-\udfff]")  # in place of what is not UTF-8
LANG = "und"  # BCP 47's tag of a language that is not known


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("run", nargs="?", help="folder that train.py wrote")
    add("question", nargs="?", help="without it, questions are read one after the other")
    add("--model", help="in place of a run: a Hugging Face model directory or hub id")
    add("--db", type=Path, help="SQLite file (the one of the run's data, if it has only one)")
    add(
        "--vote",
        type=Range(int, 2),
        default=0,
        metavar="N",
        help="draw N samples and take the SQL whose result most of them return (greedy SQL)",
    )
    add("--max-new-tokens", type=COUNT, help="longest answer (the run's; otherwise 96)")
    add("--device", type=resolve_device, default="auto", help="auto takes a GPU if there is one")
    add_prompt_options(parser.add_argument_group("prompt", "the run's, or the model's"))
    arguments = parser.parse_intermixed_args(argv)  # RUN --db FILE QUESTION, too
    if arguments.model:  # the only word is the question
        if arguments.question is not None:
            parser.error("give either a run or --model")
        arguments.run, arguments.question = None, arguments.run
    elif not arguments.run:
        parser.error("give a run, or a model by --model")
    if arguments.model and not arguments.db:
        parser.error("--model needs --db, a SQLite file")
    return arguments


@dataclass
class Answer:
    """What a model answers: its completions as text, whether each ended before the limit, and the
    SQL that won of them.
    """

    texts: list[str]
    finished: list[bool]
    vote: Vote


def answer(
    policy: Policy,
    prompts: PromptBuilder,
    sandbox: Sandbox,
    example: Example,
    *,
    max_new_tokens: int,
    votes: int = 0,
    temperature: float = 1.0,
) -> Answer:
    """Answers the question of an example, which needs no gold.

    Args:
        votes: samples that vote; 0: the answer is greedy.
        temperature: of these samples.
    """
    prompt = prompts(example)
    samples = sample_groups(
        policy.model,
        [prompt],
        eos_ids=policy.eos_ids,
        group_size=votes or 1,
        max_new_tokens=max_new_tokens,
        temperature=temperature if votes else 0,
        seeds=[0],
        constrained=constrained_rows(policy, prompts, [example], votes or 1),
    )
    texts = [policy.decode(ids) for ids in samples.completion_ids[0]]
    asked = policy.tokenizer.decode(prompt)
    sqls = [extract_sql(text, prompt=asked) for text in texts]
    return Answer(texts, samples.finished[0].tolist(), vote(sandbox, example.db_path, sqls))


def show(answer: Answer, max_new_tokens: int) -> bool:
    """Prints SQL, rows and doubts; returns whether there is a result."""
    chosen, count = answer.vote, len(answer.texts)
    if chosen.sql is None:
        text = printable(" ".join(answer.texts[0].split()))[:SHOWN]
        print(f"no SQL in the answer: {text or 'it is empty'}")
        if not all(answer.finished):
            print(f"it was cut off after {max_new_tokens} tokens; raise --max-new-tokens")
        return False
    print(printable(format_sql(chosen.sql), keep="\n") + "\n")
    run = chosen.execution
    if run.status != "ok":
        ran = "this query does not run" if count == 1 else f"none of {count} samples runs"
        print(f"no result: {ran} ({run.status}: {printable(run.error or '')})")
        return False
    if run.rows:
        cells = [tuple(map(cell, row)) for row in run.rows[:ROWS]]
        print(text_table([tuple(map(cell, run.columns)), *cells]) + "\n")
    more = f", {ROWS} of them shown" if run.num_rows > ROWS else ""
    print(f"{run.num_rows} row{'s' * (run.num_rows != 1)}{more}")
    if count > 1:
        agreed = f"{round(chosen.agreement * count)} of {count} samples return this"
        print(agreed if chosen.agreement >= SURE else f"unsure: only {agreed}")
    return True


def cell(value) -> str:
    """A value in a line of a table; of a long one the beginning."""
    text = "NULL" if value is None else f"x'{value.hex()}'" if type(value) is bytes else str(value)
    text = printable(" ".join(text.split()))
    return text if len(text) <= CELL else f"{text[: CELL - 1]}…"


def printable(text: str, keep: str = "") -> str:
    """The text with control characters, by which it could change the terminal, as escapes. Those
    that join letters or keep them apart, as in Persian, stay.
    """
    keep += "\u200c\u200d"
    return "".join(
        c if c in keep or unicodedata.category(c)[0] != "C" else ascii(c)[1:-1] for c in text
    )


def saved_settings(arguments: argparse.Namespace) -> dict:
    """The settings of the run, or those of the prompts that the model was trained with."""
    if arguments.model:
        return {"model": arguments.model} | saved_prompt(arguments.model)
    run = Path(arguments.run)
    if not (run / "adapter").is_dir():
        raise UserError(f"{run}: no folder of a run, it has no adapter; give a model by --model")
    adapter_files(run / "adapter")
    return read_settings("RUN", run)


def questions_of(saved: dict) -> list[Example]:
    """The questions that a run was trained and evaluated on."""
    names = {f.name for f in fields(Config)}
    splits = load_questions(Config(**{k: v for k, v in saved.items() if k in names}))
    return [example for split in splits for example in split]


def database(arguments: argparse.Namespace, saved: dict) -> Example:
    """An example without question and gold: the database, and the descriptions of its columns.

    Raises:
        UserError: --db is no database, or is not given and the run's data has several.
    """
    path, known = arguments.db, []
    pairs = saved.get("questions")  # then the data is one database, without descriptions
    if pairs and path is None:
        path = Path(saved["data"])
    try:
        known = questions_of(saved) if arguments.run and not pairs else []
    except UserError as error:
        if path is None:
            raise
        print(f"note: no descriptions of columns, if there were any: {error}", file=sys.stderr)
    if path is None:
        path, *others = sorted({example.db_path for example in known})
        if others:
            raise UserError(
                f"--db: name a database; the run's data has {len(others) + 1}, such as {path}"
            )
    check_has_table(path)
    asked = Example("?", LANG, path.stem, "", path)
    same = (e for e in known if e.db_path.resolve() == path.resolve())
    return next((replace(asked, descriptions=e.descriptions) for e in same), asked)


def questions(arguments: argparse.Namespace) -> Iterator[str]:
    """The question of the command line; without one, those that are typed or piped in. What was
    typed is kept, also for the next time.
    """
    if arguments.question is not None:
        yield arguments.question
        return
    typed = sys.stdin.isatty()
    if typed:
        import readline  # gives ``input`` its history

        path = cache_folder("ask_history")
        if path.exists():
            readline.read_history_file(path)
    try:
        while True:
            line = input("question> " if typed else "").strip()
            if line:
                yield line
    except EOFError:
        return
    finally:
        if typed:
            readline.set_history_length(HISTORY)
            readline.write_history_file(path)


def run(arguments: argparse.Namespace) -> int:
    """Answers all questions; returns 1 if the only one has no result."""
    check_device(arguments.device)
    saved = saved_settings(arguments)
    asked, settings = database(arguments, saved), prompt_settings(arguments, saved)
    model = read_tokenizer(saved["model"])
    longest = arguments.max_new_tokens or saved.get("max_new_tokens", Config.max_new_tokens)

    def example_of(question: str) -> Example:
        if not question.strip() or SURROGATE.search(question):
            raise UserError(f"the question {question!r} is empty or not valid UTF-8")
        example = replace(asked, question=question)
        limits = {"settings": settings, "max_new_tokens": longest}
        check_context(saved["model"], *model, [example], **limits)
        return example

    example_of("?" if arguments.question is None else arguments.question)
    policy = load_policy(saved["model"], arguments.device, saved.get("dtype", Config.dtype))
    if arguments.run:
        load_adapter(policy.model, Path(arguments.run) / "adapter")
    prompts = PromptBuilder(policy.tokenizer, settings)
    options = {"max_new_tokens": longest, "votes": arguments.vote}
    options["temperature"] = saved.get("temperature", Config.temperature)
    timeout, has_result = saved.get("sql_timeout", Config.sql_timeout), False
    with Sandbox(timeout=timeout) as sandbox, lora_merged(policy.model):
        for question in questions(arguments):
            try:
                example = example_of(question)
            except UserError as error:  # in its place, the next one can be asked
                print(f"error: {error}", file=sys.stderr)
            else:
                has_result = show(answer(policy, prompts, sandbox, example, **options), longest)
    return 0 if has_result or arguments.question is None else 1


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
