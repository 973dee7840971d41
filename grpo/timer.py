"""Times the phases of a training step."""

import time
from contextlib import contextmanager

PHASES = ("sample", "reward", "train")


class PhaseTimer:
    """Seconds that this process has spent in each phase since ``reset``."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(self, name: str):
        """Adds the time of its block to the phase ``name``."""
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start
