"""A base model that is too large for one device: FSDP2 spreads the frozen weights of its decoder
blocks over the processes (``--shard``).

The weights of a block are gathered from all processes just before it computes, so all processes
must make the same passes through the model. But their work differs: one has a prompt more, another
a longer completion. Therefore a process announces each pass that it makes; a process that has no
work left makes the same pass with one token of its own, until none has work
(``Distributed.all_gather``). LoRA, embeddings and the output head stay whole on every device, so
that no other code needs to know about sharding.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from grpo.attention import Groups, hidden_states
from grpo.distributed.parallel import Distributed
from grpo.lora import lora_parameters
from sqlenv.errors import UserError

IDLE, FORWARD, FORWARD_WITH_GRADIENT, BACKWARD = range(4)  # what a process is about to do


class Lockstep:
    """Keeps the processes of a sharded model at the same pass."""

    def __init__(self, model):
        self.model, self.participating = model, False
        self.passes: list[torch.Tensor] = []  # participated in, with the backward pass outstanding
        model.get_decoder().register_forward_pre_hook(self._before_pass)

    def _before_pass(self, *_) -> None:
        if not self.participating:
            self.announce(FORWARD_WITH_GRADIENT if torch.is_grad_enabled() else FORWARD)

    def before_backward(self) -> None:
        self.announce(BACKWARD)

    def announce(self, action: int) -> int:
        """Tells the other processes; returns what those with work do, the same for all of them."""
        largest = torch.tensor(action, device=self.model.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def participate_until_idle(self) -> None:
        """Joins in the passes of the other processes until none has work."""
        self.participating = True
        while action := self.announce(IDLE):
            if action == BACKWARD:
                (0 * self.passes.pop()).sum().backward()
                continue
            with_gradient = action == FORWARD_WITH_GRADIENT
            with torch.set_grad_enabled(with_gradient), torch.device(self.model.device):
                zero = torch.zeros(1, dtype=torch.long)
                hidden = hidden_states(self.model, zero, zero, Groups([1], []))
            if with_gradient:
                self.passes.append(hidden)
        self.participating = False


def open_mesh(distributed: Distributed, device: str) -> DeviceMesh:
    """The devices to shard over. Raises UserError if there is only one process."""
    if distributed.size == 1:
        raise UserError("--shard spreads a model over processes: start several with torchrun")
    return init_device_mesh(torch.device(device).type, (distributed.size,))


def shard(model, mesh: DeviceMesh, device: str) -> None:
    """Shards a model with LoRA over the processes, in place, and moves it to their devices. Needs
    no other process at the same time.
    """
    decoder, whole = model.get_decoder(), set(lora_parameters(model).values())
    for block in decoder.layers:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    blocks = set(decoder.layers.parameters())
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - blocks | whole)
    model.to(device)


def with_lockstep(distributed: Distributed, model) -> Distributed:
    """The processes, kept at the same pass of a sharded model."""
    return replace(distributed, lockstep=Lockstep(model))
