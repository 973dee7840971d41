"""Estimators of the KL divergence between policy and reference, per token."""

import torch
from torch import Tensor


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, *, kl: str = "k3iw") -> Tensor:
    """One estimate per token, as a loss term. All tensors (P, G, T) float32.

    With d = log pi - log pi_ref: ``k1`` is d, ``k2`` is d^2 / 2, ``k3`` is exp(-d) + d - 1
    (Schulman 2020, "Approximating KL divergence"). What matters in a loss is the
    gradient: E[grad k1] = 0 (so no ``--kl k1``), E[grad k2] = grad KL(pi || ref) and E[grad k3] =
    grad KL(ref || pi). ``k3iw``, k3 times the importance ratio, has grad KL(pi || ref)
    (DeepSeek-V3.2, arXiv 2512.02556, section 3.1). E is over the token, given those before it.
    How a token changes the KL of later ones is left out (Tang and Munos, arXiv 2506.09477).

    Raises:
        ValueError: unknown ``kl``.
    """
    delta = logprobs - ref_logprobs
    if kl == "k1":
        return delta
    if kl == "k2":
        return 0.5 * delta.square()
    k3 = torch.expm1(-delta) + delta
    if kl == "k3":
        return k3
    if kl == "k3iw":
        return ratio * k3
    raise ValueError(f"unknown KL estimator {kl!r}: k1, k2, k3 or k3iw")
