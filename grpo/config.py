"""The settings of a run: a dataclass with a one-line explanation of each field. ``train.py``
derives its command-line options from it.
"""

import argparse
import functools
import json
from dataclasses import Field, asdict, dataclass, field, fields, replace
from pathlib import Path

from encoder.device import resolve_device
from grpo.prompt import SCHEMA_BUDGET, PromptSettings, read_template, saved_prompt
from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS, check_weights
from sqlenv import EMBEDDED, UserError
from sqlenv.dataset import parse_languages
from sqlenv.options import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    OptionParser,
    Range,
)

ASSETS = Path(__file__).resolve().parents[1] / "assets"
SQL_TIMEOUT = Range(float, 0.1, 3600)  # seconds


def option(default, text: str, **more):
    """A setting with the help text of its option. ``range`` or ``choices`` limits its values;
    ``parse`` makes them from the option's words; ``affects_results=False`` marks a setting that a
    resumed run may change.
    """
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Config:
    """Everything that a run depends on; saved as config.json."""

    recipe: str = option(
        "", "settings of a published method; options given beside it win", choices=list(RECIPES)
    )
    lang: str = option(
        "vi",
        "languages: tags such as en or pt-BR, a comma list of them, or all that the data has, the "
        "default with --data",
    )
    model: str = option(str(ASSETS / "policy"), "policy: a Hugging Face model directory or hub id")
    encoder: str = option(str(ASSETS / "encoder"), "contrastive encoder directory")
    data: str = option(
        str(EMBEDDED),
        "dataset: the embedded one, the folder of Spider, BIRD or MultiSpider as published, or a "
        "SQLite file with --questions (docs/data.md)",
    )
    questions: str = option(
        "", "CSV or JSON-lines file of questions and SQL, where --data is one SQLite file"
    )
    prompt: str = option(
        "",
        "file with a template of the prompt; fields {schema}, {question}, {evidence}, {dialect}",
        parse=functools.partial(read_template, "--prompt"),
    )  # the template itself, so that the run keeps it
    system_prompt: str = option(
        "",
        "file with a template of a system message, for chat models",
        parse=functools.partial(read_template, "--system-prompt"),
    )
    thinking: str = option(
        "off", "of chat models whose template has such a switch", choices=["on", "off"]
    )
    schema_budget: int = option(SCHEMA_BUDGET, "longest schema text, in tokens", range=COUNT)
    sample_values: int = option(
        0,
        "values shown of each column, those first that the question seems to name",
        range=COUNT_OR_ZERO,
    )
    examples: int = option(
        2000, "training questions, drawn over all languages of --lang", range=COUNT
    )
    dev_limit: int = option(
        0, "dev questions per language to measure on, 0 for all", range=COUNT_OR_ZERO
    )
    steps: int = option(
        0, "optimizer steps; 0 means one pass over the examples", range=COUNT_OR_ZERO
    )
    prompts_per_step: int = option(16, "prompts P per step", range=COUNT)
    group_size: int = option(8, "completions G per prompt", range=Range(int, 2))
    max_new_tokens: int = option(96, "longest completion, in tokens", range=COUNT)
    temperature: float = option(
        1.0, "of sampling and of the log-probs alike", range=Range(float, 0.01)
    )
    micro_batch: int = option(
        4,
        "prompts per forward and backward pass; same result",
        affects_results=False,
        range=COUNT,
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
    lr: float = option(6e-4, "peak learning rate of AdamW on the LoRA weights", range=POSITIVE)
    warmup_steps: int = option(
        5,
        "steps over which the learning rate rises; then it falls linearly to 0",
        range=COUNT_OR_ZERO,
    )
    max_grad_norm: float = option(1.0, "gradient norm to clip to", range=POSITIVE)
    beta: float = option(
        0.02, "weight of the KL term; 0 skips the reference pass", range=NON_NEGATIVE
    )
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
    epsilon_low: float = option(
        0.2, "the importance ratio is clipped below 1 - this", range=Range(float, 0, 1)
    )
    epsilon_high: float = option(
        0.2, "the importance ratio is clipped above 1 + this", range=NON_NEGATIVE
    )
    num_iterations: int = option(1, "optimizer updates on each batch of samples (mu)", range=COUNT)
    dynamic_sampling: int = option(
        0,
        "times that zero-variance groups are replaced by groups of further prompts",
        range=COUNT_OR_ZERO,
    )
    train_completions: int = option(
        0,
        "completions of each group to train on, those that spread the rewards most; 0 for all",
        range=COUNT_OR_ZERO,
    )
    zero_variance: str = option(
        "skip",
        "skip zero-variance groups, or train their KL term and count their tokens in the mean",
        choices=["skip", "train"],
    )
    ask_again: float = option(
        1.0,
        "probability to ask a question again after a zero-variance group, to the power of how many "
        "it had in a row, at least 1/16; 1 asks every question in every epoch",
        range=Range(float, 0, 1),
    )
    mask_truncated: bool = option(
        False, "leave completions that hit --max-new-tokens out of the loss (not of the baseline)"
    )
    overlong_buffer: int = option(
        16,
        "tokens before --max-new-tokens over which the reward `overlong` falls to -1",
        range=COUNT,
    )
    lora_rank: int = option(32, "LoRA rank r", range=COUNT)
    lora_alpha: float = option(
        64.0, "LoRA alpha; the update is scaled by alpha / r", range=POSITIVE
    )
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
    sql_timeout: float = option(
        2.0, "seconds of CPU time for each query, gold's and the model's", range=SQL_TIMEOUT
    )
    reward_timeout: float = option(
        10.0,
        "seconds that a custom reward may take for a batch",
        range=Range(float, 0, 86400, above=True),
    )
    reward: dict = field(default_factory=lambda: dict(WEIGHTS))
    seed: int = option(0, "of data order, LoRA weights and sampling", range=SEED)
    device: str = option("auto", "cpu, cuda, ...; auto takes a GPU if there is one")
    dtype: str = option(
        "auto", "of the frozen weights", choices=["auto", "float32", "bfloat16", "float16"]
    )
    keep_rollouts: int = option(
        100,
        "groups of each step to keep in rollouts.jsonl",
        affects_results=False,
        range=COUNT_OR_ZERO,
    )
    eval_every: int = option(
        0, "steps between evaluations on validation questions, 0 for none", range=COUNT_OR_ZERO
    )
    eval_questions: int = option(
        100, "validation questions, at most a fifth of the training questions", range=COUNT
    )
    patience: int = option(
        0,
        "evaluations without a better TS after which the run ends, 0 for no such end",
        range=COUNT_OR_ZERO,
    )
    stop_on_collapse: bool = option(False, "end a run that falls apart, with its best adapter")
    save_every: int = option(20, "steps between checkpoints", affects_results=False, range=COUNT)
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
        for f in fields(self):
            allowed, value = f.metadata.get("range"), getattr(self, f.name)
            if allowed and value not in allowed:
                raise UserError(f"{option_name(f.name)}: must be {allowed}, not {value}")
        if self.patience and not self.eval_every:
            raise UserError("--patience: needs --eval-every, the steps between evaluations")
        if self.train_completions == 1 or self.train_completions > self.group_size:
            raise UserError(
                f"--train-completions: must be 0 or from 2 to --group-size ({self.group_size}), "
                f"not {self.train_completions}"
            )
        parse_languages(self.lang)
        check_weights(self.reward)

    def to_dict(self) -> dict:
        return asdict(self)

    def differences(self, other: "Config") -> list[str]:
        """``name: other -> own`` for each setting that affects results and differs."""
        return [
            f"{f.name}: {shown(getattr(other, f.name))} -> {shown(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(other, f.name) != getattr(self, f.name)
            and f.metadata.get("affects_results", True)
        ]


def shown(value) -> str:
    """A setting in one line."""
    return repr(value) if "\n" in str(value) else str(value)


def option_name(name: str) -> str:
    """The option of a setting: ``"micro_batch"`` -> ``"--micro-batch"``."""
    return "--" + name.replace("_", "-")


def read_settings(option: str, folder: Path) -> dict:
    """What a run wrote into its config.json.

    Raises:
        UserError: the folder is none of a run, or the file is damaged. It names the option.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{option} {folder}: {path} does not exist; give the folder of a run of train.py"
        )
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["model"]  # all else has a default
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, not what train.py wrote ({error!r})") from error
    for name, default in Config().to_dict().items():
        value, kind = saved.get(name, default), type(default)
        if not isinstance(value, (float, int) if kind is float else kind):
            raise UserError(f"{path}: {name} = {value!r:.60} is not understood")
    return saved


def resumed_config(folder: Path, given: dict) -> Config:
    """The settings of the run in a folder, and those given that affect no result. ``steps``, by
    which a finished run is extended (``RunFolder``), may differ, too.

    Raises:
        UserError: another setting that is given contradicts the run's; or as ``read_settings``.
    """
    saved = read_settings("--resume: --output", folder)
    if given.get("dtype") == "auto":  # the run's was measured when it started
        del given["dtype"]
    if unknown := saved.keys() - Config().to_dict().keys():
        raise UserError(f"{folder / 'config.json'}: unknown settings: {', '.join(unknown)}")
    saved = Config(**saved)
    config = replace(saved, **given | {"reward": saved.reward | given.get("reward", {})})
    different = replace(config, steps=saved.steps).differences(saved)
    if different:
        raise UserError(
            f"--resume: the run in {folder} has other settings ({'; '.join(different)}); leave "
            "these options out, or start a new run"
        )
    return config


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


def add_option(parser: argparse.ArgumentParser, f: Field) -> None:
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
        kind = {"action": argparse.BooleanOptionalAction if f.default else "store_true"}
    text = f"{f.metadata['help']} ({f.default or 'off'})"
    parser.add_argument(option_name(f.name), default=argparse.SUPPRESS, help=text, **kind)


def add_prompt_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``PromptSettings``."""
    names = {f.name for f in fields(PromptSettings)}
    for f in fields(Config):
        if f.name in names:
            add_option(parser, f)


def prompt_settings(arguments: argparse.Namespace, saved: dict) -> PromptSettings:
    """The settings of the options that are given; the others as a run or a model saved them."""
    return PromptSettings.of(saved | vars(arguments))


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of ``Config``."""
    for f in fields(Config):
        if f.name != "reward":
            add_option(parser, f)
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
        UserError: a wrong option, or a setting that no run can have.
    """
    parser = OptionParser(description)
    add_options(parser)
    parser.add_argument("--output", help="folder of the run (a new one, runs/<lang>-<n>)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --output, with its settings; --steps extends a finished run",
    )
    parser.add_argument(
        "--plan",
        nargs="?",
        type=POSITIVE,
        const=0.0,
        metavar="GIB",
        help="print how much memory the run needs, and which settings fit into this device or "
        "into GIB; train nothing",
    )
    arguments = parser.parse_args(argv)
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
