"""Atomic writing of files, the cache folder, and read-only access to SQLite files.

Everything is written under a temporary name and then renamed.
"""

import contextlib
import errno
import fcntl
import functools
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
    """Writes a file atomically: a full disk or a kill leaves the previous file unchanged.

    Args:
        path: the file; missing folders are created.
        write: is called with a temporary path beside ``path``, which is then renamed.
        errors: the exceptions by which ``write`` reports that the disk fails.

    Raises:
        UserError: the file cannot be written.
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
        with contextlib.suppress(OSError):  # after success it no longer exists
            temporary.unlink()


def write_directory(
    path: Path,
    write: Callable[[Path], object],
    errors: tuple[type[Exception], ...] = WRITE_ERRORS,
) -> None:
    """Writes a new directory atomically; the arguments are those of ``write_file``."""
    # In containers, a process that was killed and left its directory had the same number, and so
    # has one that writes from another container. mkdtemp() would let only this user read it.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        os.replace(temporary, path)
    except errors as error:
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8."""
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value) -> None:
    """Writes a value as JSON. NaN and infinity, which JSON lacks, raise a ValueError."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of a file, which is created if it does not exist.

    Other processes wait for it. The lock is released at the latest when the process ends.
    """
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_only_uri(path: str | os.PathLike) -> str:
    """The URI that opens a SQLite file read-only.

    With ``immutable`` SQLite takes no lock and writes no journal beside the file, so that databases
    on a read-only disk can be opened. It does not read a journal either, so a file whose changes
    are still in one is refused.

    Raises:
        UserError: the file is missing, or a journal beside it has changes.
    """
    name = os.fsdecode(path)
    try:
        real = os.path.realpath(name)  # where SQLite looks for journals
        os.stat(real)
        journals = [real + suffix for suffix in ("-wal", "-journal") if _in_use(real + suffix)]
    except (OSError, ValueError) as error:  # ValueError: characters that no file name has
        reason = error.strerror if isinstance(error, OSError) else "not a possible path"
        raise UserError(f"{_printable(name)}: cannot open this database ({reason})") from error
    if journals:
        raise UserError(
            f"{_printable(journals[0])}: has changes that {_printable(name)} lacks; end the "
            "program that writes to it, then apply them: sqlite3 FILE 'PRAGMA user_version; "
            "PRAGMA journal_mode=DELETE'"
        )
    return f"file:{quote(os.fsencode(real))}?mode=ro&immutable=1"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _in_use(journal: str) -> bool:
    """Whether a journal has content. When it is done, SQLite deletes, truncates or zeroes it."""
    try:
        with open(journal, "rb") as file:
            return file.read(1) not in (b"", b"\0")
    except FileNotFoundError:
        return False


def cache_folder(name: str) -> Path:
    """The folder ``name`` in the cache, which may have to be created.

    The cache is ``$XDG_CACHE_HOME/grpo-text2sql`` or ``~/.cache/grpo-text2sql``. If it is not
    writable, a folder of this user in the system's temporary folder is used, with a warning.

    Raises:
        UserError: neither folder is writable.
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
    """Creates the folder with access for this user only. Raises OSError if it is not writable."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to another user")
    with tempfile.TemporaryFile(dir=folder):
        return folder
