"""Symmetric InfoNCE: pull a question towards its own SQL, push it from the rest of the batch.

Each question classifies which SQL of the batch is its own, and each SQL which question. The other
SQLs of the batch are the negatives, so nothing has to be sampled. Two pairs of one batch may have
the same SQL (the same question in two languages, say): those are right answers, so they are
masked and serve neither as a negative nor as a target.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_logits(questions: Tensor, sqls: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """`scale` * cosine of every question with every SQL, other right answers set to -inf.

    Args:
        questions, sqls: float[B, D], L2-normalised; row i of both is pair i.
        scale: float scalar, the inverse temperature.
        positives: bool[B, B], symmetric: True where pairs i and j have the same SQL.
    Returns:
        float32[B, B].
    Raises:
        ValueError: the shapes do not fit together.
    """
    size = len(questions)
    if questions.shape != sqls.shape or positives.shape != (size, size):
        raise ValueError(f"questions {tuple(questions.shape)}, sqls {tuple(sqls.shape)} and "
                         f"positives {tuple(positives.shape)} are not [B, D], [B, D] and [B, B]")
    logits = scale * (questions @ sqls.T).float()  # (B, B)
    own = torch.eye(size, dtype=torch.bool, device=logits.device)
    return logits.masked_fill(positives & ~own, float("-inf"))


def info_nce(questions: Tensor, sqls: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """Mean of the question-to-SQL and the SQL-to-question cross-entropy; a float32 scalar.

    Arguments and errors are those of `masked_logits`. InfoNCE is eq. 4 of van den Oord et al. 2018
    (arXiv 1807.03748), its symmetric form figure 3 of CLIP (Radford et al. 2021, arXiv 2103.00020).

    Two pairs, cosines [[1, 0], [0.6, 0.8]], scale 1, all SQLs different:
        question to SQL: ln(1 + e^-1)   = 0.31326 and ln(1 + e^-0.2) = 0.59814, mean 0.45570
        SQL to question: ln(1 + e^-0.4) = 0.51302 and ln(1 + e^-0.8) = 0.37110, mean 0.44206
        loss = (0.45570 + 0.44206) / 2 = 0.44888

    Three pairs, cosines the identity, scale 1, and pairs 0 and 1 have the same SQL:
        rows 0 and 1 keep two answers (own 1, other 0): ln(1 + e^-1)     = 0.31326
        row 2 keeps all three:                          ln(1 + 2 * e^-1) = 0.55144
        both directions are alike: loss = (2 * 0.31326 + 0.55144) / 3 = 0.39266
        (without the mask every row would cost 0.55144)
    """
    logits = masked_logits(questions, sqls, scale, positives)  # (B, B)
    own = torch.arange(len(logits), device=logits.device)  # (B,)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def same_sql(sqls: list[str], device: torch.device) -> Tensor:
    """bool[B, B]: True where two texts of a batch are equal, the `positives` of `info_nce`."""
    number = {sql: i for i, sql in enumerate(sqls)}
    ids = torch.tensor([number[sql] for sql in sqls], device=device)  # (B,)
    return ids[:, None] == ids[None, :]
