"""GRPO (Group Relative Policy Optimization, arXiv 2402.03300) in plain PyTorch, one file per step:
config, prompt, sampler, attention, packing, rewards, advantages, logprobs, loss, lora, rollout and
trainer. `distributed` has training on several processes, `evaluation` the evaluation of policies.

The names below are imported on first use: the worker process of a custom reward also imports this
package, and must not wait for torch.
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
