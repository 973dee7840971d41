"""Measures the paper's experiment: does the contrastive reward help, in seven languages?

    python -m benchmarks.paper_table                            # all cells; repeat it to go on
    python -m benchmarks.paper_table --rows "GRPO,GRPO + contrastive" --languages vi,en --seeds 1
    python -m benchmarks.paper_table --report                   # only fills docs/results.md

and on other models and data, as an experiment with a name of its own:

    python -m benchmarks.paper_table --name NAME --zero-shot MODEL --model SFT --data ROOT \\
        --encoder ENCODER --languages en --measure en,zh,vi --options "--lr 5e-5"

A cell is one row of the table for one language (or all of them trained jointly) and one seed: it
runs train.py, then evaluate.py on the dev questions with the same encoder as the metric, and adds
a line to docs/results/cells.jsonl (benchmarks/paper_cells.py). Cells that have a line are not
measured again, and a run that was interrupted goes on from its last checkpoint. Runs are in
runs/paper/.
"""

import argparse
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks import paper_cells, paper_report
from grpo.config import ASSETS
from sqlenv import EMBEDDED
from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.generate import build
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_file

RUNS, RESULTS = Path("runs/paper"), Path("docs/results")
LARGER = str(RUNS / "larger")
NO_SEMANTIC = ["--reward", "semantic=0"]
# Options of train.py; None for a policy that is only measured.
ROWS: dict[str, list[str] | None] = {
    "zero-shot": None,
    "SFT policy": None,
    "larger SFT policy": None,
    "GRPO": NO_SEMANTIC,
    "GRPO + contrastive": [],
    "weaker encoder": ["--encoder", str(RUNS / "weak-encoder")],
    "no schema reward": ["--reward", "schema=0"],
    "advantage group": ["--advantage", "group"],
    "advantage per_reward": ["--advantage", "per_reward"],
    "test suite for execution": ["--reward", "test_suite=1", "--reward", "execution=0"],
    "300 examples": ["--examples", "300"],
    "1000 examples": ["--examples", "1000"],
    "three passes": ["--steps", "564"],
    "target gold": ["--semantic-target", "gold"],
    "semantic no gate": ["--no-semantic-gate"],
    "semantic cosine": ["--semantic-score", "cosine"],
    "semantic weight 0.7": ["--reward", "semantic=0.7"],
}
# What a row needs and nobody ships; the command runs once and the last word is its output.
PREREQUISITES = {
    "weaker encoder": (
        f"-m encoder.train --split sft,train,encoder --steps 100 --negatives 0 "
        f"--output {RUNS / 'weak-encoder'}"
    ),
    "larger SFT policy": f"-m grpo.sft --hidden 640 --layers 6 --steps 900 --output {LARGER}",
}
DTYPE = ["--dtype", "bfloat16"]  # as on a GPU; "auto" would depend on the machine
WHEN_MEASURED = ["--zero-variance", "train"]  # was the default


@dataclass(frozen=True)
class Cell:
    """One cell of the table; ``lang`` is a language, or "all" for joint training."""

    row: str
    lang: str
    seed: int
    experiment: str = ""

    @property
    def name(self) -> str:
        return re.sub(r"\W+", "-", f"{self.row} {self.lang} {self.seed}")

    @property
    def run(self) -> Path:
        return RUNS / self.experiment / self.name


def cells(*, rows: list[str], langs: list[str], seeds: int, experiment: str = "") -> list[Cell]:
    """All cells, seed by seed, so that an unfinished table is a table with fewer seeds."""
    return [
        Cell(row, lang, seed, experiment)
        for seed in range(seeds)
        for lang in langs
        for row in rows
        if ROWS[row] is not None or seed == 0  # greedy answers of a fixed policy have no seed
    ]


def run_python(*words: str) -> None:
    """Runs a command of this project, with its progress bars. Raises UserError if it fails."""
    code = subprocess.run([sys.executable, *words]).returncode
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
    words += ["--dev-limit", "1", "--examples", str(arguments.examples), *DTYPE, *WHEN_MEASURED]
    words += shlex.split(arguments.options) + ROWS[cell.row]  # a later option replaces an earlier
    if cell.run.exists():
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
    metrics = cell.run / "metrics.jsonl"
    paper_cells.save_cell(
        RESULTS / cell.experiment,
        {
            "row": cell.row,
            "lang": cell.lang,
            "seed": cell.seed,
            "minutes": round((time.time() - started) / 60, 1),
            "curve": paper_cells.curve(metrics) if metrics.exists() else {},
            **paper_cells.outcomes(predictions),
        },
        lock=RUNS / cell.experiment / "cells.lock",
    )


def wanted_cells(arguments: argparse.Namespace) -> list[Cell]:
    """The cells asked for. Raises UserError for an unknown row or language, and where the row
    `zero-shot` has no model.
    """
    rows, langs = arguments.rows.split(","), arguments.languages.split(",")
    if arguments.rows == "all":
        rows = [row for row in ROWS if row != "zero-shot" or arguments.zero_shot]
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        raise UserError(f"--rows {unknown[0]!r}: choose from {', '.join(ROWS)}")
    if "zero-shot" in rows and not arguments.zero_shot:
        raise UserError("--rows 'zero-shot': name the model before SFT by --zero-shot")
    unknown = [lang for lang in langs if lang not in (*LANGUAGES, "all")]
    if unknown:
        raise UserError(f"--languages {unknown[0]!r}: choose from all, {', '.join(LANGUAGES)}")
    return cells(rows=rows, langs=langs, seeds=arguments.seeds, experiment=arguments.name)


def check_dataset(folder: Path) -> None:
    """Cells know questions by their number, so they are of one version of the embedded dataset,
    which the folder names.

    Raises:
        UserError: the cells are of another version than the dataset that is here.
    """
    path, version = folder / "dataset.txt", build().name
    if not path.exists():
        write_file(path, lambda temporary: temporary.write_text(version + "\n", encoding="utf-8"))
    if path.read_text(encoding="utf-8").strip() != version:
        raise UserError(
            f"{folder}: its cells were measured on another version of the embedded dataset; move "
            "them away to measure anew, or check out the commit that wrote them"
        )


def run(arguments: argparse.Namespace) -> None:
    wanted = wanted_cells(arguments)
    check_dataset(RESULTS)
    if not arguments.report:
        (RUNS / arguments.name).mkdir(parents=True, exist_ok=True)
        saved = set(map(paper_cells.cell_key, paper_cells.read_cells(RESULTS / arguments.name)))
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
    add("--rows", default="all", help=f"a comma list of {', '.join(ROWS)} (all)")
    add("--languages", default="all", help="a comma list; all is one joint training (%(default)s)")
    add("--seeds", type=int, default=3)
    add("--report", action="store_true", help="only fill docs/results.md from docs/results")
    add("--name", default="", help="of another experiment: docs/results/NAME, runs/paper/NAME")
    add("--zero-shot", help="model before SFT, only measured")
    add("--model", default=str(ASSETS / "policy"), help="SFT policy (%(default)s)")
    add("--larger", default=LARGER, help="larger SFT policy, only measured (%(default)s)")
    add("--data", default=str(EMBEDDED), help="(%(default)s)")
    add("--encoder", default=str(ASSETS / "encoder"), help="reward and metric (%(default)s)")
    add("--examples", type=int, default=3000, help="(%(default)s)")
    add("--options", default="", help="more of train.py's, in quotes")
    add("--measure", default="", help="languages to measure in (those trained on)")
    add("--limit", type=int, default=0, help="dev questions a language to measure on (all)")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
