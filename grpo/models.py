"""Loads a policy: a Hugging Face causal language model with its tokenizer, and what ends its
answers.
"""

import os
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from encoder.model import has_fast_bfloat16
from grpo.attention import Groups, hidden_states
from sqlenv.errors import UserError

# transformers' own; ImportError where its version needs the package gguf
LOAD_ERRORS = (OSError, ValueError, SafetensorError, ImportError, struct.error, LookupError)


@dataclass
class Policy:
    """A model in eval mode, its tokenizer, and the ids of all tokens that end an answer."""

    model: torch.nn.Module
    tokenizer: object
    eos_ids: set[int]


def choose_dtype(name: str, device: str) -> torch.dtype:
    """``auto`` is what is fast on the device: bfloat16 where it is computed in hardware; otherwise
    float16 on a GPU, and float32.
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
    """Where transformers finds a model, and further keywords for it. Raises UserError if a local
    model lacks a file, or reading a .gguf file its package.
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
    """Loads a model directory, a .gguf file (its quantised weights become ordinary ones) or a hub
    id onto the device, or for the device onto the CPU.

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


@torch.no_grad()
def check_model(model) -> None:
    """Runs three tokens through the model, its own way and by `hidden_states` and the head.

    Raises:
        UserError: its layers attend otherwise than grpo/attention.py can, or its logits are more
        than a product with the head, so that log-probabilities would be wrong.
    """
    ids = torch.tensor([1, 2, 3], device=model.device)
    with torch.device(model.device):
        hidden_states(model, ids, torch.arange(3), Groups([3], []))
    own = model(input_ids=ids[None], output_hidden_states=True, use_cache=False)
    product = model.get_output_embeddings()(own.hidden_states[-1])
    if not torch.allclose(product, own.logits, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{type(model).__name__}: its logits are scaled or capped after the output head, which "
            "is not supported; choose another model"
        )


def checkpoint_activations(model) -> None:
    """From now on the decoder blocks keep only their input for the gradient, and compute the rest
    again in the backward pass: one forward pass more for a fraction of the memory.
    """
    for layer in model.get_decoder().layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
