"""Times our GRPO step, phase by phase, against what the machine could do and against TRL's.

python -m benchmarks.grpo_step MODEL_DIR
python -m benchmarks.grpo_step MODEL_DIR --versus PEER_SCRIPT    # ours, the peer, ours again

The workload is the peer's: P prompts of about 421 tokens over one schema, G completions each of
exactly N tokens, LoRA r = 16 on all linear layers, KL weight 0.04, one update. The first step warms
up. The last line is one JSON object: `step_seconds`, `peak_rss_mb` and all that is printed above.

The floor is what the arithmetic of a step takes at the FLOP/s that this machine reaches in a large
matrix product, in decoding at least what it takes to read the weights once for each token.
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
from grpo.lora import add_lora, lora_disabled, lora_folded
from grpo.loss import policy_loss, token_weights
from grpo.models import load_policy


def workload_prompts(count: int) -> list[str]:
    """The peer's prompts, word for word: a question on a schema of twelve tables."""
    columns = "INTEGER PRIMARY KEY, name TEXT, country TEXT, age INTEGER, year INTEGER"
    tables = [f"CREATE TABLE table_{i} (id_{i} {columns});" for i in range(12)]
    schema = "Given the SQLite schema:\n" + "\n".join(tables)
    ask = "Write one SQL query that answers: How many rows of table_{} have age above {}?"
    return [f"{schema}\n{ask.format(i % 12, i)}" for i in range(count)]


class Clock:
    """Seconds by phase, of one step."""

    def __init__(self, device: str):
        self.device, self.seconds = device, {}

    @contextmanager
    def phase(self, name: str):
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()


def sample(policy, prompts, options, clock: Clock):
    """N tokens for each completion, none of which ends it; the prompts' part is timed apart."""
    prefill = sampler._prefill

    def timed(*arguments):
        with clock.phase("prefill"):
            return prefill(*arguments)

    sampler._prefill = timed
    try:
        with clock.phase("decode"), lora_folded(policy.model):
            found = sampler.sample_groups(
                policy.model, prompts, options.group, options.new_tokens, eos_ids=set()
            )
    finally:
        sampler._prefill = prefill
    clock.seconds["decode"] -= clock.seconds["prefill"]
    return found.tokens


def step(policy, optimizer, prompts, options) -> dict[str, float]:
    """One GRPO step, as `grpo.trainer` makes it; returns the seconds of its phases."""
    clock, model = Clock(str(policy.model.device)), policy.model
    tokens = sample(policy, prompts, options, clock)
    with clock.phase("rewards"):
        rewards = torch.arange(options.prompts * options.group) * 37 % 101 / 101
        advantages = group_advantages(rewards.view(options.prompts, -1), "group")
        advantages = advantages.to(model.device)
    mask = torch.ones(options.prompts, options.group, options.new_tokens, dtype=torch.bool)
    weights = token_weights(mask.to(model.device))
    for start in range(0, options.prompts, options.micro_batch):
        part = slice(start, start + options.micro_batch)
        reference = None
        if options.beta:
            with clock.phase("reference"), torch.no_grad(), lora_disabled(model):
                reference = completion_logprobs(model, prompts[part], tokens[part])
        with clock.phase("forward"):
            logprobs = completion_logprobs(model, prompts[part], tokens[part])
            loss, _ = policy_loss(
                logprobs,
                logprobs.detach(),
                advantages[part],
                weights[part],
                reference,
                beta=options.beta,
            )
        with clock.phase("backward"):
            loss.backward()
    with clock.phase("optimizer"):
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return clock.seconds


@torch.no_grad()
def ceilings(dtype: torch.dtype, device: str) -> dict[str, float]:
    """What the machine reaches: FLOP/s of a square product and bytes/s of reading a large matrix
    by a product with a vector; the best of several.
    """
    clock, found = Clock(device), {}
    a = torch.randn(2048, 2048, device=device).to(dtype)
    big = torch.randn(8192, 8192, device=device).to(dtype)
    work = {
        "flops": (lambda: a @ a, 2 * 2048**3),
        "bytes": (lambda: big @ big[0], big.numel() * big.element_size()),
    }
    for name, (run, amount) in work.items():
        seconds = []
        for _ in range(10):
            clock.seconds = {}
            with clock.phase("run"):
                run()
            seconds.append(clock.seconds["run"])
        found[name] = amount / min(seconds)
    return found


def floors(model, lengths: list[int], options, ceiling: dict[str, float]) -> dict[str, float]:
    """Seconds that a step takes at least: each phase's arithmetic, or its reading of weights.

    A token costs two FLOP a weight in the prefill, decoding, reference and forward pass, and two
    more backwards, as frozen weights need no gradient. Attention adds 4 L d FLOP a layer for a
    token that looks at L others, twice that backwards. The head is needed where a completion token
    is predicted only.
    """
    config, head = model.config, model.get_output_embeddings().weight
    embedded = model.get_input_embeddings().weight
    weights = sum(p.numel() for name, p in model.named_parameters() if "lora" not in name)
    body = weights - embedded.numel() - (head.numel() if head is not embedded else 0)
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    prompt, completions = sum(lengths), options.prompts * options.group * options.new_tokens
    looked_at = sum(n * n / 2 for n in lengths)
    looked_at_later = completions * (prompt / len(lengths) + options.new_tokens / 2)
    looks = 4 * config.num_hidden_layers * width
    prefill = 2 * body * prompt + looks * looked_at
    decode = 2 * (body + head.numel()) * completions + looks * looked_at_later
    forward = prefill + decode  # all prompts and completions at once
    backward = forward + looks * (looked_at + looked_at_later)
    rest = prefill + (1 + bool(options.beta)) * forward + backward
    reads = (body + head.numel()) * head.element_size() * options.new_tokens
    decoding = max(decode / ceiling["flops"], reads / ceiling["bytes"])
    return {
        "tera_flop": (rest + decode) / 1e12,
        "flop_floor_seconds": (rest + decode) / ceiling["flops"],
        "byte_floor_seconds": reads / ceiling["bytes"],
        "floor_seconds": rest / ceiling["flops"] + decoding,
    }


def make_policy(options):
    """The model with LoRA, its optimizer, and the prompts as token ids."""
    torch.manual_seed(0)
    policy = load_policy(options.model, options.device, options.dtype)
    add_lora(policy.model, rank=16, alpha=32.0)
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    prompts = [
        policy.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )["input_ids"]
        for text in workload_prompts(options.prompts)
    ]
    return policy, torch.optim.AdamW(trained, lr=1e-5), prompts


def summary(model, lengths: list[int], steps: list[dict], options) -> dict:
    """What the last line says; the phases are means over all steps but the first."""
    kept = steps[1:] or steps
    phases = {name: sum(one[name] for one in kept) / len(kept) for name in kept[0]}
    seconds = sum(phases.values())
    completions = options.prompts * options.group * options.new_tokens
    ceiling = ceilings(next(model.parameters()).dtype, str(model.device))
    floor = floors(model, lengths, options, ceiling)
    # Kilobytes on Linux, bytes on macOS.
    unit = 1 << (20 if sys.platform == "darwin" else 10)
    cuda = torch.cuda.max_memory_allocated() / 2**20 if options.device == "cuda" else 0
    return {
        "ours": "grpo-text2sql",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "prompts": options.prompts,
        "group": options.group,
        "new_tokens": options.new_tokens,
        "prompt_tokens": lengths,
        "step_seconds": [round(sum(one.values()), 4) for one in steps],
        "phase_seconds": {name: round(one, 2) for name, one in phases.items()},
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit),
        "peak_cuda_mb": round(cuda),
        "completion_tokens_per_second": round(completions / seconds, 1),
        **{name: round(one, 3) for name, one in floor.items()},
        "giga_flops_per_second": round(ceiling["flops"] / 1e9),
        "giga_bytes_per_second": round(ceiling["bytes"] / 1e9, 1),
        "step_to_floor": round(seconds / floor["floor_seconds"], 2),
    }


def show(result: dict) -> None:
    seconds = sum(result["phase_seconds"].values())
    for name, one in result["phase_seconds"].items():
        print(f"{name:10} {one:7.2f} s  {100 * one / seconds:5.1f} %")
    print(f"{'step':10} {seconds:7.2f} s, {result['peak_rss_mb']} MB")
    print(
        f"{result['tera_flop']:.2f} TFLOP take {result['flop_floor_seconds']:.2f} s at "
        f"{result['giga_flops_per_second']} GFLOP/s, reading the weights while decoding "
        f"{result['byte_floor_seconds']:.2f} s at {result['giga_bytes_per_second']} GB/s: the step "
        f"takes {result['step_to_floor']:.2f} times the floor of {result['floor_seconds']:.2f} s"
    )


def show_profile(run, most: int = 8) -> None:
    """The operators that take most of a step, with their shares of its time."""
    with torch.profiler.profile() as found:
        run()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    for row in rows[:most]:
        print(f"{row.key:40} {100 * row.self_cpu_time_total / total:5.1f} %, {row.count} calls")


def peer(script: str, options: argparse.Namespace) -> dict:
    """The peer's last line; its script takes the same options."""
    words = [sys.executable, script, options.model, "--beta", str(options.beta)]
    for name in ("prompts", "group", "new-tokens", "steps"):
        words += [f"--{name}", str(getattr(options, name.replace("-", "_")))]
    words += ["--fp32"] if options.dtype == "float32" else []
    return json.loads(
        subprocess.run(words, check=True, capture_output=True, text=True)
        .stdout.strip()
        .splitlines()[-1]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="Hugging Face model directory")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=3, help="the first warms up")
    parser.add_argument(
        "--micro-batch", type=int, default=1, help="prompts in a pass; the peer's script takes one"
    )
    parser.add_argument("--beta", type=float, default=0.04)
    parser.add_argument(
        "--fp32", dest="dtype", action="store_const", const="float32", default="bfloat16"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--profile", action="store_true", help="what a step more is spent on")
    parser.add_argument("--versus", metavar="SCRIPT", help="run a peer's script in turn")
    options = parser.parse_args()
    policy, optimizer, prompts = make_policy(options)
    run = lambda: [step(policy, optimizer, prompts, options) for _ in range(options.steps)]  # noqa: E731
    steps = run()
    other = peer(options.versus, options) if options.versus else None
    if other:
        steps += run()[1:]
    result = summary(policy.model, [len(p) for p in prompts], steps, options)
    show(result)
    if options.profile:
        show_profile(lambda: step(policy, optimizer, prompts, options))
    if other:
        mine, theirs = (
            statistics.mean(one["step_seconds"][1:] or one["step_seconds"])
            for one in (result, other)
        )
        result |= {"peer": other, "peer_to_ours": round(theirs / mine, 2)}
        result["peer_memory_to_ours"] = round(other["peak_rss_mb"] / result["peak_rss_mb"], 2)
        print(
            f"peer / ours: {result['peer_to_ours']} times the time, "
            f"{result['peer_memory_to_ours']} times the memory"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
