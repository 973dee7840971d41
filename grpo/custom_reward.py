"""A reward of one's own: ``--reward my_rewards.py:length=0.1`` calls ``length`` in that file.

    def length(prompts, completions, **columns) -> list[float | None]: ...

The function gets lists of P x G entries: ``prompts``, ``completions`` (texts), and as columns
``question``, ``lang``, ``db_id``, ``db_path``, ``gold_sql`` and ``sql`` (extracted from the
completion, or None). ``None`` in its answer means "not applicable". It may be async.

It runs in a process of its own, one JSON line for a call and one for its answer. Only a process can be stopped: a regular expression that
backtracks forever holds Python's lock, and no thread or asyncio time-out ends it. A call that
raises, answers nonsense or takes too long counts as zeros and is logged; the run goes on.
"""

import asyncio
import contextlib
import inspect
import json
import logging
import math
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from sqlenv.errors import UserError

START = 60.0  # seconds that a file may take to import
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
        if not self.path.is_file():
            raise UserError(f"--reward {spec}: {path} does not exist")
        self.worker = self._start()
        ready = self._answer(START)
        if ready != {"ready": True}:
            self.close()
            raise UserError(f"--reward {spec}: {ready.get('error')}")

    def _start(self) -> subprocess.Popen:
        self.unread = b""
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "grpo.custom_reward",
                self.path.resolve(),
                self.name,
                str(self.timeout),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[1],
        )

    def _answer(self, timeout: float) -> dict:
        """The worker's next line, or {"error": why there is none}."""
        deadline = time.monotonic() + timeout
        output = self.worker.stdout.fileno()
        while b"\n" not in self.unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([output], [], [], left)[0]:
                self.close()
                return {"error": f"took longer than {timeout:g} seconds"}
            part = os.read(output, 1 << 16)
            if not part:
                self.close()
                return {"error": "its process ended"}
            self.unread += part
        line, _, self.unread = self.unread.partition(b"\n")
        return json.loads(line)

    def __call__(self, **lists: list) -> list[float]:
        """One number for each completion, NaN where not applicable; zeros if the call fails."""
        count = len(lists["completions"])
        answer = self._call(lists, count)
        if "error" in answer:
            self.failures += 1
            log.warning("reward %s counts as 0 for this batch: %s", self.name, answer["error"])
            return [0.0] * count
        return [math.nan if value is None else float(value) for value in answer["values"]]

    def _call(self, lists: dict[str, list], count: int) -> dict:
        if self.worker.poll() is not None:  # it died, or was stopped, in the call before
            self.worker = self._start()
            ready = self._answer(START)
            if "error" in ready:
                return ready
        try:
            self.worker.stdin.write(json.dumps(lists).encode() + b"\n")
            self.worker.stdin.flush()
        except OSError:
            self.close()
            return {"error": "its process ended"}
        answer = self._answer(self.timeout)
        if "error" not in answer and len(answer["values"]) != count:
            return {"error": f"{len(answer['values'])} values for {count} completions"}
        return answer

    def close(self) -> None:
        """Stops the process."""
        self.worker.kill()
        self.worker.wait()
        self.worker.stdin.close()
        self.worker.stdout.close()


def load_function(path: str, name: str):
    """The function ``name`` of a Python file, whose neighbours it may import."""
    sys.path.insert(0, str(Path(path).parent))
    function = runpy.run_path(path, run_name=Path(path).stem).get(name)
    if not callable(function):
        raise LookupError(f"{Path(path).name} has no function {name!r}")
    return function


def checked(values) -> list[float | None]:
    """The answer of a reward function: finite numbers and None."""
    values = [None if value is None else float(value) for value in values]
    wrong = [value for value in values if value is not None and not math.isfinite(value)]
    if wrong:
        raise ValueError(f"returned {wrong[0]}")
    return values


def serve(path: str, name: str, timeout: float) -> None:
    """Answers calls from standard input until it closes. What the function prints goes to standard
    error. An alarm ends the process should a call outlive the parent that would have stopped it.
    """
    answers = sys.stdout

    def send(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        try:
            function = load_function(path, name)
        except Exception as error:  # whatever a user's file raises becomes one line
            return send({"error": f"{type(error).__name__}: {error}"})
        send({"ready": True})
        for line in sys.stdin:
            signal.setitimer(signal.ITIMER_REAL, timeout + START)
            try:
                values = function(**json.loads(line))
                if inspect.isawaitable(values):
                    values = asyncio.run(_wait(values))
                send({"values": checked(values)})
            except Exception as error:
                send({"error": f"{type(error).__name__}: {error}"})
            signal.setitimer(signal.ITIMER_REAL, 0)


async def _wait(values):
    return await values


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], float(sys.argv[3]))
