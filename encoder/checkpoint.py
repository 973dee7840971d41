"""Training states on disk: whole files only, read without running code that they may contain."""

import pickle
from pathlib import Path

import torch

from sqlenv.errors import UserError
from sqlenv.files import write_file

READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError)


def save_state(path: Path, state: dict) -> None:
    """Writes a training state: tensors, numbers, strings and containers of these."""
    write_file(path, lambda temporary: torch.save(state, temporary))


def load_state(path: Path) -> dict:
    """Reads a training state, tensors onto the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; there is nothing to resume")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise UserError(f"{path} is damaged: remove it to start anew") from error
