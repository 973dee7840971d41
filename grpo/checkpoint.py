"""Checkpoints and adapters. Each file is written under a temporary name and then renamed, so an
interruption leaves no partly written file.

``checkpoint/state.pt`` holds everything that the next step depends on: LoRA weights, optimizer,
schedule, step and position in the data. ``adapter/`` holds the LoRA weights in PEFT's file format
(adapter_config.json, adapter_model.safetensors).
"""

import copy
import json
import math
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from grpo.lora import add_lora, lora_layers, lora_parameters
from grpo.schedules import restore_schedule
from sqlenv.errors import UserError
from sqlenv.files import WRITE_ERRORS, write_file, write_json

SAFETENSORS_ERRORS = (*WRITE_ERRORS, SafetensorError)
# adapter_config.json of plain LoRA: settings with these values, settings that change nothing once
# the adapter is trained, and settings that are off (None, False or empty), whatever their name, so
# that the files of later versions of PEFT are read.
PLAIN = {
    "task_type": ["CAUSAL_LM"],
    "bias": ["none"],
    "init_lora_weights": [True, "gaussian", "orthogonal", "eva"],  # the others change the base
}
NEUTRAL = {
    *("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode"),
    *("lora_dropout", "eva_config"),
    *("megatron_core", "qalora_group_size"),  # they go with settings that are off
}
READ_ERRORS = (*SAFETENSORS_ERRORS, ValueError, EOFError)


def training_state(trainer) -> dict:
    """Everything that the next step of a ``Trainer`` depends on. Samples are a function of the seed
    and the position in the data, so no generator's state is needed.
    """
    return {
        "step": trainer.step,
        "cursor": trainer.questions.cursor,
        "streaks": dict(trainer.questions.streaks),
        "bad_updates": trainer.non_finite.bad_updates,
        "signs": dict(trainer.collapse.steps),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),  # it would change in place
        "schedule": trainer.schedule.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "lora": {name: value.detach().cpu().clone() for name, value in trainer.parameters.items()},
    }


def load_training_state(trainer, state: dict) -> None:
    """The ``Trainer`` continues exactly where ``training_state`` was taken."""
    with torch.no_grad():
        for name, tensor in trainer.parameters.items():
            tensor.copy_(state["lora"][name])
    trainer.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
    restore_schedule(trainer.schedule, state["schedule"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.step, trainer.questions.cursor = state["step"], state["cursor"]
    trainer.questions.streaks = dict(state["streaks"])
    trainer.non_finite.bad_updates = state["bad_updates"]
    trainer.collapse.steps = dict(state["signs"])


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
    targets = {name.rpartition(".")[2] for name in layers}
    others = (name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    if any(name.rpartition(".")[2] in targets for name in others):
        targets = layers  # by their whole names: the last part would select others, too
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
            "target_modules": sorted(targets),
        },
    )


def adapter_files(folder: Path) -> tuple[Path, Path]:
    """The settings and the weights of an adapter. Raises UserError if one is missing."""
    paths = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist; --adapter takes the adapter/ folder of a run")
    return paths


def restore_adapter(model, folder: Path) -> None:
    """Gives the LoRA layers that ``model`` has the weights that ``save_adapter`` wrote."""
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for name, tensor in lora_parameters(model).items():
            tensor.copy_(tensors[f"base_model.model.{name}.weight"])


def load_adapter(model, folder: Path) -> None:
    """Adds the LoRA layers of an adapter directory, ours or PEFT's, to ``model``, in place.

    Raises:
        UserError: files are missing, the adapter was made for another model, or it is more than
        plain LoRA on linear layers of decoder blocks.
    """
    paths = adapter_files(folder)
    try:
        config = json.loads(paths[0].read_text(encoding="utf-8"))
        tensors = load_file(paths[1])
    except READ_ERRORS as error:
        raise UserError(f"{folder}: the adapter is damaged and cannot be read: {error}") from error
    check_adapter_settings(paths[0], config)
    try:
        add_lora(
            model,
            rank=config["r"],
            alpha=config["lora_alpha"],
            targets=config["target_modules"],
        )
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    wanted = {
        f"base_model.model.{name}.weight": tensor for name, tensor in lora_parameters(model).items()
    }
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in (wanted, tensors)]
    differences = sorted(name for name, _ in shapes[0].items() ^ shapes[1].items())
    if differences:
        raise UserError(
            f"{folder}: this adapter does not fit the model (for one, {differences[0]}); it was "
            f"made for {config.get('base_model_name_or_path')}"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            if not tensors[name].isfinite().all():
                raise UserError(f"{folder}: {name} has values that are not finite; train it again")
            tensor.copy_(tensors[name])


def check_adapter_settings(path: Path, config) -> None:
    """Refuses what is not plain LoRA, or not understood, setting by setting.

    Raises:
        UserError: it names the setting.
    """
    if not isinstance(config, dict):
        raise UserError(f"{path}: not the settings of an adapter")
    for key in ("peft_type", "r", "lora_alpha", "target_modules"):
        if key not in config:
            raise UserError(f"{path}: not a LoRA adapter: its settings have no {key!r}")
    rank, alpha, targets = config["r"], config["lora_alpha"], config["target_modules"]
    named = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    understood = {
        "peft_type": config["peft_type"] == "LORA",
        "r": type(rank) is int and rank > 0,
        "lora_alpha": type(alpha) in (int, float) and math.isfinite(alpha),
        "target_modules": bool(targets) and (named or is_pattern(targets)),
    }
    for key, value in config.items():
        off = value is None or value is False or value in ([], {})
        if not understood.get(key, off or key in NEUTRAL or value in PLAIN.get(key, [])):
            raise UserError(
                f"{path}: {key} = {value!r:.60} is not plain LoRA as it is understood here; merge "
                "the adapter into its base with PEFT, and use the merged model"
            )


def is_pattern(value) -> bool:
    """Whether it is a regular expression."""
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False
