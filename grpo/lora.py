"""LoRA (Hu et al. 2021, arXiv 2106.09685): trains a low-rank update of the frozen linear layers of
a model.

``y = x W^T + (alpha / r) x A^T B^T`` with A (r, in) random and B (out, r) zero, so that training
starts exactly at the base model. The base weights never change, so the reference policy of GRPO
needs no second model: it is the same model with LoRA off. A and B are float32 for every dtype of
the base, because an Adam step of 1e-6 is lost when a bfloat16 weight is rounded.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sqlenv.errors import UserError

Model = TypeVar("Model", bound=nn.Module)


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` plus a trainable low-rank update.

    Args:
        base: the layer to wrap; its weight (out, in) and bias are frozen.
        rank: r, the inner width of the update.
        alpha: the update is scaled by alpha / rank (arXiv 2106.09685, section 4.1).
        generator: of the random A, on the CPU, so that A is the same on every device; default:
            torch's global one.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        device = base.weight.device
        lora_A = torch.empty(rank, base.in_features, dtype=torch.float32, device="cpu")
        nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5), generator=generator)
        self.lora_A = nn.Parameter(lora_A.to(device))
        self.lora_B = nn.Parameter(
            torch.zeros(base.out_features, rank, dtype=torch.float32, device=device)
        )
        self.enabled = True
        self.merged: Tensor | None = None  # W + scale * B A, within ``lora_merged``

    @property
    def weight(self) -> Tensor:
        """The base's, (out, in): models look at its dtype."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if self.enabled and self.merged is not None:
            return F.linear(x, self.merged, self.base.bias)
        out = self.base(x)
        if not self.enabled:
            return out
        # Products use the base's dtype, as in sampling; only the trained weights are float32.
        narrow = F.linear(x, self.lora_A.to(x.dtype))  # (..., r)
        return out + F.linear(narrow, (self.scale * self.lora_B).to(x.dtype))

    @torch.no_grad()
    def update(self) -> Tensor:
        """scale * B A, (out, in) float32."""
        return self.scale * (self.lora_B @ self.lora_A)

    @torch.no_grad()
    def merged_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """W + scale * B A, (out, in), rounded by ``round_dithered`` to ``dtype``, by default the
        base's.
        """
        weight = self.base.weight
        return round_dithered(weight.float() + self.update(), dtype or weight.dtype)


def round_dithered(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds float32 values to a neighbour in ``dtype``, up with the probability of how far they
    are on the way up, so that a sum of many keeps its value.

    W lies on the grid of ``dtype``. Rounding W + update to the nearest value would give W back
    wherever the update is below half a step of the grid, as most are at a low learning rate. The
    dither is the same in every call, so the result depends on ``x`` alone. Values that ``dtype``
    has stay as they are. (Dither: Schuchman 1964.)
    """
    if dtype == torch.float32:
        return x
    # A float32 has 23 bits after the leading one, of which ``dtype`` keeps the first.
    step = 1 << 23 - round(-math.log2(torch.finfo(dtype).eps))
    generator = torch.Generator(x.device).manual_seed(0)
    dither = torch.randint(step, x.shape, dtype=torch.int32, device=x.device, generator=generator)
    bits = x.contiguous().view(torch.int32) + dither & -step
    return bits.view(torch.float32).to(dtype)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every LoRA layer, in the model's order."""
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear)
    )


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by name: ``<layer>.lora_A`` (r, in) and ``<layer>.lora_B`` (out, r),
    float32.
    """
    return {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in lora_layers(model)
        for part in ("lora_A", "lora_B")
    }


def is_target(name: str, targets: Sequence[str] | str) -> bool:
    """Whether ``targets`` select the layer called ``name``, by PEFT's rule: the name ends in one of
    the suffixes, or matches the regular expression as a whole.

    >>> is_target("layers.0.attn.q_proj", ["q_proj"]), is_target("layers.0.seq_proj", ["q_proj"])
    (True, False)
    """
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in targets)


def target_names(model: nn.Module, targets: Sequence[str] | str) -> list[str]:
    """The names of the linear layers of the decoder blocks that ``targets`` select, see
    ``add_lora``, which raises the same.
    """
    blocks = model.get_decoder().layers  # pyright: ignore[reportCallIssue]
    path = next(name for name, module in model.named_modules() if module is blocks)
    # A subclass may compute something else, such as which experts see a token.
    linear = [name for name, layer in blocks.named_modules() if type(layer) is nn.Linear]
    linear = [f"{path}.{name}" for name in linear]
    for target in [targets] if isinstance(targets, str) else [[suffix] for suffix in targets]:
        if not any(is_target(name, target) for name in linear):
            names = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            wanted = target if isinstance(target, str) else target[0]
            raise UserError(f"LoRA target {wanted!r} matches no linear layer; the layers: {names}")
    return [name for name in linear if not targets or is_target(name, targets)]


def add_lora(
    model: Model,
    *,
    rank: int = 32,
    alpha: float = 64.0,
    targets: Sequence[str] | str = (),
    seed: int = 0,
) -> Model:
    """Freezes ``model`` and wraps linear layers of its decoder blocks in LoRA, in place.

    Args:
        model: a Hugging Face causal language model.
        rank, alpha: see ``LoRALinear``.
        targets: suffixes of the layers' names, such as ``q_proj``, or a regular expression; empty:
            all linear layers of the blocks, which LoRA needed to match full fine-tuning
            (LLaMA-7B; QLoRA, arXiv 2305.14314, section 4).
        seed: of the random A matrices, which do not depend on the global generator.

    Returns:
        ``model``.

    Raises:
        UserError: a target matches no linear layer.
    """
    model.requires_grad_(False)
    options = {"rank": rank, "alpha": alpha, "generator": torch.Generator().manual_seed(seed)}
    for name in target_names(model, targets):
        parent, _, child = name.rpartition(".")
        parent = model.get_submodule(parent)
        setattr(parent, child, LoRALinear(getattr(parent, child), **options))
    return model


@contextmanager
def lora_disabled(model: nn.Module):
    """Within it the model is its frozen base: the reference policy."""
    layers = [layer for _, layer in lora_layers(model)]
    before = [layer.enabled for layer in layers]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer, enabled in zip(layers, before):
            layer.enabled = enabled


@contextmanager
def lora_merged(model: nn.Module):
    """Within it every LoRA layer multiplies by one matrix, a *copy* of the base weight with the
    update added: for sampling and evaluation.

    The base weights are never added to and subtracted from, which would drift in bfloat16. Layers
    whose weight is spread over processes (grpo/distributed/shard.py) are left as they are.
    """
    layers = [
        layer for _, layer in lora_layers(model) if not isinstance(layer.base.weight, DTensor)
    ]
    try:
        for layer in layers:
            layer.merged = layer.merged_weight()
        yield model
    finally:
        for layer in layers:
            layer.merged = None


def update_kept(model: nn.Module, dtype: torch.dtype) -> float:
    """The share of LoRA's update that weights merged in ``dtype`` keep: <W' - W, update> / <update,
    update> over all layers; 1 without an update.
    """
    kept, total = 0.0, 0.0
    for _, layer in lora_layers(model):
        update = layer.update()
        change = layer.merged_weight(dtype).float() - layer.base.weight.float()
        kept += (change * update).sum(dtype=torch.float64).item()
        total += update.square().sum(dtype=torch.float64).item()
    return kept / total if total else 1.0


def merge_lora(model: Model, dtype: torch.dtype) -> Model:
    """Replaces every LoRA layer by its base layer with the update added to the weight, and brings
    the model into ``dtype``, in place and for good. Returns ``model``.
    """
    for name, layer in list(lora_layers(model)):
        parent, _, child = name.rpartition(".")
        layer.base.weight.data = layer.merged_weight(dtype)
        setattr(model.get_submodule(parent), child, layer.base)
    return model.to(dtype)
