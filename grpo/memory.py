"""Estimates the memory that a run needs before anything is loaded (``train.py --plan``), and turns
out-of-memory errors into a message that names the options to lower.

The peak is the memory that is held throughout, plus the memory for sampling or that for a training
pass, whichever is larger. All three are computed from the model's shape. docs/models.md compares
the estimates with measurements.
"""

import os
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from grpo.config import Config, evaluated_together
from grpo.logprobs import chunk_size
from grpo.lora import target_names
from grpo.model_checks import decoder_blocks
from grpo.models import choose_dtype, locate, named
from grpo.prompt import SCHEMA_BUDGET
from sqlenv.errors import UserError
from sqlenv.metrics.tables import Rows, text_table

GIB = 2**30
PROCESS = 0.6 * GIB  # Python and its libraries, or a GPU's context
SPREAD = 1.2  # what an allocator takes for each byte that stays in use, as measured
LENGTHS, GROUPS = (256, 512, 1024), (4, 8, 16, 32)  # of the table
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Shape:
    """What the memory of a model depends on; ``blocks`` and ``parameters`` are numbers of weights,
    ``linear`` the sum of inputs and outputs of the layers that LoRA wraps, ``others`` bytes of what
    else is loaded.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    parameters: int
    blocks: int
    linear: int
    others: int = 0


@dataclass(frozen=True)
class Workload:
    """The settings that memory depends on, by the names of ``Config``."""

    dtype: str = "bfloat16"
    prompts_per_step: int = 16
    group_size: int = 8
    prompt_tokens: int = SCHEMA_BUDGET
    max_new_tokens: int = 96
    micro_batch: int = 4
    lora_rank: int = 32
    checkpoint_activations: bool = False
    devices: int = 1  # that the blocks are spread over (--shard)
    device: str = "cpu"
    train_completions: int = 0  # of a group; 0 for all


def workload_of(config: Config, shape: Shape, processes: int) -> Workload:
    """What one of the processes of a run does, with schema texts as long as they may be."""
    prompts = -(-config.prompts_per_step // processes)
    sizes = shape.hidden, shape.intermediate
    return Workload(
        dtype=choose_dtype(config.dtype, config.device, *sizes),
        prompts_per_step=prompts,
        group_size=config.group_size,
        prompt_tokens=config.schema_budget,
        max_new_tokens=config.max_new_tokens,
        micro_batch=min(config.micro_batch, prompts),
        lora_rank=config.lora_rank,
        checkpoint_activations=config.checkpoint_activations,
        devices=processes if config.shard else 1,
        device=config.device,
        train_completions=config.train_completions,
    )


def shape_of(config, lora_targets: Sequence[str] = ()) -> Shape:
    """The shape of the model that a transformers configuration describes; no weight is made. Raises
    UserError if a target of LoRA matches no linear layer.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks, text = decoder_blocks(model), config.get_text_config()
    heads = text.num_attention_heads
    linear = [model.get_submodule(name) for name in target_names(model, lora_targets)]
    return Shape(
        layers=len(blocks),
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", 4 * text.hidden_size),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocab=text.vocab_size,
        parameters=sum(p.numel() for p in model.parameters()),
        blocks=sum(p.numel() for p in blocks.parameters()),
        linear=sum(layer.in_features + layer.out_features for layer in linear),
    )


def read_shape(path: str, encoder: str, lora_targets: Sequence[str] = ()) -> Shape:
    """The shape of a model directory, .gguf file or hub id, with the encoder's weights beside it.
    Raises UserError if there is no configuration, or a target of LoRA matches no linear layer.
    """
    from transformers import AutoConfig

    source, keywords = locate(path)
    with named(path):
        shape = shape_of(AutoConfig.from_pretrained(source, **keywords), lora_targets)
    files = Path(encoder).glob("*.safetensors")
    return replace(shape, others=sum(file.stat().st_size for file in files))


def constant_bytes(shape: Shape, work: Workload) -> float:
    """Frozen weights; LoRA in float32 with its gradient and the two moments of Adam."""
    spread = shape.blocks * (1 - 1 / work.devices)
    weights = (shape.parameters - spread) * BYTES[work.dtype]
    return weights + 4 * 4 * work.lora_rank * shape.linear + shape.others + PROCESS


def sampling_bytes(shape: Shape, work: Workload) -> float:
    """The copy of the blocks with LoRA merged, and the larger of what a step's groups take and what
    the questions take that are measured at once.
    """
    b = BYTES[work.dtype]
    merged = shape.blocks * b if work.devices == 1 else 2 * shape.blocks / shape.layers * b
    prompts, measured = work.prompts_per_step, evaluated_together(work.prompts_per_step)
    step = decoding_bytes(shape, work, prompts, prompts * work.group_size)
    return merged + max(step, decoding_bytes(shape, work, measured, measured))


def decoding_bytes(shape: Shape, work: Workload, prompts: int, completions: int) -> float:
    """The KV cache, and the larger of the prefill's and a decoding step's activations."""
    b, tokens = BYTES[work.dtype], prompts * work.prompt_tokens
    per_token = 2 * shape.layers * shape.kv_heads * shape.head_dim * b
    cache = per_token * (tokens + completions * work.max_new_tokens)
    attention = shape.heads * shape.head_dim + 2 * shape.kv_heads * shape.head_dim
    prefill = tokens * b * (4 * shape.hidden + 2 * attention + 3 * shape.intermediate)
    # logits, their probabilities, and the sums of these in float64
    drawing = completions * shape.vocab * (b + 4 + 4 + 8)
    return cache + max(prefill, drawing)


def training_bytes(shape: Shape, work: Workload) -> float:
    """What a forward pass keeps for the backward pass, or with activation checkpointing the inputs
    of the blocks and one block's; and a chunk of logits.
    """
    trained = min(work.train_completions or work.group_size, work.group_size)
    b, completions = BYTES[work.dtype], work.micro_batch * trained
    tokens = work.micro_batch * work.prompt_tokens + completions * work.max_new_tokens
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (4 + b) * shape.hidden  # input in float32, and output
    block = norms + b * (2 * query + 2 * key + 4 * shape.intermediate + 7 * work.lora_rank)
    # a completion's keys and values stand behind a copy of its prompt's
    length = work.prompt_tokens + work.max_new_tokens
    copies = completions * length * 2 * key * b
    # ... and so do the weights of the softmax
    weights = completions * work.max_new_tokens * length * shape.heads * b
    weights += work.micro_batch * work.prompt_tokens**2 / 2 * shape.heads * b
    activations = tokens * block + copies + weights  # of one block
    inputs = tokens * shape.hidden * b
    kept = SPREAD * shape.layers * (inputs if work.checkpoint_activations else activations)
    chunk = min(chunk_size(work.device, shape.vocab), completions * work.max_new_tokens)
    logits = chunk * shape.vocab * (b + 4 + 4 + 4)
    gathered = 2 * shape.blocks / shape.layers * b if work.devices > 1 else 0
    return kept + 3 * activations + logits + gathered  # the block at work, and its gradients


def peak_bytes(shape: Shape, work: Workload) -> float:
    return constant_bytes(shape, work) + max(
        sampling_bytes(shape, work), training_bytes(shape, work)
    )


def largest(shape: Shape, work: Workload, name: str, budget: float, limit: int) -> int:
    """The largest power of two up to ``limit`` that the setting can have; 0 if there is none."""
    value = 0
    while (more := 2 * value or 1) <= limit and peak_bytes(
        shape, replace(work, **{name: more})
    ) <= budget:
        value = more
    return value


def device_memory(device: str) -> int:
    """Bytes of the GPU, or of the machine."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_table(shape: Shape, work: Workload) -> Rows:
    """GiB at the peak, by dtype, group size and prompt length."""
    rows = [("dtype", "group size", *(f"{length} tokens" for length in LENGTHS))]
    for dtype in ("float32", "bfloat16"):
        for size in GROUPS:
            settings = replace(work, dtype=dtype, group_size=size)
            peaks = [
                peak_bytes(shape, replace(settings, prompt_tokens=length)) for length in LENGTHS
            ]
            rows.append((dtype, str(size), *(f"{peak / GIB:.1f}" for peak in peaks)))
    return rows


def advice(shape: Shape, work: Workload, budget: float) -> list[str]:
    """The largest settings that fit, in lines."""
    lines = []
    for checkpoint, extra in ((False, ""), (True, " --checkpoint-activations")):
        here = replace(work, checkpoint_activations=checkpoint)
        batch = largest(shape, here, "micro_batch", budget, work.prompts_per_step)
        if batch:
            lines.append(f"--group-size {work.group_size} --micro-batch {batch}{extra}")
        smallest = replace(here, micro_batch=1)
        if group := largest(shape, smallest, "group_size", budget, 256):
            lines.append(f"--group-size {group} --micro-batch 1{extra}")
    if lines:
        return lines
    smallest = replace(work, micro_batch=1, group_size=2, checkpoint_activations=True)
    for devices in (2, 4, 8, 16):
        if peak_bytes(shape, replace(smallest, devices=devices)) <= budget:
            return [f"none on one device; with --shard, {devices} devices or more"]
    return ["none, not even with --shard on 16 devices"]


def plan(shape: Shape, work: Workload, budget: float) -> str:
    """What ``--plan`` prints: the parts, a table, and the largest settings that fit."""
    parts = {
        "weights, LoRA and its optimizer": constant_bytes(shape, work),
        "sampling, on top": sampling_bytes(shape, work),
        "a training pass, on top": training_bytes(shape, work),
        "peak": peak_bytes(shape, work),
    }
    width = max(map(len, parts))
    fits = "fits" if parts["peak"] <= budget else "does not fit"
    return "\n".join(
        [
            f"{shape.parameters / 1e6:,.0f} M parameters in {work.dtype}, prompts of "
            f"{work.prompt_tokens} tokens; GiB, estimated:",
            *(f"  {name:<{width}}  {size / GIB:6.1f}" for name, size in parts.items()),
            f"It {fits} in {budget / GIB:.1f} GiB. Peaks with other settings:\n",
            text_table(peak_table(shape, work)),
            f"\nThe largest settings that fit in {budget / GIB:.1f} GiB:",
            *(f"  {line}" for line in advice(shape, work, budget)),
        ]
    )


def print_plan(config: Config, gib: float) -> None:
    """Prints the memory of this run, for one process where torchrun starts several.

    Args:
        gib: memory of the device in GiB; 0 for that of this device.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    shape = read_shape(config.model, config.encoder, config.lora_suffixes())
    work = workload_of(config, shape, int(os.environ.get("WORLD_SIZE", 1)))
    print(plan(shape, work, gib * GIB or device_memory(config.device)))


@contextmanager
def memory_errors(micro_batch: int):
    """Within it, running out of memory is a UserError that names the settings to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "can't allocate memory" not in str(error):
            raise
        raise UserError(
            f"out of memory: lower --micro-batch ({micro_batch}) or add --checkpoint-activations, "
            "with which --resume goes on from the last checkpoint, or start again with a smaller "
            "--group-size or --prompts-per-step; --plan says what fits"
        ) from error
