"""Executes SQL written by a language model, which may be hostile, on a SQLite file.

A time limit on SQL is reliable only if the process that runs it can be killed: SQLite does not call
its progress handler inside a long function or sort, and Python cannot stop a thread. So queries run
in worker processes (``worker.py``), which are reused. A query's time is CPU time: a worker that has
used too much of it is killed by a timer of the system, and replaced here. This module itself kills
a worker that sends nothing for much longer than that. Workers get queries in chunks. The unanswered
queries of a lost worker run again one at a time, so that its loss fails one query at most.
POSIX only (Linux, macOS, WSL).

    with Sandbox() as sandbox:
        sandbox.run("concert_singer.sqlite", "SELECT count(*) FROM singer").rows   # [(6,)]
"""

import functools
import logging
import marshal
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.sandbox.worker import HEADER

MAX_SQL = 100_000  # bytes of UTF-8 in a query
FIRST_TRY = 0.03  # seconds for each query of a batch at first, if time-outs have a budget
PATIENCE = 10  # times the timeout that a worker may be silent, on a busy machine or a slow disk
EXTRA_PATIENCE = 0.5  # seconds more, for short timeouts
CPU_SIGNALS = -signal.SIGPROF, -signal.SIGXCPU  # exit codes of a worker that used too much time
START_TIMEOUT = 60.0  # seconds in which a worker must start, on a machine under load
HEAD_ROWS, HEAD_COLUMNS, HEAD_CELL = 3, 6, 40  # kept of a result: rows, columns, characters
CHUNK_SIZE = 32  # queries in one message to a worker
STOPPED = ("denied", "timeout", "too_large")  # statuses of queries that SQLite itself might run
WORKER = Path(__file__).with_name("worker.py")

logger = logging.getLogger(__name__)
_sandboxes: weakref.WeakSet["Sandbox"] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [each._forget_workers() for each in _sandboxes])


@dataclass(frozen=True, slots=True)
class Execution:
    """The result of one query.

    Attributes:
        status: "ok", "error" (SQLite rejects it), "denied" (it does more than read, reads SQLite's
            own tables, or depends on more than the data), "timeout" or "too_large" (its text, its
            nesting, its result or its memory).
        columns: names of the result's columns; () unless ok.
        rows: tuples of None, int, float, str and bytes; [] unless ok.
        error: one line of explanation; None if ok.
        seconds: CPU time in the worker; of a worker that was lost, the wall-clock time until then.
        reads: (table, column) pairs that the query reads, in lower case, with aliases resolved, of
            views and of the tables below them. The column is "" if a table is read without any of
            its columns, as in count(*). Empty if the query could not be prepared or was killed.
        num_rows: the number of rows, also where the rows themselves are no longer kept.
        head: where they are no longer kept, the first ones as text, long values cut off.
    """

    status: str
    columns: tuple[str, ...] = ()
    rows: Sequence[tuple] = ()
    error: str | None = None
    seconds: float = 0.0
    reads: frozenset[tuple[str, str]] = frozenset()
    num_rows: int = 0
    head: tuple[tuple[str, ...], ...] = ()

    def without_rows(self) -> "Execution":
        """The same, without the rows, which can have megabytes, but for their head."""
        rows = self.rows[:HEAD_ROWS]
        head = tuple(tuple(short_text(value) for value in row[:HEAD_COLUMNS]) for row in rows)
        return replace(self, rows=[], head=head)


def short_text(value) -> str:
    """A value of a result for a person to read, in one line."""
    text = (
        "NULL"
        if value is None
        else f"x'{value[:HEAD_CELL].hex()}'"
        if type(value) is bytes
        else str(value)
    )
    text = " ".join(text[: 4 * HEAD_CELL].split())
    return text if len(text) <= HEAD_CELL else f"{text[: HEAD_CELL - 1]}…"


Use = Callable[[int, Execution], Any]  # gets the number of a query and its result


class Job(NamedTuple):
    """A query to run."""

    index: int  # of the query
    path: str
    database: tuple[str, tuple[int, int, int]]  # URI and version of the file
    sql: str
    alone: bool = False  # in a chunk of its own, after a worker was lost with several queries


class Sandbox:
    """A pool of worker processes that run queries, read-only and within limits.

    Use it as a context manager, or call ``close()``. It can be shared by threads. A forked process
    that uses it starts workers of its own.

    Args:
        workers: number of processes, which start when first needed.
        timeout: seconds of CPU time for each query. A worker that sends nothing for ten times as
            long is killed.
        max_rows: rows of a result.
        max_bytes: bytes of a result as sent to this process, and of any value inside a query.
        memory_mb: MiB that SQLite may allocate in a worker.

    Raises:
        ValueError: ``workers`` is not positive, or ``timeout`` not positive and finite.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        timeout: float = 2.0,
        max_rows: int = 20_000,
        max_bytes: int = 8_000_000,
        memory_mb: int = 512,
    ):
        if workers < 1 or not 0 < timeout < math.inf:
            raise ValueError("a sandbox needs at least one worker and a timeout above 0")
        self.timeout = timeout
        self._patience = PATIENCE * timeout + EXTRA_PATIENCE
        self._settings = max_rows, max_bytes, MAX_SQL, memory_mb
        self._workers: list[Worker | None] = [None] * workers
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        _sandboxes.add(self)

    def run(self, db_path: str | os.PathLike, sql: str) -> Execution:
        """Runs one query.

        Raises:
            UserError: the database file is missing or unreadable.
        """
        return self.run_many([(db_path, sql)])[0]

    def run_many(
        self,
        queries: Iterable[tuple[str | os.PathLike, str]],
        *,
        timeout_budget: float | None = None,
    ) -> list[Execution]:
        """Runs (db_path, sql) pairs in parallel and returns their results in the same order, as
        ``run_each`` does.
        """
        queries = list(queries)
        results: list = [None] * len(queries)
        self.run_each(queries, results.__setitem__, timeout_budget=timeout_budget)
        return results

    def run_each(
        self,
        queries: Iterable[tuple[str | os.PathLike, str]],
        use: Use,
        *,
        timeout_budget: float | None = None,
    ) -> None:
        """Runs (db_path, sql) pairs in parallel and passes on each result as soon as it is there,
        so that the results need not fit into memory together.

        Args:
            use: called with the index of a query and its result, in any order. It cannot use this
                sandbox.
            timeout_budget: seconds of CPU time for the queries that time out; None for no limit.
                With it, what needs more than ``FIRST_TRY`` is put back and then tried with the full
                time limit, in order, until the tries that time out have used up the budget and as
                much time as those that do not. The rest has timed out. So whether a query that
                needs more than ``FIRST_TRY`` has a result can depend on the others.

        Raises:
            UserError: a database file is missing (raised before any query runs), or is not a
                readable SQLite database.
        """
        queries = [(os.fspath(path), sql) for path, sql in queries]
        rejected = {i: result for i, (_, sql) in enumerate(queries) if (result := _reject(sql))}
        jobs = _make_jobs(queries, rejected)
        with self._lock:
            try:
                for index, result in rejected.items():
                    use(index, result)
                if timeout_budget is None or self.timeout <= FIRST_TRY:
                    self._run_jobs(jobs, use, self.timeout)
                else:
                    self._run_within(timeout_budget, jobs, use)
            except BaseException:
                # The late answer of a busy worker would be taken for the result of the next query.
                self._stop_all()
                raise

    def close(self) -> None:
        """Ends the worker processes. A later ``run`` starts new ones."""
        with self._lock:
            self._stop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _forget_workers(self) -> None:
        """In a forked process: leaves the parent's workers to the parent. The selector is a copy
        that the system shares between the processes, and another thread may have held the lock.
        """
        for worker in filter(None, self._workers):
            worker.process.returncode = 0  # not this process's child
        self._workers = [None] * len(self._workers)
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()

    def _run_within(self, budget: float, jobs: deque[Job], use: Use) -> None:
        """Runs the jobs with a budget for time-outs, see ``run_each``."""
        by_index = {job.index: job for job in jobs}
        put_back: dict[int, Execution] = {}

        def first_try(index: int, result: Execution) -> None:
            (put_back.__setitem__ if result.status == "timeout" else use)(index, result)

        def second_try(index: int, result: Execution) -> None:
            nonlocal budget
            budget += -self.timeout if result.status == "timeout" else result.seconds
            use(index, result)

        self._run_jobs(jobs, first_try, FIRST_TRY)
        indices = sorted(put_back)
        budget = max(budget, self.timeout)
        # In rounds: which queries are tried does not depend on which worker is faster.
        while indices and budget >= self.timeout:
            tries = int(budget / self.timeout)
            chosen, indices = indices[:tries], indices[tries:]
            self._run_jobs(deque(by_index[i] for i in chosen), second_try, self.timeout)
        error = f"no result within {FIRST_TRY:g} s, in a batch in which too many queries time out"
        for index in indices:
            use(index, replace(put_back[index], error=error))

    def _run_jobs(self, jobs: deque[Job], use: Use, limit: float) -> None:
        """Distributes the jobs and passes on the results until none is left."""
        while True:
            for slot in range(len(self._workers)):
                if jobs and slot not in self._busy():
                    self._worker(slot).submit(_take_chunk(jobs, len(self._workers)), limit)
                    self._flush(slot)
            busy = self._busy()
            if not busy:
                return
            oldest = min(self._workers[slot].last_active for slot in busy)
            wait = oldest + self._patience - time.monotonic()
            ready = self._selector.select(max(wait, 0))
            now = time.monotonic()  # before ``use``, during which workers may have sent something
            for key, event in ready:
                if event == selectors.EVENT_WRITE:
                    self._flush(key.data)
            for key, event in ready:
                if event == selectors.EVENT_READ:
                    self._collect(key.data, jobs, use)
            self._kill_silent(now, jobs, use)

    def _busy(self) -> list[int]:
        """The slots of the workers that have jobs."""
        return [slot for slot, worker in enumerate(self._workers) if worker and worker.jobs]

    def _flush(self, slot: int) -> None:
        """Writes a worker's jobs as far as its pipe has room, and waits for the room if need be."""
        worker = self._workers[slot]
        waiting = worker.process.stdin in self._selector.get_map()
        if worker.flush() and waiting:
            self._selector.unregister(worker.process.stdin)
        elif worker.outgoing and not waiting:
            self._selector.register(worker.process.stdin, selectors.EVENT_WRITE, slot)

    def _collect(self, slot: int, jobs: deque[Job], use: Use) -> None:
        """Passes on the answers of a worker."""
        worker = self._workers[slot]
        answers = worker.receive()
        if answers is None:
            self._fail(slot, jobs, use)
            return
        for status, columns, rows, error, seconds, reads, ends_chunk in answers:
            job = worker.jobs.popleft()
            if status == "unreadable":
                raise UserError(f"{job.path}: cannot be read as a SQLite database ({error})")
            if ends_chunk:  # after a long query with jobs left, which idle workers can take
                jobs.extendleft(reversed(worker.jobs))
                worker.jobs.clear()
            use(job.index, Execution(status, columns, rows, error, seconds, reads, len(rows)))

    def _kill_silent(self, now: float, jobs: deque[Job], use: Use) -> None:
        """Kills the workers that had sent nothing for too long at the time ``now``."""
        for slot in self._busy():
            if now >= self._workers[slot].last_active + self._patience:
                self._fail(slot, jobs, use, silent=True)

    def _fail(self, slot: int, jobs: deque[Job], use: Use, *, silent: bool = False) -> None:
        """Stops a lost worker. Its query fails; of several, each is run again alone."""
        worker = self._workers[slot]
        code = self._stop([slot])
        if len(worker.jobs) != 1:  # it may have been idle
            jobs.extendleft(job._replace(alone=True) for job in reversed(worker.jobs))
            return
        status, error = "error", f"the worker process ended with code {code}"
        if silent or code in CPU_SIGNALS:
            limit = f"{self._patience:g} s of waiting" if silent else f"{worker.limit:g} s"
            status, error = "timeout", f"killed: no result within {limit}"
        seconds = time.monotonic() - worker.last_active
        use(worker.jobs[0].index, Execution(status, error=error, seconds=seconds))

    def _worker(self, slot: int) -> "Worker":
        """The worker in a slot; starts one if the slot is empty or its worker died while idle."""
        worker = self._workers[slot]
        if worker and worker.process.poll() is not None:
            self._stop([slot])
            worker = None
        if worker is None:
            worker = self._workers[slot] = Worker(self._settings)
            self._selector.register(worker.process.stdout, selectors.EVENT_READ, slot)
        return worker

    def _stop(self, slots: Iterable[int]) -> int | None:
        """Kills the workers in these slots; returns the exit code of the last."""
        code = None
        for slot in slots:
            for pipe in (self._workers[slot].process.stdout, self._workers[slot].process.stdin):
                if pipe in self._selector.get_map():
                    self._selector.unregister(pipe)
            code = self._workers[slot].kill()
            self._workers[slot] = None
        return code

    def _stop_all(self) -> None:
        self._stop(slot for slot, worker in enumerate(self._workers) if worker)


class Worker:
    """A worker process as seen from the parent, and its unanswered jobs."""

    def __init__(self, settings: tuple):
        # In a session of its own, so that Ctrl-C in the terminal reaches only the parent.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        os.set_blocking(self.process.stdin.fileno(), False)  # a stopped worker reads nothing
        self.buffer, self.outgoing = bytearray(), memoryview(b"")
        self.jobs: deque[Job] = deque()
        self.last_active = 0.0  # when it last got jobs or sent something
        self.limit = 0.0  # seconds for each of its jobs
        self.put(settings)
        self.flush()  # a few bytes, for which an empty pipe has room
        missing = self._first_answer()
        if missing is None:
            code = self.kill()
            raise RuntimeError(f"the sandbox's worker process did not start (exit code {code})")
        _warn_once(*map(tuple, missing))

    def _first_answer(self) -> tuple[list[str], list[str]] | None:
        """The features that SQLite and the limits that this system lacks; None if the process does
        not start.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            answers = self.receive() if selector.select(START_TIMEOUT) else None
        return answers[0] if answers else None

    def submit(self, jobs: list[Job], limit: float) -> None:
        """Sends jobs, with seconds of CPU time for each, to a worker that has none."""
        self.jobs.extend(jobs)
        self.last_active, self.limit = time.monotonic(), limit
        self.put((limit, [(job.database, job.sql) for job in jobs]))

    def put(self, message) -> None:
        """Makes a message the next to be written by ``flush``."""
        data = marshal.dumps(message)
        self.outgoing = memoryview(HEADER.pack(len(data)) + data)

    def flush(self) -> bool:
        """Writes as much as the pipe has room for; returns whether that was all."""
        try:
            while self.outgoing:
                written = os.write(self.process.stdin.fileno(), self.outgoing)
                self.outgoing = self.outgoing[written:]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the worker has just died; `receive` then returns None
            self.outgoing = memoryview(b"")
        return not self.outgoing

    def receive(self) -> list | None:
        """Reads from the worker; returns the complete messages, None if the process ended."""
        chunk = os.read(self.process.stdout.fileno(), 1 << 18)
        if not chunk:
            return None
        self.last_active = time.monotonic()
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
        """Kills the process, which has no state to save, and returns its exit code."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


@functools.cache
def _warn_once(missing_features: tuple[str, ...], missing_limits: tuple[str, ...]) -> None:
    """Logs what SQLite and this system lack, once per process."""
    if missing_features:
        logger.warning("sandbox: this SQLite does not read %s", "; ".join(missing_features))
    if missing_limits:
        logger.warning("sandbox: this system does not limit %s", "; ".join(missing_limits))


def _make_jobs(queries: list[tuple[str, str]], rejected: dict[int, Execution]) -> deque[Job]:
    """The jobs of all queries that are not rejected."""
    databases = {
        path: (read_only_uri(path), _file_version(path)) for path in {path for path, _ in queries}
    }
    jobs = [
        Job(index, path, databases[path], sql)
        for index, (path, sql) in enumerate(queries)
        if index not in rejected
    ]
    # Sorted by database, since opening a database takes longer than most queries.
    return deque(sorted(jobs, key=lambda job: job.path))


def _take_chunk(jobs: deque[Job], workers: int) -> list[Job]:
    """Takes jobs for one worker. Chunks shrink, so that all workers end at the same time."""
    size = 1 + len(jobs) // (2 * workers)
    chunk = [jobs.popleft()]
    while len(chunk) < min(size, CHUNK_SIZE) and not (chunk[0].alone or jobs[0].alone):
        chunk.append(jobs.popleft())
    return chunk


def _reject(sql: str) -> Execution | None:
    """The result of a text that cannot be sent to SQLite; None if it can."""
    try:
        size = len(sql.encode())
    except UnicodeEncodeError as error:
        return Execution("error", error=f"not valid Unicode: {error.reason}")
    if size > MAX_SQL:
        return Execution("too_large", error=f"the SQL has {size} bytes; the limit is {MAX_SQL}")
    return None


def _file_version(path: str) -> tuple[int, int, int]:
    """Inode, time and size of a file, by which workers notice that it was replaced."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{path}: cannot open this database ({error.strerror})") from error
    return status.st_ino, status.st_mtime_ns, status.st_size
