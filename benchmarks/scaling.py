"""How a GRPO step grows with its workload: group size, lengths, model.

    python -m benchmarks.scaling MODEL_DIR [--series group,prompt] [--plot FILE]

The middle of each series is four prompts of 400 tokens with eight completions of 48 tokens each, on
the model given; larger and smaller models have its shape at other widths, with random weights. One
number is changed at a time. Prompts are random tokens, no completion ends early, the step is that
of `benchmarks.grpo_step`. Prints the seconds of each phase and the ratio of each step to the
middle one, then one JSON object.
"""

import argparse
import copy
import json

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from benchmarks.grpo_step import step
from grpo.lora import add_lora
from grpo.models import Policy, load_policy

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


def scaled(policy: Policy, width: float) -> Policy:
    """The model at another width: heads of the same size, more or fewer of them."""
    if width == 1:
        return policy
    config = copy.deepcopy(policy.model.config)
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    config.head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    config.num_key_value_heads = max(1, round(shared * width))
    config.num_attention_heads = config.num_key_value_heads * (heads // shared)
    config.hidden_size = round(config.hidden_size * width)
    config.intermediate_size = round(config.intermediate_size * width)
    model = AutoModelForCausalLM.from_config(config, dtype=policy.model.dtype)
    model = model.to(policy.model.device).eval()
    return Policy(add_lora(model), policy.tokenizer, policy.eos_ids)


def measure(policy: Policy, point: dict, repeats: int, beta: float) -> dict[str, float]:
    """Mean seconds of each phase, after one step that warms up."""
    model = policy.model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    shape = PROMPTS, point["prompt"]
    prompts = torch.randint(10, model.config.vocab_size, shape, generator=generator).tolist()
    options = argparse.Namespace(
        prompts=PROMPTS,
        group=point["group"],
        new_tokens=point["completion"],
        beta=beta,
        micro_batch=1,
    )
    steps = [step(policy, optimizer, prompts, options) for _ in range(repeats + 1)][1:]
    return {name: sum(one[name] for one in steps) / repeats for name in steps[0]}


def plot(found: dict[str, dict], path: str) -> None:
    """One panel a series: bars of phases, in multiples of the middle step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.2), layout="constrained")
    for axis, (series, points) in zip(axes, found.items()):
        middle = sum(points[str(MIDDLE[series])].values())
        bottom = [0.0] * len(points)
        for phase in next(iter(points.values())):
            heights = [one[phase] / middle for one in points.values()]
            axis.bar(list(points), heights, bottom=bottom, label=phase)
            bottom = [low + high for low, high in zip(bottom, heights)]
        axis.set_title(LABELS[series], fontsize=10)
    axes[0].set_ylabel("time of a step, middle one = 1")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="Hugging Face model directory")
    parser.add_argument("--series", default=",".join(SERIES), help="a comma list of %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="steps at each point (%(default)s)")
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", metavar="FILE", help="write the picture here")
    options = parser.parse_args()
    torch.manual_seed(0)
    given = load_policy(options.model, options.device, options.dtype)
    add_lora(given.model)
    found: dict[str, dict] = {}
    points = [(series, value) for series in options.series.split(",") for value in SERIES[series]]
    for series, value in tqdm(points):
        policy = scaled(given, value if series == "width" else 1.0)
        seconds = measure(policy, MIDDLE | {series: value}, options.repeats, options.beta)
        found.setdefault(series, {})[str(value)] = seconds
    for series, values in found.items():
        middle = sum(values[str(MIDDLE[series])].values())
        print(LABELS[series])
        for value, seconds in values.items():
            total = sum(seconds.values())
            parts = ", ".join(f"{name} {one:.2f}" for name, one in seconds.items())
            print(f"  {value:>5}: {total / middle:5.2f} x   {total:6.2f} s = {parts}")
    if options.plot:
        plot(found, options.plot)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
