"""Measures copying alone: questions about schemas whose names are random letters.

    python -m benchmarks.copying                 # the shipped policy
    python -m benchmarks.copying --model DIR

A policy can write such names only by copying them from its prompt, and can choose the right ones
only by comparing the letters of the question and of the schema.
"""

import argparse
import random
import re
import string
import sys
from dataclasses import dataclass

from grpo.config import ASSETS
from grpo.models import Policy, load_policy
from grpo.prompt import question_text
from grpo.sampler import sample_groups
from sqlenv import schema_text
from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.fresh import FreshQuestions
from sqlenv.errors import exit_code
from sqlenv.metrics.tables import markdown_table
from sqlenv.query import AGGREGATES, parse

MAX_NEW_TOKENS, PER_SCHEMA, LARGEST = 160, 4, 5


@dataclass
class Answer:
    """A greedy answer to a question about random names."""

    schema: str
    gold: str
    predicted: str


def random_word(rng: random.Random) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(5, 8)))


def answers(policy: Policy, schemas: int, langs: tuple[str, ...] = LANGUAGES) -> list[Answer]:
    """Greedy answers to ``PER_SCHEMA`` questions about each of so many schemas."""
    questions, rng = FreshQuestions(langs, invent=random_word), random.Random(0)
    encode = lambda text: policy.tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    results = []
    for _ in range(schemas):
        schema, pairs = questions.draw(rng, PER_SCHEMA, invented=1.0, largest=LARGEST)
        text = schema_text(schema)
        start = [policy.tokenizer.bos_token_id, *encode(text)]
        samples = sample_groups(
            policy.model,
            [start + encode(question_text(question)) for question, _ in pairs],
            eos_ids=policy.eos_ids,
            group_size=1,
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=0,
        )
        for (_, gold), (ids,) in zip(pairs, samples.completion_ids):
            predicted = policy.tokenizer.decode(ids, skip_special_tokens=True)
            results.append(Answer(text, gold, predicted))
    return results


def names(sql: str) -> list[str]:
    """The names of tables and columns in a query."""
    tokens = (token.text for token in parse(sql).tokens if token.kind == "name")
    return [text for text in tokens if text not in AGGREGATES and not re.fullmatch(r"t\d+", text)]


def shares(results: list[Answer]) -> dict[str, float]:
    """How well names are copied, and how well the right ones are chosen."""
    written = [(name, answer) for answer in results for name in names(answer.predicted)]
    wanted = [(name, answer) for answer in results for name in names(answer.gold)]
    stands = lambda name, text: re.search(rf"\b{re.escape(name)}\b", text, re.I)  # noqa: E731
    return {
        "names copied right": mean(stands(name, answer.schema) for name, answer in written),
        "names of gold in the answer": mean(
            stands(name, answer.predicted) for name, answer in wanted
        ),
        "answers equal to gold": mean(answer.predicted == answer.gold for answer in results),
    }


def mean(values) -> float:
    values = [bool(value) for value in values]
    return sum(values) / max(1, len(values))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(ASSETS / "policy"))
    parser.add_argument("--schemas", type=int, default=50)

    def run() -> None:
        arguments = parser.parse_args(argv)
        results = answers(load_policy(arguments.model, "cpu", "float32"), arguments.schemas)
        rows = [(name, f"{100 * share:.1f}") for name, share in shares(results).items()]
        print(markdown_table([("of random names", "%"), *rows]))

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main())
