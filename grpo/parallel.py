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
    """The processes of a run; this one is ``rank`` of ``size``. Alone, everything is a no-op."""

    rank: int = 0
    size: int = 1

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
        """What every process gives, in the order of their ranks; all must call it. Raises UserError
        if one of them is gone.
        """
        if self.size == 1:
            return [value]
        found = [None] * self.size
        with lost_processes():
            dist.all_gather_object(found, value)
        return found

    def joined(self, values: list) -> list:
        """The lists of all processes, one after another."""
        return [one for part in self.gather(values) for one in part]

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums the gradients over all processes, in place, in one message; a missing one is 0.
        Raises UserError if a process is gone.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([part.flatten() for part in parts])
        with lost_processes():
            dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)

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


@contextmanager
def lost_processes():
    """A collective call that fails because another process is gone, as a clear error."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(
            "another process of this run has ended, see its message; "
            "start again with --resume to go on from the last checkpoint, on any number of them"
        ) from error


@contextmanager
def open_world(device: str):
    """The processes that torchrun started, or this one alone; yields (World, device). Those that
    are not the first print nothing but their errors.
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
