"""Custom rewards to start from. ``grpo/custom_reward.py`` describes what a reward function gets.

    python train.py --lang vi --reward examples/my_rewards.py:short=0.1
    python train.py --model M --thinking on --max-new-tokens 512 \\
        --reward examples/my_rewards.py:reasoning_format=0.1
"""

import re

OPENED = re.compile(r"<think>\s*\Z")
REASONED = re.compile(r"\s*<think>((?:(?!</?think>).)+)</think>((?:(?!</?think>).)+)", re.DOTALL)


def short(prompts, completions, **columns):
    """1 for an empty completion, falling to 0 at 200 characters."""
    return [1 - min(1, len(text) / 200) for text in completions]


def reasoning_format(prompts, completions, sql, **columns):
    """1 for a completion that reasons once, between <think> and </think>, and then answers with
    SQL; 0 for any other. Where the chat template opens the reasoning, the prompt ends in <think>,
    and the completion has only the end of it.

    The weight should stay far below that of execution, or the format alone is worth learning. A
    completion that is cut off in its reasoning gets nothing, here and for execution: raise
    --max-new-tokens if metrics.jsonl has many under ``truncated``.
    """
    whole = [
        "<think>" * bool(OPENED.search(prompt[-100:])) + text
        for prompt, text in zip(prompts, completions)
    ]
    matches = map(REASONED.fullmatch, whole)
    return [float(bool(match and match[1].strip() and query)) for match, query in zip(matches, sql)]
