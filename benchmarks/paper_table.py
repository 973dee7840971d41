"""Measures the paper's experiment and three more: where does the contrastive reward help?

    python -m benchmarks.paper_table                            # all cells; repeat it to go on
    python -m benchmarks.paper_table --experiment no-gold       # one of the experiments
    python -m benchmarks.paper_table --rows "weaker encoder,no schema reward" --seeds 1
    python -m benchmarks.paper_table --report                   # only fills docs/results.md

and the main experiment on other models and data, with a name of its own:

    python -m benchmarks.paper_table --experiment NAME --zero-shot MODEL --model SFT --data ROOT \\
        --encoder ENCODER --lang en --measure en,zh,vi --options "--lr 5e-5"

A cell is one row of the table with one seed: it runs train.py, on all languages jointly unless
--lang says otherwise, then evaluate.py on the dev questions with the same encoder as the metric,
and adds a line to docs/results/EXPERIMENT/cells.jsonl (benchmarks/paper_cells.py). Cells that have
a line are not measured again, and a run that was interrupted goes on from its last checkpoint. Runs
are in runs/paper/. Tables without a place in docs/results.md are printed.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import paper_cells, paper_data, paper_report
from grpo.config import ASSETS
from sqlenv import EMBEDDED
from sqlenv.dataset.language import parse_languages
from sqlenv.embedded.generate import build
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_json, write_text

RUNS, RESULTS = Path("runs/paper"), Path("docs/results")
NO_SEMANTIC = ["--reward", "semantic=0"]
TEST_SUITE = ["--reward", "test_suite=1", "--reward", "execution=0"]
LABEL_FREE = ["--recipe", "label_free"]
# Options of train.py; None for a policy that is only measured.
ROWS: dict[str, list[str] | None] = {
    "zero-shot": None,
    "SFT policy": None,
    "larger SFT policy": None,
    "GRPO": NO_SEMANTIC,
    "GRPO + contrastive": [],
    "GRPO + test suite": NO_SEMANTIC + TEST_SUITE,
    "weaker encoder": ["--encoder", str(RUNS / "weak-encoder")],
    "no schema reward": ["--reward", "schema=0"],
    "300 examples": ["--examples", "300"],
    "1000 examples": ["--examples", "1000"],
    "three passes": ["--steps", "564"],
    "five passes": ["--steps", "940"],
    "consensus": [*LABEL_FREE, *NO_SEMANTIC],
    "semantic": [*LABEL_FREE, "--reward", "consensus=0"],
    "consensus + semantic": LABEL_FREE,
    "gold of 10 %": ["--examples", "34"],
    "gold of 1 %": ["--examples", "3"],
}
# What a row needs and nobody ships; the command runs once and the last word is its output.
PREREQUISITES = {
    "weaker encoder": (
        f"-m encoder.train --split sft,train,encoder --steps 100 --negatives 0 "
        f"--output {RUNS / 'weak-encoder'}"
    ),
}
DTYPE = ["--dtype", "float32"]  # "auto" depends on the machine


@dataclass(frozen=True)
class Experiment:
    """What an experiment measures, unless options say otherwise.

    Attributes:
        rows, seeds: its cells; ``rows`` is a comma list.
        lang: languages to train on, as train.py takes them.
        data: a changed copy of the embedded dataset (benchmarks/paper_data.py), or "".
        options: of train.py, for all rows.
        measure: languages to measure in; "" for those trained on.
    """

    rows: str
    lang: str = "all"
    seeds: int = 3
    data: str = ""
    options: str = ""
    measure: str = ""


ON_POOR = "GRPO,GRPO + contrastive,GRPO + test suite"
EXPERIMENTS = {
    "main": Experiment("SFT policy,GRPO,GRPO + contrastive"),
    **{name: Experiment(ON_POOR, lang="vi", seeds=1, data=name) for name in paper_report.POOR},
    "no-gold": Experiment(
        "SFT policy,GRPO,GRPO + contrastive,consensus,semantic,consensus + semantic,"
        "gold of 10 %,gold of 1 %",
        lang="vi",
        data="unseen",
        options="--steps 63",
    ),
    "unseen-language": Experiment(
        "SFT policy,GRPO,GRPO + contrastive",
        seeds=2,
        lang="de,en,es,fr,ja,zh",
        measure="vi",
    ),
}


@dataclass(frozen=True)
class Cell:
    """One cell of the table."""

    row: str
    lang: str
    seed: int
    experiment: str = "main"

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.row} {self.lang} {self.seed}")

    @property
    def run(self) -> Path:
        return RUNS / self.experiment / self.name


def cells(*, rows: list[str], lang: str, seeds: int, experiment: str) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished table is a table with fewer seeds."""
    return [
        Cell(row, lang, seed, experiment)
        for seed in range(seeds)
        for row in rows
        if ROWS[row] is not None or seed == 0  # greedy answers of a fixed policy have no seed
    ]


def run_python(*words: str) -> None:
    """Runs a command of this project, with its progress bars. Ctrl-C in the terminal reaches it,
    too: it is waited for, since it then saves a checkpoint. Raises UserError if it fails.
    """
    process, code = subprocess.Popen([sys.executable, *words]), None
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue
    if code in (130, -2):
        raise UserError("interrupted; the same command goes on from the last checkpoint")
    if code:
        raise UserError(f"python {' '.join(words)} ended with exit code {code}")


def train(cell: Cell, arguments: argparse.Namespace) -> None:
    """Trains the policy of a cell, unless that has been done; goes on with an unfinished run."""
    if (cell.run / "summary.json").exists():
        return
    words = ["--lang", cell.lang, "--seed", str(cell.seed), "--output", str(cell.run)]
    words += ["--model", arguments.model, "--data", arguments.data, "--encoder", arguments.encoder]
    # evaluate.py measures afterwards, with the same encoder whatever the reward was.
    words += ["--dev-limit", "1", "--examples", str(arguments.examples), *DTYPE]
    words += shlex.split(arguments.options) + ROWS[cell.row]  # a later option replaces an earlier
    if (cell.run / "config.json").exists():
        words.append("--resume")
    run_python("train.py", *words)


def measure(cell: Cell, arguments: argparse.Namespace) -> None:
    """Trains and measures the policy of a cell and saves the cell."""
    started = time.time()
    prerequisite = PREREQUISITES.get(cell.row, "").split()
    if prerequisite and not Path(prerequisite[-1]).exists():
        run_python(*prerequisite)
    if ROWS[cell.row] is not None:
        train(cell, arguments)
        source = ["--run", str(cell.run)]
    else:
        models = {"zero-shot": arguments.zero_shot, "larger SFT policy": arguments.larger}
        source = ["--model", models.get(cell.row, arguments.model), "--data", arguments.data]
    predictions = cell.run.with_name(f"{cell.name}.jsonl")
    source += ["--lang", arguments.measure or cell.lang, "--limit", str(arguments.limit)]
    source += ["--encoder", arguments.encoder, "--save-predictions", str(predictions), *DTYPE]
    run_python("evaluate.py", *source, "--test-suite")
    kept = paper_cells.outcomes(predictions)
    if ROWS[cell.row] is not None and cell.experiment in (*paper_report.POOR, "no-gold"):
        kept["rewarded"] = check_rewarded(cell)
    metrics = cell.run / "metrics.jsonl"
    paper_cells.save_cell(
        RESULTS / cell.experiment,
        {
            "row": cell.row,
            "lang": cell.lang,
            "seed": cell.seed,
            "minutes": round((time.time() - started) / 60, 1),
            "curve": paper_cells.curve(metrics) if metrics.exists() else {},
            **kept,
        },
        lock=RUNS / cell.experiment / "cells.lock",
    )


def check_rewarded(cell: Cell) -> dict[str, float]:
    """Of the completions that the rewards found right while training, one of each group: the shares
    that are right by EX and by TS, on the whole database if a poor one was trained on.
    """
    chosen = cell.run / "rewarded.jsonl"
    lines = "".join(
        json.dumps(row, ensure_ascii=False) + "\n"
        for row in paper_cells.rewarded(cell.run / "rollouts.jsonl")
    )
    write_text(chosen, lines)
    words = ["--predictions", str(chosen), "--data", str(EMBEDDED), "--test-suite"]
    run_python("evaluate.py", *words, "--json", str(cell.run / "rewarded.json"))
    report = json.loads((cell.run / "rewarded.json").read_text(encoding="utf-8"))
    return {name: report["average"][name]["value"] for name in ("execution", "test_suite")}


def fill_in(arguments: argparse.Namespace) -> None:
    """Gives options that were not given the values of the experiment."""
    own = arguments.model or arguments.data or arguments.report
    if arguments.experiment not in EXPERIMENTS and not own:
        raise UserError(
            f"--experiment {arguments.experiment}: choose from {', '.join(EXPERIMENTS)}, or give "
            "your own experiment a --model or --data"
        )
    experiment = EXPERIMENTS.get(arguments.experiment, Experiment("GRPO,GRPO + contrastive"))
    arguments.model = arguments.model or str(ASSETS / "policy")
    for name, value in vars(experiment).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    derived = arguments.data and arguments.data == experiment.data
    if derived and not arguments.report:
        arguments.data = str(paper_data.derived(arguments.data))
    arguments.data = arguments.data or str(EMBEDDED)


def wanted_cells(arguments: argparse.Namespace) -> list[Cell]:
    """The cells asked for. Raises UserError for an unknown row, languages that are none, and where
    a row has no model.
    """
    rows = arguments.rows.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise UserError(f"--rows {unknown[0]!r}: choose from {', '.join(ROWS)}")
    for row, option in (("zero-shot", "zero_shot"), ("larger SFT policy", "larger")):
        if row in rows and not getattr(arguments, option) and not arguments.report:
            raise UserError(f"--rows {row!r}: name its model by --{option.replace('_', '-')}")
    parse_languages(arguments.lang)
    names = ("lang", "seeds", "experiment")
    return cells(rows=rows, **{name: getattr(arguments, name) for name in names})


def check_measured(folder: Path, measured_with: dict) -> None:
    """Cells are averaged over seeds and compared question by question, so all of an experiment are
    measured with the same data, models and options, which its folder names.

    Raises:
        UserError: the cells that are there were measured with others, or nothing says with which.
    """
    path = folder / paper_cells.MEASURED
    if not paper_cells.read_cells(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured_with)
    if not path.exists():
        raise UserError(f"{folder}: has cells, but no {path.name}, which says what they measure")
    saved = json.loads(path.read_text(encoding="utf-8"))
    for name, value in measured_with.items():
        if saved.get(name) != value:
            raise UserError(
                f"{folder}: its cells were measured with another {name} ({saved.get(name)}, now "
                f"{value}); name another experiment, or move them and {RUNS / folder.name} away "
                "to measure anew"
            )


def run(arguments: argparse.Namespace) -> None:
    fill_in(arguments)
    wanted, folder = wanted_cells(arguments), RESULTS / arguments.experiment
    if not arguments.report:
        embedded = arguments.experiment in EXPERIMENTS
        encoder, model = Path(arguments.encoder), Path(arguments.model)
        if not encoder.is_dir():
            raise UserError(f"--encoder {encoder}: there is no such directory")
        check_measured(
            folder,
            {
                "dataset": build().name if embedded else "",
                "encoder": paper_cells.files_hash(encoder),
                "limit": arguments.limit,
                "model": paper_cells.files_hash(model) if model.is_dir() else arguments.model,
                "examples": arguments.examples,
                "options": arguments.options,
                "measure": arguments.measure,
            },
        )
        (RUNS / arguments.experiment).mkdir(parents=True, exist_ok=True)
        saved = set(map(paper_cells.cell_key, paper_cells.read_cells(folder)))
        if others := {lang for _, lang, _ in saved} - {arguments.lang}:
            raise UserError(
                f"{folder}: has cells of --lang {others.pop()}; name another experiment"
            )
        missing = [cell for cell in wanted if (cell.row, cell.lang, cell.seed) not in saved]
        print(f"{len(wanted) - len(missing)} of {len(wanted)} cells are measured; missing:")
        print("".join(f"  {cell.name}\n" for cell in missing), end="", flush=True)
        for cell in tqdm(missing, unit="cell"):
            measure(cell, arguments)
    paper_report.write(RESULTS, Path("docs/results.md"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    experiments = f"{', '.join(EXPERIMENTS)}, or a name of yours, with --model or --data (main)"
    add("--experiment", default="main", help=experiments)
    names = ", ".join(ROWS).replace("%", "%%")  # which argparse formats
    add("--rows", help=f"a comma list of {names} (the experiment's)")
    add("--lang", help="languages to train on, as train.py takes them (the experiment's)")
    add("--seeds", type=int, help="(the experiment's)")
    add("--report", action="store_true", help="only fill docs/results.md from docs/results")
    add("--zero-shot", help="model before SFT, only measured")
    add("--model", help=f"SFT policy ({ASSETS / 'policy'})")
    add("--larger", help="larger SFT policy, only measured")
    add("--data", help="(the experiment's)")
    add("--encoder", default=str(ASSETS / "encoder"), help="reward and metric (%(default)s)")
    add("--examples", type=int, default=3000, help="(%(default)s)")
    add("--options", help="more of train.py's, in quotes (the experiment's)")
    add("--measure", help="languages to measure in (those trained on)")
    add("--limit", type=int, default=0, help="dev questions a language to measure on (all)")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
