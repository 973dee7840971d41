"""The device that ``--device`` names."""

import torch

from sqlenv.errors import UserError


def resolve_device(name: str) -> str:
    """The device itself; ``auto`` is a GPU if there is one, else the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Raises UserError unless torch can compute on this device here."""
    try:
        torch.ones(1, device=name).add(1).item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        # what torch raises for an unknown device, and for one that this machine or build lacks
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"--device {name} cannot be used here: {reason:.200}; use cpu, cuda or auto"
        ) from error
