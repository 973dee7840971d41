"""The GRPO loss: a clipped policy gradient plus a KL penalty, token by token.

    L = - sum_it w_it [ min(ratio_it A_i, clip(ratio_it, 1 - e_low, 1 + e_high) A_i) - beta KL_it ]

with ratio_it = exp(logp_new - logp_old) (PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300,
eq. 3). The weights w_it say what the mean is taken over. They are made once for a whole step, so
that the loss of a step is the plain sum over its micro-batches, however it is split.
"""

import torch
from torch import Tensor


def token_weights(mask: Tensor, kind: str = "token", max_new_tokens: int | None = None) -> Tensor:
    """w_it, the share of each token in the loss of a step. (P, G, T) bool -> (P, G, T) float32.

    Args:
        mask: where there is a completion token.
        kind: one of

            - ``token``: 1 / (completion tokens in the step) (DAPO, arXiv 2503.14476, section 3.3)
            - ``sequence``: 1 / (P G length_i), a mean of per-completion means (GRPO, arXiv
              2402.03300, eq. 3)
            - ``constant``: 1 / (P G max_new_tokens), without any length in it (Dr. GRPO, arXiv
              2503.20783)
        max_new_tokens: for ``constant``.
    """
    count, size = mask.shape[:2]
    weights = mask.float()
    if kind == "token":
        return weights / weights.sum().clamp(min=1)
    if kind == "sequence":
        return weights / (weights.sum(-1, keepdim=True).clamp(min=1) * count * size)
    if kind == "constant":
        return weights / (count * size * max_new_tokens)
    raise ValueError(f"unknown loss normalisation {kind!r}: token, sequence or constant")


def token_kl(logprobs: Tensor, reference: Tensor, kind: str, ratio: Tensor) -> Tensor:
    """Estimators of the KL divergence per token, as loss terms. All tensors (P, G, T) float32.

    With d = log pi - log pi_ref: ``k1`` is d, ``k2`` is d^2 / 2, ``k3`` is exp(-d) + d - 1
    (Schulman 2020, "Approximating KL divergence"). What matters in a loss is the gradient:
    E[grad k1] = 0, E[grad k2] = grad KL(pi || ref) and E[grad k3] = grad KL(ref || pi).
    ``k3iw``, k3 times the importance ratio, has grad KL(pi || ref) (DeepSeek-V3.2, arXiv
    2512.02556, section 3.1).

    Raises:
        ValueError: ``kind`` is unknown.
    """
    delta = logprobs - reference
    if kind == "k1":
        return delta
    if kind == "k2":
        return 0.5 * delta.square()
    k3 = torch.expm1(-delta) + delta
    if kind == "k3":
        return k3
    if kind == "k3iw":
        return ratio * k3
    raise ValueError(f"unknown KL estimator {kind!r}: k1, k2, k3 or k3iw")


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, kind: str = "token"
) -> Tensor:
    """pi / pi_old. All tensors (P, G, T), or (P, G, 1) for ``sequence``.

    ``token`` and ``cispo`` take it token by token; ``sequence`` is the geometric mean over a
    completion, exp(mean_t (logp - logp_old)), one number for all of its tokens (GSPO, arXiv
    2507.18071, eq. 7): a reward is given to a whole completion, so the unit that is reweighted
    and clipped is the completion.

    Raises:
        ValueError: ``kind`` is unknown.
    """
    log_ratio = logprobs - old_logprobs
    if kind == "sequence":
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        return ((log_ratio * mask).sum(-1, keepdim=True) / lengths).exp()
    if kind in ("token", "cispo"):
        return log_ratio.exp()
    raise ValueError(f"unknown ratio {kind!r}: token, sequence or cispo")


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    reference: Tensor | None = None,
    beta: float = 0.0,
    kl: str = "k3iw",
    ratio_kind: str = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, to be added up over the step.

    Args:
        logprobs: (P, G, T) float32 with gradient, under the policy.
        old_logprobs: (P, G, T), under the policy that sampled. On policy (one update per batch) it
            is ``logprobs.detach()``: the ratio is 1 and the gradient REINFORCE's, -A grad log pi.
        advantages: (P, G).
        weights: (P, G, T) from ``token_weights`` of the whole step; 0 masks a token out.
        reference: (P, G, T) under the frozen reference; None where ``beta`` is 0.
        beta: weight of the KL term.
        kl: estimator of the KL term, see ``token_kl``.
        ratio_kind: ``token`` or ``sequence``, see ``importance_ratio``, clipped on both sides; or
            ``cispo``: -stopgrad(min(ratio, 1 + epsilon_high)) A log pi (MiniMax-M1, arXiv
            2506.13585, eq. 4-5), which caps how much a token counts but never drops its gradient.
        epsilon_low, epsilon_high: the ratio is clipped to [1 - low, 1 + high]; a larger high is
            DAPO's clip-higher (arXiv 2503.14476, section 3.1).

    Returns:
        The loss (scalar), and for each token, without gradient: ``ratio`` (P, G, T), ``clip_low``
        and ``clip_high`` (P, G, T) bool: whether clipping took its gradient (for cispo: whether
        its weight was capped), and with a reference ``kl`` (P, G, T), k3, never below 0.
    """
    mask = weights > 0
    ratio = importance_ratio(logprobs, old_logprobs, mask, ratio_kind)
    advantage = advantages[..., None]  # (P, G, 1)
    if ratio_kind == "cispo":
        objective = ratio.detach().clamp(max=1 + epsilon_high) * advantage * logprobs
    else:
        clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
        objective = torch.minimum(ratio * advantage, clipped * advantage)
    with torch.no_grad():
        stats = {"ratio": ratio, "clip_high": ratio > 1 + epsilon_high}
        if ratio_kind == "cispo":
            stats["clip_low"] = torch.zeros_like(mask)
        else:
            stats["clip_low"] = (ratio < 1 - epsilon_low) & (advantage < 0)
            stats["clip_high"] = stats["clip_high"] & (advantage > 0)
    if reference is not None:
        token_ratio = torch.exp(logprobs - old_logprobs)
        if beta:
            objective = objective - beta * token_kl(logprobs, reference, kl, token_ratio)
        stats["kl"] = token_kl(logprobs, reference, "k3", token_ratio)
    stats = {name: value.detach().expand_as(logprobs) for name, value in stats.items()}
    return -(weights * objective).sum(), stats
