"""A base model too large for one device: FSDP2 spreads the weights of its decoder blocks over the
processes (``--shard``).

A block's weights are gathered from all processes just before it computes, so all of them must make
the same passes through the model. But their work differs: one has a prompt more, or a longer
answer. So whoever makes a pass announces it, and whoever has nothing left to do makes it along with
a token of its own, until nobody has work (``World.gather``). LoRA, embeddings and the output head
stay whole on every device, so that the rest of the project needs to know nothing of all this.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from grpo.attention import Groups, hidden_states
from grpo.distributed.parallel import World
from grpo.lora import lora_parameters
from sqlenv.errors import UserError

NOTHING, FORWARD, GRADIENT, BACKWARD = range(4)  # what a process is about to do


class Lockstep:
    """Keeps the processes of a sharded model at the same pass."""

    def __init__(self, model):
        self.model, self.helping = model, False
        self.passes: list[torch.Tensor] = []  # made along, whose backward pass is still to come
        model.get_decoder().register_forward_pre_hook(self._before_pass)

    def _before_pass(self, *_) -> None:
        if not self.helping:
            self.announce(GRADIENT if torch.is_grad_enabled() else FORWARD)

    def before_backward(self) -> None:
        self.announce(BACKWARD)

    def announce(self, what: int) -> int:
        """Tells the others; returns what those with work do, which is the same for all of them."""
        what = torch.tensor(what, device=self.model.device)
        dist.all_reduce(what, dist.ReduceOp.MAX)
        return int(what)

    def help(self) -> None:
        """Makes the others' passes along until no process has work."""
        self.helping = True
        while what := self.announce(NOTHING):
            if what == BACKWARD:
                (0 * self.passes.pop()).sum().backward()
                continue
            with torch.set_grad_enabled(what == GRADIENT), torch.device(self.model.device):
                zero = torch.zeros(1, dtype=torch.long)
                hidden = hidden_states(self.model, zero, zero, Groups([1], []))
            if what == GRADIENT:
                self.passes.append(hidden)
        self.helping = False


def open_mesh(world: World, device: str) -> DeviceMesh:
    """The devices to spread over. Raises UserError if there is one process only."""
    if world.size == 1:
        raise UserError("--shard spreads a model over processes: start several with torchrun")
    return init_device_mesh(torch.device(device).type, (world.size,))


def shard(model, mesh: DeviceMesh, device: str) -> None:
    """Spreads a model with LoRA over the processes, in place, and brings it to their devices; needs
    no other process at the same time.
    """
    decoder, whole = model.get_decoder(), set(lora_parameters(model).values())
    for block in decoder.layers:
        fully_shard(block, mesh=mesh, ignored_params=whole)
    blocks = set(decoder.layers.parameters())
    fully_shard(decoder, mesh=mesh, ignored_params=set(decoder.parameters()) - blocks | whole)
    model.to(device)


def in_step(world: World, model) -> World:
    """The world whose processes keep at the same pass of a sharded model."""
    return replace(world, lockstep=Lockstep(model))
