"""examples/minimal_grpo.py makes the update of the trainer, and runs."""

import subprocess
import sys
from pathlib import Path

import torch
from trainer_kit import close, lora_of, make_policy, make_trainer, note_gradients

from examples import minimal_grpo
from grpo.lora import lora_parameters
from grpo.prompt import PromptBuilder
from grpo.rewards import Rewards

ROOT = Path(__file__).resolve().parents[1]


def test_its_update_equals_the_trainers(examples, verifier, monkeypatch):
    """Same questions and seeds, no warm-up of the learning rate: the same samples, gradient and
    weights. The trainer computes it in two micro-batches, the example in one batch.
    """
    monkeypatch.setattr(minimal_grpo, "G", 6)
    rewards = Rewards(verifier, None, {"execution": 1.0, "syntax": 0.1, "schema": 0, "semantic": 0})
    settings = dict(prompts_per_step=4, group_size=6, lr=minimal_grpo.LEARNING_RATE, steps=1)
    trainer = make_trainer(examples, rewards, max_new_tokens=8, warmup_steps=0, **settings)
    questions, seeds = trainer.questions.draw(4)
    trainer.questions.cursor = 0

    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in lora_parameters(policy.model).items()}
    optimizer = torch.optim.AdamW(
        lora_parameters(policy.model).values(), lr=minimal_grpo.LEARNING_RATE, weight_decay=0.0
    )
    arguments = policy, PromptBuilder(policy.tokenizer), verifier, optimizer, questions, seeds
    stats = minimal_grpo.grpo_step(*arguments, max_new_tokens=8)

    gradients = note_gradients(trainer)
    metrics = trainer.train_step()
    assert metrics["reward_std"] > 0 and metrics["frac_reward_zero_std"] < 1
    assert abs(stats["reward"] - metrics["reward"]) < 1e-6
    assert abs(stats["loss"] - metrics["loss"]) < 1e-6
    assert any(gradient.norm() > 1e-4 for gradient in gradients[0].values())
    weights = lora_of(trainer)
    for name, tensor in lora_parameters(policy.model).items():
        assert not torch.equal(tensor, before[name])
        assert close(tensor - before[name], weights[name] - before[name], tolerance=1e-2), name


def test_it_runs_by_itself():
    """Two steps on the embedded questions with the shipped policy."""
    command = [sys.executable, "-m", "examples.minimal_grpo", "--steps", "2"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "2"]
    assert all("reward" in line and "loss" in line for line in lines)


def test_it_fits_on_a_page():
    assert len((ROOT / "examples" / "minimal_grpo.py").read_text().splitlines()) <= 150
