"""Compares techniques at equal seconds: what a policy has gained after 1, 2, 4 and 8 minutes of
training, on validation questions.

    python -m benchmarks.learning_curve                                # all that is missing
    python -m benchmarks.learning_curve --only plain,MaxRL --seeds 1
    python -m benchmarks.learning_curve --report                       # only fills docs/learning.md

A cell is a technique and a seed. It trains with the options of the technique, the clock stops while
it is measured, and the learning rate falls linearly to 0 over the 8 minutes. Measured cells lie in
docs/learning/ and are not measured again. Let nothing else run beside it.
"""

import argparse
import json
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from benchmarks.fill import fill
from encoder import ContrastiveEncoder, SemanticReward
from grpo.command_line import parse_config
from grpo.config import Config
from grpo.distributed.parallel import SINGLE_PROCESS
from grpo.evaluation.measure import evaluate_policy, load_suites
from grpo.lora import lora_merged
from grpo.models import load_policy_with_lora
from grpo.prompt import PromptSettings
from grpo.questions import load_questions
from grpo.rewards import Rewards
from grpo.sft import SftBatches, backward
from grpo.trainer import Trainer
from sqlenv import ExecutionVerifier, Sandbox
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_json
from sqlenv.metrics.bootstrap import RESAMPLES, seed_weights, summary
from sqlenv.metrics.tables import markdown_table
from sqlenv.options import COUNT, OptionParser

FOLDER, PAGE = Path("docs/learning"), Path("docs/learning.md")
MARKS = (1, 2, 4, 8)  # minutes
QUESTIONS, LANG = 400, "vi"  # of validation
METRICS = {"execution": "EX", "test_suite": "TS"}
PLAIN, SFT = "plain", "SFT on the same questions"
# Options of train.py. All techniques but "plain" leave zero-variance groups out, as by default.
TECHNIQUES = {
    PLAIN: "--zero-variance train",
    "skip zero-variance groups": "",
    "ask again 0.5": "--ask-again 0.5",
    "dynamic sampling 2": "--dynamic-sampling 2",
    "train 8 of 32": "--group-size 32 --train-completions 8",
    "gold in wrong groups": "--gold-completions",
    "blame differing tokens": "--credit difference",
    "overlap reward": "--reward overlap=0.2",
    "MaxRL": "--advantage maxrl",
    "advantage group": "--advantage group",
    "beta 0": "--beta 0",
    "temperature 1.3": "--temperature 1.3",
    "2 iterations": "--num-iterations 2",
    "4 iterations": "--num-iterations 4",
    "8 prompts x 16": "--prompts-per-step 8 --group-size 16",
    "lr 1.2e-3": "--lr 1.2e-3",
    "LoRA rank 128": "--lora-rank 128 --lora-alpha 256",
    SFT: "",
}


class SftTrainer:
    """The control: as many seconds of supervised fine-tuning on gold SQL of the same questions, on
    the same LoRA weights, with batches of as many questions as a GRPO step has completions.
    """

    def __init__(self, trainer: Trainer, config: Config):
        self.model, self.optimizer, self.step = trainer.model, trainer.optimizer, 0
        sizes = config.prompts_per_step, config.group_size, config.seed
        settings = PromptSettings.of(vars(config))
        self.batches = SftBatches(trainer.questions.examples, trainer.policy, *sizes, settings)
        self.max_grad_norm, self.parameters = config.max_grad_norm, trainer.parameters
        self.schedule = trainer.schedule

    def train_step(self) -> None:
        backward(self.model, self.batches[self.step])
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.step += 1


class Clock:
    """Seconds of training; it is stopped while the policy is measured."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_) -> None:
        self.seconds += time.perf_counter() - self.start


def measure_cell(technique: str, seed: int) -> dict:
    """Trains with a technique; {"marks": [{"minutes", "steps", metric: "0101..."}, ...]}, the
    first before training.
    """
    words = ["--lang", LANG, "--seed", str(seed), "--eval-every", "1", "--steps", str(10**6)]
    words += ["--eval-questions", str(QUESTIONS), "--examples", str(10**6)]
    words += ["--dtype", "float32"]  # "auto" may choose another one in each process
    config, _ = parse_config("", words + TECHNIQUES[technique].split())
    questions, validation, _ = load_questions(replace(config, seed=0))  # the same for all seeds
    clock, marks = Clock(), []
    with ExitStack() as stack:
        verifier = ExecutionVerifier(stack.enter_context(Sandbox(timeout=config.sql_timeout)))
        encoder = ContrastiveEncoder.load(config.encoder).to(config.device)
        rewards = Rewards(verifier, SemanticReward(encoder), config.reward)
        policy, _ = load_policy_with_lora(config, config.device, SINGLE_PROCESS)
        suites = load_suites(verifier.sandbox, validation)
        trainer = Trainer(policy, rewards, questions, config)

        def factor(step: int) -> float:
            left = 1 - clock.seconds / (60 * MARKS[-1])
            return max(0.0, min((step + 1) / max(1, config.warmup_steps), left))

        trainer.schedule = LambdaLR(trainer.optimizer, factor)
        learner = SftTrainer(trainer, config) if technique == SFT else trainer
        bar = tqdm(total=60 * MARKS[-1], desc=f"{technique}, seed {seed}", unit="s")
        for minutes in (0, *MARKS):
            while clock.seconds < 60 * minutes:
                with clock:
                    learner.train_step()
                bar.update(min(clock.seconds, bar.total) - bar.n)
            with lora_merged(policy.model):
                options = {"max_new_tokens": config.max_new_tokens, "suites": suites}
                answers = evaluate_policy(policy, verifier, None, validation, **options)
            outcomes = {
                metric: "".join(str(int(getattr(answer, metric))) for answer in answers)
                for metric in METRICS
            }
            marks.append({"minutes": minutes, "steps": learner.step, **outcomes})
        bar.close()
    return {"technique": technique, "options": TECHNIQUES[technique], "seed": seed, "marks": marks}


def path_of(technique: str, seed: int, folder: Path) -> Path:
    return folder / f"{technique.replace(' ', '_')}-{seed}.json"


def read_cells(folder: Path) -> dict[str, list[dict]]:
    """The measured cells by technique."""
    cells: dict[str, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        cells.setdefault(cell["technique"], []).append(cell)
    return cells


def points_gained(cells: list[dict], metric: str, mark: int) -> np.ndarray:
    """(S, n) what each seed gains on each question at a mark: -100, 0 or 100 points."""
    before, after = (
        np.array([list(map(int, cell["marks"][m][metric])) for cell in cells]) for m in (0, mark)
    )
    return 100.0 * (after - before)


def report(folder: Path) -> dict[str, str]:
    """A table for each metric, by its label: gains in points, and their difference from plain's.

    Raises:
        UserError: plain has no cell.
    """
    cells, tables = read_cells(folder), {}
    if PLAIN not in cells:
        raise UserError(f"{folder}: there is no cell of {PLAIN!r} yet")
    for metric, label in METRICS.items():
        rows = [("technique", "seeds", *(f"{label} gained, {m} min" for m in MARKS), "steps")]
        for technique in [name for name in TECHNIQUES if name in cells]:
            own = {cell["seed"] for cell in cells[technique]}
            plain = [cell for cell in cells[PLAIN] if cell["seed"] in own]
            columns = [
                gained(cells[technique], plain, metric, mark, technique == PLAIN)
                for mark in range(1, len(MARKS) + 1)
            ]
            steps = np.mean([cell["marks"][-1]["steps"] for cell in cells[technique]])
            rows.append((technique, str(len(own)), *columns, f"{steps:.0f}"))
        tables[label] = markdown_table(rows)
    return tables


def gained(cells: list[dict], plain: list[dict], metric: str, mark: int, is_plain: bool) -> str:
    """``+5.0``, and for a technique other than plain the difference from plain's gain with its
    95 % bootstrap interval over questions and seeds, of the seeds that both have: ``+5.0 (+1.2;
    -0.3 to +2.7)``.
    """
    gain = points_gained(cells, metric, mark)
    if is_plain or not plain:
        return f"{gain.mean():+.1f}"
    shared = {cell["seed"] for cell in plain}
    own = points_gained([cell for cell in cells if cell["seed"] in shared], metric, mark)
    difference = own - points_gained(plain, metric, mark)  # (S, n)
    seeds, n = difference.shape
    drawn = np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    resampled = (seed_weights(seeds, RESAMPLES) @ difference * drawn).sum(1)
    interval = summary(difference.mean(), resampled, difference.size)
    return (
        f"{gain.mean():+.1f} ({difference.mean():+.1f}; {interval['low']:+.1f} to "
        f"{interval['high']:+.1f})"
    )


def run(arguments: argparse.Namespace) -> None:
    names = arguments.only.split(",") if arguments.only else list(TECHNIQUES)
    for name in names:
        if name not in TECHNIQUES:
            raise UserError(f"--only {name}: choose from {', '.join(TECHNIQUES)}")
    folder = Path(arguments.folder)
    if not arguments.report:
        folder.mkdir(parents=True, exist_ok=True)
        for seed in range(arguments.seeds):  # the first seed of all techniques first
            for name in names:
                path = path_of(name, seed, folder)
                if not path.exists():
                    write_json(path, measure_cell(name, seed))
    tables = report(folder)
    print("\n\n".join(tables.values()))
    if folder == FOLDER:
        fill(PAGE, tables)


def main(argv: list[str] | None = None) -> int:
    parser = OptionParser(__doc__)
    parser.add_argument("--only", help="comma list of techniques (all)")
    parser.add_argument("--seeds", type=COUNT, default=3, help="(3)")
    parser.add_argument("--folder", default=str(FOLDER), help=f"of the cells ({FOLDER})")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    return exit_code(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
