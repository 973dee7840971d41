"""The questions that a run is trained and evaluated on, and the order in which they are drawn."""

import random

import torch

from grpo.config import Config, chosen_languages
from sqlenv import Example, ExecutionVerifier, UserError, load_dataset


def load_questions(
    config: Config, verifier: ExecutionVerifier
) -> tuple[list[Example], list[Example]]:
    """Training questions, evenly from all languages, and dev questions. Training questions whose
    gold query fails or returns no row are left out: empty equals empty, so they would reward junk.
    """
    langs = chosen_languages(config.lang)
    train = [example for lang in langs for example in load_dataset(config.data, lang, "train")]
    random.Random(config.seed).shuffle(train)
    train = train[: config.examples]
    gold = verifier.run_gold(train)
    useful = [e for e, result in zip(train, gold) if result.status == "ok" and result.rows]
    if not useful:
        raise UserError(
            f"--data {config.data}: no training question has a gold query that returns rows"
        )
    if len(useful) < len(train):
        left_out = f"left out {len(train) - len(useful)} of {len(train)} training questions"
        print(f"{left_out}: gold fails or returns no row")
    limit = config.dev_limit or None
    dev = [e for lang in langs for e in load_dataset(config.data, lang, "dev")[:limit]]
    return useful, dev


class QuestionStream:
    """Draws questions epoch by epoch. Each epoch is a new permutation, which depends on the seed
    and the epoch alone.

    Attributes:
        cursor: questions drawn so far; the whole state, part of a checkpoint.
    """

    def __init__(self, examples: list[Example], seed: int):
        self.examples, self.seed, self.cursor = examples, seed, 0

    def draw(self, count: int) -> tuple[list[Example], list[int]]:
        """The next ``count`` questions, and a sampling seed for each of them."""
        picked, seeds = [], []
        for position in range(self.cursor, self.cursor + count):
            epoch, index = divmod(position, len(self.examples))
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(self.examples), generator=generator)
            picked.append(self.examples[order[index]])
            seeds.append((self.seed << 32) + position)
        self.cursor += count
        return picked, seeds
