"""Embeddings in which the wordings of one concept are near each other, in all languages, as aligned
word vectors are (Mikolov et al. 2013; Ruder et al. 2019): with them a new model finds the column
``release_year`` for *Erscheinungsjahr* by comparing vectors, as it finds equal words. A new policy
and a new encoder begin with them.

They are trained contrastively, as the encoder itself is (loss.py): a wording is the mean of its
tokens' vectors, two wordings of a concept are a pair, and those of the other concepts in the batch
are its negatives.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

STEPS, CONCEPTS = 1500, 512  # and concepts in a batch
TEMPERATURE, LR = 0.07, 3e-3


def mean_vectors(vectors: Tensor, texts: Sequence[Sequence[int]]) -> Tensor:
    """The normalised mean of each text's vectors: (V, D), N lists of ids -> (N, D)."""
    ids = torch.tensor([index for text in texts for index in text])
    starts = torch.tensor([0, *(len(text) for text in texts[:-1])]).cumsum(0)
    return F.normalize(F.embedding_bag(ids, vectors, starts, mode="mean"), dim=-1)


def align(vectors: Tensor, concepts: list[list[list[int]]], generator: torch.Generator) -> Tensor:
    """Trains vectors, (V, D) float32, on the wordings of concepts, each a list of token ids.

    Returns: (V, D), each row as long as it was.
    """
    trained = vectors.clone().requires_grad_()
    optimizer = torch.optim.Adam([trained], lr=LR)
    concepts = [wordings for wordings in concepts if len(wordings) > 1]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * (1 - step / STEPS)
        chosen = torch.randperm(len(concepts), generator=generator)[:CONCEPTS].tolist()
        pairs = [
            [concepts[c][i] for i in torch.randperm(len(concepts[c]), generator=generator)[:2]]
            for c in chosen
        ]
        left, right = (mean_vectors(trained, texts) for texts in zip(*pairs))  # (C, D) each
        scores = left @ right.T / TEMPERATURE  # (C, C)
        labels = torch.arange(len(chosen))
        loss = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lengths = vectors.norm(dim=1, keepdim=True)
    return F.normalize(trained.detach(), dim=1) * lengths
