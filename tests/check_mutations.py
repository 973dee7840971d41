"""Do the tests catch the mistakes that GRPO implementations really have? Makes each mistake, a line
or two, in a copy of the project, runs the tests, and names the first one that fails.

    python -m tests.check_mutations            all of them (some minutes)
    python -m tests.check_mutations "KL sign"  those whose name contains the text
    python -m tests.check_mutations --find     only checks that each can be made

Not part of the test run: it is a test of the tests. Exit code 1 if a mistake survives, or if its
code is not in exactly one place.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutation(NamedTuple):
    """A mistake.

    Attributes:
        name: what is wrong.
        package: the folder whose files are searched for the right code.
        right: the code to replace, however it is broken into lines. Exactly one place in the
            package has it.
        wrong: the code in its place; further lines are indented as the first.
        tests: the test files that could notice.
    """

    name: str
    package: str
    right: str
    wrong: str
    tests: list[str]


MUTATIONS = [
    Mutation(
        "EOS is never trained (a mask from ids != pad, pad being eos)",
        "grpo",
        "[[len(ids) for ids in group] for group in self.completion_ids]",
        "[[len(ids) - 1 for ids in group] for group in self.completion_ids]",
        ["test_trainer", "test_rollout"],
    ),
    Mutation(
        "only one of several EOS ids ends a completion",
        "grpo",
        "ended = torch.isin(drawn, eos)",
        "ended = drawn == eos[0]",
        ["test_packing", "test_prompt", "test_trainer"],
    ),
    Mutation(
        "KL sign",
        "grpo",
        "k3 = torch.expm1(-delta) + delta",
        "k3 = torch.expm1(delta) - delta",
        ["test_loss"],
    ),
    Mutation(
        "min of the two objectives without the advantage's sign",
        "grpo",
        "torch.minimum(ratio * advantages, clipped * advantages)",
        "torch.minimum(ratio, clipped) * advantages",
        ["test_loss"],
    ),
    Mutation(
        "accumulation not scaled: every micro-batch divides by its own tokens",
        "grpo",
        "batch.weights[part, :, :longest], batch.ref_logprobs[i]",
        "token_weights(batch.mask[part], aggregation=config.loss_aggregation, max_new_tokens="
        "config.max_new_tokens)[:, :, :longest], batch.ref_logprobs[i]",
        ["test_trainer"],
    ),
    Mutation(
        "every row of SFT divides by its own tokens",
        "grpo",
        "-torch.sum(logprobs * is_sql) / count",
        "-torch.sum(logprobs * is_sql) / is_sql.sum()",
        ["test_sft"],
    ),
    Mutation(
        "prompts ordered AABB, completions ABAB",
        "grpo",
        "terms.reshape(len(examples), -1, len(self.specs))",
        "terms.reshape(-1, len(examples), len(self.specs)).transpose(0, 1)",
        ["test_rewards", "test_trainer"],
    ),
    Mutation(
        "advantages normalised over the batch",
        "grpo",
        "rewards - rewards.mean(dim=1, keepdim=True)",
        "rewards - rewards.mean()",
        ["test_advantages"],
    ),
    Mutation(
        "sampled at one temperature, scored at another",
        "grpo",
        "logits if temperature == 1 else logits / temperature",
        "logits",
        ["test_packing", "test_trainer"],
    ),
    Mutation(
        "the head's gradient without the temperature",
        "grpo",
        "(head.weight[targets] - mean) / temperature",
        "head.weight[targets] - mean",
        ["test_packing", "test_attention"],
    ),
    Mutation(
        "log-softmax in bfloat16",
        "grpo",
        "logits = head(hidden).float()",
        "logits = head(hidden)",
        ["test_packing", "test_trainer"],
    ),
    Mutation(
        "positions run on from one completion to the next",
        "grpo",
        "starts.repeat_interleave(group_size)[:, None] + time",
        "completions.index",
        ["test_packing", "test_attention"],
    ),
    Mutation(
        "a completion sees the end of a longer prompt than its own",
        "grpo",
        "prompt = (place < start).expand(-1, length, -1)",
        "prompt = (place < start.max()).expand(-1, length, -1)",
        ["test_packing", "test_attention"],
    ),
    Mutation(
        "a completion sees the prompt of another group",
        "grpo",
        "torch.cat([prompt.repeat_interleave(size, 0), completion], 2)",
        "torch.cat([prompt.repeat(size, 1, 1, 1), completion], 2)",
        ["test_packing", "test_attention"],
    ),
    Mutation(
        "a completion that has ended stays in the cache",
        "grpo",
        "buffer[: len(rows), :, : self.length] = buffer[rows, :, : self.length]",
        "pass",
        ["test_attention", "test_rollout"],
    ),
    Mutation(
        "LoRA weights in the base's bfloat16",
        "grpo",
        "torch.zeros(base.out_features, rank, dtype=torch.float32, device=device)",
        "torch.zeros(base.out_features, rank, dtype=base.weight.dtype, device=device)",
        ["test_checkpoint", "test_packing"],
    ),
    Mutation(
        "LoRA merged into the base itself",
        "grpo",
        "return round_dithered(weight.float() + self.update(), dtype or weight.dtype)",
        "return weight.add_(self.update().to(weight.dtype))",
        ["test_lora", "test_checkpoint", "test_packing", "test_trainer"],
    ),
    Mutation(
        "a merged copy that loses small updates",
        "grpo",
        "bits = x.contiguous().view(torch.int32) + dither & -step",
        "bits = x.to(dtype).float().view(torch.int32)",
        ["test_lora"],
    ),
    Mutation(
        "float16 without loss scaling",
        "grpo",
        "distributed.backward(self.scaler.scale(loss))",
        "distributed.backward(loss)",
        ["test_float16"],
    ),
    Mutation(
        "a missing reward counts in the std",
        "grpo",
        "return group_advantages(values, applicable=applicable, **options)",
        "return group_advantages(values, **options)",
        ["test_updates"],
    ),
    Mutation(
        "each process follows its own gradient",
        "grpo",
        "distributed.all_reduce_gradients(self.parameters.values())",
        "pass",
        ["test_parallel"],
    ),
    Mutation(
        "old log-probs taken again in every update",
        "grpo",
        "if i == len(batch.old_logprobs):  # the policy is still the one that sampled "
        "batch.old_logprobs.append(logprobs.detach())",
        "batch.old_logprobs[i : i + 1] = [logprobs.detach()]",
        ["test_updates"],
    ),
    Mutation(
        "old log-probs of a minibatch taken from its own update",
        "grpo",
        "if n:  # the first",
        "if n > 9:  # the first",
        ["test_updates"],
    ),
    Mutation(
        "the last micro-batch's loss logged as the step's",
        "grpo",
        'self.values["loss"] += loss.item()',
        'self.values["loss"] = loss.item()',
        ["test_trainer"],
    ),
    Mutation(
        "resume repeats a batch",
        "grpo",
        'trainer.step, trainer.questions.cursor = state["step"], state["cursor"]',
        'trainer.step = state["step"]',
        ["test_resume"],
    ),
    Mutation(
        "dropout live while sampling",
        "grpo",
        'model.to("cpu" if stay_on_cpu else device).eval()',
        'model.to("cpu" if stay_on_cpu else device).train()',
        ["test_models"],
    ),
    Mutation(
        "results compared as sets",
        "sqlenv",
        "if Counter(gold_rows) == Counter(rows):",
        "if set(gold_rows) == set(rows):",
        ["test_results"],
    ),
    Mutation(
        "an adapter's choice of layers is ignored",
        "grpo",
        'targets=config["target_modules"]',
        "targets=()",
        ["test_checkpoint"],
    ),
    Mutation(
        "a suffix matches the end of a longer name",
        "grpo",
        'name.endswith(f".{suffix}")',
        "name.endswith(suffix)",
        ["test_lora"],
    ),
    Mutation(
        "logits that are scaled after the head are not noticed",
        "grpo",
        "rtol=1e-3, atol=1e-3",
        "rtol=1e3, atol=1e3",
        ["test_models"],
    ),
    Mutation(
        "a process that only helps adds to the gradient",
        "grpo",
        "(0 * self.passes.pop())",
        "(1 * self.passes.pop())",
        ["test_parallel"],
    ),
    Mutation(
        "zero-variance groups are trained on and count in the mean",
        "grpo",
        'if groups and self.config.zero_variance == "skip":',
        'if groups and self.config.zero_variance == "no":',
        ["test_updates"],
    ),
    Mutation(
        "a question's streak of zero-variance groups never ends",
        "grpo",
        "self.streaks.pop(question, None)",
        "self.streaks.get(question, None)",
        ["test_updates"],
    ),
    Mutation(
        "down-sampling trains on the best completions, and not on the worst",
        "grpo",
        "best = spread.argmax(0)  # (P,)",
        "best = spread.argmax(0) * 0 + count  # (P,)",
        ["test_downsampling"],
    ),
    Mutation(
        "a wrong completion is blamed for what it has in common with the least similar right one",
        "grpo",
        "nearest = max(matchers, key=lambda matcher: matcher.ratio())",
        "nearest = min(matchers, key=lambda matcher: matcher.ratio())",
        ["test_credit"],
    ),
    Mutation(
        "gold joins groups that have a right completion",
        "grpo",
        "if example.gold_sql and not any(verdict.correct for verdict in rollout.verdicts[p])",
        "if example.gold_sql",
        ["test_gold_completions"],
    ),
    Mutation(
        "log-probs are those of all tokens where only some were drawn from",
        "grpo",
        "logits = logits.masked_fill(others, NEVER)",
        "logits = logits.masked_fill(others, 0) * 0 + head(hidden).float()",
        ["test_name_constraint"],
    ),
    Mutation(
        "a query that reads no table is agreed on",
        "sqlenv",
        "counted = [sql for sql in group if runs[sql].reads and finds_something(runs[sql])]",
        "counted = [sql for sql in group if finds_something(runs[sql])]",
        ["test_rewards"],
    ),
    Mutation(
        "an aggregate over no rows is agreed on",
        "sqlenv",
        "any(value not in (None, 0) for row in run.rows for value in row)",
        "any(run.rows)",
        ["test_rewards"],
    ),
    Mutation(
        "the step that is kept is chosen by the last evaluation",
        "grpo",
        'if value is None or best and best["by"] == by and value <= best["value"]:',
        "if value is None:",
        ["test_validation"],
    ),
]


class NotApplicable(Exception):
    """The right code of a mutation is in no place of its package, or in several."""


def locate(mutation: Mutation, root: Path) -> tuple[Path, re.Match]:
    """The file that has the right code, and where in it."""
    tokens = re.findall(r"\w+|[^\w\s]", mutation.right)
    # White space counts nowhere, and a trailing comma may stand before a closing bracket.
    parts = [(r",?\s*" if token in ")]}" else "") + re.escape(token) for token in tokens]
    pattern = re.compile(r"\s*".join(parts))
    matches = [
        (path, match)
        for path in sorted((root / mutation.package).rglob("*.py"))
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]
    if len(matches) != 1:
        places = ", ".join(str(path.relative_to(root)) for path, _ in matches) or "nowhere"
        raise NotApplicable(f"{mutation.name}: expected once, is in: {places}: {mutation.right!r}")
    missing = [name for name in mutation.tests if not (root / f"tests/{name}.py").exists()]
    if missing:
        raise NotApplicable(f"{mutation.name}: no such test files: {', '.join(missing)}")
    return matches[0]


def mutate(mutation: Mutation, root: Path) -> None:
    """Makes the mistake in the project at ``root``."""
    path, match = locate(mutation, root)
    text = match.string
    line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
    indent = line[: len(line) - len(line.lstrip())]
    wrong = mutation.wrong.replace("\n", f"\n{indent}")
    text = text[: match.start()] + wrong + text[match.end() :]
    compile(text, str(path), "exec")  # a syntax error is no mistake worth catching
    path.write_text(text, encoding="utf-8")


def first_failure(root: Path, tests: list[str]) -> str | None:
    """The first failing test, or None if all pass. A test file that does not import is no catch."""
    files = [f"tests/{name}.py" for name in tests]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files],
        cwd=root,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    if run.returncode not in (0, 1):
        raise SystemExit(run.stdout + run.stderr)
    failure = re.search(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE)
    return failure and failure[1]


@contextmanager
def project_copy() -> Iterator[Path]:
    """A copy of the project, in which mistakes can be made."""
    ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "build", "*.egg-info")
    with tempfile.TemporaryDirectory() as folder:
        yield shutil.copytree(ROOT, Path(folder) / "copy", ignore=ignored)


def is_caught(mutation: Mutation) -> bool:
    """Makes one mistake in a copy and prints what catches it."""
    with project_copy() as root:
        mutate(mutation, root)
        failure = first_failure(root, mutation.tests)
    print(f"{mutation.name}: {'caught by ' + failure if failure else 'SURVIVES'}", flush=True)
    return failure is not None


def check_unmutated(mutations: list[Mutation]) -> None:
    """Ends with exit code 1 if a test fails as it is: it would seem to catch every mistake."""
    with project_copy() as root:
        failure = first_failure(root, sorted({name for m in mutations for name in m.tests}))
    if failure:
        raise SystemExit(f"{failure} fails without any mistake")


def check_applicable(mutations: list[Mutation]) -> None:
    """Names every mutation whose code is not in exactly one place, and ends with exit code 1."""
    errors = []
    for mutation in mutations:
        try:
            locate(mutation, ROOT)
        except NotApplicable as error:
            errors.append(str(error))
    if errors:
        raise SystemExit("\n".join([*errors, f"{len(errors)} mistakes cannot be made"]))
    print(f"{len(mutations)} mistakes can be made")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    selected = [m for m in MUTATIONS if wanted == "--find" or wanted in m.name]
    check_applicable(selected)
    if wanted != "--find":
        check_unmutated(selected)
        results = [is_caught(mutation) for mutation in selected]
        print(f"{sum(results)} of {len(results)} mistakes caught")
        sys.exit(not all(results))
