"""The settings of a run: one dataclass, a line of explanation each. ``train.py`` makes its options
from it.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from grpo.recipes import RECIPES
from grpo.rewards import WEIGHTS
from sqlenv import EMBEDDED

ASSETS = Path(__file__).resolve().parents[1] / "assets"


def option(default, text: str, **more):
    """A setting with the help text and argparse keywords of its option."""
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Config:
    """Everything that a run depends on; saved as config.json."""

    recipe: str = option(
        "", "settings of a published recipe; options given beside it win", choices=list(RECIPES)
    )
    lang: str = option("vi", "languages: one of en de es fr ja vi zh, a comma list, or all")
    model: str = option(str(ASSETS / "policy"), "policy: a Hugging Face model directory or hub id")
    encoder: str = option(str(ASSETS / "encoder"), "contrastive encoder directory")
    data: str = option(
        str(EMBEDDED), "dataset: the embedded one, or a root in MultiSpider's layout"
    )
    examples: int = option(2000, "training questions, drawn over all languages of --lang")
    dev_limit: int = option(0, "dev questions a language to measure on, 0 for all")
    steps: int = option(0, "optimizer steps; 0 means one pass over the examples")
    prompts_per_step: int = option(16, "prompts P in a step")
    group_size: int = option(8, "completions G of each prompt")
    max_new_tokens: int = option(96, "longest completion")
    temperature: float = option(1.0, "of sampling and of the log-probabilities alike")
    micro_batch: int = option(
        4, "prompts in a forward and backward pass; does not change the result", free=True
    )
    checkpoint_activations: bool = option(
        False,
        "compute activations again in the backward pass: less memory, one forward pass more",
        free=True,
    )
    shard: bool = option(
        False, "spread the frozen weights over the processes of torchrun (FSDP2)", free=True
    )
    lr: float = option(6e-4, "peak learning rate of AdamW on the LoRA weights")
    warmup_steps: int = option(
        5, "steps over which the learning rate rises; then it falls linearly to 0"
    )
    max_grad_norm: float = option(1.0, "gradient norm to clip to")
    beta: float = option(0.02, "weight of the KL term; 0 skips the reference pass")
    kl: str = option("k3iw", "KL estimator", choices=["k1", "k2", "k3", "k3iw"])
    loss: str = option(
        "token", "what the loss is a mean over", choices=["token", "sequence", "constant"]
    )
    ratio: str = option(
        "token", "importance ratio of the loss", choices=["token", "sequence", "cispo"]
    )
    advantage: str = option(
        "centered", "advantages", choices=["centered", "group", "rloo", "per_reward"]
    )
    epsilon_low: float = option(0.2, "the ratio is clipped below 1 - this")
    epsilon_high: float = option(0.2, "the ratio is clipped above 1 + this")
    updates_per_batch: int = option(1, "optimizer updates on each batch of samples")
    dynamic_sampling: int = option(
        0, "times that groups without signal are replaced by groups of further prompts"
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
        "", "layers that LoRA wraps, such as q_proj,v_proj; otherwise all linear ones of the blocks"
    )
    semantic_target: str = option(
        "question",
        "what the semantic reward compares the SQL with",
        choices=["question", "gold", "both"],
    )
    semantic_raw: bool = option(False, "the cosine as semantic reward, not the calibrated score")
    semantic_ungated: bool = option(False, "semantic reward also for SQL that does not run")
    reward_timeout: float = option(10.0, "seconds a custom reward may take for a batch")
    reward: dict = field(default_factory=lambda: dict(WEIGHTS))
    seed: int = option(0, "of data order, LoRA weights and sampling")
    device: str = option("auto", "cpu, cuda, ...; auto takes a GPU where there is one")
    dtype: str = option(
        "auto", "of the frozen weights", choices=["auto", "float32", "bfloat16", "float16"]
    )
    save_every: int = option(20, "steps between checkpoints", free=True)
    tensorboard: bool = option(
        False, "write the metrics for TensorBoard, too (if installed)", free=True
    )

    @classmethod
    def with_recipe(cls, recipe: str = "", reward: dict | None = None, **given) -> "Config":
        """The recipe's settings, with those given in their place; rewards are merged by name.

        >>> Config.with_recipe("dapo", beta=0.1).beta, Config.with_recipe("dapo").epsilon_high
        (0.1, 0.28)
        """
        preset = dict(RECIPES[recipe]) if recipe else {}
        weights = WEIGHTS | preset.pop("reward", {}) | (reward or {})
        return cls(**preset | given, recipe=recipe, reward=weights)

    def to_dict(self) -> dict:
        return asdict(self)

    def differences(self, other: dict) -> list[str]:
        """``name: other -> own`` for each setting that differs from a saved configuration and
        changes the results: one that is ``free`` does not.
        """
        own = self.to_dict()
        return [
            f"{f.name}: {other.get(f.name)} -> {own[f.name]}"
            for f in fields(self)
            if other.get(f.name) != own[f.name] and not f.metadata.get("free")
        ]
