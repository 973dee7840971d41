"""GRPO (Group Relative Policy Optimization, arXiv 2402.03300) in plain PyTorch, one step a file:
config, prompt, sampler, attention, packing, rewards, advantages, logprobs, loss, lora, rollout and
trainer. `distributed` has processes and sharding, `evaluation` has measuring and reporting.

The names below load on first use: a worker process that runs a custom reward imports this package
as well, and must not wait for torch.
"""

import importlib

_MODULES = {
    "LoRALinear": "grpo.lora",
    "add_lora": "grpo.lora",
    "completion_logprobs": "grpo.logprobs",
    "group_advantages": "grpo.advantages",
    "lora_disabled": "grpo.lora",
    "policy_loss": "grpo.loss",
    "sample_groups": "grpo.sampler",
}
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'grpo' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
