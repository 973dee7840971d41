"""Writing whole files or none: what is written goes to a temporary name and is renamed."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sqlenv.errors import UserError

WRITE_ERRORS = (OSError, RuntimeError)  # torch reports a full disk as RuntimeError


def write_file(
    path: Path,
    write: Callable[[Path], object],
    errors: tuple[type[Exception], ...] = WRITE_ERRORS,
) -> None:
    """Calls ``write`` with a temporary path beside ``path`` and renames the result: a full disk or
    a kill leaves the previous file as it was.

    Args:
        errors: what ``write`` raises where the disk is at fault.
    Raises:
        UserError: the file cannot be written; names it, and what became of the one before.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except errors as error:
        kept = "; the previous one is kept" if path.exists() else ""
        raise UserError(f"cannot write {path}: {error}{kept}") from error
    finally:
        with suppress(OSError):  # it is gone if all went well
            temporary.unlink()


def write_directory(
    path: Path,
    write: Callable[[Path], object],
    errors: tuple[type[Exception], ...] = WRITE_ERRORS,
) -> None:
    """The same for a new directory."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        os.replace(temporary, path)
    except errors as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, value) -> None:
    """A value as JSON; NaN and infinity, which JSON does not know, are a ValueError."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
