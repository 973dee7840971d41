"""Calibration: turns a cosine into the probability that the SQL is right.

Cosines of different encoders have different scales: right pairs may lie near 0.9 for one and near
0.5 for another. So a logistic curve is fitted to the cosines of held-out questions with gold SQL
(right) and with hard negatives and other SQL of the database (wrong): Platt scaling, Platt 1999.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """P(right | cosine) = sigmoid(slope * cosine + bias), if right and wrong are equally likely."""

    slope: float
    bias: float

    def score(self, cosines: Tensor) -> Tensor:
        """Cosines, float[N] -> probabilities, float[N] in [0, 1].

        With slope 10 and bias -5, a cosine of 0.5 scores 0.5 and one of 0.7 sigmoid(2) = 0.881.
        """
        return torch.sigmoid(self.slope * cosines + self.bias)


def fit_calibration(right: Tensor, wrong: Tensor) -> Calibration:
    """Fits the curve to cosines of right pairs, float[N], and of wrong pairs, float[M].

    Right and wrong pairs have the same total weight, whatever N and M are. Newton's method
    maximises the log-likelihood. A weak penalty on the slope keeps it finite where right and wrong
    do not overlap. An encoder that puts wrong pairs closer than right ones gets slope 0, and so the
    score 0.5 everywhere. Right [0.8] and wrong [0.2] score 0.5 at their middle, 0.5.

    Raises:
        ValueError: there are no right pairs, or no wrong ones.
    """
    if len(right) == 0 or len(wrong) == 0:
        raise ValueError("calibration needs right and wrong pairs")
    x = torch.cat([right, wrong]).double()  # (N + M,)
    y = torch.cat([torch.ones(len(right)), torch.zeros(len(wrong))]).double()
    weight = torch.where(y > 0, 0.5 / len(right), 0.5 / len(wrong))  # (N + M,), sum 1
    center = (x * weight).sum()
    features = torch.stack([x - center, torch.ones_like(x)], dim=1)  # (N + M, 2)
    penalty = torch.tensor([1e-4, 0.0], dtype=torch.double)
    beta = torch.zeros(2, dtype=torch.double)
    for _ in range(100):
        p = torch.sigmoid(features @ beta)
        gradient = features.T @ (weight * (p - y)) + penalty * beta  # (2,)
        curvature = (
            features.T @ (features * (weight * p * (1 - p))[:, None]) + penalty.diag()
        )  # (2, 2)
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(2, dtype=torch.double), gradient)
        beta -= step.clamp(-5, 5)
        if step.abs().max() < 1e-9:
            break
    slope = float(beta[0])
    if slope <= 0:
        return Calibration(0.0, 0.0)
    return Calibration(slope, float(beta[1] - beta[0] * center))
