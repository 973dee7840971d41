"""A base model that is too large for one device: FSDP2 spreads the frozen weights of its decoder
blocks over the processes (``--shard``).

The processes stay at the same pass (grpo/distributed/lockstep.py). LoRA, embeddings and the output
head stay whole on every device, so that no other code needs to know about sharding.
"""

from dataclasses import replace

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from grpo.distributed.lockstep import Lockstep
from grpo.distributed.parallel import Distributed
from grpo.lora import lora_parameters
from sqlenv.errors import UserError


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
