"""The GRPO loss: a clipped policy gradient plus a KL penalty, token by token.

    L = - sum_it w_it [ min(ratio_it A_i, clip(ratio_it, 1 - e_low, 1 + e_high) A_i) - beta KL_it ]

with ratio_it = exp(logp_new - logp_old) (PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300,
eq. 3). The weights w_it define the mean over tokens. They are computed once for all
tokens of an update, so that its loss is the sum of the losses of its micro-batches, however it is
split.
"""

import torch
from torch import Tensor

from grpo.checks import check_tensors
from grpo.kl import token_kl


def token_weights(
    mask: Tensor, *, aggregation: str = "token", max_new_tokens: int | None = None
) -> Tensor:
    """w_it, the share of each token in the loss of an update, (P, G, T) float32.

    Args:
        mask: (P, G, T) bool, true where there is a completion token.
        aggregation: one of

            - ``token``: 1 / (completion tokens) (after DAPO, arXiv 2503.14476, section
              3.3, whose equation takes the mean over each group)
            - ``sequence``: 1 / (P G length_i), a mean of per-completion means (GRPO, arXiv
              2402.03300, eq. 3)
            - ``constant``: 1 / (P G max_new_tokens), independent of all lengths (Dr. GRPO, arXiv
              2503.20783)
        max_new_tokens: for ``constant`` only.
    """
    count, size = mask.shape[:2]
    weights = mask.float()
    if aggregation == "token":
        return weights / weights.sum().clamp(min=1)
    if aggregation == "sequence":
        return weights / (weights.sum(-1, keepdim=True).clamp(min=1) * count * size)
    if aggregation != "constant":
        raise ValueError(f"unknown aggregation {aggregation!r}: token, sequence or constant")
    if max_new_tokens is None:
        raise ValueError("the aggregation `constant` needs max_new_tokens")
    return weights / (count * size * max_new_tokens)


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, kind: str = "token"
) -> Tensor:
    """pi / pi_old. All tensors (P, G, T), the result (P, G, 1) for ``sequence``.

    ``token`` and ``cispo`` take the ratio of each token. ``sequence`` is the geometric mean over a
    completion, exp(mean_t (logp - logp_old)), one number for all of its tokens (GSPO, arXiv
    2507.18071, eq. 7): the reward belongs to the whole completion, so the completion is what is
    reweighted and clipped.
    """
    log_ratio = logprobs - old_logprobs
    if kind == "sequence":
        lengths = mask.sum(-1, keepdim=True).clamp(min=1)
        return ((log_ratio * mask).sum(-1, keepdim=True) / lengths).exp()
    if kind in ("token", "cispo"):
        return log_ratio.exp()
    raise ValueError(f"unknown importance sampling {kind!r}: token, sequence or cispo")


def surrogate_objective(
    logprobs: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    *,
    kind: str = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy-gradient term of each token, to be maximised, and where clipping acted.

    ``token`` and ``sequence``: min(ratio A, clip(ratio, 1 - low, 1 + high) A); a high above low is
    DAPO's clip-higher (arXiv 2503.14476, section 3.1). ``cispo``: stopgrad(min(ratio, 1 + high)) A
    log pi (MiniMax-M1, arXiv 2506.13585, eq. 4-5), which caps a token's weight but keeps its
    gradient.

    Args:
        logprobs, advantages: (P, G, T) float32 with gradient, and (P, G, 1) or (P, G, T).
        ratio: (P, G, T), or (P, G, 1) for ``sequence``, from ``importance_ratio``.

    Returns:
        The objective, and ``clip_ratio/low`` and ``clip_ratio/high`` (bool, shaped as ``ratio``):
        whether clipping removed a token's gradient (for ``cispo``: capped its weight).
    """
    if kind == "cispo":
        objective = ratio.detach().clamp(max=1 + epsilon_high) * advantages * logprobs
        low, high = torch.zeros_like(ratio, dtype=torch.bool), ratio > 1 + epsilon_high
    else:
        clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
        objective = torch.minimum(ratio * advantages, clipped * advantages)
        low = (ratio < 1 - epsilon_low) & (advantages < 0)
        high = (ratio > 1 + epsilon_high) & (advantages > 0)
    return objective, {"clip_ratio/low": low, "clip_ratio/high": high}


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    ref_logprobs: Tensor | None = None,
    *,
    sampled: Tensor | None = None,
    beta: float = 0.02,
    kl: str = "k3iw",
    importance_sampling: str = "token",
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a micro-batch, to be summed over those of an update.

    Args:
        logprobs: (P, G, T) float32 with gradient, under the policy.
        old_logprobs: (P, G, T) float32, under the policy that sampled. In the first update this
            is ``logprobs.detach()``: the ratio is 1 and the gradient REINFORCE's, -A grad log pi.
        advantages: (P, G) float32, of completions; (P, G, 1) or (P, G, T), of tokens.
        weights: (P, G, T) float32 from ``token_weights`` of the whole update; 0 masks a token out.
        ref_logprobs: (P, G, T) float32, under the frozen reference; may be None if ``beta`` is 0.
        sampled: (P, G) bool, false for completions that another policy wrote, such as gold: they
            have no KL term, whose estimators need samples of the policy. By default all have one.
        beta: weight of the KL term, whose estimator is ``kl`` (see ``token_kl``).
        importance_sampling, epsilon_low, epsilon_high: see ``surrogate_objective``.

    Returns:
        The loss (scalar), and per token (P, G, T), without gradient: ``ratio``,
        ``clip_ratio/low``, ``clip_ratio/high``, and with a reference ``kl``, k3 >= 0.

    Raises:
        TypeError, ValueError: not a tensor; ``beta`` without a reference; an unknown option.
    """
    check_tensors(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, weights=weights
    )
    if beta and ref_logprobs is None:
        raise ValueError(f"beta = {beta:g} needs ref_logprobs; without a reference, pass beta=0")
    ratio = importance_ratio(logprobs, old_logprobs, weights > 0, kind=importance_sampling)
    clip = {"epsilon_low": epsilon_low, "epsilon_high": epsilon_high}
    if advantages.dim() == 2:
        advantages = advantages[..., None]
    objective, stats = surrogate_objective(
        logprobs, ratio, advantages, kind=importance_sampling, **clip
    )
    stats["ratio"] = ratio
    if ref_logprobs is not None:
        token_ratio = torch.exp(logprobs - old_logprobs)
        if sampled is not None:  # a KL of exactly 0, and so is its gradient
            ref_logprobs = torch.where(sampled[..., None], ref_logprobs, logprobs)
        if beta:
            objective = objective - beta * token_kl(logprobs, ref_logprobs, token_ratio, kl=kl)
        stats["kl"] = token_kl(logprobs, ref_logprobs, token_ratio, kl="k3")
    stats = {name: value.detach().expand_as(logprobs) for name, value in stats.items()}
    return -(weights * objective).sum(), stats
