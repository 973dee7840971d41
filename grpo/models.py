"""Loads a policy: a Hugging Face causal language model, its tokenizer, and the ids of the tokens
that end a completion.
"""

import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.utils.checkpoint import checkpoint

from encoder.device import fastest_dtype, has_bfloat16
from grpo.config import Config
from grpo.distributed.parallel import Distributed
from grpo.distributed.shard import open_mesh, shard, with_lockstep
from grpo.lora import add_lora
from grpo.model_checks import (
    check_loading,
    check_logits,
    check_numbers,
    check_tokenizer,
    decoder_blocks,
    fixed_context,
    reason,
    refuse_longer,
)
from grpo.name_constraint import TokenTexts
from sqlenv.errors import UserError
from sqlenv.extraction import REASONING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOAD_ERRORS = (  # transformers' own
    *(OSError, ValueError, SafetensorError, struct.error, LookupError),
    ImportError,  # where its version needs the package gguf
    *(RuntimeError, StrictDataclassError),  # weights or settings that contradict each other
)


@dataclass
class Policy:
    """A model in eval mode, its tokenizer, and the ids of all tokens that end a completion."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    eos_ids: set[int]

    def decode(self, ids: list[int]) -> str:
        """A completion as text, without special tokens. Those that open or close reasoning stay:
        where it ends, ``extract_sql`` must see.
        """
        if not self._reasoning_ids:
            return self._decode(ids, skip_special_tokens=True)
        dropped = {*self.tokenizer.all_special_ids} - self._reasoning_ids
        return self._decode([token for token in ids if token not in dropped])

    def _decode(self, ids: list[int], **options) -> str:
        # Llama 3's tokenizer may ask for a cleaner text, in which x = ' . ' is x = '.'.
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False, **options)
        return cast(str, text)

    @cached_property
    def token_text(self) -> TokenTexts:
        """The text of a token, for ``ConstrainedRows``."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def _reasoning_ids(self) -> set[int]:
        """The special tokens that open or close reasoning; few tokenizers have any."""
        added = self.tokenizer.added_tokens_decoder.items()
        return {i for i, token in added if token.special and REASONING.fullmatch(token.content)}


def choose_dtype(name: str, device: str, width: int, inner: int) -> str:
    """The dtype called ``name``. ``auto`` is what a measurement finds faster of float32 and
    bfloat16, and on a GPU without bfloat16 float16.

    Args:
        width, inner: of the model's feed-forward layers.
    """
    if name != "auto":
        return name
    if device.startswith("cuda") and not has_bfloat16(device):
        return "float16"
    return fastest_dtype(device, width, inner)


def model_dtype(name: str, device: str, config) -> str:
    """``choose_dtype`` for the model of a transformers text configuration."""
    width = config.hidden_size
    return choose_dtype(name, device, width, getattr(config, "intermediate_size", 4 * width))


def end_tokens(model, tokenizer) -> set[int]:
    """Every id that the model's generation settings, its configuration or its tokenizer calls end
    of sequence.
    """
    ids = {tokenizer.eos_token_id}
    for settings in (model.generation_config, model.config, model.config.get_text_config()):
        value = getattr(settings, "eos_token_id", None)
        ids.update(value if isinstance(value, list) else [value])
    return ids - {None}


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
    if local.is_file():
        raise UserError(
            f"--model {path}: a file; --model takes a Hugging Face model directory, a .gguf file "
            "or a hub id"
        )
    if local.is_dir():
        names = set(os.listdir(path))
        if {"adapter", "questions.json"} <= names:
            raise UserError(
                f"{path}: the folder of a run; to use it as a model, merge its adapter into one: "
                f"python -m grpo.merge {path} DIR"
            )
        if "adapter_config.json" in names:
            raise UserError(
                f"{path}: an adapter; --model takes a whole model (evaluate.py takes an adapter by "
                "--adapter, beside the --model that it was made for)"
            )
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


@contextmanager
def named(path: str) -> Iterator[None]:
    """Within it, errors of the model called ``path`` say so."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except LOAD_ERRORS as error:
        hint = "" if Path(path).exists() else "; without the hub, give the model's directory"
        raise UserError(f"{path}: cannot load the model: {reason(error)}{hint}") from error


def no_report(record: logging.LogRecord) -> bool:
    """Filters out transformers' table of weights: a UserError says it in a line."""
    return "LOAD REPORT" not in record.getMessage()


def read_model(source: str, dtype: torch.dtype, keywords: dict) -> "PreTrainedModel":
    """The model with its weights. Raises UserError if they do not agree with its config.json."""
    from transformers import AutoModelForCausalLM

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(no_report)
    try:
        options = keywords | {
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,
            "dtype": dtype,
        }
        model, info = AutoModelForCausalLM.from_pretrained(source, **options)  # pyright: ignore[reportGeneralTypeIssues]
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise UserError(
            "the weights of the experts cannot be put together as config.json describes them; use "
            "the files of one model"
        ) from error
    finally:
        logger.removeFilter(no_report)
    check_loading(model, info)
    return model


def read_tokenizer(path: str):
    """The tokenizer and the text configuration of a model, which both have been checked.

    Raises:
        UserError: as ``load_policy``, as far as it can be known without the weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, keywords = locate(path)
    with named(path):
        tokenizer = AutoTokenizer.from_pretrained(source, **keywords)
        config = AutoConfig.from_pretrained(source, **keywords)
        if getattr(config, "quantization_config", None):
            raise UserError(
                "its weights are quantised, which LoRA here cannot merge with; use others"
            )
        with torch.device("meta"):  # no weights yet
            decoder_blocks(AutoModelForCausalLM.from_config(config))
        config = config.get_text_config()
        check_tokenizer(tokenizer, config.vocab_size)
    return tokenizer, config


def load_policy(
    path: str, device: str = "cpu", dtype: str = "auto", stay_on_cpu: bool = False
) -> Policy:
    """Loads a model directory, a .gguf file (its weights are dequantised) or a hub id.

    Args:
        stay_on_cpu: load for the device, but onto the CPU, where it will be sharded.

    Raises:
        UserError: the directory is missing or has no model or no tokenizer, the hub cannot be
        reached, or the model would be trained on wrong numbers (grpo/model_checks.py).
    """
    tokenizer, text = read_tokenizer(path)
    source, keywords = locate(path)
    with named(path):
        chosen = getattr(torch, model_dtype(dtype, device, text))
        model = read_model(source, chosen, keywords)
        model.to("cpu" if stay_on_cpu else device).eval()
        eos_ids = end_tokens(model, tokenizer)
        if not eos_ids:
            raise UserError("neither model nor tokenizer names an end-of-sequence token")
        check_numbers(model)
        check_logits(model)
    if limit := fixed_context(model.config.get_text_config()):
        refuse_longer(model, limit)
    return Policy(model, tokenizer, eos_ids)


def load_policy_with_lora(
    config: Config, device: str, distributed: Distributed
) -> tuple[Policy, Distributed]:
    """The policy that ``train.py`` trains: LoRA added, and with ``--shard`` sharded over the
    processes, which then stay at the same pass.
    """
    options = {"rank": config.lora_rank, "alpha": config.lora_alpha, "seed": config.seed}
    mesh = open_mesh(distributed, device) if config.shard else None
    # One process at a time: the whole model is in memory until it is sharded.
    with distributed.rank_by_rank() if mesh else nullcontext():
        policy = load_policy(config.model, device, config.dtype, stay_on_cpu=config.shard)
        add_lora(policy.model, targets=config.lora_suffixes(), **options)
        if config.checkpoint_activations:
            checkpoint_activations(policy.model)
        if mesh:
            shard(policy.model, mesh, device)
    return policy, with_lockstep(distributed, policy.model) if mesh else distributed


def checkpoint_activations(model) -> None:
    """Turns on activation checkpointing: the decoder blocks keep only their input for the backward
    pass and recompute the rest in it. One more forward pass for a fraction of the memory.
    """
    for layer in decoder_blocks(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
