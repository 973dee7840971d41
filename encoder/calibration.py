"""What a cosine means: held-out pairs turn it into a decision (threshold) and a score in [0, 1].

Cosines of different encoders live on different scales: right pairs may sit at 0.9 for one and at
0.5 for another. So every trained encoder is shown held-out questions with their gold SQL (right)
and with another SQL of the same database (wrong), and remembers where the two part.
"""

import random
from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Pair(Protocol):
    """A question with its SQL text; `encoder.train.TrainingPair` is one."""

    question: str
    sql: str
    lang: str
    db_id: str


@dataclass(frozen=True)
class Calibration:
    """Cosines that give a similarity its meaning."""

    threshold: float  # above it, the SQL counts as right (the metric "semantic")
    low: float  # median cosine of wrong pairs: score 0
    high: float  # median cosine of right pairs: score 1
    balanced_accuracy: float  # of the threshold, on the pairs that it was chosen on

    def score(self, cosines: Tensor) -> Tensor:
        """Maps cosines, float[N], linearly from [low, high] to [0, 1] and clips them.

        With low 0.2 and high 0.6, a cosine of 0.5 scores 0.75. An encoder whose right pairs are
        no closer than its wrong ones scores 0 up to `low` and 1 above it.
        """
        return ((cosines - self.low) / max(self.high - self.low, 1e-6)).clamp(0.0, 1.0)


def fit_calibration(right: Tensor, wrong: Tensor) -> Calibration:
    """Calibrates on the cosines of right pairs, float[N], and of wrong pairs, float[M].

    The threshold maximises (share of right above it + share of wrong below it) / 2 and lies
    midway between two neighbouring cosines. Right [0.5, 0.6, 0.9] and wrong [0.1, 0.3, 0.55] give
    a threshold of 0.4 (accuracy (3/3 + 2/3) / 2; the first of equally good ones), low 0.3, high
    0.6. Raises ValueError without at least one of each.
    """
    if len(right) == 0 or len(wrong) == 0:
        raise ValueError("calibration needs right and wrong pairs")
    right, wrong = right.double().sort().values, wrong.double().sort().values
    values = torch.cat([right, wrong]).unique()  # (V,) ascending
    cuts = torch.cat([values[:1] - 1e-3, (values[1:] + values[:-1]) / 2])  # (V,)
    above = 1 - torch.searchsorted(right, cuts) / len(right)  # (V,) share of right above each cut
    below = torch.searchsorted(wrong, cuts) / len(wrong)  # (V,) share of wrong below each cut
    accuracy = (above + below) / 2
    best = int(accuracy.argmax())
    return Calibration(threshold=float(cuts[best]), low=float(wrong.median()),
                       high=float(right.median()), balanced_accuracy=float(accuracy[best]))


def candidate_cosines(encoder, pairs: list[Pair], sqls: dict[str, list[str]], count: int,
                      seed: int) -> Tensor:
    """Cosine of each question with its gold SQL and with random other SQLs of its database.

    Args:
        encoder: a ContrastiveEncoder.
        pairs: N questions with gold SQL, of databases that have at least two SQLs.
        sqls: the distinct SQL texts of each database.
        count: candidates a question, gold included; a small database may offer fewer.
        seed: draws the candidates.
    Returns:
        float32[N, count] on the CPU: gold in column 0, missing candidates -inf.
    """
    rng = random.Random(seed)
    row = {sql: i for i, sql in enumerate(dict.fromkeys(s for texts in sqls.values()
                                                        for s in texts))}
    chosen = torch.full((len(pairs), count), -1)  # (N, C) rows of the SQL embeddings
    for n, pair in enumerate(pairs):
        others = [sql for sql in sqls[pair.db_id] if sql != pair.sql]
        texts = [pair.sql] + rng.sample(others, min(count - 1, len(others)))
        chosen[n, : len(texts)] = torch.tensor([row[sql] for sql in texts])
    questions = encoder.embed([pair.question for pair in pairs], "query").cpu()  # (N, D)
    candidates = encoder.embed(list(row), "sql").cpu()  # (S, D)
    cosines = (questions @ candidates.T).gather(1, chosen.clamp_min(0))  # (N, C)
    return cosines.masked_fill(chosen < 0, float("-inf"))


def retrieval_report(cosines: Tensor, langs: list[str]) -> dict[str, dict[str, float]]:
    """Shares of questions by language and under "all", from `candidate_cosines`, float[N, C].

    "recall@1": gold beats all other candidates; "pair": gold beats one random other SQL; "n".
    """
    won = torch.stack([cosines[:, 0] > cosines[:, 1:].max(dim=1).values,
                       cosines[:, 0] > cosines[:, 1]], dim=1).double()  # (N, 2)
    rows = defaultdict(list)
    for n, lang in enumerate(langs):
        rows[lang].append(n)
        rows["all"].append(n)
    return {lang: {"recall@1": float(won[picked, 0].mean()), "pair": float(won[picked, 1].mean()),
                   "n": len(picked)} for lang, picked in sorted(rows.items())}
