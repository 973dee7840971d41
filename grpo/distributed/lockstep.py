"""Keeps the processes of a sharded model at the same pass (grpo/distributed/shard.py).

The weights of a block are gathered from all processes just before it computes, so all processes
must make the same passes through the model. But their work differs: one has a prompt more, another
a longer completion. Therefore a process announces each pass that it makes; a process that has no
work left makes the same pass with one token of its own, until none has work.
"""

import torch
import torch.distributed as dist

from grpo.attention import Groups, hidden_states

IDLE, FORWARD, FORWARD_WITH_GRADIENT, BACKWARD = range(4)  # what a process is about to do


class Lockstep:
    """Keeps the processes of a sharded model at the same pass."""

    def __init__(self, model):
        self.model, self.participating = model, False
        self.passes: list[torch.Tensor] = []  # participated in, with the backward pass outstanding
        model.get_decoder().register_forward_pre_hook(self._before_pass)

    def _before_pass(self, *_) -> None:
        if not self.participating:
            self.announce(FORWARD_WITH_GRADIENT if torch.is_grad_enabled() else FORWARD)

    def before_backward(self) -> None:
        self.announce(BACKWARD)

    def announce(self, action: int) -> int:
        """Tells the other processes; returns what those with work do, the same for all of them."""
        largest = torch.tensor(action, device=self.model.device)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def participate_until_idle(self) -> None:
        """Joins in the passes of the other processes until none has work."""
        self.participating = True
        while action := self.announce(IDLE):
            if action == BACKWARD:
                (0 * self.passes.pop()).sum().backward()
                continue
            with_gradient = action == FORWARD_WITH_GRADIENT
            with torch.set_grad_enabled(with_gradient), torch.device(self.model.device):
                zero = torch.zeros(1, dtype=torch.long)
                hidden = hidden_states(self.model, zero, zero, Groups([1], []))
            if with_gradient:
                self.passes.append(hidden)
        self.participating = False
