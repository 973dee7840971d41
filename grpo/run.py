"""The folder of a run: settings, metrics, checkpoints and results. This file also has the code that
starts, interrupts and resumes a run. Only the main process writes.

    config.json     the settings
    metrics.jsonl   one line per step
    checkpoint/     the training state
    adapter/        the LoRA weights in PEFT's format
    before.json     the predictions before training
    summary.json    the metrics before and after training, and their difference
    curves.png      rewards, KL and entropy over the steps
"""

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from encoder.checkpoint import load_state, save_state
from grpo.checkpoint import load_training_state, save_adapter, training_state
from grpo.config import Config
from grpo.distributed.parallel import Distributed
from grpo.evaluation import report
from grpo.evaluation.measure import Prediction, failed_gold, prediction_rows, summarize
from grpo.trainer import Trainer
from sqlenv import UserError, paired_difference
from sqlenv.files import write_json

PROGRESS = {"reward": "reward", "EX": "reward/execution", "KL": "kl"}  # in the progress bar


class Interrupt:
    """Ctrl-C asks to stop after the step that is running; a second one stops at once."""

    def __init__(self):
        self.requested = False
        self.previous = signal.signal(signal.SIGINT, self._request)

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
        UserError: the folder exists without ``resume``, or is not that of a run with the same
            settings with it; TensorBoard is missing.
    """

    def __init__(self, config: Config, distributed: Distributed, output: str | None, resume: bool):
        if config.tensorboard:
            report.summary_writer()  # fails now rather than after the first measurement
        self.config, self.distributed, self.resume = config, distributed, resume
        self.started = time.time()
        folder = choose_folder(config, output, resume) if distributed.is_main else None
        self.path: Path = distributed.all_gather(folder)[0]
        self.metrics_path = self.path / "metrics.jsonl"
        self.state_path = self.path / "checkpoint" / "state.pt"
        if resume:
            self.check_settings()  # before the model is loaded

    def check_settings(self) -> None:
        """Raises UserError if the folder is not that of a run with the same settings."""
        path = self.path / "config.json"
        if not path.is_file():
            raise UserError(
                f"--resume: {path} does not exist; {self.path} is not the folder of a run"
            )
        different = self.config.differences(json.loads(path.read_text(encoding="utf-8")))
        if different:
            raise UserError(
                f"--resume: the run was started with other settings ({'; '.join(different)}); "
                "repeat its command line and add --resume"
            )

    def start(self, trainer: Trainer) -> None:
        """Writes the settings, or with ``resume`` loads the last checkpoint."""
        if not self.resume:
            if self.distributed.is_main:
                write_json(self.path / "config.json", self.config.to_dict())
            return
        if self.state_path.is_file():  # a run killed before its first checkpoint starts again
            load_training_state(trainer, load_state(self.state_path))
        if self.distributed.is_main:
            report.keep_metrics(self.metrics_path, trainer.step)

    def measure_before(self, measure: Callable[[str], list[Prediction]]) -> list[Prediction]:
        """The predictions before training, kept in the folder so that a resumed run does not repeat
        them.
        """
        path = self.path / "before.json"
        if any(self.distributed.all_gather(path.is_file())):
            return [Prediction(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        predictions = measure("before")
        if self.distributed.is_main:
            write_json(path, prediction_rows(predictions))
        return predictions

    def train(self, trainer: Trainer) -> bool:
        """Trains to the last step, with a checkpoint every ``save_every`` steps and on Ctrl-C.
        Returns False if interrupted.
        """
        interrupt, board = Interrupt(), None
        if self.config.tensorboard and self.distributed.is_main:
            board = report.open_tensorboard(self.path, trainer.step)
        bar = tqdm(total=trainer.total_steps, initial=trainer.step, desc="GRPO", unit="step")
        with bar:
            while trainer.step < trainer.total_steps:
                metrics = trainer.train_step()
                if self.distributed.is_main:
                    report.append_metrics(self.metrics_path, metrics)
                if board:
                    report.add_to_tensorboard(board, metrics)
                shown = {label: name for label, name in PROGRESS.items() if name in metrics}
                bar.set_postfix(
                    {label: f"{metrics[name]:.3f}" for label, name in shown.items()}, refresh=False
                )
                bar.update()
                finished = trainer.step == trainer.total_steps
                stop = any(self.distributed.all_gather(interrupt.requested))
                if finished or stop or trainer.step % self.config.save_every == 0:
                    self.save(trainer)
                if stop and not finished:
                    print(f"stopped after step {trainer.step}; resume with: {self.command()}")
                    return False
        return True

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint and the adapter."""
        if self.distributed.is_main:
            save_state(self.state_path, training_state(trainer))
            save_adapter(trainer.model, self.path / "adapter", self.config.model)

    def finish(self, before: list[Prediction], after: list[Prediction]) -> None:
        """Writes summary.json and curves.png, and prints the table of before and after."""
        if not self.distributed.is_main:
            return
        summary = summary_of(before, after, time.time() - self.started)
        write_json(self.path / "summary.json", summary)
        report.plot_curves(self.path / "curves.png", report.read_metrics(self.metrics_path))
        print(
            f"\n{report.before_after_table(summary)}\n\nshares in percent with 95 % intervals; "
            f"{summary['seconds'] / 60:.1f} minutes; curves, adapter and summary.json are in "
            f"{self.path}"
        )

    def command(self) -> str:
        """The command line that resumes this run."""
        size = self.distributed.size
        start = ["python"] if size == 1 else ["torchrun", "--nproc-per-node", str(size)]
        words = [word for word in sys.argv[1:] if word != "--resume"]
        if not any(word.startswith("--output") for word in words):
            words += ["--output", str(self.path)]
        return " ".join([*start, "train.py", *words, "--resume"])


def choose_folder(config: Config, output: str | None, resume: bool) -> Path:
    """The run's folder: an existing one only with ``resume``, else a new one."""
    if output:
        folder = Path(output)
        if not resume and folder.exists():
            raise UserError(
                f"--output {folder} exists; add --resume to go on with it, or name another folder"
            )
        return folder
    number = 1
    while (folder := Path("runs") / f"{config.lang.replace(',', '-')}-{number}").exists():
        number += 1
    return folder


def summary_of(before: list[Prediction], after: list[Prediction], seconds: float) -> dict:
    """summary.json: before, after and the paired difference for each language and metric."""
    summary = {
        "before": summarize(before),
        "after": summarize(after),
        "difference": {},
        "seconds": round(seconds, 1),
        "failed_gold": failed_gold(before),
    }
    for lang, metrics in summary["before"].items():
        pairs = [(old, new) for old, new in zip(before, after) if old.lang == lang and old.gold_ok]
        summary["difference"][lang] = {
            metric: paired_difference(
                [getattr(old, metric) for old, _ in pairs],
                [getattr(new, metric) for _, new in pairs],
            )
            for metric in metrics
        }
    return summary
