"""The training loop of GRPO. ``Trainer.train_step`` is the algorithm: sample groups, reward them,
compare within the group, update.

Not implemented from published GRPO: the outer loop that periodically replaces the reference with
the policy (DeepSeekMath, arXiv 2402.03300, algorithm 1). The reference is always the frozen base,
that is, the policy with LoRA off.
"""

import torch
from torch import Tensor

from grpo import metrics
from grpo.advantages import group_advantages
from grpo.config import Config
from grpo.credit import difference_credit
from grpo.distributed.parallel import SINGLE_PROCESS, Distributed
from grpo.downsampling import select_completions, spread_most
from grpo.dynamic_sampling import collect_groups, concatenate, select_groups
from grpo.gold_completions import add_gold
from grpo.guards import CollapseGuard, NonFiniteGuard, SamplerGuard
from grpo.logprobs import completion_logprobs
from grpo.lora import lora_disabled, lora_parameters
from grpo.loss import policy_loss, token_weights
from grpo.minibatch import Minibatch, split_evenly
from grpo.models import Policy
from grpo.prompt import PromptBuilder, PromptSettings
from grpo.questions import QuestionStream
from grpo.rewards import Rewards
from grpo.rollout import Rollout, sample_rollout
from grpo.schedules import linear_schedule
from grpo.timer import PhaseTimer
from sqlenv import Example


class Trainer:
    """Trains the LoRA weights of a policy. All processes have the same state at all times."""

    def __init__(
        self,
        policy: Policy,
        rewards: Rewards,
        examples: list[Example],
        config: Config,
        distributed: Distributed = SINGLE_PROCESS,
    ):
        self.policy, self.model, self.rewards = policy, policy.model, rewards
        self.config, self.distributed = config, distributed
        self.questions = QuestionStream(examples, config.seed, ask_again=config.ask_again)
        self.prompts = PromptBuilder(policy.tokenizer, PromptSettings.of(vars(config)))
        self.parameters = lora_parameters(self.model)
        self.total_steps = config.steps or -(-len(examples) // config.prompts_per_step)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=config.lr, weight_decay=0.0)
        self.schedule = linear_schedule(self.optimizer, config.warmup_steps, self.total_steps)
        # The gradient of a mean over thousands of tokens is below what float16 can hold.
        scaled = self.model.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.model.device.type, enabled=scaled)
        self.step = 0
        self.last_rollouts: list[Rollout] = []  # of the last step, for those who want to look
        self.timer, self.non_finite = PhaseTimer(), NonFiniteGuard()
        self.sampler_guard, self.collapse = SamplerGuard(), CollapseGuard(config.max_grad_norm)

    def train_step(self) -> dict[str, float]:
        """One step of GRPO on P prompts x G completions; returns its metrics."""
        self.timer.reset()
        self.last_rollouts = []
        collected, group_stats = collect_groups(
            self.sample_and_score,
            self.config.prompts_per_step,
            rounds=self.config.dynamic_sampling,
        )  # completion_ids, reward_terms (P, G, R), rewards (P, G)
        with self.timer.phase("train"):
            batch = self.with_gold(collected, group_stats)
            advantages = self.advantages(batch).to(self.model.device)  # (P, G)
            # From here on P and G count what is trained on; advantages are (P, G, 1) or (P, G, T).
            trained, token_advantages = self.what_to_train(batch, advantages)
            minibatches = self.prepare(trained, token_advantages)
            left, updates = minibatches, []
            for _ in range(self.config.num_iterations):  # mu in DeepSeekMath
                one_pass = [(minibatch, self.update(minibatch)) for minibatch in left]
                updates += one_pass
                if not self.scaler.is_enabled():  # no smaller scale: what failed would fail again
                    left = [minibatch for minibatch, values in one_pass if not values["skipped"]]
            if not self.config.beta:
                updates[0][1]["kl"] = self.first_group_kl(minibatches[0])
            planned = len(minibatches) * self.config.num_iterations
        return self.finish_step(collected, trained, group_stats, updates, planned)

    def sample_and_score(self, count: int) -> Rollout:
        """Samples and scores a group for each of the next ``count`` questions. Each process does
        its share, and all processes get all groups.
        """
        examples, seeds = self.questions.draw(count)
        own = self.distributed.split(count)
        part, groups = slice(own.start, own.stop), []
        if own:
            rollout = sample_rollout(
                examples[part], seeds[part], policy=self.policy, rewards=self.rewards,
                prompts=self.prompts, config=self.config, timer=self.timer,
            )  # fmt: skip
            groups.append(rollout)
        rollout = concatenate(self.distributed.all_gather_list(groups))
        self.questions.record(rollout.zero_variance().tolist())
        self.last_rollouts.append(rollout)
        return rollout

    def advantages(self, rollout: Rollout) -> Tensor:
        """(P, G) float32."""
        if self.config.advantage == "per_reward":
            values, applicable = rollout.reward_terms, rollout.applicable  # (P, G, R)
        else:
            values, applicable = rollout.rewards, rollout.applicable.any(-1)  # (P, G)
        options = {"kind": self.config.advantage, "weights": self.rewards.weights}
        return group_advantages(values, applicable=applicable, **options)

    def with_gold(self, collected: Rollout, group_stats: dict[str, float]) -> Rollout:
        """With ``--gold-completions`` gold joins the groups without a right completion, and the
        metric of zero variance counts these groups as they then are. The main process runs gold for
        all: its queries run against the clock.
        """
        if not self.config.gold_completions:
            return collected
        longest, batch = self.config.max_new_tokens, collected
        if self.distributed.is_main:
            batch = add_gold(collected, self.policy, self.rewards, longest)
        batch = self.distributed.all_gather(batch)[0]
        self.last_rollouts = [batch]
        group_stats["frac_reward_zero_std"] = batch.zero_variance().float().mean().item()
        return batch

    def what_to_train(self, rollout: Rollout, advantages: Tensor) -> tuple[Rollout, Tensor]:
        """The groups and completions that the update is made of, and the advantages of their
        tokens, see ``credit``.

        Zero-variance groups are left out: they have no policy gradient. They are kept with
        ``--zero-variance train``, and if there are no others: then the KL term alone pulls.
        """
        groups = advantages.any(1).nonzero()[:, 0].tolist()
        if groups and self.config.zero_variance == "skip":
            rollout, advantages = select_groups(rollout, groups), advantages[groups]
        credited = self.credit(rollout, advantages)  # of all siblings, before some are left out
        if self.config.train_completions:
            chosen = spread_most(advantages.cpu(), self.config.train_completions)  # (P, m)
            rollout = select_completions(rollout, chosen)
            credited = credited[torch.arange(len(chosen))[:, None], chosen]
        return rollout, credited

    def credit(self, rollout: Rollout, advantages: Tensor) -> Tensor:
        """Advantages of tokens, (P, G, T), or (P, G, 1) if all tokens of a completion share one."""
        if self.config.credit == "difference":
            return difference_credit(rollout, advantages)
        return advantages[..., None]

    def prepare(self, rollout: Rollout, advantages: Tensor) -> list[Minibatch]:
        """``--minibatches`` parts of the groups, with the log-probs that their updates need. A part
        of which no token is trained on, with ``--mask-truncated``, is left out.
        """
        config, distributed, device = self.config, self.distributed, self.model.device
        minibatches = []
        for groups in split_evenly(len(rollout.examples), config.minibatches):
            part = select_groups(rollout, groups)
            mask = part.completion_mask(include_truncated=not config.mask_truncated).to(device)
            weights = token_weights(
                mask, aggregation=config.loss_aggregation, max_new_tokens=config.max_new_tokens
            )
            slices = distributed.micro_batches(len(groups), config.micro_batch)
            minibatches.append(Minibatch(part, advantages[groups], mask, weights, slices))
        minibatches = [m for m in minibatches if m.mask.any()] or minibatches[:1]
        for n, minibatch in enumerate(minibatches):
            part, slices = minibatch.rollout, minibatch.parts
            reference = self.reference_logprobs if config.beta else lambda *_: None
            minibatch.ref_logprobs = [reference(part, own) for own in slices]
            if n:  # the first one's come from its update, which the policy that sampled makes
                with torch.no_grad():
                    minibatch.old_logprobs = [self.logprobs(part, own) for own in slices]
        distributed.synchronize()  # processes may have different numbers of micro-batches
        return minibatches

    def update(self, batch: Minibatch) -> dict[str, float]:
        """One update of the weights; returns its metrics."""
        config, distributed = self.config, self.distributed
        sampled = batch.rollout.sampled_mask().to(self.model.device)  # (P, G), all but gold
        values = metrics.UpdateMetrics(batch.mask)
        for i, part in enumerate(batch.parts):
            logprobs, entropy = self.logprobs(batch.rollout, part, with_entropy=True)  # (p, G, T)
            if i == len(batch.old_logprobs):  # the policy is still the one that sampled
                batch.old_logprobs.append(logprobs.detach())
            longest = logprobs.shape[-1]  # of these groups
            loss, stats = policy_loss(
                logprobs, batch.old_logprobs[i], batch.advantages[part, :, :longest],
                batch.weights[part, :, :longest], batch.ref_logprobs[i],
                sampled=sampled[part], beta=config.beta, kl=config.kl,
                importance_sampling=config.importance_sampling,
                epsilon_low=config.epsilon_low, epsilon_high=config.epsilon_high,
            )  # fmt: skip
            distributed.backward(self.scaler.scale(loss))
            sampling_logprobs = batch.rollout.sampling_logprobs[part]
            gap = metrics.sampler_gap(batch.old_logprobs[i], sampling_logprobs)
            values.add(part, loss, stats | {"entropy": entropy, "sampling_logp_difference": gap})
        distributed.all_reduce_gradients(self.parameters.values())
        return self.optimizer_step(values)

    def logprobs(self, rollout: Rollout, part: slice, *, with_entropy: bool = False):
        """Log-probs (p, G, T) of the completions of some prompts, at the sampling temperature."""
        ids = rollout.prompt_ids[part], rollout.completion_ids[part]
        options = {"temperature": self.config.temperature, "with_entropy": with_entropy}
        return completion_logprobs(self.model, *ids, **options, allowed=rollout.allowed[part])

    @torch.no_grad()
    def reference_logprobs(self, rollout: Rollout, part: slice) -> Tensor:
        """(p, G, T) under the frozen base, which is the policy with LoRA off."""
        with lora_disabled(self.model):
            return self.logprobs(rollout, part)  # pyright: ignore[reportReturnType]

    def optimizer_step(self, update: metrics.UpdateMetrics) -> dict[str, float]:
        """Clips the gradient and updates the weights, unless it is not finite. Returns metrics."""
        values = metrics.reduce_metrics(self.distributed.all_gather(update.values))
        # A process without a group has scaled no loss, which is when a scaler gets its scale.
        self.scaler.scale(torch.zeros((), device=self.model.device))
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm)
        scale = self.scaler.get_scale()
        allowed = self.non_finite.allows(self.step + 1, values["loss"], norm.item(), scale=scale)
        if allowed:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return values | {"grad_norm": norm.item(), "skipped": int(not allowed)}

    def first_group_kl(self, batch: Minibatch) -> float:
        """The metric ``kl`` without a reference pass, see ``metrics.first_group_kl``."""
        return metrics.first_group_kl(
            batch.rollout,
            batch.parts,
            batch.old_logprobs,
            self.reference_logprobs,
            self.distributed,
            include_truncated=not self.config.mask_truncated,
        )

    def finish_step(
        self,
        collected: Rollout,
        trained: Rollout,
        group_stats: dict[str, float],
        updates: list[tuple[Minibatch, dict[str, float]]],
        planned: int,
    ) -> dict[str, float]:
        """Advances the schedule and the step; returns the step's metrics."""
        values = metrics.mean_over_updates(
            [values for _, values in updates], [int(batch.mask.sum()) for batch, _ in updates]
        )
        values["skipped"] = planned - sum(not values["skipped"] for _, values in updates)
        values["lr"] = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        self.sampler_guard.check(self.step, values["sampling_logp_difference"], self.model.dtype)
        failures = self.distributed.all_gather(self.rewards.failures())
        clocks = self.distributed.all_gather(self.timer.seconds)
        values = {
            "step": self.step,
            **metrics.rollout_metrics(collected, self.rewards.names, self.questions.examples),
            **metrics.reduce_metrics(failures),
            **group_stats,
            "groups_trained": len(trained.examples),
            **values,
            **metrics.speed_metrics(collected, trained, group_stats["groups_sampled"], clocks),
        }
        if self.collapse.check(values):
            values["collapse"] = 1
        return values
