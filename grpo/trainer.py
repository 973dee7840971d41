"""The training loop of GRPO: sample groups, reward, compare within the group, take one step.
Nothing is hidden.

One batch of prompts gives one optimizer step (on policy): the policy that sampled is the one that
is updated, so the old log-probabilities are the new ones without gradient.
"""

import time
from contextlib import contextmanager

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.logprobs import completion_logprobs
from grpo.lora import lora_disabled, lora_folded, lora_parameters
from grpo.loss import policy_loss, token_weights
from grpo.models import Policy
from grpo.prompt import PromptBuilder
from grpo.rewards import Rewards
from grpo.sampler import Samples, sample_groups
from sqlenv import Example


class Trainer:
    """Trains the LoRA weights of a policy. ``state_dict`` has all that a step depends on."""

    def __init__(self, policy: Policy, rewards: Rewards, examples: list[Example], config: Config):
        self.policy, self.rewards, self.examples, self.config = policy, rewards, examples, config
        self.model = policy.model
        self.prompts = PromptBuilder(policy.tokenizer)
        self.parameters = lora_parameters(self.model)
        self.total_steps = config.steps or -(-len(examples) // config.prompts_per_step)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=config.lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.generator = torch.Generator(self.model.device).manual_seed(config.seed)
        self.step = 0
        self.seconds: dict[str, float] = {}

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then linear decay to 0 after the last step."""
        rising = (step + 1) / max(1, self.config.warmup_steps)
        falling = (self.total_steps - step) / max(1, self.total_steps - self.config.warmup_steps)
        return max(0.0, min(1.0, rising, falling))

    def batch(self, step: int) -> list[Example]:
        """The examples of a step: each epoch is a fresh permutation, a function of the seed and
        the epoch alone.
        """
        size, count = self.config.prompts_per_step, len(self.examples)
        picked = []
        for position in range(step * size, (step + 1) * size):
            epoch, index = divmod(position, count)
            order = torch.randperm(
                count, generator=torch.Generator().manual_seed(self.config.seed + epoch)
            )
            picked.append(self.examples[order[index]])
        return picked

    @contextmanager
    def _timed(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def train_step(self) -> dict:
        """One optimizer step; returns its metrics."""
        config, self.seconds = self.config, {}
        examples = self.batch(self.step)
        prompts = [self.prompts(example) for example in examples]
        with self._timed("sample_seconds"), lora_folded(self.model):
            samples = sample_groups(
                self.model,
                prompts,
                config.group_size,
                config.max_new_tokens,
                self.policy.eos_ids,
                config.temperature,
                self.generator,
            )
        texts = [
            [self.policy.tokenizer.decode(one, skip_special_tokens=True) for one in group]
            for group in samples.tokens
        ]
        with self._timed("reward_seconds"):
            terms = self.rewards(examples, texts)  # (P, G, R)
        total = terms @ self.rewards.weights  # (P, G)
        if config.advantage == "per_reward":
            advantages = group_advantages(terms, "per_reward", self.rewards.weights)
        else:
            advantages = group_advantages(total, config.advantage)  # (P, G)
        with self._timed("train_seconds"):
            stats = self._update(prompts, samples, advantages.to(self.model.device))
        self.step += 1
        return {
            "step": self.step,
            **self._reward_metrics(terms, total),
            **stats,
            **self._sample_metrics(samples),
            **self.seconds,
        }

    def _update(self, prompts: list[list[int]], samples: Samples, advantages: Tensor) -> dict:
        """Forward and backward over micro-batches of prompts, then one step of AdamW."""
        config = self.config
        mask = torch.zeros(
            samples.logprobs.shape, dtype=torch.bool, device=self.model.device
        )  # (P, G, T)
        for p, group in enumerate(samples.tokens):
            for g, one in enumerate(group):
                mask[p, g, : len(one)] = True
        weights = token_weights(mask, config.loss, config.max_new_tokens)  # of the whole step
        stats: dict[str, float] = {"loss": 0.0, "entropy": 0.0, "sampler_gap": 0.0}
        for start in range(0, len(prompts), config.micro_batch):
            part = slice(start, start + config.micro_batch)
            batch = prompts[part], samples.tokens[part]
            reference = None
            if config.beta:
                with torch.no_grad(), lora_disabled(self.model):
                    reference = completion_logprobs(self.model, *batch, config.temperature)
            logprobs, entropy = completion_logprobs(
                self.model, *batch, config.temperature, with_entropy=True
            )
            size = logprobs.shape[-1]  # this part's longest completion
            share = weights[part, :, :size]
            loss, sums = policy_loss(
                logprobs,
                logprobs.detach(),
                advantages[part],
                share,
                reference,
                config.beta,
                config.kl,
                config.epsilon_low,
                config.epsilon_high,
            )
            loss.backward()
            gap = (
                (logprobs.detach() - samples.logprobs[part, :, :size])
                .abs()[mask[part, :, :size]]
                .max()
            )
            stats["loss"] += loss.item()
            for name, value in sums.items():  # kl (if beta), clip_low, clip_high
                stats[name] = stats.get(name, 0.0) + value.item()
            stats["entropy"] += (share * entropy).sum().item()
            stats["sampler_gap"] = max(stats["sampler_gap"], gap.item())
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
        stats["grad_norm"] = norm.item()
        stats["lr"] = self.schedule.get_last_lr()[0]
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        return stats

    def _reward_metrics(self, terms: Tensor, total: Tensor) -> dict:
        """Means of the rewards, and the share of groups whose completions all score the same."""
        means = {
            f"reward/{name}": terms[..., r].mean().item()
            for r, name in enumerate(self.rewards.names)
        }
        silent = (total.max(1).values - total.min(1).values < 1e-6).float().mean().item()
        return {
            "reward": total.mean().item(),
            "reward_std": total.std(1).mean().item() if total.shape[1] > 1 else 0.0,
            **means,
            "groups_without_signal": silent,
        }

    def _sample_metrics(self, samples: Samples) -> dict:
        lengths = torch.tensor([float(len(one)) for group in samples.tokens for one in group])
        return {
            "completion_length": lengths.mean().item(),
            "truncated": 1 - samples.finished.float().mean().item(),
        }

    def state_dict(self) -> dict:
        """LoRA weights, optimizer, schedule, random generator and step: all that the next step
        depends on.
        """
        return {
            "step": self.step,
            "config": self.config.to_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "lora": {
                name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues exactly where ``state_dict`` was taken."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state["lora"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]
