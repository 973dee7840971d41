"""Writes a run's policy as an ordinary Hugging Face model directory: the base with LoRA merged into
its weights, the tokenizer, and a model card.

    python -m grpo.merge runs/vi-1 my-model
"""

import json
import sys
from pathlib import Path

import torch

from grpo.checkpoint import READ_ERRORS, SAFETENSORS_ERRORS, load_adapter
from grpo.config import Config, read_settings
from grpo.evaluation.report import before_after_table
from grpo.lora import merge_lora, update_kept
from grpo.models import Policy, load_policy
from grpo.prompt import DIALECT, PromptBuilder, PromptSettings, messages_of
from sqlenv.dataset import is_language
from sqlenv.errors import UserError, exit_code
from sqlenv.files import write_directory
from sqlenv.options import OptionParser, check_writable

SAMPLES = ", with up to {0} sample values of each column, and {0} that the question seems to name"
CARD = """\
---
library_name: transformers
base_model: {model}
---
# {name}

Writes SQLite queries for questions{langs}; `{model}` trained with GRPO (LoRA, merged) by
grpo-text2sql on `{data}`.

## Use

```python
{code}
```

The schema is one line a table, as `sqlenv.schema_text` of grpo-text2sql writes it{samples}.
There, `python -m grpo.ask --model DIR --db FILE` writes the schema, asks, and runs the SQL.

## Settings

{settings}

## Before and after

{table}
"""


SCHEMA = "CREATE TABLE singer (singer_id INTEGER PRIMARY KEY, name TEXT, age INTEGER);"
CODE = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r})
fields = {fields}
{prompt}
greedy = {{"do_sample": False, "repetition_penalty": 1.0, "eos_token_id": {ends}}}
output = model.generate(torch.tensor([ids]), max_new_tokens={longest}, **greedy)
print(tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))"""
CHAT = """\
chat = [{messages}]
options = {{"add_generation_prompt": True, "return_dict": False, "enable_thinking": {thinking}}}
ids = tokenizer.apply_chat_template(chat, **options)"""
PLAIN = """\
parts = [part.format(**fields) for part in {parts}]  # tokenised one by one
ids = {start} + [t for p in parts for t in tokenizer.encode(p, add_special_tokens=False)]"""


def usage(policy: Policy, settings: PromptSettings, max_new_tokens: int, name: str) -> str:
    """Code that asks the model in plain transformers, with the prompt that it was trained with."""
    prompts, start = PromptBuilder(policy.tokenizer, settings), policy.tokenizer.bos_token_id
    templates = prompts.templates()
    if prompts.is_chat:
        messages = ", ".join(
            f'{{"role": "{m["role"]}", "content": {m["content"]!r}.format(**fields)}}'
            for m in messages_of(templates)
        )
        prompt = CHAT.format(messages=messages, thinking=settings.thinking == "on")
    else:
        prompt = PLAIN.format(parts=templates, start=[] if start is None else [start])
    fields = {"dialect": DIALECT, "schema": SCHEMA, "question": "How many singers are there?"}
    ends = sorted(policy.eos_ids)
    return CODE.format(name=name, fields=fields, prompt=prompt, longest=max_new_tokens, ends=ends)


def read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except READ_ERRORS as error:
        raise UserError(f"{path}: not the folder of a finished run of train.py: {error}") from error


def card(config: dict, summary: dict, policy: Policy, name: str) -> str:
    """The model card: how to use it, settings, data, and the measurements before and after."""
    prompts = PromptSettings.of(config)
    longest, values = config.get("max_new_tokens", Config.max_new_tokens), prompts.sample_values
    langs = summary["before"] or [config["lang"]]
    langs = [lang for lang in langs if is_language(lang) and lang != "und"]
    shown = {key: value for key, value in config.items() if value != "" and "\n" not in str(value)}
    return CARD.format(
        **{key: config[key] for key in ("model", "data")},
        langs=f" in {', '.join(langs)}" if langs else "",
        name=name,
        code=usage(policy, prompts, longest, name),
        samples=SAMPLES.format(values) if values else "",
        settings="\n".join(f"- {key}: {value}" for key, value in shown.items()),
        table=f"```\n{before_after_table(summary)}\n```",
    )


def merge(run: Path, output: Path, dtype: str) -> None:
    """Raises UserError if the run is not finished or ``output`` exists."""
    if output.exists():
        raise UserError(f"{output} exists; name another folder or remove it")
    check_writable("output", output)
    summary, config = read(run / "summary.json"), read_settings("run", run)
    torch_dtype = getattr(torch, dtype)
    policy = load_policy(config["model"], "cpu", "float32")  # the sum is rounded once
    text = card(config, summary, policy, output.name)
    load_adapter(policy.model, run / "adapter")
    kept = update_kept(policy.model, torch_dtype)
    model = merge_lora(policy.model, torch_dtype)

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        PromptSettings.of(config).save(folder)
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
