"""Loads a policy: a Hugging Face causal language model, its tokenizer, and the ids of the tokens
that end a completion.
"""

import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from grpo.attention import Groups, hidden_states
from grpo.config import Config
from grpo.distributed.parallel import Distributed
from grpo.distributed.shard import open_mesh, shard, with_lockstep
from grpo.lora import add_lora
from sqlenv.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# transformers' own; ImportError where its version needs the package gguf
LOAD_ERRORS = (OSError, ValueError, SafetensorError, ImportError, struct.error, LookupError)


@dataclass
class Policy:
    """A model in eval mode, its tokenizer, and the ids of all tokens that end a completion."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    eos_ids: set[int]


def has_fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = torch.cpu.get_capabilities()
    return device == "cpu" and any(flags.get(name) for name in ("avx512_bf16", "amx_bf16"))


def choose_dtype(name: str, device: str) -> torch.dtype:
    """The dtype called ``name``. ``auto`` is bfloat16 where the device computes it in hardware,
    otherwise float16 on a GPU and float32 on a CPU.
    """
    if name == "auto":
        other = "float16" if device.startswith("cuda") else "float32"
        name = "bfloat16" if has_fast_bfloat16(device) else other
    return getattr(torch, name)


def end_tokens(model, tokenizer) -> set[int]:
    """Every id that the model's generation settings, its configuration or its tokenizer calls end
    of sequence.
    """
    ids = {tokenizer.eos_token_id}
    for settings in (model.generation_config, model.config, model.config.get_text_config()):
        value = getattr(settings, "eos_token_id", None)
        ids.update(value if isinstance(value, list) else [value])
    return ids - {None}


def reason(error: Exception) -> str:
    """An error's first line; its kind if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def locate(path: str) -> tuple[str, dict]:
    """Where transformers finds a model, and the keyword arguments to load it with.

    Raises:
        UserError: the directory or file is missing, or a local model lacks a file.
    """
    local = Path(path)
    if local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"{path}: no such file")
        return str(local.parent), {"gguf_file": local.name}
    if local.is_dir():
        names = set(os.listdir(path))
        if "config.json" not in names:
            raise UserError(
                f"{path}: no config.json; --model takes a Hugging Face model directory, a .gguf "
                "file or a hub id"
            )
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
            raise UserError(
                f"{path}: no tokenizer; save the model's tokenizer into the directory, too"
            )
    elif path.startswith((".", "/")) or path.count("/") > 1:
        raise UserError(f"{path}: no such model directory")
    return path, {}


def load_policy(
    path: str, device: str = "cpu", dtype: str = "auto", stay_on_cpu: bool = False
) -> Policy:
    """Loads a model directory, a .gguf file (its weights are dequantised) or a hub id.

    Args:
        stay_on_cpu: load for the device, but onto the CPU, where it will be sharded.

    Raises:
        UserError: the directory is missing or has no model or no tokenizer, the hub cannot be
        reached, or the model computes something that this project does not.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, keywords = locate(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **keywords)
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=choose_dtype(dtype, device), **keywords
        )
    except LOAD_ERRORS as error:
        hint = "" if Path(path).exists() else "; without the hub, give the model's directory"
        raise UserError(f"{path}: cannot load the model: {reason(error)}{hint}") from error
    model.to("cpu" if stay_on_cpu else device).eval()
    eos_ids = end_tokens(model, tokenizer)
    if not eos_ids:
        raise UserError(f"{path}: neither model nor tokenizer names an end-of-sequence token")
    check_model(model)
    return Policy(model, tokenizer, eos_ids)


def load_policy_with_lora(
    config: Config, device: str, distributed: Distributed
) -> tuple[Policy, Distributed]:
    """The policy that ``train.py`` trains: LoRA added, and with ``--shard`` sharded over the
    processes, which then stay at the same pass.
    """
    targets = [suffix for suffix in config.lora_targets.split(",") if suffix]
    options = {"rank": config.lora_rank, "alpha": config.lora_alpha, "seed": config.seed}
    mesh = open_mesh(distributed, device) if config.shard else None
    # One process at a time: the whole model is in memory until it is sharded.
    with distributed.rank_by_rank() if mesh else nullcontext():
        policy = load_policy(config.model, device, config.dtype, stay_on_cpu=config.shard)
        add_lora(policy.model, targets=targets, **options)
        if config.checkpoint_activations:
            checkpoint_activations(policy.model)
        if mesh:
            shard(policy.model, mesh, device)
    return policy, with_lockstep(distributed, policy.model) if mesh else distributed


@torch.no_grad()
def check_model(model) -> None:
    """Compares the model's own logits for three tokens with those by `hidden_states` and the head.

    Raises:
        UserError: its layers attend otherwise than grpo/attention.py can, or its logits are more
        than a product with the head, so that log-probabilities would be wrong.
    """
    ids = torch.tensor([1, 2, 3], device=model.device)
    with torch.device(model.device):
        hidden_states(model, ids, torch.arange(3), Groups([3], []))
    output = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    logits = model.get_output_embeddings()(output.hidden_states[-1])
    if not torch.allclose(logits, output.logits, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{type(model).__name__}: its logits are scaled or capped after the output head, which "
            "is not supported; choose another model"
        )


def checkpoint_activations(model) -> None:
    """Turns on activation checkpointing: the decoder blocks keep only their input for the backward
    pass and recompute the rest in it. One more forward pass for a fraction of the memory.
    """
    for layer in model.get_decoder().layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
