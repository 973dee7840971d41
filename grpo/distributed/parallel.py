"""Several processes, one run: ``torchrun --nproc-per-node N train.py ...``.

Each process samples, rewards and differentiates its share of a step's prompts. The rollouts are
gathered, so that every process sees the whole batch and computes the same advantages and token
weights as one process would; then the gradients are summed. N processes make the update that one
process makes.
"""

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from encoder.device import check_device
from grpo.distributed.lockstep import Lockstep
from sqlenv.errors import UserError


@dataclass(frozen=True)
class Distributed:
    """The processes of a run, of which this is number ``rank`` of ``size``. With one process,
    all work is its own, and there is nothing to exchange.

    Attributes:
        lockstep: keeps the processes at the same pass if the model is sharded over the processes.
    """

    rank: int = 0
    size: int = 1
    lockstep: Lockstep | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def split(self, count: int) -> range:
        """Which of ``count`` items are this process's: a contiguous share; shares differ by at most
        one item.

        >>> Distributed(0, 2).split(5), Distributed(1, 2).split(5)
        (range(0, 2), range(2, 5))
        """
        return range(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def micro_batches(self, count: int, size: int) -> list[slice]:
        """This process's share of ``count`` items, ``size`` items at a time."""
        own = self.split(count)
        return [slice(start, min(start + size, own.stop)) for start in own[::size]]

    def all_gather(self, value) -> list:
        """The values of all processes in the order of their ranks; every process must call it."""
        if self.size == 1:
            return [value]
        self.synchronize()
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def all_gather_list(self, values: list) -> list:
        """The lists of all processes, concatenated."""
        return [value for part in self.all_gather(values) for value in part]

    def all_reduce_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sums the gradients over all processes, in place, in one message; a missing one is 0."""
        if self.size == 1:
            return
        self.synchronize()
        parameters = list(parameters)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)

    def all_reduce(self, tensor: Tensor) -> None:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``; gradients stay this process's own."""
        if self.lockstep:
            self.lockstep.before_backward()
        loss.backward()

    def synchronize(self) -> None:
        """With a sharded model: joins in the passes of the other processes until none has work."""
        if self.lockstep:
            self.lockstep.participate_until_idle()

    @contextmanager
    def rank_by_rank(self):
        """The processes run this block one after another."""
        for _ in range(self.rank):
            self.all_gather(None)
        yield
        for _ in range(self.size - self.rank):
            self.all_gather(None)

    @contextmanager
    def main_first(self):
        """The main process runs this block before the others, which then find the files that it
        has written.
        """
        if not self.is_main:
            self.all_gather(None)
        yield
        if self.is_main:
            self.all_gather(None)


SINGLE_PROCESS = Distributed()


def is_connection_error(error: RuntimeError) -> bool:
    """Whether a message to another process failed because that process has ended."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def is_first_to_fail() -> bool:
    """Whether no other process that torchrun started for this run has failed before. The first one
    says why: the others mostly fail by the same error, or by its end.
    """
    if not dist.is_torchelastic_launched():
        return True
    store, _, _ = next(rendezvous("env://"))
    return store.add("grpo/failed", 1) == 1


@contextmanager
def open_distributed(device: str):
    """The processes that torchrun started, or this one alone. All but the main process print
    nothing but their errors.

    Yields:
        ``Distributed``, and the device of this process.

    Raises:
        UserError: the device cannot be used, or another process has ended.
    """
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        check_device(device)
        yield SINGLE_PROCESS, device
        return
    distributed = Distributed(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(device)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    with ExitStack() as stack:
        if not distributed.is_main:
            null = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(redirect_stdout(null))
            stack.enter_context(redirect_stderr(null))
            logging.disable(logging.WARNING)
            stack.callback(logging.disable, logging.NOTSET)
        # The others wait while the main process runs gold queries and builds test suites.
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=timedelta(days=1))
        stack.callback(dist.destroy_process_group)
        try:
            yield distributed, device
        except UserError as error:
            raise UserError(f"process {distributed.rank}: {error}") from error
        except RuntimeError as error:
            if not is_connection_error(error):
                raise
            raise UserError(
                f"process {distributed.rank}: another process of this run has ended, see its "
                "message; start again with --resume to go on from the last checkpoint, on any "
                "number of processes"
            ) from error
