"""Loads a policy: a Hugging Face causal language model with its tokenizer, and what ends its
answers.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from sqlenv.errors import UserError


@dataclass
class Policy:
    """A model in eval mode, its tokenizer, and the ids of all tokens that end an answer."""

    model: torch.nn.Module
    tokenizer: object
    eos_ids: set[int]


def choose_dtype(name: str, device: str) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU and float32 on a CPU, many of which compute bfloat16 slowly."""
    if name == "auto":
        name = "bfloat16" if device.startswith("cuda") else "float32"
    return getattr(torch, name)


def end_tokens(model, tokenizer) -> set[int]:
    """Every id that the model's generation settings, its configuration or its tokenizer calls end
    of sequence.
    """
    ids = {tokenizer.eos_token_id}
    for settings in (model.generation_config, model.config):
        value = settings.eos_token_id
        ids.update(value if isinstance(value, list) else [value])
    return ids - {None}


def load_policy(path: str, device: str = "cpu", dtype: str = "auto") -> Policy:
    """Loads a model directory or hub id.

    Raises:
        UserError: the directory is missing or has no model or no tokenizer, or the hub cannot be
        reached.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if Path(path).is_dir():
        names = set(os.listdir(path))
        if "config.json" not in names:
            raise UserError(
                f"{path}: no config.json; --model takes a Hugging Face model directory or a hub id"
            )
        if not names & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
            raise UserError(
                f"{path}: no tokenizer; save the model's tokenizer into the directory, too"
            )
    elif path.startswith((".", "/")) or path.count("/") > 1:
        raise UserError(f"{path}: no such model directory")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=choose_dtype(dtype, device))
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: cannot load the model: {reason}") from error
    model.to(device).eval()
    eos_ids = end_tokens(model, tokenizer)
    if not eos_ids:
        raise UserError(f"{path}: neither model nor tokenizer names an end-of-sequence token")
    return Policy(model, tokenizer, eos_ids)


def checkpoint_activations(model) -> None:
    """From now on the decoder blocks keep only their input for the gradient, and compute the rest
    again in the backward pass: one forward pass more for a fraction of the memory.
    """
    for layer in model.base_model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
