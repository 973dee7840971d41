"""Learning-rate schedules."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_schedule(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Linear warm-up over ``warmup_steps``, then linear decay to 0 after the last step."""

    def factor(step: int) -> float:
        rising = (step + 1) / max(1, warmup_steps)
        falling = (total_steps - step) / max(1, total_steps - warmup_steps)
        return max(0.0, min(1.0, rising, falling))

    return LambdaLR(optimizer, factor)


def restore_schedule(schedule: LambdaLR, state: dict) -> None:
    """Goes on from the step of a saved state, with the learning rate that this schedule has there.
    It is the saved one unless the total number of steps has changed.
    """
    step = state["last_epoch"]
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
    schedule.load_state_dict(state | {"_last_lr": rates})
    for group, rate in zip(schedule.optimizer.param_groups, rates):
        group["lr"] = rate


def trapezoid_schedule(optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Linear warm-up over the first twentieth, constant, linear decay over the last half."""

    def factor(step: int) -> float:
        rising = (step + 1) / max(1, total_steps // 20)
        falling = (total_steps - step) / (total_steps / 2)
        return min(rising, 1.0, falling)

    return LambdaLR(optimizer, factor)
