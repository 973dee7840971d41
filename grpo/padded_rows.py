"""Sequences that follow each other, as rows of equal width with padding, and back."""

import torch
from torch import Tensor


def padded_rows(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences that follow each other, as rows of equal width.

    Returns:
        index (B, width) int64 of each token among all, 0 where there is none; exists (B, width)
        bool; width is the longest length, at least 1.
    """
    place = torch.arange(max(1, int(lengths.max())), device=lengths.device)
    exists = place < lengths[:, None]
    starts = lengths.cumsum(0) - lengths
    return (starts[:, None] + place).where(exists, 0), exists


class Gathered(torch.autograd.Function):
    """``x.index_select(0, index)``, for an index that has each row of x once, but for copies that
    pad the result and get no gradient. The gradient of row i is row ``inverse[i]`` of the result's,
    0 where ``exists`` is False. PyTorch's own backward adds rows up, which is slow on a GPU.

    x is (N, ...) and the result (M, ...); index (M,) and inverse (N,) are int64, exists (N,) bool.
    """

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, inverse: Tensor, exists: Tensor | None) -> Tensor:
        ctx.save_for_backward(inverse, exists)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        inverse, exists = ctx.saved_tensors
        gradient = gradient.index_select(0, inverse)
        if exists is not None:
            gradient = gradient * exists.view(-1, *[1] * (gradient.dim() - 1))
        return gradient, None, None, None


class Rows:
    """Sequences of a part of the row as rows of equal width, and back.

    Args:
        index: (B, W) int64, the index in the part of each token, 0 where there is none.
        exists: (B, W) bool.
    """

    def __init__(self, index: Tensor, exists: Tensor):
        self.index, self.exists = index, exists
        self.places = exists.flatten().nonzero()[:, 0]  # (n,) of each token in the padded rows

    def pad(self, x: Tensor) -> Tensor:
        """(n, heads, D) -> (B, W, heads, D)."""
        padded = Gathered.apply(x, self.index.flatten(), self.places, None)
        return padded.unflatten(0, self.index.shape)

    def unpad(self, x: Tensor) -> Tensor:
        """(B, W, heads, D) -> (n, heads, D)."""
        inverse, exists = self.index.flatten(), self.exists.flatten()
        return Gathered.apply(x.flatten(0, 1), self.places, inverse, exists)
