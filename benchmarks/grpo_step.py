"""Measures time and memory of a GRPO step, phase by phase, against what the machine could do and
against another library's step.

    python -m benchmarks.grpo_step MODEL [--steps N] [--fp32]
    python -m benchmarks.grpo_step MODEL --versus SCRIPT    # ours, the other's, ours again

The step takes P prompts of about 421 tokens over one schema, G completions each of exactly N
tokens, LoRA r = 16 on all linear layers, KL weight 0.04 and one update; SCRIPT does the same and
takes the same options. The first step is not counted. The last line is one JSON object:
`step_seconds`, `peak_rss_mb` and all that is printed above it.

The floor is the time that the arithmetic of a step takes at the FLOP/s that this machine reaches in
a large matrix product; decoding takes at least the time of reading the weights once for each token.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

import torch
import transformers

from grpo import sampler
from grpo.advantages import group_advantages
from grpo.logprobs import completion_logprobs
from grpo.lora import add_lora, lora_disabled, lora_merged
from grpo.loss import policy_loss, token_weights
from grpo.models import Policy, load_policy


def workload_prompts(count: int) -> list[str]:
    """Questions on a schema of twelve tables; other libraries' scripts use the same texts."""
    columns = "INTEGER PRIMARY KEY, name TEXT, country TEXT, age INTEGER, year INTEGER"
    tables = [f"CREATE TABLE table_{i} (id_{i} {columns});" for i in range(12)]
    schema = "Given the SQLite schema:\n" + "\n".join(tables)
    question = "Write one SQL query that answers: How many rows of table_{} have age above {}?"
    return [f"{schema}\n{question.format(i % 12, i)}" for i in range(count)]


class Clock:
    """Seconds of the phases of a step, by name, in ``seconds``."""

    def __init__(self, device: str):
        self.device, self.seconds = device, {}

    @contextmanager
    def phase(self, name: str):
        """Adds the time within to the phase."""
        self.synchronize()
        start = time.perf_counter()
        yield
        self.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def sample(
    model, prompt_ids: list[list[int]], clock: Clock, *, group_size: int, new_tokens: int
) -> list[list[list[int]]]:
    """Samples P x G completions of ``new_tokens`` tokens, none of which ends a completion; the
    phases ``prefill`` and ``decode``.
    """
    prefill = sampler.prefill

    def timed_prefill(*arguments):
        with clock.phase("prefill"):
            return prefill(*arguments)

    sampler.prefill = timed_prefill
    try:
        with clock.phase("decode"), lora_merged(model):
            samples = sampler.sample_groups(
                model, prompt_ids, group_size=group_size, max_new_tokens=new_tokens, eos_ids=set()
            )
    finally:
        sampler.prefill = prefill
    clock.seconds["decode"] -= clock.seconds["prefill"]
    return samples.completion_ids


def step(
    model,
    optimizer: torch.optim.Optimizer,
    prompt_ids: list[list[int]],
    *,
    group_size: int,
    new_tokens: int,
    micro_batch: int,
    beta: float,
) -> dict[str, float]:
    """Takes one GRPO step like `grpo.trainer`. Returns the seconds of its phases."""
    clock, count = Clock(str(model.device)), len(prompt_ids)
    completion_ids = sample(
        model, prompt_ids, clock, group_size=group_size, new_tokens=new_tokens
    )  # P x G x T
    with clock.phase("rewards"):
        rewards = torch.arange(count * group_size) * 37 % 101 / 101
        advantages = group_advantages(rewards.view(count, -1), kind="group").to(model.device)
    mask = torch.ones(count, group_size, new_tokens, dtype=torch.bool)
    weights = token_weights(mask.to(model.device))  # (P, G, T)
    for start in range(0, count, micro_batch):
        part = slice(start, start + micro_batch)
        reference = None
        if beta:
            with clock.phase("reference"), torch.no_grad(), lora_disabled(model):
                reference = completion_logprobs(model, prompt_ids[part], completion_ids[part])
        with clock.phase("forward"):
            logprobs = completion_logprobs(model, prompt_ids[part], completion_ids[part])
            old = logprobs.detach()
            batch = old, advantages[part], weights[part], reference
            loss, _ = policy_loss(logprobs, *batch, beta=beta)
        with clock.phase("backward"):
            loss.backward()
    with clock.phase("optimizer"):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return clock.seconds


@torch.no_grad()
def ceilings(dtype: torch.dtype, device: str) -> dict[str, float]:
    """What the machine reaches: ``flops``, FLOP/s of a square matrix product, and ``bytes``,
    bytes/s of reading a large matrix in a product with a vector. Each is the best of ten products,
    or of fewer that take two seconds together.
    """
    clock, rates = Clock(device), {}
    square = torch.randn(2048, 2048, device=device).to(dtype)
    large = torch.randn(8192, 8192, device=device).to(dtype)
    work = {
        "flops": (lambda: square @ square, 2 * 2048**3),
        "bytes": (lambda: large @ large[0], large.numel() * large.element_size()),
    }
    for name, (run, amount) in work.items():
        seconds = []
        while len(seconds) < 10 and sum(seconds) < 2:
            clock.seconds = {}
            with clock.phase("run"):
                run()
            seconds.append(clock.seconds["run"])
        rates[name] = amount / min(seconds)
    return rates


def floors(
    model,
    lengths: list[int],
    ceiling: dict[str, float],
    *,
    group_size: int,
    new_tokens: int,
    beta: float,
) -> dict[str, float]:
    """Seconds that a step takes at least: each phase's arithmetic, or its reading of weights.

    A token costs two FLOP a weight in the prefill, decoding, reference and forward pass, and two
    more backwards, as frozen weights need no gradient. Attention adds 4 L d FLOP a layer for a
    token that attends to L others, twice that backwards. The head is needed only where a completion
    token is predicted.

    Args:
        lengths: tokens of each prompt.
        ceiling: see ``ceilings``.
    """
    config, head = model.config, model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    weights = sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    body = weights - embedding.numel() - (head.numel() if head is not embedding else 0)
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    prompt, completions = sum(lengths), len(lengths) * group_size * new_tokens
    prompt_pairs = sum(n * n / 2 for n in lengths)  # of tokens, one of which attends to the other
    completion_pairs = completions * (prompt / len(lengths) + new_tokens / 2)
    pair = 4 * config.num_hidden_layers * width  # FLOP
    prefill = 2 * body * prompt + pair * prompt_pairs
    decode = 2 * (body + head.numel()) * completions + pair * completion_pairs
    forward = prefill + decode  # all prompts and completions at once
    backward = forward + pair * (prompt_pairs + completion_pairs)
    rest = prefill + (1 + bool(beta)) * forward + backward
    reads = (body + head.numel()) * head.element_size() * new_tokens
    decoding = max(decode / ceiling["flops"], reads / ceiling["bytes"])
    return {
        "tera_flop": (rest + decode) / 1e12,
        "flop_floor_seconds": (rest + decode) / ceiling["flops"],
        "byte_floor_seconds": reads / ceiling["bytes"],
        "floor_seconds": rest / ceiling["flops"] + decoding,
    }


def make_policy(
    options: argparse.Namespace,
) -> tuple[Policy, torch.optim.Optimizer, list[list[int]]]:
    """The model with LoRA, its optimizer, and the prompts as token ids."""
    torch.manual_seed(0)
    policy = load_policy(options.model, options.device, options.dtype)
    add_lora(policy.model, rank=16, alpha=32.0)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    prompt_ids = [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
        for text in workload_prompts(options.prompts)
    ]
    return policy, torch.optim.AdamW(trained, lr=1e-5), prompt_ids


def mean_phases(steps: list[dict[str, float]]) -> dict[str, float]:
    """Mean seconds of each phase, over all steps but the first, if there are others."""
    counted = steps[1:] or steps
    return {name: statistics.fmean(seconds[name] for seconds in counted) for name in counted[0]}


def peak_rss() -> int:
    """Bytes of this process's memory at its peak."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def summary(model, lengths: list[int], steps: list[dict], options: argparse.Namespace) -> dict:
    """What the last line says; ``lengths`` are tokens of each prompt."""
    phases = mean_phases(steps)
    seconds = sum(phases.values())
    completions = options.prompts * options.group * options.new_tokens
    is_cuda = str(model.device).startswith("cuda")
    cuda = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else 0
    rss = peak_rss()  # before the large matrices below
    ceiling = ceilings(next(model.parameters()).dtype, str(model.device))
    sizes = {"group_size": options.group, "new_tokens": options.new_tokens, "beta": options.beta}
    floor = floors(model, lengths, ceiling, **sizes)
    return {
        "ours": "grpo-text2sql",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": options.prompts,
        "group": options.group,
        "new_tokens": options.new_tokens,
        "prompt_tokens": lengths,
        "step_seconds": [round(sum(seconds.values()), 4) for seconds in steps],
        "phase_seconds": {name: round(value, 4) for name, value in phases.items()},
        "peak_rss_mb": round(rss / 2**20),
        "peak_cuda_mb": round(cuda),
        "completion_tokens_per_second": round(completions / seconds, 1),
        **{name: round(value, 3) for name, value in floor.items()},
        "giga_flops_per_second": round(ceiling["flops"] / 1e9),
        "giga_bytes_per_second": round(ceiling["bytes"] / 1e9, 1),
        "step_to_floor": round(seconds / floor["floor_seconds"], 2),
    }


def show(result: dict) -> None:
    """Prints the phases and the floor of ``summary``."""
    total = sum(result["phase_seconds"].values())
    for name, seconds in result["phase_seconds"].items():
        print(f"{name:10} {seconds:7.2f} s  {100 * seconds / total:5.1f} %")
    print(f"{'step':10} {total:7.2f} s, {result['peak_rss_mb']} MB")
    print(
        f"{result['tera_flop']:.2f} TFLOP take {result['flop_floor_seconds']:.2f} s at "
        f"{result['giga_flops_per_second']} GFLOP/s, reading the weights while decoding "
        f"{result['byte_floor_seconds']:.2f} s at {result['giga_bytes_per_second']} GB/s: the step "
        f"takes {result['step_to_floor']:.2f} times the floor of {result['floor_seconds']:.2f} s"
    )


def show_profile(run, most: int = 8) -> None:
    """Runs a step and prints the operators that take most of its time, with their shares."""
    with torch.profiler.profile() as profile:
        run()
    rows = sorted(profile.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:most]:
        print(f"{row.key:40} {100 * row.self_cpu_time_total / total:5.1f} %, {row.count} calls")


def run_peer(script: str, options: argparse.Namespace) -> dict:
    """Runs another library's script, which takes the same options. Returns its last line."""
    words = [sys.executable, script, options.model, "--beta", str(options.beta)]
    for name in ("prompts", "group", "new-tokens", "steps"):
        words += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
    words += ["--fp32"] if options.dtype == "float32" else []
    process = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(process.stdout.strip().splitlines()[-1])


def compare(result: dict, peer: dict) -> dict:
    """Prints and returns how the peer's time and memory relate to ours, without first steps."""
    ours, theirs = (
        statistics.mean(measured["step_seconds"][1:] or measured["step_seconds"])
        for measured in (result, peer)
    )
    ratios = {
        "peer_to_ours": round(theirs / ours, 2),
        "peer_memory_to_ours": round(peer["peak_rss_mb"] / result["peak_rss_mb"], 2),
    }
    print(
        f"peer / ours: {ratios['peer_to_ours']} times the time, "
        f"{ratios['peer_memory_to_ours']} times the memory"
    )
    return {"peer": peer} | ratios


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("model", help="Hugging Face model directory")
    add("--prompts", type=int, default=4)
    add("--group", type=int, default=8)
    add("--new-tokens", type=int, default=48)
    add("--steps", type=int, default=3, help="the first is not counted")
    add("--micro-batch", type=int, default=1, help="prompts in a pass (%(default)s)")
    add("--beta", type=float, default=0.04)
    add("--fp32", dest="dtype", action="store_const", const="float32", default="bfloat16")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--profile", action="store_true", help="take one more step and show its operators")
    add("--versus", metavar="SCRIPT", help="run another library's script in turn")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    policy, optimizer, prompt_ids = make_policy(options)

    def run() -> dict[str, float]:
        return step(
            policy.model,
            optimizer,
            prompt_ids,
            group_size=options.group,
            new_tokens=options.new_tokens,
            micro_batch=options.micro_batch,
            beta=options.beta,
        )

    steps = [run() for _ in range(options.steps)]
    peer = run_peer(options.versus, options) if options.versus else None
    if peer:
        steps += [run() for _ in range(options.steps)][1:]
    result = summary(policy.model, [len(prompt) for prompt in prompt_ids], steps, options)
    show(result)
    if options.profile:
        show_profile(run)
    if peer:
        result |= compare(result, peer)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
