"""Do the tests catch the mistakes that GRPO implementations really have? Makes each mistake, a line
or two, in a copy of the project, runs the tests, and names the first one that fails.

    python -m tests.check_mutations            all of them (some minutes)
    python -m tests.check_mutations "KL sign"  those whose name contains the text

Not part of the test run: it is a test of the tests. Exit code 1 if a mistake survives.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# name, file, right text, wrong text, test files that could notice
MUTATIONS = [
    (
        "EOS is never trained (a mask from ids != pad, pad being eos)",
        "grpo/rollout.py",
        "[[len(one) for one in group] for group in self.tokens]",
        "[[len(one) - 1 for one in group] for group in self.tokens]",
        ["test_trainer", "test_rollout"],
    ),
    (
        "only one of several EOS ids ends a completion",
        "grpo/sampler.py",
        "ended = torch.isin(drawn, eos)",
        "ended = drawn == eos[0]",
        ["test_packing", "test_prompt", "test_trainer"],
    ),
    (
        "KL sign",
        "grpo/loss.py",
        "k3 = torch.expm1(-delta) + delta",
        "k3 = torch.expm1(delta) - delta",
        ["test_loss"],
    ),
    (
        "min of the two objectives without the advantage's sign",
        "grpo/loss.py",
        "torch.minimum(ratio * advantage, clipped * advantage)",
        "torch.minimum(ratio, clipped) * advantage",
        ["test_loss"],
    ),
    (
        "accumulation not scaled: every micro-batch divides by its own tokens",
        "grpo/trainer.py",
        "weight, share = weights[part, :, :size], shares[part, :, :size]",
        "share = shares[part, :, :size]\n"
        "            weight = token_weights(share > 0, config.loss, config.max_new_tokens)",
        ["test_trainer"],
    ),
    (
        "every row of the warm start divides by its own tokens",
        "grpo/sft.py",
        "-of_sql / counts[0]",
        "-of_sql / sql.sum()",
        ["test_warmup"],
    ),
    (
        "prompts ordered AABB, completions ABAB",
        "grpo/rewards.py",
        "terms.reshape(len(examples), -1, len(self.specs))",
        "terms.reshape(-1, len(examples), len(self.specs)).transpose(0, 1)",
        ["test_rewards", "test_trainer"],
    ),
    (
        "advantages normalised over the batch",
        "grpo/advantages.py",
        "rewards - rewards.mean(dim=1, keepdim=True)",
        "rewards - rewards.mean()",
        ["test_advantages"],
    ),
    (
        "sampled at one temperature, scored at another",
        "grpo/logprobs.py",
        "logits if temperature == 1 else logits / temperature",
        "logits",
        ["test_packing", "test_trainer"],
    ),
    (
        "the head's gradient without the temperature",
        "grpo/logprobs.py",
        "(head.weight[targets] - mean) / temperature",
        "head.weight[targets] - mean",
        ["test_packing", "test_attention"],
    ),
    (
        "log-softmax in bfloat16",
        "grpo/logprobs.py",
        "logits = head(hidden).float()",
        "logits = head(hidden)",
        ["test_packing", "test_trainer"],
    ),
    (
        "positions run on from one completion to the next",
        "grpo/packing.py",
        "starts.repeat_interleave(group_size)[:, None] + time",
        "layout.completions",
        ["test_packing", "test_attention"],
    ),
    (
        "a completion sees the end of a longer prompt than its own",
        "grpo/attention.py",
        "shared = (place < start).expand(-1, length, -1)",
        "shared = (place < start.max()).expand(-1, length, -1)",
        ["test_packing", "test_attention"],
    ),
    (
        "a completion sees the prompt of another group",
        "grpo/attention.py",
        "torch.cat([shared.repeat_interleave(size, 0), own], 2)",
        "torch.cat([shared.repeat(size, 1, 1, 1), own], 2)",
        ["test_packing", "test_attention"],
    ),
    (
        "a completion that has ended stays in the cache",
        "grpo/attention.py",
        "buffer[: len(rows), :, : self.length] = buffer[rows, :, : self.length]",
        "pass",
        ["test_attention", "test_rollout"],
    ),
    (
        "LoRA weights in the base's bfloat16",
        "grpo/lora.py",
        "torch.zeros(base.out_features, rank, dtype=torch.float32, device=device)",
        "torch.zeros(base.out_features, rank, dtype=base.weight.dtype, device=device)",
        ["test_checkpoint", "test_packing"],
    ),
    (
        "LoRA folded into the base itself",
        "grpo/lora.py",
        "return (self.base.weight.float() + update).to(self.base.weight.dtype)",
        "return self.base.weight.add_(update.to(self.base.weight.dtype))",
        ["test_checkpoint", "test_packing", "test_trainer"],
    ),
    (
        "each process follows its own gradient",
        "grpo/trainer.py",
        "self.world.add_gradients(self.parameters.values())",
        "pass",
        ["test_parallel"],
    ),
    (
        "old log-probs taken again in every update",
        "grpo/trainer.py",
        "if start not in fixed:",
        "if True:",
        ["test_updates"],
    ),
    (
        "the last micro-batch's loss logged as the step's",
        "grpo/trainer.py",
        'stats["loss"] += loss.item()',
        'stats["loss"] = loss.item()',
        ["test_trainer"],
    ),
    (
        "resume repeats a batch",
        "grpo/trainer.py",
        'for name in ("step", "cursor", "bad_updates"):',
        'for name in ("step", "bad_updates"):',
        ["test_resume"],
    ),
    (
        "dropout live while sampling",
        "grpo/models.py",
        'model.to("cpu" if stay_on_cpu else device).eval()',
        'model.to("cpu" if stay_on_cpu else device).train()',
        ["test_models"],
    ),
    (
        "results compared as sets",
        "sqlenv/metrics/execution_match.py",
        "if Counter(gold_rows) == Counter(rows):",
        "if set(gold_rows) == set(rows):",
        ["test_results"],
    ),
    (
        "an adapter's choice of layers is ignored",
        "grpo/checkpoint.py",
        'targets=config["target_modules"]',
        "targets=()",
        ["test_checkpoint"],
    ),
    (
        "a suffix matches the end of a longer name",
        "grpo/lora.py",
        'name.endswith(f".{one}")',
        "name.endswith(one)",
        ["test_packing"],
    ),
    (
        "logits that are scaled after the head are not noticed",
        "grpo/models.py",
        "rtol=1e-3, atol=1e-3",
        "rtol=1e3, atol=1e3",
        ["test_models"],
    ),
    (
        "a process that only helps adds to the gradient",
        "grpo/distributed/shard.py",
        "(0 * self.passes.pop())",
        "(1 * self.passes.pop())",
        ["test_parallel"],
    ),
]


def first_failure(folder: Path, tests: list[str]) -> str | None:
    """The first failing test, or None if all pass. A test file that does not import is no catch."""
    files = [f"tests/{name}.py" for name in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout + done.stderr)
    found = re.search(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return found and found[1]


def check(name: str, file: str, right: str, wrong: str, tests: list[str]) -> bool:
    """Makes one mistake in a copy and prints what catches it."""
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(".git", "runs", "__pycache__", "build", "build.lock")
        copy = shutil.copytree(ROOT, Path(folder) / "copy", ignore=ignored)
        text = (copy / file).read_text(encoding="utf-8")
        if text.count(right) != 1:
            raise SystemExit(f"{name}: {file} has {text.count(right)} times {right!r}")
        (copy / file).write_text(text.replace(right, wrong), encoding="utf-8")
        caught = first_failure(copy, tests)
    print(f"{name}: {'caught by ' + caught if caught else 'SURVIVES'}", flush=True)
    return caught is not None


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    results = [check(*mutation) for mutation in MUTATIONS if wanted in mutation[0]]
    print(f"{sum(results)} of {len(results)} mistakes caught")
    sys.exit(not all(results))
