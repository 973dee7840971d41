"""Muon: momentum whose matrices are orthogonalised (Jordan et al. 2024, kellerjordan.github.io).

``torch.optim.Muon`` orthogonalises in bfloat16, which CPUs without hardware for it emulate: there
an update takes ten times as long as the gradients. This one uses the dtype of the weights,
orthogonalises all matrices of one shape at once, and shares them out to the processes.
"""

import torch
from torch import Tensor

from grpo.distributed.parallel import SINGLE_PROCESS, Distributed

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial
ITERATIONS = 5


def orthogonalize(matrices: Tensor) -> Tensor:
    """Moves the singular values of each matrix towards 1, into about 0.7 to 1.2, by Newton-Schulz
    iterations: (B, M, N) -> (B, M, N).
    """
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, with decoupled weight decay. For matrices only.

    The step of an (M, N) matrix is ``lr * sqrt(max(1, M / N))`` along the orthogonal matrix.

    Args:
        distributed: the processes, which all have the same gradients.
    """

    def __init__(
        self,
        params,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        distributed: Distributed = SINGLE_PROCESS,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.distributed = distributed

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for shape, weights in by_shape.items():
                moments = torch.stack([self._momentum(w, group) for w in weights])
                own, updates = self.distributed.split(len(weights)), torch.zeros_like(moments)
                updates[own.start : own.stop] = orthogonalize(moments[own.start : own.stop])
                self.distributed.all_reduce(updates)
                size = group["lr"] * max(1, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, updates):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)

    def _momentum(self, weight: Tensor, group: dict) -> Tensor:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
        return weight.grad.lerp(state["momentum"], group["momentum"])
