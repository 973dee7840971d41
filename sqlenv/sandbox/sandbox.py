"""Running SQL that a language model wrote, as hostile as it may be, against a SQLite file.

A time limit on SQL is only sound if the process that runs it can be killed: SQLite's progress
handler is not called inside a long function or sort, and Python cannot stop a thread. So queries
run in worker processes (`worker.py`) that are reused from query to query, watched from here, and
killed and replaced where one does not answer in time. They get queries in chunks; those that a lost
worker has left unanswered run again one by one, so that a worker that dies costs one query at most.
POSIX only (Linux, macOS, WSL).

    with Sandbox() as sandbox:
        sandbox.run("concert_singer.sqlite", "SELECT count(*) FROM singer").rows   # [(6,)]
"""

import functools
import logging
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
from typing import NamedTuple, Self

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.sandbox.worker import HEADER

MAX_SQL = 100_000  # bytes of UTF-8 in a query
GRACE = 0.5  # seconds that a worker has to stop a query itself before it is killed
START = 60.0  # seconds that a worker has to start, on a machine under load
CHUNK = 32  # queries in one message to a worker
WORKER = Path(__file__).with_name("worker.py")

logger = logging.getLogger(__name__)


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


class Job(NamedTuple):
    """A query on its way: its place in the results, and the database as path, and as uri, stamp."""

    index: int
    path: str
    database: tuple[str, tuple[int, int, int]]
    sql: str
    alone: bool = False  # after a worker was lost with several: to see with which


class Sandbox:
    """A pool of worker processes that run queries, each read-only and within limits.

    workers    processes; they start when first needed
    timeout    seconds per query
    max_rows, max_bytes   of a result, as sent to this process; no single value inside a query
               may be longer than max_bytes either
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
        databases = {
            path: (read_only_uri(path), _stamp(path)) for path in {path for path, _ in queries}
        }
        results = [_refuse(sql) for _, sql in queries]
        jobs = [
            Job(index, path, databases[path], sql)
            for index, (path, sql) in enumerate(queries)
            if results[index] is None
        ]
        # One database after the other, since opening one takes longer than most queries.
        jobs = deque(sorted(jobs, key=lambda job: job.path))
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

    def _drain(self, jobs: deque[Job], results: list) -> None:
        """Hand out the jobs and collect the results until none is left."""
        while True:
            for slot in range(len(self._workers)):
                if jobs and slot not in self._busy():
                    self._worker(slot).give(self._chunk(jobs))
            busy = self._busy()
            if not busy:
                return
            since = min(self._workers[slot].since for slot in busy)
            wait = since + self.timeout + GRACE - time.monotonic()
            for key, _ in self._selector.select(max(wait, 0)):
                self._collect(key.data, jobs, results)
            self._expire(jobs, results)

    def _chunk(self, jobs: deque[Job]) -> list[Job]:
        """Take jobs for one worker; few at the end, so that all workers end at the same time."""
        size = 1 + len(jobs) // (2 * len(self._workers))
        chunk = [jobs.popleft()]
        while len(chunk) < min(size, CHUNK) and not (chunk[0].alone or jobs[0].alone):
            chunk.append(jobs.popleft())
        return chunk

    def _busy(self) -> list[int]:
        return [slot for slot, worker in enumerate(self._workers) if worker and worker.jobs]

    def _collect(self, slot: int, jobs: deque[Job], results: list) -> None:
        """Take in what a worker has answered."""
        worker = self._workers[slot]
        answers = worker.receive()
        if answers is None:
            self._lose(slot, "error", "the worker process ended with code {code}", jobs, results)
            return
        for status, columns, rows, error, seconds, reads, ends_chunk in answers:
            job = worker.jobs.popleft()
            if status == "unreadable":
                raise UserError(f"{job.path}: cannot be read as a SQLite database ({error})")
            results[job.index] = Execution(status, columns, rows, error, seconds, reads)
            if ends_chunk:  # before its time, if a query took long: others may be idle
                jobs.extendleft(reversed(worker.jobs))
                worker.jobs.clear()

    def _expire(self, jobs: deque[Job], results: list) -> None:
        """Kill the workers whose time is up; one in the middle of its answer has more."""
        now = time.monotonic()
        for slot in self._busy():
            if now >= self._workers[slot].since + self.timeout + GRACE:
                error = f"killed: no result within {self.timeout:g} s"
                self._lose(slot, "timeout", error, jobs, results)

    def _lose(self, slot: int, status: str, error: str, jobs: deque[Job], results: list) -> None:
        """Stop a worker that is lost, and with it the query it ran, if that is known."""
        worker = self._workers[slot]
        error = error.format(code=self._stop([slot]))
        if len(worker.jobs) == 1:
            seconds = time.monotonic() - worker.since
            results[worker.jobs[0].index] = Execution(status, error=error, seconds=seconds)
        else:
            jobs.extendleft(job._replace(alone=True) for job in reversed(worker.jobs))

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
    """The parent's end of one worker process, and the queries that it has still to answer."""

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
        self.jobs: deque[Job] = deque()
        self.since = 0.0  # when it was given its jobs or last sent something
        self.send(settings)
        missing = self._first_answer()
        if missing is None:
            code = self.kill()
            raise RuntimeError(f"the sandbox's worker process did not start (exit code {code})")
        _warn_of(tuple(missing))

    def _first_answer(self) -> list[str] | None:
        """The limits that this system lacks; None where the process does not start."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answers = self.receive() if selector.select(START) else None
        return answers[0] if answers else None

    def give(self, jobs: list[Job]) -> None:
        """Send jobs to a worker that has none."""
        self.jobs.extend(jobs)
        self.since = time.monotonic()
        self.send([(job.database, job.sql) for job in jobs])

    def send(self, message) -> None:
        """Write one message. The worker is idle and reads it whole, so this does not block."""
        data = marshal.dumps(message)
        frame = memoryview(HEADER.pack(len(data)) + data)
        try:
            while frame:
                frame = frame[os.write(self.process.stdin.fileno(), frame) :]
        except BrokenPipeError:
            pass  # it died this moment: `receive` finds its end of the pipe closed and says so

    def receive(self) -> list | None:
        """Read what there is; return the messages that are whole, None if the process ended."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 18)
        if not chunk:
            return None
        self.since = time.monotonic()
        self.buffer += chunk
        messages, start = [], 0
        while len(self.buffer) >= start + HEADER.size:
            end = start + HEADER.size + HEADER.unpack_from(self.buffer, start)[0]
            if len(self.buffer) < end:
                break
            messages.append(marshal.loads(self.buffer[start + HEADER.size : end]))
            start = end
        del self.buffer[:start]
        return messages

    def kill(self) -> int:
        """End the process, which has nothing to lose, and return its exit code."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


@functools.cache
def _warn_of(missing: tuple[str, ...]) -> None:
    """Say once which limits the workers have to do without."""
    if missing:
        logger.warning("sandbox: this system does not limit %s", "; ".join(missing))


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
