"""Measures how the time of a GRPO step grows with group size, lengths and model width.

    python -m benchmarks.scaling MODEL [--series group prompt] [--plot FILE]

The middle of each series is four prompts of 400 tokens with eight completions of 48 tokens each, on
MODEL; larger and smaller models have its shape at other widths, with random weights and whole
numbers of heads: at width 0.5, three key-value heads become two. One number is changed at a time.
Prompts are random tokens, no completion ends early, and the step is that of `benchmarks.grpo_step`.
Prints the seconds of each phase and the ratio of each step to the middle one, then one JSON object.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.grpo_step import mean_phases, step
from grpo.lora import add_lora
from grpo.models import load_policy
from sqlenv.files import write_file

MIDDLE = {"group": 8, "prompt": 400, "completion": 48, "width": 1.0}
SERIES = {
    "group": (4, 8, 16, 32),
    "prompt": (200, 400, 800, 1600),
    "completion": (12, 24, 48, 96),
    "width": (0.5, 1.0, 2.0),
}
PROMPTS = 4
LABELS = {
    "group": "completions of a prompt",
    "prompt": "tokens of a prompt",
    "completion": "tokens of a completion",
    "width": "width of the model",
}


def scaled(model, width: float):
    """The model at another width: heads of the same size, more or fewer of them."""
    if width == 1:
        return model
    config = copy.deepcopy(model.config)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_key_value_heads = max(1, round(kv_heads * width))
    config.num_attention_heads = config.num_key_value_heads * (heads // kv_heads)
    config.hidden_size = round(config.hidden_size * width)
    config.intermediate_size = round(config.intermediate_size * width)
    wider = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    return add_lora(wider.to(model.device).eval(), rank=16, alpha=32.0)


def measure(model, point: dict[str, float], *, repeats: int, beta: float) -> dict[str, float]:
    """Mean seconds of each phase over ``repeats`` steps, after one that is not counted."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    shape = PROMPTS, point["prompt"]
    prompt_ids = torch.randint(10, model.config.vocab_size, shape, generator=generator).tolist()
    sizes = {"group_size": point["group"], "new_tokens": point["completion"]}
    return mean_phases(
        [
            step(model, optimizer, prompt_ids, **sizes, micro_batch=1, beta=beta)
            for _ in range(repeats + 1)
        ]
    )


def show(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Prints, for each series and point, the step's time and its phases."""
    for series, points in results.items():
        middle = sum(points[str(MIDDLE[series])].values())
        print(LABELS[series])
        for value, seconds in points.items():
            total = sum(seconds.values())
            parts = ", ".join(f"{name} {phase:.2f}" for name, phase in seconds.items())
            print(f"  {value:>5}: {total / middle:5.2f} x   {total:6.2f} s = {parts}")


def plot(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Draws a panel for each series: bars of phases, in multiples of the middle step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (12, 3.2)
    figure, axes = plt.subplots(1, len(results), figsize=size, layout="constrained", squeeze=False)
    for axis, (series, points) in zip(axes[0], results.items()):
        middle = sum(points[str(MIDDLE[series])].values())
        bottom = [0.0] * len(points)
        for phase in next(iter(points.values())):
            heights = [seconds[phase] / middle for seconds in points.values()]
            axis.bar(list(points), heights, bottom=bottom, label=phase)
            bottom = [low + high for low, high in zip(bottom, heights)]
        axis.set_title(LABELS[series], fontsize=10)
    axes[0][0].set_ylabel("time of a step, middle one = 1")
    axes[0][0].legend(fontsize=7)
    write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="Hugging Face model directory")
    parser.add_argument("--series", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--repeats", type=int, default=2, help="steps at each point (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a PNG here")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = load_policy(options.model, options.device, options.dtype).model
    add_lora(model, rank=16, alpha=32.0)
    results: dict[str, dict] = {}
    points = [(series, value) for series in options.series for value in SERIES[series]]
    for series, value in tqdm(points):
        wider = scaled(model, value if series == "width" else 1.0)
        point = MIDDLE | {series: value}
        seconds = measure(wider, point, repeats=options.repeats, beta=options.beta)
        results.setdefault(series, {})[str(value)] = seconds
    show(results)
    if options.plot:
        plot(results, options.plot)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
