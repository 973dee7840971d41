"""The settings of a run: a dataclass with a one-line explanation of each field, in the order in
which ``train.py --help`` shows them (command_line.py).
"""

import functools
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from grpo.prompt import SCHEMA_BUDGET, read_template
from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS, check_weights, needs_gold
from sqlenv import EMBEDDED, UserError
from sqlenv.dataset import parse_languages
from sqlenv.options import (
    COUNT,
    COUNT_OR_ZERO,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    Range,
)

ROOT = Path(__file__).resolve().parents[1]
ASSETS = ROOT / "assets"
PATHS = ("model", "encoder", "data", "questions")  # settings that may be paths
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
        "values shown of each column, beside as many that the question seems to name",
        range=COUNT_OR_ZERO,
    )
    constrain_names: bool = option(
        False, "draw no token that would make a name which the schema does not have"
    )
    examples: int = option(
        2000, "training questions, drawn over all languages of --lang", range=COUNT
    )
    dev_limit: int = option(
        0,
        "dev questions per language to measure on, evenly spread, 0 for all",
        range=COUNT_OR_ZERO,
    )
    steps: int = option(
        0, "optimizer steps; 0 means one pass over the examples", range=COUNT_OR_ZERO
    )
    seed: int = option(0, "of data order, LoRA weights and sampling", range=SEED)
    prompts_per_step: int = option(16, "prompts P per step", range=COUNT)
    group_size: int = option(8, "completions G per prompt", range=Range(int, 2))
    max_new_tokens: int = option(96, "longest completion, in tokens", range=COUNT)
    temperature: float = option(
        1.0, "of sampling and of the log-probs alike", range=Range(float, 0.01)
    )
    lr: float = option(6e-4, "peak learning rate of AdamW on the LoRA weights", range=POSITIVE)
    warmup_steps: int = option(
        5,
        "steps over which the learning rate rises; then it falls linearly to 0",
        range=COUNT_OR_ZERO,
    )
    max_grad_norm: float = option(1.0, "gradient norm to clip to", range=POSITIVE)
    num_iterations: int = option(1, "passes over each batch of samples (mu)", range=COUNT)
    minibatches: int = option(
        1, "parts of a batch of samples; each makes an optimizer update in a pass", range=COUNT
    )
    lora_rank: int = option(32, "LoRA rank r", range=COUNT)
    lora_alpha: float = option(
        64.0, "LoRA alpha; the update is scaled by alpha / r", range=POSITIVE
    )
    lora_targets: str = option(
        "",
        "layers that LoRA wraps, such as q_proj,v_proj; default: all linear ones of the blocks",
    )
    beta: float = option(
        0.02, "weight of the KL term; 0 skips the reference pass", range=NON_NEGATIVE
    )
    kl: str = option("k3iw", "KL estimator", choices=["k2", "k3", "k3iw"])
    loss_aggregation: str = option(
        "token", "what the loss is a mean over", choices=["token", "sequence", "constant"]
    )
    importance_sampling: str = option(
        "token", "importance ratio and how it is clipped", choices=["token", "sequence", "cispo"]
    )
    epsilon_low: float = option(
        0.2, "the importance ratio is clipped below 1 - this", range=Range(float, 0, 1)
    )
    epsilon_high: float = option(
        0.2, "the importance ratio is clipped above 1 + this", range=NON_NEGATIVE
    )
    advantage: str = option(
        "centered",
        "advantage estimator",
        choices=["centered", "group", "rloo", "maxrl", "per_reward"],
    )
    credit: str = option(
        "completion",
        "which tokens of a wrong completion have its negative advantage: all, or those in which it "
        "differs from the nearest right one of its group",
        choices=["completion", "difference"],
    )
    mask_truncated: bool = option(
        False, "leave completions that hit --max-new-tokens out of the loss (not of the baseline)"
    )
    dynamic_sampling: int = option(
        0,
        "times that zero-variance groups are replaced by groups of further prompts",
        range=COUNT_OR_ZERO,
    )
    gold_completions: bool = option(
        False, "gold SQL takes the place of a completion in groups without a right one"
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
    train_completions: int = option(
        0,
        "completions of each group to train on, those that spread the rewards most; 0 for all",
        range=COUNT_OR_ZERO,
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
    overlong_buffer: int = option(
        16,
        "tokens before --max-new-tokens over which the reward `overlong` falls to -1",
        range=COUNT,
    )
    sql_timeout: float = option(
        2.0, "seconds of CPU time for each query, gold's and the model's", range=SQL_TIMEOUT
    )
    reward_timeout: float = option(
        10.0,
        "seconds that a custom reward may take for a batch",
        range=Range(float, 0, 86400, above=True),
    )
    reward: dict = field(default_factory=lambda: dict(WEIGHTS))
    device: str = option(
        "auto", "cpu, cuda, ...; auto takes a GPU if there is one", affects_results=False
    )
    dtype: str = option(
        "auto", "of the frozen weights", choices=["auto", "float32", "bfloat16", "float16"]
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
    keep_rollouts: int = option(
        100,
        "groups of each step to keep in rollouts.jsonl",
        affects_results=False,
        range=COUNT_OR_ZERO,
    )
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
        self.check_combinations()
        parse_languages(self.lang)
        check_weights(self.reward, self.semantic_target)

    def check_combinations(self) -> None:
        """Raises UserError for two options of which one would have no effect, or a wrong one."""
        gold, names, difference = "--gold-completions", "--constrain-names", "--credit difference"
        per_reward = "--advantage per_reward"
        used = {
            gold: self.gold_completions,
            names: self.constrain_names,
            difference: self.credit == "difference",
            per_reward: self.advantage == "per_reward",
            "--thinking on": self.thinking == "on",
            "--dynamic-sampling": self.dynamic_sampling,
            "--ask-again": self.ask_again < 1,
            "--reward consensus": self.reward.get("consensus"),
            "--reward test_suite": self.reward.get("test_suite"),
            "rewards without gold SQL": not needs_gold(self.reward, self.semantic_target),
        }
        sampled, execution = "which is about sampled SQL", "since it finds SQL right by execution"
        terms = "since groups with equal rewards may differ in a term, and then teach"
        for option, other, reason in (
            (gold, names, sampled),
            (gold, "--dynamic-sampling", sampled),
            (gold, "--ask-again", sampled),
            (gold, "--reward consensus", sampled),
            (gold, "--reward test_suite", execution),
            (difference, "--reward test_suite", execution),
            (difference, "rewards without gold SQL", execution),
            (per_reward, "--dynamic-sampling", terms),
            (per_reward, "--ask-again", terms),
            (names, "--thinking on", "since only SQL can be drawn"),
        ):
            if used[option] and used[other]:
                raise UserError(f"{option}: not with {other}, {reason}")

    def to_dict(self) -> dict:
        return asdict(self)

    def saved(self) -> dict:
        """As config.json has it: paths inside the project relative to it, so that the run can be
        read on another machine.
        """
        settings = self.to_dict()
        for name in PATHS:
            path = Path(settings[name])
            if path.is_relative_to(ROOT):
                settings[name] = path.relative_to(ROOT).as_posix()
        return settings

    def evaluated_together(self, processes: int) -> int:
        """How many questions each process measures at once; ``--plan`` counts them, too."""
        return evaluated_together(math.ceil(self.prompts_per_step / processes))

    def lora_suffixes(self) -> list[str]:
        """``lora_targets`` as ``add_lora`` takes them."""
        return [suffix for suffix in self.lora_targets.split(",") if suffix]

    def differences(self, other: "Config") -> list[str]:
        """``name: other -> own`` for each setting that affects results and differs."""
        own, others = self.saved(), other.saved()
        return [
            f"{f.name}: {shown(others[f.name])} -> {shown(own[f.name])}"
            for f in fields(self)
            if others[f.name] != own[f.name] and f.metadata.get("affects_results", True)
        ]


def shown(value) -> str:
    """A setting in one line."""
    return repr(value) if "\n" in str(value) else str(value)


def evaluated_together(prompts: int) -> int:
    """How many questions a process measures at once that samples ``prompts`` groups in a step."""
    return min(32, 2 * prompts)


def option_name(name: str) -> str:
    """The option of a setting: ``"micro_batch"`` -> ``"--micro-batch"``."""
    return "--" + name.replace("_", "-")


def read_settings(option: str, folder: Path) -> dict:
    """The settings in the config.json of a run.

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
        saved.pop("provenance", None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged, not what train.py wrote ({error!r})") from error
    for name, default in Config().to_dict().items():
        value, kind = saved.get(name, default), type(default)
        if not isinstance(value, (float, int) if kind is float else kind):
            raise UserError(f"{path}: {name} = {value!r:.60} is not understood")
        if name in PATHS and value and not Path(value).exists() and (ROOT / value).exists():
            saved[name] = str(ROOT / value)  # as ``Config.saved`` writes it
    return saved


def read_provenance(path: Path) -> list[dict]:
    """What a run's config.json says of its starts (provenance.py)."""
    return json.loads(path.read_text(encoding="utf-8")).get("provenance", [])


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
