"""Symmetric InfoNCE with hard negatives.

Each question is classified among the SQL texts of the batch, hard negatives included; its own gold
SQL is the positive. Each gold SQL is classified among the questions. Several questions may have the
same SQL, for instance one in each language. All of them are right answers, so in classifying one
the others are masked: they are neither negatives nor targets.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    questions: Tensor, sqls: Tensor, *, scale: Tensor, positives: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean of the question-to-SQL and the SQL-to-question cross-entropy.

    Args:
        questions: float[N, D], L2-normalised.
        sqls: float[M, D], L2-normalised, of different texts; those that are no question's positive
            are hard negatives.
        scale: float scalar, the inverse temperature.
        positives: int64[N], the row of `sqls` with the question's own SQL.
    Returns:
        The loss, a float32 scalar, and bool[N]: whether the question's own SQL is the closest.
    Raises:
        ValueError: the shapes do not fit together.

    InfoNCE is eq. 4 of van den Oord et al. 2018 (arXiv 1807.03748), its symmetric form figure 3 of
    CLIP (Radford et al. 2021, arXiv 2103.00020).

    Two questions, cosines [[1, 0], [0.6, 0.8]], scale 1, each with its own SQL:
        question to SQL: ln(1 + e^-1)   = 0.31326 and ln(1 + e^-0.2) = 0.59814, mean 0.45570
        SQL to question: ln(1 + e^-0.4) = 0.51302 and ln(1 + e^-0.8) = 0.37110, mean 0.44206
        loss = (0.45570 + 0.44206) / 2 = 0.44888

    The same with a hard negative of cosines [0.5, 0.5]:
        question to SQL: ln(1 + e^-1 + e^-0.5) = 0.68027 and ln(1 + e^-0.2 + e^-0.3) = 0.93983,
        mean 0.81005; SQL to question as before; loss = (0.81005 + 0.44206) / 2 = 0.62606

    Three questions, the first two of the same SQL, cosines [[1, 0], [1, 0], [0, 1]], scale 1:
        question to SQL: three times ln(1 + e^-1) = 0.31326
        SQL to question: the first two do not compete with each other, ln(1 + e^-1) = 0.31326 each;
        the third competes with both, ln(1 + 2 * e^-1) = 0.55144; mean 0.39266
        loss = (0.31326 + 0.39266) / 2 = 0.35296
    """
    if positives.shape != (len(questions),):
        raise ValueError(
            f"questions {tuple(questions.shape)} and positives {tuple(positives.shape)} are not "
            "[N, D] and [N]"
        )
    logits = scale * (questions @ sqls.T).float()  # (N, M)
    rows = torch.arange(len(positives), device=positives.device)  # (N,)
    # Row n: question n's SQL against all questions, without the other questions of that SQL.
    is_other = (positives[:, None] == positives) & (rows[:, None] != rows)  # (N, N)
    to_question = logits[:, positives].T.masked_fill(is_other, float("-inf"))  # (N, N)
    loss = (F.cross_entropy(logits, positives) + F.cross_entropy(to_question, rows)) / 2
    return loss, logits.argmax(dim=1) == positives
