"""The settings of a run: a dataclass with a one-line explanation of each field. ``train.py``
derives its command-line options from it.
"""

import argparse
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS
from sqlenv import EMBEDDED, LANGUAGES, UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets"
AT_LEAST_1 = (
    *("examples", "prompts_per_step", "group_size", "max_new_tokens", "micro_batch"),
    *("lora_rank", "save_every", "num_iterations", "overlong_buffer"),
)
AT_LEAST_0 = ("beta", "epsilon_low", "epsilon_high", "dynamic_sampling", "steps", "dev_limit")
SQL_TIMEOUTS = 0.1, 3600.0  # seconds
ABOVE_0 = ("lr", "reward_timeout", "max_grad_norm", "temperature")


def option(default, text: str, **more):
    """A setting with the help text of its option. ``choices`` limits its values;
    ``affects_results=False`` marks a setting that a resumed run may change.
    """
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Config:
    """Everything that a run depends on; saved as config.json."""

    recipe: str = option(
        "", "settings of a published method; options given beside it win", choices=list(RECIPES)
    )
    lang: str = option("vi", "languages: one of en de es fr ja vi zh, a comma list, or all")
    model: str = option(str(ASSETS / "policy"), "policy: a Hugging Face model directory or hub id")
    encoder: str = option(str(ASSETS / "encoder"), "contrastive encoder directory")
    data: str = option(
        str(EMBEDDED), "dataset: the embedded one, or a root in MultiSpider's layout"
    )
    examples: int = option(2000, "training questions, drawn over all languages of --lang")
    dev_limit: int = option(0, "dev questions per language to measure on, 0 for all")
    steps: int = option(0, "optimizer steps; 0 means one pass over the examples")
    prompts_per_step: int = option(16, "prompts P per step")
    group_size: int = option(8, "completions G per prompt")
    max_new_tokens: int = option(96, "longest completion, in tokens")
    temperature: float = option(1.0, "of sampling and of the log-probs alike")
    micro_batch: int = option(
        4, "prompts per forward and backward pass; same result", affects_results=False
    )
    checkpoint_activations: bool = option(
        False,
        "recompute activations in the backward pass: less memory, one more forward pass",
        affects_results=False,
    )
    shard: bool = option(
        False,
        "shard the frozen weights over the processes of torchrun (FSDP2)",
        affects_results=False,
    )
    lr: float = option(6e-4, "peak learning rate of AdamW on the LoRA weights")
    warmup_steps: int = option(
        5, "steps over which the learning rate rises; then it falls linearly to 0"
    )
    max_grad_norm: float = option(1.0, "gradient norm to clip to")
    beta: float = option(0.02, "weight of the KL term; 0 skips the reference pass")
    kl: str = option("k3iw", "KL estimator", choices=["k1", "k2", "k3", "k3iw"])
    loss_aggregation: str = option(
        "token", "what the loss is a mean over", choices=["token", "sequence", "constant"]
    )
    importance_sampling: str = option(
        "token", "level of the importance ratio", choices=["token", "sequence", "cispo"]
    )
    advantage: str = option(
        "centered", "advantage estimator", choices=["centered", "group", "rloo", "per_reward"]
    )
    epsilon_low: float = option(0.2, "the importance ratio is clipped below 1 - this")
    epsilon_high: float = option(0.2, "the importance ratio is clipped above 1 + this")
    num_iterations: int = option(1, "optimizer updates on each batch of samples (mu)")
    dynamic_sampling: int = option(
        0, "times that zero-variance groups are replaced by groups of further prompts"
    )
    mask_truncated: bool = option(
        False, "leave completions that hit --max-new-tokens out of the loss (not of the baseline)"
    )
    overlong_buffer: int = option(
        16, "tokens before --max-new-tokens over which the reward `overlong` falls to -1"
    )
    lora_rank: int = option(32, "LoRA rank r")
    lora_alpha: float = option(64.0, "LoRA alpha; the update is scaled by alpha / r")
    lora_targets: str = option(
        "",
        "layers that LoRA wraps, such as q_proj,v_proj; default: all linear ones of the blocks",
    )
    semantic_target: str = option(
        "question",
        "what the semantic reward compares the SQL with",
        choices=["question", "gold", "both"],
    )
    semantic_score: str = option(
        "calibrated",
        "the semantic reward: a calibrated probability or the cosine",
        choices=["calibrated", "cosine"],
    )
    semantic_gate: bool = option(True, "no semantic reward for SQL that does not run")
    sql_timeout: float = option(2.0, "seconds of CPU time for each query, gold's and the model's")
    reward_timeout: float = option(10.0, "seconds that a custom reward may take for a batch")
    reward: dict = field(default_factory=lambda: dict(WEIGHTS))
    seed: int = option(0, "of data order, LoRA weights and sampling")
    device: str = option("auto", "cpu, cuda, ...; auto takes a GPU if there is one")
    dtype: str = option(
        "auto", "of the frozen weights", choices=["auto", "float32", "bfloat16", "float16"]
    )
    save_every: int = option(20, "steps between checkpoints", affects_results=False)
    tensorboard: bool = option(
        False, "also write the metrics for TensorBoard (if installed)", affects_results=False
    )

    @classmethod
    def with_recipe(cls, recipe: str = "", reward: dict | None = None, **given) -> "Config":
        """The recipe's settings, replaced by those given; rewards are merged by name.

        >>> Config.with_recipe("dapo", beta=0.1).beta, Config.with_recipe("dapo").epsilon_high
        (0.1, 0.28)
        """
        preset = dict(RECIPES[recipe]) if recipe else {}
        weights = WEIGHTS | preset.pop("reward", {}) | (reward or {})
        return cls(**preset | given, recipe=recipe, reward=weights)

    def check(self) -> None:
        """Raises UserError for a setting that no run can have."""
        for name in AT_LEAST_1:
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1")
        for name in AT_LEAST_0:
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be a number from 0 up")
        for name in ABOVE_0:
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be a number above 0")
        if self.group_size == 1:
            raise UserError(
                "--group-size must be at least 2: an advantage compares completions of one group"
            )
        check_sql_timeout(self.sql_timeout)
        chosen_languages(self.lang)

    def to_dict(self) -> dict:
        return asdict(self)

    def differences(self, other: dict) -> list[str]:
        """``name: other -> own`` for each setting that affects results and differs from a saved
        configuration.
        """
        own = self.to_dict()
        return [
            f"{f.name}: {other.get(f.name)} -> {own[f.name]}"
            for f in fields(self)
            if other.get(f.name) != own[f.name] and f.metadata.get("affects_results", True)
        ]


def check_sql_timeout(seconds: float) -> None:
    """Raises UserError for a time limit that no query can be run with."""
    least, most = SQL_TIMEOUTS
    if not least <= seconds <= most:
        raise UserError(f"--sql-timeout {seconds:g}: must be from {least:g} to {most:g} seconds")


def chosen_languages(text: str) -> list[str]:
    """``"vi,en"`` -> ``["en", "vi"]``: always in one order, so that both draw the same questions;
    ``"all"`` -> all seven. Raises UserError for others.
    """
    langs = list(LANGUAGES) if text == "all" else text.split(",")
    unknown = [lang for lang in langs if lang not in LANGUAGES]
    if unknown:
        raise UserError(
            f"--lang {unknown[0]!r}: unknown language; choose from {', '.join(LANGUAGES)}, or all"
        )
    return [lang for lang in LANGUAGES if lang in langs]


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


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of ``Config``. Options that are not given stay out of the result,
    so that a recipe's settings can take their place.
    """
    for f in fields(Config):
        if f.name == "reward":
            continue
        kind = {"type": type(f.default), "choices": f.metadata.get("choices")}
        if isinstance(f.default, bool):
            kind = {"action": argparse.BooleanOptionalAction if f.default else "store_true"}
        name = "--" + f.name.replace("_", "-")
        text = f"{f.metadata['help']} ({f.default or 'off'})"
        parser.add_argument(name, default=argparse.SUPPRESS, help=text, **kind)
    parser.add_argument(
        "--reward",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="weight of execution, test_suite, syntax, schema, semantic, overlong or "
        "FILE.py:FUNCTION; repeatable; 0 drops the reward",
    )


def parse_config(description: str, argv: list[str] | None) -> tuple[Config, argparse.Namespace]:
    """The command line of ``train.py``: the configuration, and where to write, whether to resume
    and whether only to plan the memory.

    Raises:
        UserError: a setting that no run can have.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    parser.add_argument("--output", help="folder of the run (a new one, runs/<lang>-<n>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument(
        "--plan",
        nargs="?",
        type=float,
        const=0.0,
        metavar="GIB",
        help="print how much memory the run needs, and which settings fit into this device or "
        "into GIB; train nothing",
    )
    arguments = parser.parse_args(argv)
    given = {f.name: getattr(arguments, f.name) for f in fields(Config) if f.name in arguments}
    given["reward"] = parse_rewards(arguments.reward)
    config = Config.with_recipe(**given)
    config.check()
    if arguments.resume and not arguments.output:
        raise UserError("--resume needs --output, the folder of the run to go on with")
    return config, arguments
