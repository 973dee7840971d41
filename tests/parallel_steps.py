"""What each process of tests/test_parallel.py runs: some steps of the trainer, all of whose states
go into a file.

    torchrun --nproc-per-node 2 tests/parallel_steps.py FOLDER STATES OPTIONS
"""

import json
import sys
from pathlib import Path

import torch
from trainer_kit import QUESTIONS, RareRewards, WordRewards, lora_of, make_trainer, without_clocks

from grpo.parallel import World, open_world
from sqlenv import Example


def steps(world: World, folder: Path, options: dict) -> list[dict]:
    """LoRA weights and metrics after each step; the databases are in the folder."""
    options = dict(options)
    rewards = RareRewards() if options.pop("rare", False) else WordRewards()
    if options.pop("dies", False) and world.rank == 1:
        sys.exit(5)
    examples = [Example(q, "en", db, gold, folder / f"{db}.sqlite") for q, db, gold in QUESTIONS]
    trainer = make_trainer(examples, rewards, world=world, **options)
    found = []
    while trainer.step < trainer.total_steps:
        metrics = without_clocks(trainer.train_step())
        found.append({"metrics": metrics, "lora": lora_of(trainer), "state": trainer.state_dict()})
    return found


if __name__ == "__main__":
    with open_world("cpu") as (world, _):
        found = world.gather(steps(world, Path(sys.argv[1]), json.loads(sys.argv[3])))
        if world.first:
            torch.save(found, sys.argv[2])
