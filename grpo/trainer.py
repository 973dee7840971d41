"""The training loop of GRPO: sample groups, reward, compare within the group, update. Nothing is
hidden.

The policy that samples is the one that is updated, so in the first update on a batch the old
log-probabilities are the new ones without gradient; further updates keep them.
"""

import copy
import logging
import math
import time
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor

from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.distributed.parallel import ALONE, World
from grpo.logprobs import completion_logprobs
from grpo.lora import lora_disabled, lora_folded, lora_parameters
from grpo.loss import policy_loss, token_kl, token_weights
from grpo.models import Policy
from grpo.prompt import PromptBuilder
from grpo.rewards import Rewards
from grpo.rollout import Rollout, collect
from grpo.sampler import sample_groups
from sqlenv import Example
from sqlenv.errors import UserError

log = logging.getLogger("grpo")
PHASES = ("sample", "reward", "train")
MAX_BAD_UPDATES = 3  # updates in a row with a non-finite loss or gradient that end a run
SAMPLER_GAP = {torch.float32: 1e-4}  # mean |sampler - trainer| log-prob that is worth a warning
SAMPLER_GAP_HALF = 1e-2  # the same for bfloat16 and float16


def combined(parts: list[dict[str, float]]) -> dict[str, float]:
    """The metrics of all processes: each has its share of a sum, or its own maximum."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: (max if name.endswith("_max") else sum)(found[name]) for name in names}


class Trainer:
    """Trains the LoRA weights of a policy. ``state_dict`` has all that a step depends on.

    Of several processes (``world``) all have the same state at all times.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: Rewards,
        examples: list[Example],
        config: Config,
        world: World = ALONE,
    ):
        self.world = world
        self.policy, self.rewards, self.examples, self.config = policy, rewards, examples, config
        self.model = policy.model
        self.prompts = PromptBuilder(policy.tokenizer)
        self.parameters = lora_parameters(self.model)
        self.several_languages = len({example.lang for example in examples}) > 1
        self.total_steps = config.steps or -(-len(examples) // config.prompts_per_step)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=config.lr, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.step = 0
        self.cursor = 0  # how many questions have been drawn so far
        self.bad_updates = 0  # in a row
        self.gap_checked = False
        self.seconds = dict.fromkeys(PHASES, 0.0)  # of this process, in the step

    def _lr_factor(self, step: int) -> float:
        """Linear warm-up, then linear decay to 0 after the last step."""
        rising = (step + 1) / max(1, self.config.warmup_steps)
        falling = (self.total_steps - step) / max(1, self.total_steps - self.config.warmup_steps)
        return max(0.0, min(1.0, rising, falling))

    def next_examples(self, count: int) -> list[Example]:
        """The next questions: each epoch is a fresh permutation, a function of the seed and the
        epoch alone.
        """
        picked = []
        for position in range(self.cursor, self.cursor + count):
            epoch, index = divmod(position, len(self.examples))
            order = torch.randperm(
                len(self.examples),
                generator=torch.Generator().manual_seed(self.config.seed + epoch),
            )
            picked.append(self.examples[order[index]])
        self.cursor += count
        return picked

    @contextmanager
    def _timed(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start

    def rollout(self, count: int) -> Rollout:
        """Samples a group for each of the next ``count`` questions and scores it. Each process does
        its share, and all get the groups of all.
        """
        seeds = [(self.config.seed << 32) + self.cursor + i for i in range(count)]
        examples, mine = self.next_examples(count), self.world.share(count)
        part = slice(mine.start, mine.stop)
        made = [self._rollout(examples[part], seeds[part])] if mine else []
        first, *others = self.world.joined(made)
        return reduce(Rollout.joined, others, first)

    def _rollout(self, examples: list[Example], seeds: list[int]) -> Rollout:
        config, tokenizer = self.config, self.policy.tokenizer
        prompts = [self.prompts(example) for example in examples]
        with self._timed("sample"), lora_folded(self.model):
            samples = sample_groups(
                self.model,
                prompts,
                config.group_size,
                config.max_new_tokens,
                self.policy.eos_ids,
                config.temperature,
                seeds,
            )
        with self._timed("reward"):
            texts = [tokenizer.batch_decode(g, skip_special_tokens=True) for g in samples.tokens]
            lengths = [[len(one) for one in group] for group in samples.tokens]
            terms = self.rewards(examples, texts, tokenizer.batch_decode(prompts), lengths)
        return Rollout(
            examples,
            prompts,
            samples.tokens,
            list(samples.logprobs.cpu()),
            samples.finished.cpu(),
            terms,
            terms @ self.rewards.weights,
        )

    def train_step(self) -> dict:
        """Samples a batch and updates the policy on it; returns the step's metrics."""
        config, self.seconds = self.config, dict.fromkeys(PHASES, 0.0)
        batch, stats = collect(self.rollout, config.prompts_per_step, config.dynamic_sampling)
        if config.advantage == "per_reward":
            advantages = group_advantages(batch.terms, "per_reward", self.rewards.weights)
        else:
            advantages = group_advantages(batch.total, config.advantage)  # (P, G)
        with self._timed("train"):
            stats |= self._updates(batch, advantages.to(self.model.device))
        self.step += 1
        return {
            "step": self.step,
            **self._reward_metrics(batch),
            **stats,
            **self._length_metrics(batch, stats["groups_sampled"]),
        }

    def _updates(self, batch: Rollout, advantages: Tensor) -> dict:
        """``updates_per_batch`` optimizer steps on one batch; the metrics are means over them.

        One that is not finite is skipped and so are those after it: they would be the same again.
        """
        config, device = self.config, self.model.device
        mask = batch.token_mask(keep_truncated=not config.mask_truncated).to(device)  # (P, G, T)
        weights = token_weights(mask, config.loss, config.max_new_tokens)  # of the whole step
        fixed: dict[int, tuple] = {}  # old and reference log-probs of each micro-batch
        updates: list[dict] = []  # the metrics of each
        made = 0
        while made == len(updates) < config.updates_per_batch:
            found = self._backward(batch, advantages, weights, token_weights(mask), fixed)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), config.max_grad_norm)
            updates.append(found | {"grad_norm": norm.item()})
            if math.isfinite(found["loss"]) and math.isfinite(norm.item()):
                self.optimizer.step()
                self.bad_updates = 0
                made += 1
            else:
                self._skip()
            self.optimizer.zero_grad(set_to_none=True)
        stats: dict[str, float] = {"skipped": config.updates_per_batch - made}
        for name in updates[0]:
            values = [one[name] for one in updates]
            stats[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
        if "kl" not in stats:  # known to the process that has the first group
            found = [self._first_group_kl(batch, fixed[0][0][:1])] if 0 in fixed else []
            (stats["kl"],) = self.world.joined(found)
        stats["lr"] = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self._check_sampler(stats["sampler_gap"])
        return stats

    def _backward(
        self,
        batch: Rollout,
        advantages: Tensor,
        weights: Tensor,
        shares: Tensor,
        fixed: dict[int, tuple],
    ) -> dict:
        """Gradients of one update, micro-batch by micro-batch, each process its share of the
        prompts; then they are added up. ``fixed`` is filled in the first
        update on a batch: what stays the same in the others. ``shares`` (P, G, T) are the weights
        of a plain mean over tokens, which is what metrics are taken over.
        """
        config = self.config
        stats: dict[str, float] = {"loss": 0.0, "entropy": 0.0, "sampler_gap": 0.0}
        mine = self.world.share(len(batch.prompts))
        for start in mine[:: config.micro_batch]:
            part = slice(start, min(start + config.micro_batch, mine.stop))
            inputs = batch.prompts[part], batch.tokens[part]
            logprobs, entropy = completion_logprobs(
                self.model, *inputs, config.temperature, with_entropy=True
            )
            size = logprobs.shape[-1]  # this part's longest completion
            weight, share = weights[part, :, :size], shares[part, :, :size]
            if start not in fixed:
                fixed[start] = logprobs.detach(), self._reference(*inputs)
            old, reference = fixed[start]
            loss, tokens = policy_loss(
                logprobs,
                old,
                advantages[part],
                weight,
                reference,
                config.beta,
                config.kl,
                config.ratio,
                config.epsilon_low,
                config.epsilon_high,
            )
            self.world.backward(loss)
            stats["loss"] += loss.item()
            tokens["entropy"] = entropy
            tokens["sampler_gap"] = self._sampler_gap(old, batch.logprobs[part])
            for name, value in tokens.items():  # means over the tokens of the step
                stats[name] = stats.get(name, 0.0) + (share * value).sum().item()
            for name in ("ratio", "sampler_gap"):
                largest = (tokens[name] * (share > 0)).max().item()
                stats[f"{name}_max"] = max(stats.get(f"{name}_max", 0.0), largest)
        self.world.add_gradients(self.parameters.values())
        return combined(self.world.gather(stats))

    def _reference(self, prompts: list[list[int]], tokens: list[list[list[int]]]) -> Tensor | None:
        """Log-probs of the frozen base, which is the policy with LoRA off; None if beta is 0."""
        if not self.config.beta:
            return None
        with torch.no_grad(), lora_disabled(self.model):
            return completion_logprobs(self.model, prompts, tokens, self.config.temperature)

    @torch.no_grad()
    def _first_group_kl(self, batch: Rollout, logprobs: Tensor) -> float:
        """Without a reference pass: k3 over the tokens of the step's first group only, which costs
        one P-th of the pass. A noisy figure; look at its mean over steps.

        Args:
            logprobs: (1, G, T) of that group, under the policy that sampled.
        """
        with lora_disabled(self.model):
            reference = completion_logprobs(
                self.model, batch.prompts[:1], batch.tokens[:1], self.config.temperature
            )
        logprobs = logprobs[..., : reference.shape[-1]]  # the others' may be longer
        count = sum(len(one) for one in batch.tokens[0])
        return (token_kl(logprobs, reference, "k3", torch.ones(())).sum() / count).item()

    def _sampler_gap(self, logprobs: Tensor, sampled: list[Tensor]) -> Tensor:
        """|trainer - sampler| of the sampled tokens' log-probs: how on-policy the samples are."""
        gap = torch.zeros_like(logprobs)
        for p, group in enumerate(sampled):
            size = min(group.shape[-1], gap.shape[-1])
            group = group[:, :size].to(gap.device)
            gap[p, :, :size] = (logprobs[p, :, :size] - group).abs()
        return gap

    def _check_sampler(self, gap: float) -> None:
        """Warns, once, if sampler and trainer disagree on the first batch that has a token to
        compare.
        """
        limit = SAMPLER_GAP.get(self.model.dtype, SAMPLER_GAP_HALF)
        if not self.gap_checked and gap > limit:
            log.warning(
                "sampler and trainer differ by %.2g per token in log-probability (expected at most "
                "%.0e in %s): the samples are not quite on policy; try --dtype float32",
                gap,
                limit,
                str(self.model.dtype).removeprefix("torch."),
            )
        self.gap_checked |= gap > 0

    def _skip(self) -> None:
        """Counts an update that cannot be made; ends the run at the third in a row."""
        self.bad_updates += 1
        log.warning("step %d: the loss or its gradient is not finite; skipped", self.step + 1)
        if self.bad_updates >= MAX_BAD_UPDATES:
            raise UserError(
                f"step {self.step + 1}: the loss or its gradient was not finite in "
                f"{MAX_BAD_UPDATES} updates in a row; lower --lr or use --dtype float32, and "
                "start again; the last checkpoint is kept"
            )

    def _reward_metrics(self, batch: Rollout) -> dict:
        """Mean and std of the total and of each term. The total's std is the mean over groups of
        the std within a group; a term's is over the whole batch. In a run with several languages
        also the mean total of each one that the step has.
        """
        metrics = {
            "reward": batch.total.mean().item(),
            "reward_std": batch.total.std(1).mean().item(),
        }
        for r, name in enumerate(self.rewards.names):
            metrics[f"reward/{name}"] = batch.terms[..., r].mean().item()
            metrics[f"reward/{name}_std"] = batch.terms[..., r].std().item()
        if self.several_languages:
            langs = [example.lang for example in batch.examples]
            for lang in sorted(set(langs)):
                groups = [p for p, one in enumerate(langs) if one == lang]
                metrics[f"language/{lang}"] = batch.total[groups].mean().item()
        return metrics | combined(self.world.gather(self.rewards.failures()))

    def _length_metrics(self, batch: Rollout, groups_sampled: int) -> dict:
        """Completion lengths, and seconds (of the slowest process) and tokens a second of each
        phase.
        """
        lengths = torch.tensor([float(len(one)) for group in batch.tokens for one in group])
        metrics = {
            "completion_length": lengths.mean().item(),
            "truncated": 1 - batch.finished.float().mean().item(),
        }
        trained = lengths.sum().item()
        sampled = trained * groups_sampled / len(batch.examples)  # discarded groups had to be made
        clocks = self.world.gather(self.seconds)
        for name, tokens in zip(PHASES, (sampled, sampled, trained)):
            seconds = max(one[name] for one in clocks)
            metrics[f"{name}_seconds"] = seconds
            metrics[f"{name}_tokens_per_second"] = tokens / seconds
        return metrics

    def state_dict(self) -> dict:
        """LoRA weights, optimizer, schedule, step and place in the data: all that the next step
        depends on, as what is drawn is a function of the seed and the place in the data.
        """
        return {
            "step": self.step,
            "cursor": self.cursor,
            "bad_updates": self.bad_updates,
            "config": self.config.to_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),  # it would change in place
            "schedule": self.schedule.state_dict(),
            "lora": {
                name: tensor.detach().cpu().clone() for name, tensor in self.parameters.items()
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues exactly where ``state_dict`` was taken."""
        with torch.no_grad():
            for name, tensor in self.parameters.items():
                tensor.copy_(state["lora"][name])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        for name in ("step", "cursor", "bad_updates"):
            setattr(self, name, state[name])
