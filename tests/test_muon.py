"""Muon: orthogonalised momentum."""

import pytest
import torch

from grpo.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 6, 20), (2, 20, 6)])
def test_singular_values_move_towards_one(shape):
    """And singular vectors stay: U V^T of the matrix, up to the factors 0.7 to 1.2."""
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    assert ((values := torch.linalg.svdvals(result)) > 0.6).all() and (values < 1.3).all()
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    inner = u.mT @ result @ v.mT
    off = inner - torch.diag_embed(torch.diagonal(inner, dim1=1, dim2=2))
    assert off.abs().max() < 1e-3


def test_one_step_by_hand():
    """A gradient with one singular value: its orthogonalisation is a multiple f of itself. The
    step of a 4 x 1 matrix is lr sqrt(4) f g / |g|, after the decay of the weight by lr 0.1.
    """
    gradient = torch.tensor([[3.0], [0.0], [4.0], [0.0]])
    weight = torch.nn.Parameter(torch.ones(4, 1))
    weight.grad = gradient.clone()
    factor = orthogonalize(gradient[None])[0, 0, 0] / 0.6
    Muon([weight], lr=0.5, weight_decay=0.1).step()
    expected = torch.ones(4, 1) * 0.95 - 0.5 * 2 * factor * gradient / 5
    torch.testing.assert_close(weight.data, expected)


def test_the_update_is_that_of_torch_up_to_its_bfloat16():
    """Two steps, so that momentum counts."""
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(12, 5)) for _ in range(2))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizers = Muon([ours], **options), torch.optim.Muon([theirs], **options)
    for _ in range(2):
        ours.grad = torch.randn(12, 5)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=0.01, rtol=0)
