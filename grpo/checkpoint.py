"""Checkpoints and adapters. Each file is written under a temporary name and then renamed, so an
interruption leaves no partly written file.

``checkpoint/state.pt`` holds everything that the next step depends on: LoRA weights, optimizer,
schedule, step and position in the data. ``adapter/`` holds the LoRA weights in PEFT's file format
(adapter_config.json, adapter_model.safetensors).
"""

import copy
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grpo.lora import add_lora, lora_layers, lora_parameters
from sqlenv.errors import UserError
from sqlenv.files import WRITE_ERRORS, write_file, write_json

SAFETENSORS_ERRORS = (*WRITE_ERRORS, SafetensorError)
# PEFT's settings that change what the tensors mean, or which tensors exist.
UNSUPPORTED = (
    *("bias", "use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"),
    *("layers_to_transform", "exclude_modules", "target_parameters", "trainable_token_indices"),
    *("fan_in_fan_out", "lora_bias", "layer_replication"),
)
READ_ERRORS = (*SAFETENSORS_ERRORS, ValueError, EOFError)


def training_state(trainer) -> dict:
    """Everything that the next step of a ``Trainer`` depends on. Samples are a function of the seed
    and the position in the data, so no generator's state is needed.
    """
    return {
        "step": trainer.step,
        "cursor": trainer.questions.cursor,
        "bad_updates": trainer.non_finite.bad_updates,
        "config": trainer.config.to_dict(),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),  # it would change in place
        "schedule": trainer.schedule.state_dict(),
        "lora": {name: value.detach().cpu().clone() for name, value in trainer.parameters.items()},
    }


def load_training_state(trainer, state: dict) -> None:
    """The ``Trainer`` continues exactly where ``training_state`` was taken."""
    with torch.no_grad():
        for name, tensor in trainer.parameters.items():
            tensor.copy_(state["lora"][name])
    trainer.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.step, trainer.questions.cursor = state["step"], state["cursor"]
    trainer.non_finite.bad_updates = state["bad_updates"]


def save_adapter(model, folder: Path, base: str) -> None:
    """Writes the LoRA weights in the form that ``peft.PeftModel.from_pretrained(base_model,
    folder)`` reads.
    """
    layers = dict(lora_layers(model))
    first = next(iter(layers.values()))
    tensors = {
        f"base_model.model.{name}.weight": tensor.detach().cpu().contiguous()
        for name, tensor in lora_parameters(model).items()
    }
    write_file(
        folder / "adapter_model.safetensors",
        lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}),
        SAFETENSORS_ERRORS,
    )
    rank = first.lora_A.shape[0]
    write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": rank,
            "lora_alpha": first.scale * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        },
    )


def load_adapter(model, folder: Path) -> None:
    """Adds the LoRA layers of an adapter directory, ours or PEFT's, to ``model``, in place.

    Raises:
        UserError: files are missing, the adapter was made for another model, or it is more than
        plain LoRA on linear layers of decoder blocks.
    """
    paths = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist; --adapter takes the adapter/ folder of a run")
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        tensors = load_file(paths[1])
    except READ_ERRORS as error:
        raise UserError(f"{folder}: the adapter is damaged and cannot be read: {error}") from error
    for key, value in config.items():
        if key in UNSUPPORTED and value not in (None, False, "none", [], {}):
            raise UserError(f"{folder}: an adapter with {key} = {value} cannot be read here")
    try:
        add_lora(
            model,
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=config["target_modules"],
        )
    except KeyError as error:
        raise UserError(f"{folder}: not a LoRA adapter: its settings have no {error}") from error
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    wanted = {
        f"base_model.model.{name}.weight": tensor for name, tensor in lora_parameters(model).items()
    }
    if {name: tensor.shape for name, tensor in wanted.items()} != {
        name: t.shape for name, t in tensors.items()
    }:
        raise UserError(
            f"{folder}: this adapter does not fit the model; it was made for "
            f"{config.get('base_model_name_or_path')}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
