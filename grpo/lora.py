"""LoRA (Hu et al. 2021, arXiv 2106.09685): trains a low-rank change to the frozen linear layers of
a model.

``y = x W^T + (alpha / r) x A^T B^T`` with A (r, in) random and B (out, r) zero, so that training
starts at the base model exactly. Because the base stays as it is, the reference policy of GRPO
costs no second model: it is this one with LoRA off. A and B stay float32 whatever the base is: an
Adam step of 1e-6 on a bfloat16 weight rounds away.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRALinear(nn.Module):
    """A frozen ``nn.Linear`` plus a trainable low-rank update.

    Args:
        base: the layer to wrap; its weight (out, in) and bias are frozen.
        rank: r, the inner width of the update.
        alpha: the update is scaled by alpha / rank (arXiv 2106.09685, section 4.1).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        device = base.weight.device
        self.lora_A = nn.Parameter(
            torch.empty(rank, base.in_features, dtype=torch.float32, device=device)
        )
        self.lora_B = nn.Parameter(
            torch.zeros(base.out_features, rank, dtype=torch.float32, device=device)
        )
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.enabled = True
        self.folded: Tensor | None = None  # W + scale * B A, while sampling

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        if self.folded is not None:
            return F.linear(x, self.folded, self.base.bias)
        out = self.base(x)
        if not self.enabled:
            return out
        # The products are of the base's dtype, as in sampling; the sums that Adam makes are not.
        narrow = F.linear(x, self.lora_A.to(x.dtype))  # (..., r)
        return out + F.linear(narrow, (self.scale * self.lora_B).to(x.dtype))

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scale * B A, (out, in) in the base's dtype."""
        update = self.scale * (self.lora_B @ self.lora_A)
        return (self.base.weight.float() + update).to(self.base.weight.dtype)


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


def add_lora(
    model: nn.Module, rank: int = 16, alpha: float = 32, generator_seed: int = 0
) -> nn.Module:
    """Freezes ``model`` and wraps every linear layer of its decoder blocks (not the output head)
    in LoRA, in place.

    The random A matrices come from ``generator_seed`` alone, whatever the state of the global
    generator.
    """
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and child is not head
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        for parent, name, child in found:
            setattr(parent, name, LoRALinear(child, rank, alpha))
    return model


@contextmanager
def lora_disabled(model: nn.Module):
    """Within it the model is its frozen base: the reference policy."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer in layers:
            layer.enabled = True


@contextmanager
def lora_folded(model: nn.Module):
    """Within it every layer multiplies by one matrix, a *copy* with the update folded in: for
    sampling.

    The base weights are never added to and subtracted from, which would drift in bfloat16.
    """
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.folded = layer.merged_weight()
    try:
        yield model
    finally:
        for layer in layers:
            layer.folded = None


def merge_lora(model: nn.Module) -> nn.Module:
    """Replaces every LoRA layer by its base with the update added to the weight, in place, for
    good.
    """
    for name, layer in list(lora_layers(model)):
        parent, _, child = name.rpartition(".")
        layer.base.weight.data = layer.merged_weight()
        setattr(model.get_submodule(parent), child, layer.base)
    return model
