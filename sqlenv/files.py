"""Files: whole files are written or none, the cache folder, and SQLite files opened read-only.

What is written goes to a temporary name and is renamed.
"""

import errno
import functools
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from sqlenv.errors import UserError

WRITE_ERRORS = (OSError, RuntimeError)  # torch reports a full disk as RuntimeError
logger = logging.getLogger(__name__)


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


@functools.lru_cache(maxsize=4096)
def read_only_uri(path: str | os.PathLike) -> str:
    """The URI that opens an SQLite file read-only. ``immutable``: SQLite takes no lock and writes
    no journal beside the file, so a database on a read-only disk can be read.
    """
    return f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"


def cache_folder(name: str) -> Path:
    """The folder ``name`` of the cache: ``$XDG_CACHE_HOME/grpo-text2sql`` or
    ``~/.cache/grpo-text2sql``. Where that cannot be written, a folder of this user among the
    temporary files, with a warning.

    Raises:
        UserError: that cannot be written, either.
    """
    return _cache_root(os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")) / name


@functools.cache
def _cache_root(parent: str) -> Path:
    folder = Path(parent) / "grpo-text2sql"
    try:
        return _writable(folder)
    except OSError as error:
        fallback = Path(tempfile.gettempdir()) / f"grpo-text2sql-{os.getuid()}"
        logger.warning(
            "cannot write the cache folder %s (%s): using %s; XDG_CACHE_HOME names another",
            *(folder, error.strerror, fallback),
        )
    try:
        return _writable(fallback)
    except OSError as error:
        raise UserError(
            f"cannot write {folder} or {fallback} ({error.strerror}); name a cache folder by "
            "XDG_CACHE_HOME"
        ) from error


def _writable(folder: Path) -> Path:
    """The folder, created if need be for this user alone. Raises OSError if it is not writable."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to another user")
    with tempfile.TemporaryFile(dir=folder):
        return folder
