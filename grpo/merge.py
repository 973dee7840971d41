"""Writes a run's policy as an ordinary Hugging Face model directory: the base with LoRA merged into
its weights, the tokenizer, and a model card.

    python -m grpo.merge runs/vi-1 my-model
"""

import json
import sys
from pathlib import Path

import torch

from grpo.checkpoint import READ_ERRORS, SAFETENSORS_ERRORS, load_adapter
from grpo.evaluation.report import before_after_table
from grpo.lora import merge_lora, update_kept
from grpo.models import load_policy
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_directory
from sqlenv.options import OptionParser, check_writable

CARD = """\
---
library_name: transformers
base_model: {model}
---
# {name}

Writes SQLite queries for questions in {lang}; `{model}` trained with GRPO (LoRA, merged) by
grpo-text2sql on `{data}`.

## Settings

{settings}

## Before and after

{table}
"""


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except READ_ERRORS as error:
        raise UserError(f"{path}: not the folder of a finished run of train.py: {error}") from error


def card(run: Path, name: str) -> str:
    """The model card: settings, data, and the measurements before and after."""
    config, summary = read(run / "config.json"), read(run / "summary.json")
    settings = "\n".join(f"- {key}: {value}" for key, value in config.items() if value != "")
    table = f"```\n{before_after_table(summary)}\n```"
    return CARD.format(**config, name=name, settings=settings, table=table)


def merge(run: Path, output: Path, dtype: str) -> None:
    """Raises UserError if the run is not finished or ``output`` exists."""
    if output.exists():
        raise UserError(f"{output} exists; name another folder or remove it")
    check_writable("output", output)
    text, base = card(run, output.name), read(run / "config.json")["model"]
    torch_dtype = getattr(torch, dtype)
    policy = load_policy(base, "cpu", "float32")  # the sum is rounded once
    load_adapter(policy.model, run / "adapter")
    kept = update_kept(policy.model, torch_dtype)
    model = merge_lora(policy.model, torch_dtype)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(text, encoding="utf-8")

    write_directory(output, write, SAFETENSORS_ERRORS)
    print(f"wrote {output}, {dtype}, with {100 * kept:.1f} % of the update")


def main(argv: list[str] | None = None) -> int:
    parser = OptionParser(__doc__)
    parser.add_argument("run", type=Path, help="folder that train.py wrote")
    parser.add_argument("output", type=Path, help="new model directory")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"], help="of weights"
    )
    return exit_code(lambda: merge(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
