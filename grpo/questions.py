"""The order in which training questions are drawn."""

import torch

from sqlenv import Example


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
