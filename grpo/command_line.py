"""The command line of ``train.py``, in groups, and the options that other commands share."""

import argparse
import sys
from dataclasses import Field, fields
from pathlib import Path

from encoder.device import resolve_device
from grpo.config import ROOT, Config, option_name, resumed_config
from grpo.prompt import PromptSettings, saved_prompt
from grpo.rewards import WEIGHTS
from sqlenv import UserError
from sqlenv.options import POSITIVE, OptionParser

# Titles of the groups of options, with the first setting of each in the order of ``Config``.
GROUPS = {
    "recipe": "recipe",
    "model and data": "lang",
    "prompt": "prompt",
    "questions and steps": "examples",
    "sampling": "prompts_per_step",
    "optimizer and LoRA": "lr",
    "loss": "beta",
    "which groups are trained on": "dynamic_sampling",
    "rewards": "semantic_target",
    "speed and memory": "device",
    "evaluation and what is kept": "eval_every",
}


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


def add_option(parser: argparse._ActionsContainer, f: Field) -> None:
    """The option for a field of ``Config``. One that is not given stays out of the result, so that
    the setting of a recipe, a model or a resumed run can take its place.
    """
    kind = {
        "type": f.metadata.get("parse", f.metadata.get("range", type(f.default))),
        "choices": f.metadata.get("choices"),
    }
    if "parse" in f.metadata:
        kind["metavar"] = "FILE"
    if isinstance(f.default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    default = "on" if f.default is True else "off" if f.default is False else str(f.default)
    shown = default.removeprefix(f"{ROOT}/")
    text = f.metadata["help"] + (f" ({shown})" if shown else "")
    parser.add_argument(option_name(f.name), default=argparse.SUPPRESS, help=text, **kind)


def add_prompt_options(parser: argparse._ActionsContainer) -> None:
    """The options of ``PromptSettings``."""
    names = {f.name for f in fields(PromptSettings)}
    for f in fields(Config):
        if f.name in names:
            add_option(parser, f)


def prompt_settings(arguments: argparse.Namespace, saved: dict) -> PromptSettings:
    """The settings of the options that are given; the others as a run or a model saved them."""
    return PromptSettings.of(saved | vars(arguments))


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of ``Config``, in groups."""
    first, group = {name: title for title, name in GROUPS.items()}, parser
    for f in fields(Config):
        if f.name in first:
            group = parser.add_argument_group(first[f.name])
        if f.name == "reward":
            weights = " ".join(f"{name}={weight:g}" for name, weight in WEIGHTS.items())
            group.add_argument(
                "--reward",
                action="append",
                default=[],
                metavar="NAME=WEIGHT",
                help="weight of execution, test_suite, syntax, schema, semantic, overlap, "
                "consensus, overlong or FILE.py:FUNCTION; repeatable; 0 drops the reward "
                f"({weights})",
            )
        else:
            add_option(group, f)


def parse_config(description: str, argv: list[str] | None) -> tuple[Config, argparse.Namespace]:
    """The command line of ``train.py``: the configuration, and where to write, whether to resume,
    whether only to plan the memory, and the words of the command line.

    Raises:
        UserError: a wrong option, or a setting that no run can have.
    """
    parser = OptionParser(description)
    group = parser.add_argument_group("the run")
    group.add_argument("--output", help="folder of the run (a new one, runs/<lang>-<n>)")
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output, with its settings; --steps extends a finished run",
    )
    group.add_argument(
        "--plan",
        nargs="?",
        type=POSITIVE,
        const=0.0,
        metavar="GIB",
        help="print how much memory the run needs, and which settings fit into this device or "
        "into GIB; train nothing",
    )
    add_options(parser)
    arguments = parser.parse_args(argv)
    arguments.words = sys.argv[1:] if argv is None else argv
    given = {f.name: getattr(arguments, f.name) for f in fields(Config) if f.name in arguments}
    given["reward"] = parse_rewards(arguments.reward)
    if "device" in given:
        given["device"] = resolve_device(given["device"])
    if not arguments.resume:
        if given.get("data", Config.data) != Config.data:
            given.setdefault("lang", "all")
        given = saved_prompt(given.get("model", Config.model)) | given
        config = Config.with_recipe(**given)
    elif arguments.output:
        config = resumed_config(Path(arguments.output), given)
    else:
        raise UserError("--resume needs --output, the folder of the run to go on with")
    config.device = resolve_device(config.device)
    config.check()
    return config, arguments
