"""Checks of the arguments of the public functions."""

from torch import Tensor


def check_tensors(**tensors: Tensor) -> None:
    """Raises TypeError for an argument that is not a tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, not a {type(value).__name__}")


def check_rewards(rewards: Tensor, kind: str, weights: Tensor | None) -> None:
    """The arguments of ``group_advantages``."""
    check_tensors(rewards=rewards)
    if kind not in ("centered", "group", "rloo", "maxrl", "per_reward"):
        raise ValueError(f"unknown advantage {kind!r}: centered, group, rloo, maxrl or per_reward")
    shape = "(P, G, R)" if kind == "per_reward" else "(P, G)"
    if rewards.dim() != shape.count(",") + 1:
        raise ValueError(f"{kind} advantages take rewards {shape}, not {tuple(rewards.shape)}")
    if kind != "centered" and rewards.shape[1] < 2:
        raise ValueError(f"{kind} advantages need at least 2 completions in a group")
    if kind == "per_reward" and (weights is None or len(weights) != rewards.shape[2]):
        raise ValueError("per_reward advantages need `weights`, one for each reward term")
