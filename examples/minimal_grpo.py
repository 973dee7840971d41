"""GRPO on one page: trains the shipped policy on the embedded questions.

    python -m examples.minimal_grpo --lang vi --steps 30

`grpo_step` is the whole algorithm with the defaults of `train.py`, and makes the same update as
`grpo/trainer.py: Trainer.train_step`. GRPO as published (DeepSeekMath, arXiv 2402.03300, section
4.1) differs in four places: it divides advantages by the group's std, takes a mean of the
completions' means, has another KL term and weight, and keeps zero-variance groups (README.md has
the reasons). The trainer adds the rewards `schema` and `semantic`, micro-batches, several
updates per batch, dynamic sampling, a schedule of the learning rate, several processes, float16,
metrics, guards and checkpoints.

P prompts per step, G completions per prompt, T tokens in the longest completion.
"""

import argparse
import random
import sys

import torch
from torch import Tensor

from grpo import (
    add_lora,
    completion_logprobs,
    group_advantages,
    lora_disabled,
    policy_loss,
    sample_groups,
)
from grpo.config import ASSETS
from grpo.lora import lora_merged, lora_parameters
from grpo.loss import token_weights
from grpo.models import Policy, load_policy
from grpo.prompt import PromptBuilder
from grpo.rewards import TIMEOUT_BUDGET
from sqlenv import EMBEDDED, Example, ExecutionVerifier, Sandbox, extract_sql, load_dataset
from sqlenv.errors import exit_code

P, G, MAX_NEW_TOKENS = 16, 8, 96
LEARNING_RATE, BETA = 6e-4, 0.02  # BETA: weight of the KL penalty


def execution_rewards(
    verifier: ExecutionVerifier, examples: list[Example], texts: list[list[str]]
) -> Tensor:
    """1 if the SQL's result equals that of the gold query, plus 0.1 if it runs: (P, G) float32."""
    flat = [example for example, group in zip(examples, texts) for _ in group]
    sqls = [extract_sql(text) for group in texts for text in group]
    verdicts = verifier.verify(flat, sqls, timeout_budget=TIMEOUT_BUDGET)
    rewards = [1.0 * verdict.correct + 0.1 * verdict.valid for verdict in verdicts]
    return torch.tensor(rewards).reshape(len(examples), -1)


def grpo_step(
    policy: Policy,
    prompts: PromptBuilder,
    verifier: ExecutionVerifier,
    optimizer: torch.optim.Optimizer,
    examples: list[Example],
    seeds: list[int],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> dict[str, float]:
    """One step on P questions; returns the mean reward and the loss."""
    model = policy.model

    # 1. Sample a group of G completions for each prompt. Merged LoRA is faster to sample from.
    prompt_ids = [prompts(example) for example in examples]  # P lists
    with lora_merged(model):
        options = {"eos_ids": policy.eos_ids, "seeds": seeds, "max_new_tokens": max_new_tokens}
        samples = sample_groups(model, prompt_ids, group_size=G, **options)
    completion_ids = samples.completion_ids  # P x G lists

    # 2. Reward each completion by running its SQL.
    texts = [[policy.decode(ids) for ids in group] for group in completion_ids]  # P x G
    rewards = execution_rewards(verifier, examples, texts)  # (P, G)

    # 3. Compare each completion with its group. Where all rewards are equal, there is nothing to
    #    learn: only groups with an advantage are trained on, and P counts these from here on.
    advantages = group_advantages(rewards).to(model.device)  # (P, G)
    groups = advantages.any(1).nonzero()[:, 0].tolist() or range(len(examples))
    advantages = advantages[list(groups)]
    prompt_ids, completion_ids = ([ids[p] for p in groups] for ids in (prompt_ids, completion_ids))

    # 4. Log-probs under the reference, which is the policy with LoRA off, and under the policy.
    with torch.no_grad(), lora_disabled(model):
        ref_logprobs = completion_logprobs(model, prompt_ids, completion_ids)  # (P, G, T)
    logprobs = completion_logprobs(model, prompt_ids, completion_ids)  # (P, G, T)

    # 5. The loss: a clipped policy gradient and a KL penalty, averaged over all tokens. The policy
    #    that is updated is the one that sampled, so the old log-probs are the new ones, detached.
    lengths = torch.tensor([[len(ids) for ids in group] for group in completion_ids])  # (P, G)
    mask = torch.arange(logprobs.shape[-1]) < lengths[..., None]  # (P, G, T)
    weights = token_weights(mask.to(model.device))  # (P, G, T)
    loss, _ = policy_loss(logprobs, logprobs.detach(), advantages, weights, ref_logprobs, beta=BETA)

    # 6. Update the LoRA weights.
    loss.backward()
    torch.nn.utils.clip_grad_norm_(lora_parameters(model).values(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return {"reward": rewards.mean().item(), "loss": loss.item()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lang", default="vi", help="en, de, es, fr, ja, vi or zh (%(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps (%(default)s)")
    parser.add_argument("--model", default=str(ASSETS / "policy"), help="the shipped policy")
    parser.add_argument("--seed", type=int, default=0)
    return exit_code(lambda: train(parser.parse_args(argv)))


def train(arguments: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    policy = load_policy(arguments.model, device, "float32")
    add_lora(policy.model, seed=arguments.seed)
    trainable = lora_parameters(policy.model).values()
    optimizer = torch.optim.AdamW(trainable, lr=LEARNING_RATE, weight_decay=0.0)
    prompts = PromptBuilder(policy.tokenizer)
    questions = load_dataset(EMBEDDED, arguments.lang, "train")
    rng = random.Random(arguments.seed)
    with Sandbox() as sandbox:
        verifier = ExecutionVerifier(sandbox)
        for step in range(1, arguments.steps + 1):
            examples = rng.sample(questions, P)
            seeds = [rng.randrange(2**62) for _ in examples]
            stats = grpo_step(policy, prompts, verifier, optimizer, examples, seeds)
            print(f"step {step:3d}   reward {stats['reward']:.3f}   loss {stats['loss']:+.4f}")


if __name__ == "__main__":
    sys.exit(main())
