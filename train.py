"""Trains a text-to-SQL policy with GRPO: measures it, trains it, measures it again.

python train.py --lang vi
python train.py --lang en,de --model DIR --data ROOT --steps 200
torchrun --nproc-per-node 4 train.py --lang all          # the prompts of a step over 4 processes
"""

import argparse
import json
import logging
import math
import os
import random
import signal
import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

from encoder import ContrastiveEncoder, SemanticReward
from grpo.checkpoint import load_state, save_adapter, save_state
from grpo.config import Config
from grpo.distributed.parallel import World, open_world
from grpo.distributed.shard import in_step, open_mesh, shard
from grpo.evaluation import report
from grpo.evaluation.measure import (
    Prediction,
    evaluate_policy,
    failed_gold,
    load_suites,
    prediction_rows,
    summarize,
)
from grpo.lora import add_lora, lora_folded
from grpo.memory import GIB, device_memory, memory_errors, plan, read_shape, workload_of
from grpo.models import Policy, checkpoint_activations, load_policy
from grpo.rewards import Judge, Rewards
from grpo.trainer import Trainer
from sqlenv import LANGUAGES, Example, Sandbox, UserError, load_dataset, paired_difference
from sqlenv.errors import exit_code
from sqlenv.files import write_json


def parse_arguments(argv: list[str] | None) -> tuple[Config, argparse.Namespace]:
    """The options are the fields of ``Config``, plus where to write and whether to resume. A
    recipe's settings come before the defaults, and after what is given beside it.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for f in fields(Config):
        if f.name == "reward":
            continue
        kind = (
            {"action": "store_true"}
            if isinstance(f.default, bool)
            else {"type": type(f.default), "choices": f.metadata.get("choices")}
        )
        parser.add_argument(
            "--" + f.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f"{f.metadata['help']} ({f.default or 'off'})",
            **kind,
        )
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="weight of execution, test_suite, syntax, schema, semantic, overlong or "
        "FILE.py:FUNCTION; "
        "repeatable; 0 drops the reward",
    )
    parser.add_argument("--output", help="folder of the run (a fresh runs/<lang>-<n>)")
    parser.add_argument(
        "--plan",
        nargs="?",
        type=float,
        const=0.0,
        metavar="GIB",
        help="print how much memory the run needs, and what fits into this device or one of so "
        "many GiB; load and train nothing",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    arguments = parser.parse_args(argv)
    given = {f.name: getattr(arguments, f.name) for f in fields(Config) if f.name in arguments}
    given["reward"] = parse_rewards(arguments.reward)
    config = Config.with_recipe(**given)
    check_numbers(config)
    return config, arguments


def parse_rewards(texts: list[str]) -> dict[str, float]:
    """``["semantic=0.2"]`` -> ``{"semantic": 0.2}``."""
    rewards = {}
    for text in texts:
        name, _, weight = text.rpartition("=")
        try:
            rewards[name] = float(weight)
        except ValueError:
            raise UserError(f"--reward {text}: must be NAME=WEIGHT, such as semantic=0.2") from None
    return rewards


def check_numbers(config: Config) -> None:
    """Refuses settings that no run can have."""
    for name in (
        "examples",
        "prompts_per_step",
        "group_size",
        "max_new_tokens",
        "micro_batch",
        "lora_rank",
        "save_every",
        "updates_per_batch",
        "overlong_buffer",
    ):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1")
    for name in ("beta", "epsilon_low", "epsilon_high", "dynamic_sampling", "steps", "dev_limit"):
        if not 0 <= getattr(config, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be a number from 0 up")
    for name in ("lr", "reward_timeout", "max_grad_norm"):
        if not 0 < getattr(config, name) < math.inf:
            raise UserError(f"--{name.replace('_', '-')} must be a number above 0")
    if config.tensorboard:
        report.summary_writer()  # better now than after the first measurement
    if config.temperature <= 0:
        raise UserError("--temperature must be above 0; greedy groups have nothing to compare")
    if config.group_size == 1:
        raise UserError(
            "--group-size must be at least 2: an advantage compares completions of one group"
        )


def chosen_languages(text: str) -> list[str]:
    langs = list(LANGUAGES) if text == "all" else text.split(",")
    unknown = [lang for lang in langs if lang not in LANGUAGES]
    if unknown:
        raise UserError(
            f"--lang {unknown[0]!r}: unknown language; choose from {', '.join(LANGUAGES)}, or all"
        )
    return list(dict.fromkeys(langs))


def output_folder(arguments: argparse.Namespace, config: Config) -> Path:
    """The run's folder: an existing one only with --resume, else a new one."""
    if arguments.resume and not arguments.output:
        raise UserError("--resume needs --output, the folder of the run to go on with")
    if arguments.output:
        folder = Path(arguments.output)
        if not arguments.resume and folder.exists():
            raise UserError(
                f"--output {folder} exists; add --resume to go on with it, or name another folder"
            )
        return folder
    number = 1
    while (folder := Path("runs") / f"{config.lang.replace(',', '-')}-{number}").exists():
        number += 1
    return folder


def load_model(world: World, device: str, config: Config) -> tuple[Policy, World]:
    """The policy with LoRA; with --shard spread over the processes, which keep in step then."""
    targets = [one for one in config.lora_targets.split(",") if one]
    mesh = open_mesh(world, device) if config.shard else None
    with world.in_turn() if config.shard else nullcontext():  # the whole model is in memory once
        policy = load_policy(config.model, device, config.dtype, stay_on_cpu=config.shard)
        add_lora(policy.model, config.lora_rank, config.lora_alpha, config.seed, targets)
        if config.checkpoint_activations:
            checkpoint_activations(policy.model)
        if config.shard:
            shard(policy.model, mesh, device)
    return policy, in_step(world, policy.model) if config.shard else world


def load_questions(config: Config, judge: Judge) -> tuple[list[Example], list[Example]]:
    """Training examples, evenly from all languages, and dev examples. Gold that fails or returns
    nothing teaches to write junk (empty equals empty), so such training examples are left out.
    """
    langs = chosen_languages(config.lang)
    train = [example for lang in langs for example in load_dataset(config.data, lang, "train")]
    random.Random(config.seed).shuffle(train)
    train = train[: config.examples]
    gold = judge.run_gold(train)
    useful = [
        example for example, result in zip(train, gold) if result.status == "ok" and result.rows
    ]
    if len(useful) < len(train):
        left_out = f"left out {len(train) - len(useful)} of {len(train)} training questions"
        print(f"{left_out}: gold fails or returns no row")
    if not useful:
        raise UserError(
            f"--data {config.data}: no training question has a gold query that returns rows"
        )
    dev = []
    for lang in langs:
        dev += load_dataset(config.data, lang, "dev")[: config.dev_limit or None]
    return useful, dev


class Interrupt:
    """Ctrl-C asks to stop after the step that is running; a second one stops at once."""

    def __init__(self):
        self.asked = False
        self.before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, *_):
        self.asked = True
        signal.signal(signal.SIGINT, self.before)
        print("\nstopping after this step (Ctrl-C again to stop at once)", file=sys.stderr)


def train_loop(trainer: Trainer, folder: Path, config: Config) -> bool:
    """Trains to the last step; False if interrupted. Checkpoints every ``save_every`` steps, and
    on Ctrl-C. The first process writes.
    """
    interrupt, world = Interrupt(), trainer.world
    metrics_path, state_path = folder / "metrics.jsonl", folder / "checkpoint" / "state.pt"
    board = None
    if config.tensorboard and world.first:
        board = report.open_tensorboard(folder, trainer.step)
    bar = tqdm(total=trainer.total_steps, initial=trainer.step, desc="GRPO", unit="step")
    with bar:
        while trainer.step < trainer.total_steps:
            metrics = trainer.train_step()
            if world.first:
                report.append_metrics(metrics_path, metrics)
            if board:
                report.add_to_tensorboard(board, metrics)
            shown = {"reward": "reward", "EX": "reward/execution", "KL": "kl"}
            bar.set_postfix(
                {label: f"{metrics[name]:.3f}" for label, name in shown.items() if name in metrics},
                refresh=False,
            )
            bar.update()
            done, asked = trainer.step == trainer.total_steps, any(world.gather(interrupt.asked))
            if world.first and (done or asked or trainer.step % config.save_every == 0):
                save_state(state_path, trainer.state_dict())
                save_adapter(trainer.model, folder / "adapter", config.model)
            if asked and not done:
                return False
    return True


def before_training(folder: Path, measure, world: World) -> list[Prediction]:
    """The measurement before training; kept in the run's folder, so that --resume does not repeat
    it.
    """
    path = folder / "before.json"
    if any(world.gather(path.is_file())):
        return [Prediction(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    predictions = measure("before")
    if world.first:
        write_json(path, prediction_rows(predictions))
    return predictions


def summary_of(before: list[Prediction], after: list[Prediction], seconds: float) -> dict:
    """summary.json: before, after and the paired difference of every language and metric."""
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


def start_or_resume(trainer: Trainer, folder: Path, config: Config, resume: bool) -> None:
    """Prepares the folder of a run, or takes up its last checkpoint."""
    config_path, first = folder / "config.json", trainer.world.first
    if not resume:
        if first:
            write_json(config_path, config.to_dict())
        return
    if not config_path.is_file():
        raise UserError(
            f"--resume: {config_path} does not exist; {folder} is not the folder of a run"
        )
    different = config.differences(json.loads(config_path.read_text(encoding="utf-8")))
    if different:
        raise UserError(
            f"--resume: the run was started with other settings ({'; '.join(different)}); "
            "repeat its command line and add --resume"
        )
    state_path = folder / "checkpoint" / "state.pt"
    if state_path.is_file():  # a run killed before its first checkpoint starts again
        trainer.load_state_dict(load_state(state_path))
    if first:
        report.keep_metrics(folder / "metrics.jsonl", trainer.step)


def print_plan(config: Config, gib: float) -> None:
    """The memory of this run, of one process where torchrun starts several."""
    if not 0 <= gib < math.inf:
        raise UserError("--plan takes the GiB of a device, a number above 0")
    if os.environ.get("RANK", "0") != "0":
        return
    work = workload_of(config, int(os.environ.get("WORLD_SIZE", 1)))
    budget = gib * GIB or device_memory(config.device)
    print(plan(read_shape(config.model, config.encoder), work, budget))


def run(config: Config, arguments: argparse.Namespace) -> int:
    if config.device == "auto":
        config.device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.plan is not None:
        return print_plan(config, arguments.plan)
    with open_world(config.device) as (world, device), memory_errors(config.micro_batch):
        return run_in(world, device, config, arguments)


def run_in(world: World, device: str, config: Config, arguments: argparse.Namespace) -> int:
    started = time.time()
    chosen_languages(config.lang)
    folder = world.gather(output_folder(arguments, config) if world.first else None)[0]
    policy, world = load_model(world, device, config)
    encoder = ContrastiveEncoder.load(config.encoder).to(device)
    with ExitStack() as stack:
        judge = Judge(stack.enter_context(Sandbox()))
        limits = config.max_new_tokens, config.overlong_buffer, config.reward_timeout
        gated = not config.semantic_ungated
        semantic = SemanticReward(encoder, config.semantic_target, not config.semantic_raw, gated)
        rewards = Rewards(judge, semantic, config.reward, *limits)
        stack.callback(rewards.close)
        train, dev = load_questions(config, judge)
        with world.one_first():  # builds the suites that are not there yet
            suites = load_suites(judge.sandbox, dev)
            if config.reward.get("test_suite"):
                rewards.suites = load_suites(judge.sandbox, train)
        trainer = Trainer(policy, rewards, train, config, world)
        start_or_resume(trainer, folder, config, arguments.resume)
        print(
            f"{folder}: {len(train)} training and {len(dev)} dev questions ({config.lang}), "
            f"{trainer.total_steps} steps of {config.prompts_per_step} prompts x "
            f"{config.group_size} completions"
        )

        def measure(label: str) -> list[Prediction]:
            mine = [dev[i] for i in world.share(len(dev))]
            with lora_folded(policy.model):
                metric = SemanticReward(encoder)
                return world.joined(
                    evaluate_policy(
                        policy, judge, metric, mine, config.max_new_tokens, label, suites
                    )
                )

        before = before_training(folder, measure, world)
        if not train_loop(trainer, folder, config):
            print(f"stopped after step {trainer.step}; go on with: {resume_command(folder, world)}")
            return 130
        after = measure("after")
    if not world.first:
        return 0
    summary = summary_of(before, after, time.time() - started)
    write_json(folder / "summary.json", summary)
    report.plot_curves(folder / "curves.png", report.read_metrics(folder / "metrics.jsonl"))
    print(
        f"\n{report.before_after_table(summary)}\n\nshares in percent with 95 % intervals; "
        f"{summary['seconds'] / 60:.1f} minutes; curves, adapter and summary.json are in {folder}"
    )
    return 0


def resume_command(folder: Path, world: World) -> str:
    """The command line of this run with --output and --resume."""
    start = ["python"] if world.size == 1 else ["torchrun", "--nproc-per-node", str(world.size)]
    words = [word for word in sys.argv[1:] if word != "--resume"]
    if not any(word.startswith("--output") for word in words):
        words += ["--output", str(folder)]
    return " ".join([*start, "train.py", *words, "--resume"])


def main(argv: list[str] | None = None) -> int:
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    return exit_code(lambda: run(*parse_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
