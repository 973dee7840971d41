"""The folder of a run: settings, metrics, checkpoints and results. This file also has the code that
starts, interrupts and resumes a run. Only the main process writes.

    config.json     the settings, and for every start of the run what it was made by (provenance.py)
    questions.json  which training questions are left out, and a hash of the others
    metrics.jsonl   one line per step
    rollouts.jsonl  the sampled groups, one line per group (grpo/evaluation/rollouts.py)
    checkpoint/     the training state
    adapter/        the LoRA weights in PEFT's format
    best_adapter/   those of the best step (grpo/best_adapter.py)
    last_adapter/   those of the last step, where adapter/ has those of the best one
    before.jsonl    the predictions before training, as evaluate.py --predictions reads them
    after.jsonl     those after it
    summary.json    the metrics before and after training, and their difference
    curves.png      rewards, KL and entropy over the steps
    report.html     curves, sampled groups, and what changed (grpo/report.py)
"""

import fcntl
import shlex
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from encoder.checkpoint import load_state, save_state
from grpo import best_adapter
from grpo.best_adapter import TS, best_record, collapse_note, keep_best
from grpo.checkpoint import (
    load_training_state,
    restore_adapter,
    save_adapter,
    training_state,
)
from grpo.config import Config, read_provenance, read_settings
from grpo.distributed.parallel import Distributed
from grpo.dynamic_sampling import select_groups
from grpo.evaluation import report
from grpo.evaluation.analysis import grouped
from grpo.evaluation.measure import (
    Prediction,
    failed_gold,
    measured,
    prediction_lines,
    read_prediction_lines,
    stopped_gold,
    summarize,
)
from grpo.evaluation.rollouts import append_rollouts, cut_rollouts, group_rows
from grpo.evaluation.validation import Validation, evaluations_since_best
from grpo.questions import decide_left_out
from grpo.report import write_report
from grpo.trainer import Trainer
from sqlenv import Example, ExecutionVerifier, UserError, paired_difference
from sqlenv.files import write_json, write_text

LOCK, QUESTIONS, SETTINGS = ".lock", "questions.json", "config.json"
EARLY = {LOCK, QUESTIONS, SETTINGS}  # what a folder has before the first measurement is done
PROGRESS = {
    "reward": "reward",
    "EX": "reward/execution",
    "KL": "kl",
    "validation EX": "eval/execution",
    "TS": "eval/test_suite",
}


def progress(rows: list[dict]) -> dict[str, str]:
    """What the progress bar shows: the last value of each metric."""
    known = {name: row[name] for row in rows[-50:] for name in PROGRESS.values() if name in row}
    return {label: f"{known[name]:.3f}" for label, name in PROGRESS.items() if name in known}


class Interrupt:
    """Within it, Ctrl-C asks to stop after the step that is running; a second one stops at once."""

    def __enter__(self) -> "Interrupt":
        self.requested = False
        self.previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def _request(self, *_) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, self.previous)
        print("\nstopping after this step (Ctrl-C again to stop at once)", file=sys.stderr)


class RunFolder:
    """The folder of a run, and the run's course as far as it concerns the folder.

    Args:
        output: the folder; None: a new one, runs/<lang>-<n>.
        resume: continue the run in ``output``.

    Raises:
        UserError: the folder exists without ``resume``, or the run cannot be extended to these
            steps with it; another process is using it; TensorBoard is missing.
    """

    def __init__(self, config: Config, distributed: Distributed, output: str | None, resume: bool):
        if config.tensorboard:
            report.summary_writer()  # fails now rather than after the first measurement
        self.config, self.distributed, self.resume = config, distributed, resume
        self.started, self.rows = time.time(), []  # earlier by the steps before a resume
        claim = claim_folder(config, output, resume) if distributed.is_main else (None, None)
        self.lock = claim[1]  # held as long as this process lives
        self.path: Path = distributed.all_gather(claim[0])[0]
        self.metrics_path = self.path / "metrics.jsonl"
        self.rollouts_path = self.path / "rollouts.jsonl"
        self.state_path = self.path / "checkpoint" / "state.pt"
        if resume:
            self.check_steps()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        """Releases the folder, and removes it if the run ended before it began."""
        if self.distributed.is_main:
            if is_unused(self.path) and not self.resume:
                shutil.rmtree(self.path, ignore_errors=True)
            elif kind is KeyboardInterrupt:
                print(f"resume with: {self.command()}")
            self.lock.close()

    def check_steps(self) -> None:
        """Raises UserError if the run in the folder has other ``steps``, unless it is finished and
        these are more.
        """
        given = self.config.steps
        planned = read_settings("--output", self.path).get("steps", Config.steps)
        if given == planned:
            return
        self.rows = report.read_metrics(self.metrics_path)
        done = self.rows[-1]["step"] if self.rows else 0
        if reason := self.reason_to_end():
            raise UserError(
                f"--steps {given}: the run in {self.path} ended at step {done}, since there was "
                f"{reason}; start another one"
            )
        if done < max(1, planned) or not (self.path / "summary.json").is_file():
            raise UserError(
                f"--steps {given}: the run in {self.path} has --steps {planned} and is not "
                "finished; resume it without --steps, and extend it then"
            )
        if given <= done:
            raise UserError(
                f"--steps {given}: the run in {self.path} has {done} steps already; give more"
            )

    def start(self, trainer: Trainer, provenance: dict) -> None:
        """Writes the settings and what this start is made by, and with ``resume`` loads the last
        checkpoint.
        """
        if self.resume:
            if self.state_path.is_file():  # a run killed before its first one starts again
                load_training_state(trainer, load_state(self.state_path))
            if self.distributed.is_main:
                report.keep_metrics(self.metrics_path, trainer.step)
                cut_rollouts(self.rollouts_path, trainer.step)
                self.rows = report.read_metrics(self.metrics_path)
            self.rows = self.distributed.all_gather(self.rows)[0]
            self.started -= report.seconds_of_steps(self.rows)
        if self.distributed.is_main:
            path = self.path / SETTINGS
            starts = [*read_provenance(path), provenance] if path.is_file() else [provenance]
            write_json(path, self.config.saved() | {"provenance": starts})

    def usable_questions(
        self, questions: list[Example], measured: list[Example], verifier: ExecutionVerifier
    ) -> list[Example]:
        """The training questions whose gold query returns rows. Gold queries run against the clock,
        so the main process decides, once for all processes and for every resume.

        Args:
            measured: the validation and dev questions, which a resume has to have, too.

        Raises:
            UserError: no question is left, or the resumed run was of others.
        """
        decided = None
        if self.distributed.is_main:
            path = self.path / QUESTIONS
            options = {"measured": measured, "resume": self.resume}
            decided = decide_left_out(path, questions, verifier, **options)
        decided = self.distributed.all_gather(decided)[0]
        left_out = set(decided["left_out"])
        useful = [e for i, e in enumerate(questions) if i not in left_out]
        if not useful:
            raise UserError(
                f"--data {self.config.data}: no training question has a gold query that returns "
                "rows"
            )
        if left_out:
            message = f"left out {len(left_out)} of {len(questions)} training questions"
            first = questions[min(left_out)]
            named = f"such as {first.question!r} ({first.lang}, {first.db_id})"
            print(f"{message}, {named}: gold fails or returns no row")
        if decided["stopped"]:
            print(f"of these the sandbox refuses or stops {decided['stopped']}")
        return useful

    def measure_before(self, measure: Callable[[str], list[Prediction]]) -> list[Prediction]:
        """The predictions before training, kept in the folder so that a resumed run does not repeat
        them.
        """
        path = self.path / "before.jsonl"
        if any(self.distributed.all_gather(path.is_file())):
            return read_prediction_lines(path)
        predictions = measure("before")
        if self.distributed.is_main:
            write_text(path, prediction_lines(predictions))
        return predictions

    def train(self, trainer: Trainer, validation: Validation | None) -> bool:
        """Trains to the last step, or until there is a reason to end early, with a checkpoint every
        ``save_every`` steps and on Ctrl-C. Returns False if interrupted.
        """
        board = None
        if self.config.tensorboard and self.distributed.is_main:
            board = report.open_tensorboard(self.path, trainer.step)
        bar = tqdm(total=trainer.total_steps, initial=trainer.step, desc="GRPO", unit="step")
        with bar, Interrupt() as interrupt:
            while trainer.step < trainer.total_steps and not self.reason_to_end():
                metrics = trainer.train_step()
                finished = trainer.step == trainer.total_steps
                evaluated = finished or trainer.step % max(1, self.config.eval_every) == 0
                if validation and evaluated:
                    metrics |= validation.measure()
                self.rows.append(metrics)
                if self.distributed.is_main:
                    report.append_metrics(self.metrics_path, metrics)
                    self.keep_rollouts(trainer)
                if board:
                    report.add_to_tensorboard(board, metrics)
                bar.set_postfix(progress(self.rows), refresh=False)
                bar.update()
                stop = any(self.distributed.all_gather(interrupt.requested))
                due = trainer.step % self.config.save_every == 0 or validation and evaluated
                if finished or stop or due or self.reason_to_end():
                    self.save(trainer)
                if stop and not finished:
                    if self.distributed.is_main:
                        write_report([self.path], self.path / "report.html")
                    print(f"stopped after step {trainer.step}; resume with: {self.command()}")
                    return False
        if reason := self.reason_to_end():
            print(f"ended after step {trainer.step}: {reason}")
        return True

    def reason_to_end(self) -> str | None:
        """Why the run should end before its last step."""
        patience, waited = self.config.patience, evaluations_since_best(self.rows)
        if patience and waited >= patience:
            return f"no better TS on the validation questions in {waited} evaluations"
        if self.config.stop_on_collapse and any("collapse" in row for row in self.rows):
            return "a sign of collapse, see the warning"
        return None

    def use_best(self, trainer: Trainer) -> None:
        """The policy, and ``adapter/``, get the weights of the best step if it is known by
        validation, or if the run has fallen apart. The last ones are then in ``last_adapter/``.
        """
        best = best_record(self.path) if self.distributed.is_main else None
        best = self.distributed.all_gather(best)[0]  # the others wait until it is written
        base = self.config.model
        if best and (best["by"] == TS or self.reason_to_end()):
            if self.distributed.is_main:
                save_adapter(trainer.model, self.path / "last_adapter", base)
            restore_adapter(trainer.model, self.path / best_adapter.FOLDER)
            if self.distributed.is_main:
                save_adapter(trainer.model, self.path / "adapter", base)
                print(f"adapter/ is that of step {best['step']}: {best['by']} {best['value']:.3f}")

    def keep_rollouts(self, trainer: Trainer) -> None:
        """Adds the groups that the last step sampled to rollouts.jsonl."""
        left = self.config.keep_rollouts
        for rollout in trainer.last_rollouts:
            some = select_groups(rollout, list(range(min(left, len(rollout.examples)))))
            left -= len(some.examples)
            golds = trainer.rewards.run_gold(some.examples)
            advantages = trainer.advantages(rollout)[: len(some.examples)]
            rows = group_rows(trainer.step, some, advantages, trainer.rewards.names, golds)
            append_rollouts(self.rollouts_path, rows)

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint and the adapter, and keeps the best adapter: at the same steps in an
        interrupted run as in any other, and not when a run is ended, with the weights of a collapse
        whose mean reward may still be high.
        """
        if self.distributed.is_main:
            save_adapter(trainer.model, self.path / "adapter", self.config.model)
            window, finished = self.config.save_every, trainer.step == trainer.total_steps
            if self.reason_to_end():
                due = best_record(self.path) is None
            else:
                due = trainer.step % window == 0 or finished or TS in self.rows[-1]
            if due:
                keep_best(self.path, trainer.model, self.config.model, self.rows, window)
            # Last: a run that is killed before it makes these steps again, and this.
            save_state(self.state_path, training_state(trainer))

    def finish(self, before: list[Prediction], after: list[Prediction]) -> None:
        """Writes summary.json and curves.png, and prints the table of before and after."""
        if not self.distributed.is_main:
            return
        summary = summary_of(before, after, time.time() - self.started)
        summary["best"] = best_record(self.path)
        write_text(self.path / "after.jsonl", prediction_lines(after))
        write_json(self.path / "summary.json", summary)
        report.plot_curves(self.path / "curves.png", self.rows)
        write_report([self.path], self.path / "report.html")
        print(
            f"\n{report.before_after_table(summary)}\n\nshares in percent with 95 % intervals; "
            f"{summary['seconds'] / 60:.1f} minutes; adapter and curves are in {self.path}, and "
            "report.html shows what was sampled and what changed"
        )
        notes = not_measured(after), collapse_note(self.path, self.rows, self.config.save_every)
        for note in filter(None, notes):
            print(note)

    def command(self) -> str:
        """The command line that resumes this run."""
        size = self.distributed.size
        start = ["python"] if size == 1 else ["torchrun", "--nproc-per-node", str(size)]
        return shlex.join([*start, "train.py", "--resume", "--output", str(self.path)])


def not_measured(predictions: list[Prediction]) -> str:
    """A line on the dev questions that the table leaves out; "" if it has all."""
    if not predictions:
        return "nothing was evaluated: no dev question has SQL"
    failed = [prediction for prediction in predictions if not prediction.gold_ok]
    if not failed:
        return ""
    named = f"such as {failed[0].question!r} ({failed[0].lang}, {failed[0].db_id})"
    return (
        f"left out {len(failed)} of {len(predictions)} dev questions, {named}: gold fails, or the "
        "sandbox refuses or stops it"
    )


def claim_folder(config: Config, output: str | None, resume: bool) -> tuple[Path, TextIO | None]:
    """The run's folder, an existing one only with ``resume``, else a new one, and its lock. Of two
    processes that want the same new folder at the same moment, one gets it. A folder to resume that
    is missing has no lock.
    """
    if output:
        folder = Path(output)
        if folder.exists() and not resume and not is_unused(folder):
            raise UserError(
                f"--output {folder} exists; add --resume to go on with it, or name another folder"
            )
        lock = lock_folder(folder) if folder.is_dir() or not resume else None
        if lock is None and folder.is_dir():
            raise UserError(f"--output {folder}: another process is training in this folder")
        return folder, lock
    name, number = config.lang.replace(",", "-"), 1
    while True:
        folder = Path("runs") / f"{name}-{number}"
        lock = lock_folder(folder) if is_unused(folder) else None
        if lock and is_unused(folder):
            return folder, lock
        number += 1


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, empty, or left by a run that ended before it began."""
    try:
        if not folder.exists():
            return True
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else {"a file"}
        halves = {name for name in names if name.endswith(".tmp")}  # of files that were written
        names -= {name for name in halves if name.startswith((QUESTIONS, SETTINGS))}
    except OSError as error:
        raise UserError(f"--output {folder}: cannot be read ({error})") from error
    return not names or LOCK in names and names <= EARLY


def lock_folder(folder: Path) -> TextIO | None:
    """Creates the folder if it is missing, and locks it; None if another process holds the lock.
    The lock ends with the process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}") from error
    return file


def summary_of(before: list[Prediction], after: list[Prediction], seconds: float) -> dict:
    """summary.json: before, after and the paired difference for each language and metric; the same
    for each part of the questions, under "parts", where they have parts.
    """
    return {
        **before_and_after(before, after),
        "parts": parts_before_and_after(before, after),
        "seconds": round(seconds, 1),
        "failed_gold": failed_gold(before),
        "stopped_gold": stopped_gold(before),
        "sqlite": sqlite3.sqlite_version,
    }


def before_and_after(before: list[Prediction], after: list[Prediction]) -> dict:
    """{"before", "after", "difference"}, each by language and metric."""
    summary = {"before": summarize(before), "after": summarize(after), "difference": {}}
    for lang, metrics in summary["before"].items():
        pairs = [(a, b) for a, b in zip(before, after) if a.lang == lang and a.gold_ok]
        summary["difference"][lang] = {
            metric: paired_difference(
                [getattr(old, metric) for old, _ in pairs],
                [getattr(new, metric) for _, new in pairs],
            )
            for metric in metrics
        }
    return summary


def parts_before_and_after(before: list[Prediction], after: list[Prediction]) -> dict:
    """The same by part and metric; {} without parts. A part has questions in all languages, so a
    question and its translations are resampled together.
    """
    pairs = [(old, new) for old, new in zip(before, after) if old.part and old.gold_ok]
    metrics, means = measured(before), []
    for side in zip(*pairs):
        values = [[getattr(prediction, metric) for metric in metrics] for prediction in side]
        means.append(grouped(values, [prediction.part for prediction in side], side))
    if not means:
        return {}
    old, new = means
    means += [{part: new[part].minus(old[part]) for part in old}]
    return {
        name: {part: mean.intervals(metrics) for part, mean in by_part.items()}
        for name, by_part in zip(("before", "after", "difference"), means)
    }
