"""Several processes, one run: ``torchrun --nproc-per-node N train.py ...``.

Each process samples, rewards and differentiates its share of a step's prompts. The rollouts are
gathered, they are only text, so every process sees the whole batch and computes the advantages and
the weights of its tokens as one process would; the gradients are then added up. N processes make
the update that one process makes.
"""

import os
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sqlenv.errors import UserError


@dataclass(frozen=True)
class World:
    """The processes of a run; this one is ``rank`` of ``size``. Alone, everything is a no-op.

    ``lockstep`` is a ``shard.Lockstep`` where the model is spread over the processes.
    """

    rank: int = 0
    size: int = 1
    lockstep: object = None

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things in a row are this process's: shares differ by one at most.

        >>> World(0, 2).share(5), World(1, 2).share(5)
        (range(0, 2), range(2, 5))
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value) -> list:
        """What every process gives, in the order of their ranks; all must call it."""
        if self.size == 1:
            return [value]
        self._wait()
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def joined(self, values: list) -> list:
        """The lists of all processes, one after another."""
        return [one for part in self.gather(values) for one in part]

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums the gradients over all processes, in place, in one message; a missing one is 0."""
        if self.size == 1:
            return
        self._wait()
        parameters = list(parameters)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``; gradients stay this process's own."""
        if self.lockstep:
            self.lockstep.before_backward()
        loss.backward()

    def _wait(self) -> None:
        """This process has nothing left to do until the others have not, either."""
        if self.lockstep:
            self.lockstep.help()

    @contextmanager
    def in_turn(self):
        """The processes go through this block one after another."""
        for _ in range(self.rank):
            self.gather(None)
        yield
        for _ in range(self.size - self.rank):
            self.gather(None)

    @contextmanager
    def one_first(self):
        """The first process goes through this block before the others do: it may write files that
        they find.
        """
        if not self.first:
            self.gather(None)
        yield
        if self.first:
            self.gather(None)


ALONE = World()


def is_lost(error: RuntimeError) -> bool:
    """Whether a message to another process failed, which is gone then."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


@contextmanager
def open_world(device: str):
    """The processes that torchrun started, or this one alone; yields (World, device). Those that
    are not the first print nothing but their errors. Raises UserError if another process is gone.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE, device
        return
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    with ExitStack() as stack:
        if not world.first:
            nothing = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(nothing))
            stack.enter_context(redirect_stderr(nothing))
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        stack.callback(dist.destroy_process_group)
        try:
            yield world, device
        except UserError as error:
            raise UserError(f"process {world.rank}: {error}") from error
        except RuntimeError as error:
            if not is_lost(error):
                raise
            raise UserError(
                f"process {world.rank}: another process of this run has ended, see its message; "
                "start again with --resume to go on from the last checkpoint, on any number of them"
            ) from error
