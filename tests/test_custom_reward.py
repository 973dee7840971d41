"""Custom rewards in real worker processes: what they may return, and that whatever else they do
costs one batch and does not end the run.
"""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from textwrap import dedent

import pytest

from grpo.custom_reward import CustomReward, is_custom
from sqlenv import UserError

ROOT = Path(__file__).parents[1]
BIG = "x" * 5_000_000  # a request many times larger than a pipe's buffer (64 KiB)
EVALUATE = """
    import asyncio, itertools, os, re, signal, subprocess, sys, time
    import numpy

    def fail(message):
        raise ValueError(message)

    async def exit_later():
        sys.exit(4)

    def reward(prompts, completions, **columns):
        return eval(prompts[0])
"""
linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads states in /proc")


def write(folder: Path, code: str, name: str = "my_rewards.py") -> Path:
    path = folder / name
    path.write_text(dedent(code))
    return path


@pytest.fixture
def start(tmp_path):
    """Starts the function ``reward`` of a file with this code."""
    started = []

    def start(code: str, timeout: float = 30.0) -> CustomReward:
        started.append(CustomReward(f"{write(tmp_path, code)}:reward", timeout))
        return started[-1]

    yield start
    for reward in started:
        reward.close()


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory):
    """A reward that evaluates the first prompt as Python. Its tests share it, so each also shows
    that those before it did no lasting harm.
    """
    reward = CustomReward(f"{write(tmp_path_factory.mktemp('rewards'), EVALUATE)}:reward")
    yield reward
    reward.close()


def call(reward: CustomReward, prompt: str, *completions: str, timeout: float = 30.0) -> list:
    """The reward of these completions, or of two default ones."""
    completions = completions or ("abc", "def")
    reward.timeout = timeout
    return reward(prompts=[prompt] * len(completions), completions=list(completions))


def failure(reward: CustomReward, caplog, prompt: str, timeout: float = 30.0) -> str:
    """The warning of a call that fails: zeros, counted and logged once."""
    before = reward.failures
    caplog.clear()
    assert call(reward, prompt, timeout=timeout) == [0.0, 0.0]
    assert reward.failures == before + 1
    (record,) = [record for record in caplog.records if record.name == "grpo"]
    assert record.levelname == "WARNING"
    return record.getMessage().removeprefix("reward reward counts as 0 for this batch: ")


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


def ends(pid: int) -> bool:
    """Whether a process ends within 10 seconds."""
    give_up = time.monotonic() + 10
    while alive(pid) and time.monotonic() < give_up:
        time.sleep(0.02)
    return not alive(pid)


def children() -> set[int]:
    """Ids of this process's children, zombies included."""
    pids = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended just now
        if parent == os.getpid():
            pids.add(int(path.parent.name))
    return pids


# ---------------------------------------------------------------------------------- what works


def test_sync_function_gets_the_lists(start):
    """Length of the completion, plus 10 for the language vi: 3 + 10 and 5."""
    reward = start("""
        def reward(prompts, completions, lang, **columns):
            assert prompts == ["?", "?"] and list(columns) == ["sql"], columns
            return [len(c) + 10 * (l == "vi") for c, l in zip(completions, lang)]
    """)
    lists = {
        "completions": ["abc", "ÄÖ\n\0\ud800"],
        "lang": ["vi", "ja"],
        "sql": [None, "SELECT 1"],
    }
    values = reward(prompts=["?", "?"], **lists)
    assert values == [13.0, 5.0] and {type(value) for value in values} == {float}
    assert (reward.name, reward.failures) == ("reward", 0)


def test_async_function_keeps_its_event_loop(start):
    """A call can await what an earlier call started, so a client in a module variable keeps
    working. The first call starts a task that returns 5, and itself returns 0s; the second awaits
    the task.
    """
    reward = start("""
        import asyncio
        TASKS = []

        async def reward(prompts, completions, **columns):
            await asyncio.sleep(0)
            if TASKS:
                return [await TASKS[0]] * len(completions)
            TASKS.append(asyncio.create_task(asyncio.sleep(0.01, 5)))
            return (0 for _ in completions)
    """)
    assert call(reward, "") == [0.0, 0.0]
    assert call(reward, "") == [5.0, 5.0]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[1, 0.5]", [1, 0.5]),
        ("(True, False)", [1, 0]),
        ("(len(c) for c in completions)", [3, 3]),
        ("map(len, completions)", [3, 3]),
        ("numpy.array([1.5, -2.5], dtype=numpy.float32)", [1.5, -2.5]),
        ("numpy.array([3, 4])", [3, 4]),
        ("[numpy.float64(0.25), numpy.bool_(True)]", [0.25, 1]),
        ("[1e15, -1e15]", [1e15, -1e15]),
        ("asyncio.sleep(0, [1, 2])", [1, 2]),
    ],
)
def test_numbers_of_all_kinds(evaluator, prompt, expected):
    assert call(evaluator, prompt) == expected


def test_none_is_not_applicable(evaluator):
    first, second = call(evaluator, "[None, 0.5]")
    assert math.isnan(first) and second == 0.5


def test_it_may_keep_state_and_import_its_neighbours(start, tmp_path, monkeypatch):
    """The second call of a counter in a neighbour module gives 2. Objects of the file's own classes
    can be pickled (multiprocessing does), this project can be imported, and relative paths start
    in the trainer's working directory, from which no module is imported.
    """
    folder = tmp_path / "working directory of the trainer"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "words.txt").write_text("SELECT")
    write(folder, "1 / 0", "json.py")
    write(tmp_path, "from itertools import count\nCALLS = count(1)", "neighbour.py")
    reward = start("""
        import pickle
        from dataclasses import dataclass
        from neighbour import CALLS
        from sqlenv import extract_sql

        @dataclass
        class Number:
            value: int

        def reward(prompts, completions, **columns):
            number = pickle.loads(pickle.dumps(Number(next(CALLS))))
            return [number.value, open("words.txt").read() == extract_sql("SQL: SELECT 1")[:6]]
    """)
    assert [call(reward, ""), call(reward, "")] == [[1.0, 1.0], [2.0, 1.0]]


def test_megabytes_in_both_directions(start):
    """300,000 completions of 10 letters are a request of 4 MB, their numbers a response of 2 MB."""
    reward = start("def reward(prompts, completions, **c): return range(len(completions))")
    assert call(reward, "", *["x" * 10] * 300_000) == list(range(300_000))
    assert call(reward, BIG, "x") == [0.0]


def test_what_is_printed_is_not_read_as_an_answer(start, capfd):
    """By Python, to descriptor 1 or by another program, on import and in two calls: all of it goes
    to standard error, 3 x 3 lines. A program that reads standard input does not get the next
    request.
    """
    reward = start("""
        import os, subprocess, sys

        def reward(prompts, completions, **columns):
            print('{"values": [9, 9]}')
            os.write(1, b'{"values": [9, 9]}\\n')
            subprocess.run(["echo", '{"values": [9, 9]}'], check=True)
            read = subprocess.run(["cat"], capture_output=True, check=True).stdout
            return [len(read), len(sys.stdin.read())]

        reward([], [])
    """)
    assert [call(reward, ""), call(reward, "")] == [[0.0, 0.0]] * 2
    assert reward.failures == 0
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines() == ['{"values": [9, 9]}'] * 9


@pytest.mark.parametrize("end", ["return [9.0, 9.0]", "raise ValueError", "sys.exit(0)"])
def test_a_forked_child_does_not_answer(start, end):
    """Whether it returns, raises or exits within the worker's loop."""
    reward = start(f"""
        import os, sys

        def reward(prompts, completions, **columns):
            child = os.fork()
            if not child:
                {end}
            os.waitpid(child, 0)
            return [1.0, 2.0]
    """)
    assert [call(reward, ""), call(reward, "")] == [[1.0, 2.0]] * 2
    assert reward.failures == 0


# ------------------------------------------------------------------------ what costs one batch


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("fail('two\\n lines')", "ValueError: two lines"),
        ("fail('x' * 9999)", "ValueError: x"),
        ("(1 / 0 for _ in completions)", "ZeroDivisionError"),
        ("asyncio.wait_for(asyncio.sleep(9), 0.01)", "TimeoutError"),
        ("[1.0]", "returned 1 values for 2 completions"),
        ("[]", "returned 0 values for 2 completions"),
        ("[1.0, 2.0, 3.0]", "returned more values for 2 completions"),
        ("completions.clear() or [1.0]", "returned 1 values for 2 completions"),
        ("itertools.count()", "returned more values"),
        ("None", "NoneType"),
        ("0.5", "float"),
        ("'01'", "returned a str"),
        ("b'01'", "returned a bytes"),
        ("{0: 1, 1: 1}", "returned a dict"),
        ("{0, 1}", "returned a set"),
        ("['0', 1]", "returned '0'"),
        ("[1, b'1']", "returned b'1'"),
        ("[0, object()]", "object"),
        ("numpy.ones((2, 2))", "Error"),
        ("[0, float('nan')]", "returned nan"),
        ("[float('inf'), 0]", "returned inf"),
        ("numpy.array([0, -numpy.inf])", "-inf"),
        ("[0, 2e30]", "returned 2e+30"),
        ("[0, 10**400]", "OverflowError"),
    ],
)
def test_an_error_counts_as_zeros_and_the_process_lives(evaluator, caplog, prompt, message):
    worker = evaluator.worker
    warning = failure(evaluator, caplog, prompt)
    assert message in warning and "\n" not in warning and len(warning) <= 500
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]
    assert evaluator.worker is worker


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        ("os._exit(3)", 3),
        ("sys.exit(4)", 4),
        ("exit_later()", 4),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
    ],
)
def test_the_end_of_its_process_counts_as_zeros(evaluator, caplog, prompt, code):
    assert failure(evaluator, caplog, prompt) == f"its process ended (exit code {code})"
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]


@linux
@pytest.mark.parametrize(
    "prompt",
    [
        "time.sleep(60)",
        "re.match('(a+)+$', 'a' * 50 + '!')",  # holds the interpreter lock
        "asyncio.sleep(60)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
)
def test_a_call_that_takes_too_long_is_ended(evaluator, caplog, prompt):
    """After 0.2 seconds; it would take a minute."""
    pid, before = evaluator.worker.pid, time.monotonic()
    assert failure(evaluator, caplog, prompt, 0.2) == "took longer than 0.2 seconds"
    assert 0.2 <= time.monotonic() - before < 10
    assert not alive(pid) and pid not in children()
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]


@linux
def test_the_programs_of_a_call_that_takes_too_long_are_ended_too(evaluator, caplog, tmp_path):
    path = tmp_path / "pid"
    prompt = f"subprocess.run('echo $$ > {path}; exec sleep 60', shell=True)"
    assert "took longer" in failure(evaluator, caplog, prompt, 0.5)
    assert ends(int(path.read_text()))


def test_a_request_that_is_not_read_times_out(evaluator, caplog):
    """The worker is stopped before the call, and 5 MB do not fit into the pipe."""
    call(evaluator, "[1, 2]")
    os.kill(evaluator.worker.pid, signal.SIGSTOP)
    before = time.monotonic()
    assert "took longer" in failure(evaluator, caplog, BIG, 0.2)
    assert time.monotonic() - before < 10
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]


def test_a_worker_that_dies_without_reading_its_request(evaluator, caplog):
    call(evaluator, "[1, 2]")
    os.kill(evaluator.worker.pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, [evaluator.worker.pid, signal.SIGKILL])
    killer.start()
    assert failure(evaluator, caplog, BIG) == "its process ended (exit code -9)"
    killer.join()
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]


def test_a_worker_that_dies_between_two_calls_costs_nothing(evaluator):
    before, pid = evaluator.failures, evaluator.worker.pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert call(evaluator, "[1, 2]") == [1.0, 2.0]
    assert evaluator.failures == before and evaluator.worker.pid != pid


def test_an_answer_after_ctrl_c_is_not_taken_for_that_of_the_next_call(start):
    """The first call is interrupted during its sleep; it would have answered 7s."""
    reward = start("""
        import time

        def reward(prompts, completions, **columns):
            time.sleep(float(prompts[0]))
            return [7.0 if float(prompts[0]) else 1.0] * len(completions)
    """)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            call(reward, "0.5")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert call(reward, "0") == [1.0, 1.0]


def test_a_file_that_breaks_during_the_run(start, caplog):
    """The next process reads the file again: a broken file costs batches, a repaired one works."""
    good = "import os\ndef reward(prompts, **c): return [os._exit(1) if prompts[0] else 1, 2]"
    reward = start(good)
    reward.path.write_text("def reward(:")
    assert "process ended" in failure(reward, caplog, "exit")
    assert "SyntaxError" in failure(reward, caplog, "")
    assert "SyntaxError" in failure(reward, caplog, "")
    reward.path.write_text(good)
    assert call(reward, "") == [1.0, 2.0]
    assert reward.failures == 3


# --------------------------------------------------------------------------------- start and end


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.py:f", True), ("/x y/a.py:f", True), ("semantic", False), ("a.py", False), ("f:a", False)],
)
def test_which_names_are_custom(name, expected):
    assert is_custom(name) == expected


@linux
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ndef reward(:\n", "SyntaxError.*my_rewards.py, line 2"),
        ("import no_such_module", "ModuleNotFoundError.*no_such_module"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("import sys; sys.exit(7)", "process ended .exit code 7."),
        ("def other(): pass", "no function 'reward'"),
        ("reward = 0.5", "no function 'reward'"),
        (None, "does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_user_error(tmp_path, code, message):
    """One line that names the file; no process is left running."""
    path, before = tmp_path / "my_rewards.py", children()
    if code:
        path.write_text(code)
    with pytest.raises(UserError, match=f"{path}:reward: .*{message}") as error:
        CustomReward(f"{path}:reward")
    assert "\n" not in str(error.value)
    assert children() <= before


@linux
def test_close_leaves_no_process_and_can_be_repeated(start, tmp_path):
    """Nor a program that the function started."""
    path = tmp_path / "pid"
    reward = start(f"""
        import subprocess

        def reward(prompts, completions, **columns):
            program = subprocess.Popen(["sleep", "60"])
            open({str(path)!r}, "w").write(str(program.pid))
            return [1, 2]
    """)
    assert call(reward, "") == [1.0, 2.0]
    pid = reward.worker.pid
    assert alive(pid) and alive(int(path.read_text()))
    reward.close()
    assert pid not in children() and ends(int(path.read_text()))
    reward.close()
    assert reward.worker is None


@linux
@pytest.mark.parametrize("seconds", [0, 60], ids=["idle", "busy"])
def test_the_worker_ends_with_a_trainer_that_is_killed(tmp_path, seconds):
    """At once if idle; in a call of a minute, one second after the timeout."""
    file = write(tmp_path, "import time\ndef reward(prompts, **c): return [time.sleep(prompts[0])]")
    code = (
        "import sys; from grpo.custom_reward import CustomReward\n"
        "reward = CustomReward(sys.argv[1], 1.0); print(reward.worker.pid, flush=True)\n"
        "reward(prompts=[int(sys.argv[2])], completions=['']); sys.stdin.read()"
    )
    trainer = subprocess.Popen(
        [sys.executable, "-c", code, f"{file}:reward", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    pid = int(trainer.stdout.readline())
    time.sleep(0.3)
    assert alive(pid)
    trainer.kill()
    trainer.communicate()
    assert ends(pid)


def test_ctrl_c_in_the_terminal_does_not_reach_the_worker(evaluator):
    """So the current step is finished, with its rewards."""
    assert call(evaluator, "[os.getpgrp() == os.getpid(), os.getsid(0) == os.getpid()]") == [1, 1]
