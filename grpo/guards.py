"""Guards: they stop a run, or log a warning, when its numbers are wrong."""

import logging
import math

import torch

from sqlenv.errors import UserError

log = logging.getLogger("grpo")
MAX_BAD_UPDATES = 3  # updates in a row with a non-finite loss or gradient that end a run
SICK_STEPS = 5  # steps in a row with the same sign of a run that learns nothing, or the wrong thing
MAX_KL = 1.0  # nats per token; single steps of the default run reach 0.6
MAX_ENTROPY = 5.0  # nats per token; that of text which makes sense is far lower
MAX_REPEATED = 0.5  # of a step's questions that have the same answer as another
MAX_GRAD_NORM = 100.0  # in units of --max-grad-norm, to which the gradient is clipped
# Mean |sampler - trainer| of a token's log-prob above which a warning is given.
SAMPLER_GAP = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class NonFiniteGuard:
    """Counts updates in a row whose loss or gradient is not finite.

    Attributes:
        bad_updates: how many in a row; part of a checkpoint.
    """

    def __init__(self):
        self.bad_updates = 0

    def allows(self, step: int, loss: float, grad_norm: float, *, scale: float = 1.0) -> bool:
        """Whether the update may be made.

        Args:
            scale: what the loss was multiplied by. While it is above 1, a gradient that is not
                finite means that it is too large: it will be halved, and nothing is wrong.

        Raises:
            UserError: this is the ``MAX_BAD_UPDATES``-th in a row that may not.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.bad_updates = 0
            return True
        if math.isfinite(loss) and scale > 1:
            return False
        self.bad_updates += 1
        log.warning("step %d: the loss or its gradient is not finite; skipped", step)
        if self.bad_updates >= MAX_BAD_UPDATES:
            raise UserError(
                f"step {step}: the loss or its gradient was not finite in "
                f"{MAX_BAD_UPDATES} updates in a row; lower --lr or use --dtype float32, and "
                "start again; the last checkpoint is kept"
            )
        return False


class SamplerGuard:
    """Warns, at the first step in which sampler and trainer disagree."""

    def __init__(self):
        self.warned = False

    def check(self, step: int, gap: float, dtype: torch.dtype) -> None:
        """``gap``: mean |sampler - trainer| of the tokens' log-probs."""
        limit = SAMPLER_GAP.get(dtype, 1e-2)
        if not self.warned and gap > limit:
            self.warned = True
            log.warning(
                "step %d: sampler and trainer differ by %.2g per token in log-probability "
                "(expected at most %.0e in %s): the samples are not quite on policy; try "
                "--dtype float32",
                step,
                gap,
                limit,
                str(dtype).removeprefix("torch."),
            )


class CollapseGuard:
    """Warns if the last ``SICK_STEPS`` steps had the sign of a run that learns nothing or falls
    apart.

    Args:
        max_grad_norm: what the gradient's norm is clipped to.

    Attributes:
        steps: for each sign, how many steps in a row had it; part of a checkpoint.
    """

    def __init__(self, max_grad_norm: float):
        self.max_grad_norm = max_grad_norm
        self.steps = dict.fromkeys(("groups", "kl", "entropy", "gradient", "answers"), 0)

    def check(self, metrics: dict[str, float]) -> bool:
        """Whether a sign has just been there for ``SICK_STEPS`` steps in a row.

        Args:
            metrics: those of a step (docs/grpo.md).
        """
        step, norm = int(metrics["step"]), metrics["grad_norm"] / self.max_grad_norm
        signs = {
            "groups": metrics["frac_reward_zero_std"] == 1,
            "kl": metrics["kl"] > MAX_KL,
            "entropy": metrics["entropy"] > MAX_ENTROPY,
            "gradient": norm > MAX_GRAD_NORM,
            "answers": metrics["repeated_answers"] > MAX_REPEATED,
        }
        advice = {
            "groups": "every completion of a group had the same reward, in all groups, so there is "
            f"no policy gradient (mean reward {metrics['reward']:.2f}); if the reward was higher "
            "before, start again with a lower --lr; if no answer was ever right, train the model "
            "with grpo.sft first; if all are right, take harder questions",
            "kl": f"the KL divergence from the reference is {metrics['kl']:.3g} per token; start "
            "again with a lower --lr or a higher --beta",
            "entropy": f"the entropy is {metrics['entropy']:.3g} nats per token: completions are "
            "nearly random; start again with a lower --lr, or with a lower --temperature",
            "answers": f"{100 * metrics['repeated_answers']:.0f} % of the questions got the same "
            "SQL as another question; start again with a lower --lr, and without gold SQL with a "
            "smaller weight of the reward consensus",
            "gradient": f"the gradient's norm is {norm:.3g} times --max-grad-norm; start again "
            "with a lower --lr",
        }
        for sign, shown in signs.items():
            self.steps[sign] = self.steps[sign] + 1 if shown else 0
            if self.steps[sign] == SICK_STEPS:
                log.warning("steps %d to %d: %s", step - SICK_STEPS + 1, step, advice[sign])
        return SICK_STEPS in self.steps.values()
