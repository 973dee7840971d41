"""Run by each process of tests/test_parallel.py: some steps, whose states are written to a file.

torchrun --nproc-per-node 2 tests/parallel_steps.py FOLDER STATES OPTIONS
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from trainer_kit import (
    QUESTIONS,
    RareRewards,
    WordRewards,
    lora_of,
    make_policy,
    make_trainer,
    without_clocks,
)

from grpo.checkpoint import training_state
from grpo.distributed.parallel import Distributed, open_distributed
from grpo.distributed.shard import open_mesh, shard, with_lockstep
from grpo.models import checkpoint_activations
from sqlenv import Example


def spread(model, distributed: Distributed) -> Distributed:
    """The model sharded; each process keeps its part of the decoder blocks' frozen weights."""
    frozen = [p for p in model.get_decoder().layers.parameters() if not p.requires_grad]
    before, mesh = sum(p.numel() for p in frozen), open_mesh(distributed, "cpu")
    with distributed.rank_by_rank():
        shard(model, mesh, "cpu")
    parts = [p for p in model.parameters() if isinstance(p, DTensor)]
    assert len(parts) == len(frozen)
    assert (
        distributed.all_gather(sum(p.to_local().numel() for p in parts))
        == [before / distributed.size] * 2
    )
    return with_lockstep(distributed, model)


def steps(distributed: Distributed, folder: Path, options: dict) -> list[dict]:
    """LoRA weights and metrics after each step; the databases are in the folder."""
    options = dict(options)
    rewards = RareRewards() if options.pop("rare", False) else WordRewards()
    if options.pop("dies", False) and distributed.rank == 1:
        os._exit(5)  # as a crash does: an orderly end leaves the other one time to end first
    policy = make_policy(dtype=getattr(torch, options.pop("dtype", "float32")))
    if options.get("checkpoint_activations"):
        checkpoint_activations(policy.model)
    if options.get("shard") and distributed.size > 1:
        distributed = spread(policy.model, distributed)
    examples = [Example(q, "en", db, gold, folder / f"{db}.sqlite") for q, db, gold in QUESTIONS]
    trainer = make_trainer(examples, rewards, policy, distributed=distributed, **options)
    states = []
    while trainer.step < trainer.total_steps:
        metrics = without_clocks(trainer.train_step())
        states.append(
            {"metrics": metrics, "lora": lora_of(trainer), "state": training_state(trainer)}
        )
    return states


if __name__ == "__main__":
    with open_distributed("cpu") as (distributed, _):
        states = distributed.all_gather(
            steps(distributed, Path(sys.argv[1]), json.loads(sys.argv[3]))
        )
        if distributed.is_main:
            torch.save(states, sys.argv[2])
