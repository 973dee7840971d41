"""Measures the memory of a GRPO step beside the estimate of grpo/memory.py.

    python -m benchmarks.memory               # estimates for models of 135 M to 8 B parameters
    python -m benchmarks.memory --measure     # nine steps on this CPU, each in its own process

The models have random weights in the shapes of SmolLM2-135M and Llama 3's 1B, 3B and 8B; the step
is that of `benchmarks.grpo_step` on random prompts, and the measured peak is the process's.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.grpo_step import peak_rss, step
from grpo.lora import add_lora
from grpo.memory import GIB, Workload, peak_bytes, shape_of
from grpo.models import checkpoint_activations
from sqlenv.metrics.tables import Rows, markdown_table

FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
)
MODELS = {
    "135M": (576, 1536, 30, 9, 3, 64, 49152, True),
    "1B": (2048, 8192, 16, 32, 8, 64, 128256, True),
    "3B": (3072, 8192, 28, 24, 8, 128, 128256, True),
    "8B": (4096, 14336, 32, 32, 8, 128, 128256, False),
}
LENGTHS, GROUPS = (256, 512, 1024), (8, 16)
SHORT = Workload(prompts_per_step=4, prompt_tokens=400, max_new_tokens=48, lora_rank=16)
MEASURED = [
    ("135M", replace(SHORT, micro_batch=1)),
    ("135M", SHORT),
    ("135M", replace(SHORT, group_size=16, micro_batch=1)),
    ("135M", replace(SHORT, checkpoint_activations=True)),
    ("135M", replace(SHORT, dtype="float32", micro_batch=2)),
    ("135M", replace(SHORT, dtype="float32", prompt_tokens=800, checkpoint_activations=True)),
    ("1B", replace(SHORT, micro_batch=1)),
    ("1B", replace(SHORT, group_size=4, micro_batch=2, checkpoint_activations=True)),
    ("3B", replace(SHORT, prompts_per_step=1, micro_batch=1, checkpoint_activations=True)),
]


def config_of(name: str) -> LlamaConfig:
    """The configuration of one of the ``MODELS``."""
    return LlamaConfig(**dict(zip(FIELDS, MODELS[name])))


def measure(name: str, work: Workload) -> float:
    """Takes a step. Returns the GiB of this process at its peak."""
    torch.manual_seed(0)
    config = config_of(name)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, work.dtype)).eval()
    add_lora(model, rank=work.lora_rank, alpha=32.0)
    if work.checkpoint_activations:
        checkpoint_activations(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    prompt_ids = torch.randint(config.vocab_size, (work.prompts_per_step, work.prompt_tokens))
    step(
        model,
        optimizer,
        prompt_ids.tolist(),
        group_size=work.group_size,
        new_tokens=work.max_new_tokens,
        micro_batch=work.micro_batch,
        beta=0.04,
    )
    return peak_rss() / GIB


def estimate(name: str, work: Workload) -> float:
    """GiB that grpo/memory.py estimates."""
    return peak_bytes(shape_of(config_of(name)), work) / GIB


def estimate_table() -> Rows:
    """Estimated GiB of a step with one prompt a pass and, from 3B up, activation checkpointing."""
    sizes = [(size, length) for size in GROUPS for length in LENGTHS]
    rows = [("model", "dtype", *(f"{size} x {length} tokens" for size, length in sizes))]
    for name in MODELS:
        for dtype in ("float32", "bfloat16"):
            work = Workload(dtype, micro_batch=1, checkpoint_activations=name in ("3B", "8B"))
            cells = (replace(work, group_size=g, prompt_tokens=length) for g, length in sizes)
            rows.append((name, dtype, *(f"{estimate(name, cell):.1f}" for cell in cells)))
    return rows


def measured_table() -> Rows:
    """Estimated and measured GiB of the cases in ``MEASURED``."""
    names = ("model", "dtype", "P", "G", "prompt", "micro-batch", "checkpointing")
    rows = [(*names, "estimated", "measured", "ratio")]
    for case, (name, work) in enumerate(tqdm(MEASURED)):
        words = [sys.executable, "-m", "benchmarks.memory", "--case", str(case)]
        process = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        measured, estimated = json.loads(process.stdout), estimate(name, work)
        numbers = work.prompts_per_step, work.group_size, work.prompt_tokens, work.micro_batch
        settings = *map(str, numbers), "yes" if work.checkpoint_activations else ""
        results = f"{estimated:.1f}", f"{measured:.1f}", f"{estimated / measured:.2f}"
        rows.append((name, work.dtype, *settings, *results))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case is not None:
        print(json.dumps(measure(*MEASURED[arguments.case])))
    else:
        print(markdown_table(measured_table() if arguments.measure else estimate_table()))


if __name__ == "__main__":
    main()
