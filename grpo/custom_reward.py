"""Custom rewards: ``--reward my_rewards.py:length=0.1`` calls ``length`` in that file.

    def length(prompts, completions, **columns) -> list[float | None]: ...

The function gets lists of P x G entries: ``prompts``, ``completions`` (texts), and the columns
``question``, ``evidence``, ``lang``, ``db_id``, ``db_path``, ``gold_sql`` ("" where the dataset has
none, as of evidence) and ``sql`` (extracted from the completion, or None). ``None`` in the list
that it returns means "not applicable". It may be async.

It runs in a process of its own, which gets one JSON line per call and answers with one. Only a
process can be stopped: a regular expression that backtracks forever holds Python's global lock, and
no thread or asyncio timeout ends it. If a call raises, does not return a list of numbers or takes
too long, its rewards are zeros and a warning is logged; the run continues.
"""

import asyncio
import contextlib
import functools
import importlib.util
import inspect
import itertools
import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

from sqlenv.errors import UserError

START = 60.0  # seconds that a file may take to import
GRACE = 1.0  # seconds after the timeout at which the process ends itself
LARGEST = 1e15  # sums of squares of larger values could overflow float32 in the trainer
ROOT = Path(__file__).resolve().parents[1]
log = logging.getLogger("grpo")


def is_custom(name: str) -> bool:
    """Whether a reward's name is FILE.py:FUNCTION."""
    return ".py:" in name


class CustomReward:
    """Calls one function in its worker process.

    Args:
        spec: ``FILE.py:FUNCTION``.
        timeout: seconds for a call.

    Raises:
        UserError: the file cannot be imported or has no such function.
    """

    def __init__(self, spec: str, timeout: float = 10.0):
        path, _, self.name = spec.rpartition(":")
        self.path, self.timeout, self.failures = Path(path), timeout, 0
        self.worker: subprocess.Popen | None = None
        if not self.path.is_file():
            raise UserError(f"--reward {spec}: {path} does not exist")
        ready = self._start()
        if "error" in ready:
            raise UserError(f"--reward {spec}: {ready['error']}")

    def __call__(self, **lists: list) -> list[float]:
        """One number for each completion, NaN where not applicable; zeros if the call fails."""
        if self.worker and self.worker.poll() is not None:  # it died while idle
            self.close()
        answer = {} if self.worker else self._start()
        if "error" not in answer:
            answer = self._exchange(json.dumps(lists).encode() + b"\n", self.timeout)
        if "error" in answer:
            self.failures += 1
            log.warning("reward %s counts as 0 for this batch: %s", self.name, answer["error"])
            return [0.0] * len(lists["completions"])
        return [math.nan if value is None else value for value in answer["values"]]

    def close(self) -> int | None:
        """Stops the process and what it started; its exit code. Does nothing the second time."""
        worker, self.worker = self.worker, None
        if worker is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):  # all of them ended
            os.killpg(worker.pid, signal.SIGKILL)
        worker.stdin.close()
        worker.stdout.close()
        return worker.wait()

    def _start(self) -> dict:
        """Starts the process and waits until it has imported the file."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-P", "-m", "grpo.custom_reward"]
        self.worker = subprocess.Popen(
            [*command, self.path.resolve(), self.name, str(self.timeout)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the trainer alone, `close` the whole group
        )
        os.set_blocking(self.worker.stdin.fileno(), False)
        ready = self._exchange(b"", START)
        if "error" in ready:
            self.close()
        return ready

    def _exchange(self, request: bytes, timeout: float) -> dict:
        """The worker's answer, or {"error": why there is none} and the worker is stopped."""
        try:
            return json.loads(self._send_and_receive(request, time.monotonic() + timeout))
        except TimeoutError:
            self.close()
            return {"error": f"took longer than {timeout:g} seconds"}
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.worker.wait(GRACE)  # it closes its pipes a moment before it has ended
            return {"error": f"its process ended (exit code {self.close()})"}
        except BaseException:  # Ctrl-C: the next call must not read this call's answer
            self.close()
            raise

    def _send_and_receive(self, request: bytes | memoryview, deadline: float) -> bytes:
        """Writes no more than the pipe takes: a worker that hangs does not read."""
        request, answer = memoryview(request), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self.worker.stdout, selectors.EVENT_READ)
            if request:
                selector.register(self.worker.stdin, selectors.EVENT_WRITE)
            while not answer.endswith(b"\n"):
                ready = selector.select(deadline - time.monotonic())
                if not ready:
                    raise TimeoutError
                for key, _ in ready:
                    if key.fileobj is self.worker.stdin:
                        request = request[os.write(key.fd, request) :]
                        if not request:
                            selector.unregister(self.worker.stdin)
                    elif part := os.read(key.fd, 1 << 16):
                        answer += part
                    else:
                        raise EOFError
        return bytes(answer)


def load_function(path: str, name: str):
    """The function ``name`` of a Python file, whose neighbours it may import."""
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where pickle and multiprocessing look for it
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise LookupError(f"{Path(path).name} has no function {name!r}")
    return function


def checked(values, count: int) -> list[float | None]:
    """The answer of a reward function: as many finite numbers and None as completions."""
    if isinstance(values, str | bytes | dict | set):  # float() would take the digits of "0110"
        raise TypeError(f"returned a {type(values).__name__} instead of a list of numbers")
    values = list(itertools.islice(values, count + 1))  # a generator may be endless
    if len(values) != count:
        returned = "more" if len(values) > count else len(values)
        raise ValueError(f"returned {returned} values for {count} completions")
    for value in values:
        if isinstance(value, str | bytes) or not abs(float(value or 0)) <= LARGEST:  # or NaN
            raise ValueError(f"returned {value!r} instead of a number")
    return [None if value is None else float(value) for value in values]


def serve(path: str, name: str, timeout: float) -> None:
    """Answers calls until the parent closes the pipe. An alarm ends the process should a call
    outlive the parent that would have stopped it.

    The pipes move away from descriptors 0 and 1: what the function, or a program that it starts,
    prints must not land among the answers (it goes to standard error), nor may it read requests.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for pipe in requests, answers:  # a forked child that returns from here must not answer, too
        os.register_at_fork(after_in_child=functools.partial(os.close, pipe.fileno()))

    def send(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    def failed(error: Exception) -> None:
        send({"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]})

    signal.setitimer(signal.ITIMER_REAL, START + GRACE)
    try:
        function = load_function(path, name)
    except Exception as error:
        return failed(error)
    loop = asyncio.new_event_loop()  # one for all calls: clients that a module keeps live on it
    send({"ready": True})
    signal.setitimer(signal.ITIMER_REAL, 0)
    for line in requests:
        signal.setitimer(signal.ITIMER_REAL, timeout + GRACE)
        try:
            lists = json.loads(line)
            count = len(lists["completions"])  # before the function may change it
            values = function(**lists)
            if inspect.isawaitable(values):
                values = loop.run_until_complete(values)
            values = checked(values, count)
        except Exception as error:
            failed(error)
        else:
            send({"values": values})
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
