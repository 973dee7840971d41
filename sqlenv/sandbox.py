"""Running SQL that a language model wrote, as hostile as it may be, against a SQLite file.

A time limit on SQL is only sound if the process that runs it can be killed: SQLite's progress
handler is not called inside a long function or sort, and Python cannot stop a thread. So queries
run in worker processes (`worker.py`) that are reused from query to query, watched from here, and
killed and replaced where one does not answer in time. A worker that dies costs one query.
POSIX only (Linux, macOS, WSL).

    with Sandbox() as sandbox:
        sandbox.run("concert_singer.sqlite", "SELECT count(*) FROM singer").rows   # [(6,)]
"""

import functools
import marshal
import os
import selectors
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote

from sqlenv.errors import UserError
from sqlenv.worker import HEADER

MAX_SQL = 100_000  # bytes of UTF-8 in a query
GRACE = 0.5  # seconds that a worker has to stop a query itself before it is killed
START = 60.0  # seconds that a worker has to start, on a machine under load
WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True, slots=True)
class Execution:
    """What became of one query.

    status   "ok", "error" (SQLite rejects it), "denied" (it does more than read, or is not
             deterministic), "timeout" or "too_large" (its text, its result or its memory)
    columns  names of the result's columns; () unless ok
    rows     tuples of None, int, float, str and bytes; [] unless ok
    error    one line of explanation; None if ok
    seconds  wall-clock time inside the worker
    reads    lower-case (table, column) pairs that the query reads, aliases resolved, views as
             well as the tables beneath them; column "" where a table is read but no column of
             it, as in count(*). Empty where a query could not be prepared or had to be killed.
    """

    status: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple] = ()
    error: str | None = None
    seconds: float = 0.0
    reads: frozenset[tuple[str, str]] = frozenset()


class Sandbox:
    """A pool of worker processes that run queries, each read-only and within limits.

    workers    processes; they start when first needed
    timeout    seconds per query
    max_rows, max_bytes   of a result (a cell counts 8 bytes plus its text); no single value
               inside a query may be longer than max_bytes either
    memory_mb  what SQLite may allocate in a worker, in MiB

    Use it as a context manager, or call `close()`. Threads may share one.
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 2.0,
        max_rows: int = 20_000,
        max_bytes: int = 8_000_000,
        memory_mb: int = 512,
    ):
        if workers < 1 or timeout <= 0:
            raise ValueError("a sandbox needs at least one worker and a timeout above 0")
        self.timeout = timeout
        self._settings = timeout, max_rows, max_bytes, MAX_SQL, memory_mb
        self._workers: list[Worker | None] = [None] * workers
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()

    def run(self, db_path: str | os.PathLike, sql: str) -> Execution:
        """Run one query. Raises UserError if the database file is missing or unreadable."""
        return self.run_many([(db_path, sql)])[0]

    def run_many(self, queries: Iterable[tuple[str | os.PathLike, str]]) -> list[Execution]:
        """Run (db_path, sql) pairs in parallel over the workers; results in the order given.

        Raises UserError, before any query runs, if a database file is missing, and when its turn
        comes if it is not a readable SQLite database.
        """
        queries = [(os.fspath(path), sql) for path, sql in queries]
        stamps = {path: _stamp(path) for path in {path for path, _ in queries}}
        results: list[Execution | None] = [None] * len(queries)
        jobs = deque()
        for index, (path, sql) in enumerate(queries):
            results[index] = _refuse(sql)
            if results[index] is None:
                jobs.append((index, path, marshal.dumps((_uri(path), stamps[path], sql))))
        with self._lock:
            try:
                self._drain(jobs, results)
            except BaseException:
                # What a busy worker answers later would be taken for the next query's result.
                self._stop(slot for slot, worker in enumerate(self._workers) if worker)
                raise
        return results

    def close(self) -> None:
        """End the worker processes. A later `run` would start new ones."""
        with self._lock:
            self._stop(slot for slot, worker in enumerate(self._workers) if worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _drain(self, jobs: deque, results: list) -> None:
        """Hand out the jobs and collect the results until none is left."""
        busy: dict[int, tuple] = {}  # worker's slot -> (index, path, when it started)
        while jobs or busy:
            for slot in range(len(self._workers)):
                if jobs and slot not in busy:
                    index, path, frame = jobs.popleft()
                    self._worker(slot).send(frame)
                    busy[slot] = index, path, time.monotonic()
            earliest = min(start for _, _, start in busy.values())
            wait = earliest + self.timeout + GRACE - time.monotonic()
            answered = self._selector.select(max(wait, 0))
            for key, _ in answered:
                slot = key.data
                if message := self._workers[slot].receive():
                    index, path, start = busy.pop(slot)
                    results[index] = self._result(slot, path, message, start)
            self._expire(busy, {key.data for key, _ in answered}, results)

    def _result(self, slot: int, path: str, message: tuple, start: float) -> Execution:
        status, columns, rows, error, seconds, reads = message
        if status == "unreadable":
            raise UserError(f"{path}: cannot be read as a SQLite database ({error})")
        if status == "died":
            code = self._stop([slot])
            error = f"the worker process ended with code {code} while it ran this query"
            return Execution("error", error=error, seconds=time.monotonic() - start)
        return Execution(status, columns, rows, error, seconds, frozenset(reads))

    def _expire(self, busy: dict, answered: set[int], results: list) -> None:
        """Kill the workers whose time is up, except those in the middle of their answer."""
        now = time.monotonic()
        for slot, (index, _, start) in list(busy.items()):
            if slot not in answered and now >= start + self.timeout + GRACE:
                self._stop([slot])
                del busy[slot]
                error = f"killed: no result within {self.timeout:g} s"
                results[index] = Execution("timeout", error=error, seconds=now - start)

    def _worker(self, slot: int) -> "Worker":
        """The worker in a slot, started if there is none or it died while idle."""
        worker = self._workers[slot]
        if worker and worker.process.poll() is not None:
            self._stop([slot])
            worker = None
        if worker is None:
            worker = self._workers[slot] = Worker(self._settings)
            self._selector.register(worker.process.stdout, selectors.EVENT_READ, slot)
        return worker

    def _stop(self, slots: Iterable[int]) -> int | None:
        """Kill the workers in these slots; return the last one's exit code."""
        code = None
        for slot in slots:
            self._selector.unregister(self._workers[slot].process.stdout)
            code = self._workers[slot].kill()
            self._workers[slot] = None
        return code


class Worker:
    """The parent's end of one worker process."""

    def __init__(self, settings: tuple):
        # A session of its own, so that Ctrl-C in the terminal reaches the parent alone.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self.buffer = bytearray()
        self.send(marshal.dumps(settings))
        if self._first_answer() != "ready":
            code = self.kill()
            raise RuntimeError(f"the sandbox's worker process did not start (exit code {code})")

    def _first_answer(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            return self.receive() if selector.select(START) else None

    def send(self, data: bytes) -> None:
        """Write one frame. The worker is idle, that is reading, so this cannot block for long."""
        frame = memoryview(HEADER.pack(len(data)) + data)
        try:
            while frame:
                frame = frame[os.write(self.process.stdin.fileno(), frame) :]
        except BrokenPipeError:
            pass  # it died this moment: `receive` finds its end of the pipe closed and says so

    def receive(self):
        """Read what there is; return the message once it is whole, None before."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 16)
        if not chunk:
            return "died", (), [], None, 0.0, []
        self.buffer += chunk
        if len(self.buffer) < HEADER.size:
            return None
        (length,) = HEADER.unpack_from(self.buffer)
        if len(self.buffer) < HEADER.size + length:
            return None
        message = marshal.loads(memoryview(self.buffer)[HEADER.size :])
        self.buffer = bytearray()
        return message

    def kill(self) -> int:
        """End the process, which has nothing to lose, and return its exit code."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


def _refuse(sql: str) -> Execution | None:
    """The result of a text that need not reach SQLite, or None."""
    try:
        size = len(sql.encode())
    except UnicodeEncodeError as error:
        return Execution("error", error=f"not valid Unicode: {error.reason}")
    if size > MAX_SQL:
        return Execution("too_large", error=f"the SQL has {size} bytes; the limit is {MAX_SQL}")
    return None


def _stamp(path: str) -> tuple[int, int, int]:
    """What changes when the file is replaced, so that no worker reads on in an old one."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot open this database ({error.strerror})") from error
    return status.st_ino, status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=4096)
def _uri(path: str) -> str:
    # immutable: SQLite takes no lock and writes no journal beside the file.
    return f"file:{quote(os.path.abspath(path))}?mode=ro&immutable=1"
