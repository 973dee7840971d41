"""What a cosine means: held-out pairs turn it into a probability that the SQL is right.

Cosines of different encoders live on different scales: right pairs may sit at 0.9 for one and at
0.5 for another. So every trained encoder is shown held-out questions with their gold SQL (right)
and with near misses and other SQLs of the database (wrong), and a logistic curve is fitted to
them (Platt scaling, Platt 1999).
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """P(right | cosine) = sigmoid(slope * cosine + bias), right and wrong being equally likely."""

    slope: float
    bias: float

    def score(self, cosines: Tensor) -> Tensor:
        """Cosines, float[N] -> probabilities, float[N] in [0, 1].

        With slope 10 and bias -5, a cosine of 0.5 scores 0.5 and one of 0.7 sigmoid(2) = 0.881.
        """
        return torch.sigmoid(self.slope * cosines + self.bias)


def fit_calibration(right: Tensor, wrong: Tensor) -> Calibration:
    """Fits the curve to cosines of right pairs, float[N], and of wrong pairs, float[M].

    Both count alike, however many there are. The log-likelihood is maximised by Newton's method,
    with a slight pull of the slope to 0 that keeps it finite where the two do not overlap. An
    encoder that puts wrong pairs closer than right ones gets slope 0 and scores 0.5 throughout.
    Right [0.8] and wrong [0.2] give a curve through 0.5 at 0.5, their middle.

    Raises:
        ValueError: there is no pair of one of the kinds.
    """
    if len(right) == 0 or len(wrong) == 0:
        raise ValueError("calibration needs right and wrong pairs")
    x = torch.cat([right, wrong]).double()  # (N + M,)
    y = torch.cat([torch.ones(len(right)), torch.zeros(len(wrong))]).double()
    weight = torch.where(y > 0, 0.5 / len(right), 0.5 / len(wrong))  # (N + M,), sum 1
    center = (x * weight).sum()
    features = torch.stack([x - center, torch.ones_like(x)], dim=1)  # (N + M, 2)
    pull = torch.tensor([1e-4, 0.0], dtype=torch.double)
    beta = torch.zeros(2, dtype=torch.double)
    for _ in range(100):
        p = torch.sigmoid(features @ beta)
        gradient = features.T @ (weight * (p - y)) + pull * beta  # (2,)
        curvature = (
            features.T @ (features * (weight * p * (1 - p))[:, None]) + pull.diag()
        )  # (2, 2)
        step = torch.linalg.solve(curvature + 1e-12 * torch.eye(2, dtype=torch.double), gradient)
        beta -= step.clamp(-5, 5)
        if step.abs().max() < 1e-9:
            break
    slope = float(beta[0])
    if slope <= 0:
        return Calibration(0.0, 0.0)
    return Calibration(slope, float(beta[1] - beta[0] * center))
