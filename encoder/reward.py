"""The semantic reward: how well SQL means what was asked, a number in [0, 1].

Only the query is looked at, in one way of writing (`text.py`): no comment, alias or prose around it
can please the encoder. SQL too long to be read to its end scores 0, for what is cut off could
change everything; so does SQL that does not run, since nothing was said about its meaning.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from encoder.model import ContrastiveEncoder
from encoder.text import sql_text
from sqlenv import UserError, load_schema

TARGETS = ("question", "gold", "both")
CACHED = 20_000  # embeddings kept, about 10 MB at 128 numbers each


class SemanticReward:
    """Scores SQL against questions, gold queries, or both.

    Args:
        encoder: a trained ContrastiveEncoder.
        target: what the SQL is compared with: the question (the paper's reward), the gold SQL, or
            both (the mean of the two cosines).
        calibrated: give the probability that the SQL is right, as fitted to held-out pairs;
            otherwise the cosine itself, 0 where it is below.
        gated: SQL that does not run scores 0.
    Raises:
        UserError: the encoder was never trained, hence not calibrated, or not for this target.
    """

    def __init__(
        self,
        encoder: ContrastiveEncoder,
        target: str = "question",
        calibrated: bool = True,
        gated: bool = True,
    ):
        if calibrated and target not in encoder.calibrations:
            raise UserError(
                f"this encoder is not calibrated for target {target!r}: train it with "
                "python -m encoder.train"
            )
        self.encoder, self.target = encoder, target
        self.calibrated, self.gated = calibrated, gated
        self.embeddings: dict[tuple[str, str], Tensor] = {}

    def __call__(
        self,
        questions: Sequence[str],
        golds: Sequence[str],
        sqls: Sequence[str | None],
        valid: Sequence[bool],
        db_paths: Sequence[Path],
    ) -> list[float]:
        """Scores N queries; None, where there is no SQL, scores 0."""
        scores = [0.0] * len(sqls)
        open_ = [
            i for i, sql in enumerate(sqls) if sql is not None and (valid[i] or not self.gated)
        ]
        schemas = [load_schema(db_paths[i]) if self.encoder.with_schema else None for i in open_]
        texts = [sql_text(sqls[i], schema) for i, schema in zip(open_, schemas)]
        fits = self.encoder.fits(texts)
        cosines = self.cosines(
            [questions[i] for i in open_],
            [sql_text(golds[i], schema) for i, schema in zip(open_, schemas)],
            [text if fit else "" for text, fit in zip(texts, fits)],
        )
        found = (
            self.encoder.calibrations[self.target].score(cosines) if self.calibrated else cosines
        )
        for i, fit, score in zip(open_, fits, found.tolist()):
            scores[i] = max(score, 0.0) if fit else 0.0
        return scores

    def cosines(self, questions: list[str], golds: list[str], sqls: list[str]) -> Tensor:
        """Cosines of SQL texts with the target, float32[N]."""
        right = self._embed(sqls, "sql")  # (N, D)
        targets = []
        if self.target != "gold":
            targets.append(self._embed(questions, "query"))
        if self.target != "question":
            targets.append(self._embed(golds, "sql"))
        return torch.stack([(left * right).sum(dim=-1) for left in targets]).mean(dim=0)

    def _embed(self, texts: list[str], kind: str) -> Tensor:
        """Embeddings, (N, D); a text that was seen lately is not embedded again."""
        missing = [text for text in dict.fromkeys(texts) if (kind, text) not in self.embeddings]
        found = self.encoder.embed(missing, kind).cpu()
        if len(self.embeddings) + len(missing) > CACHED:
            known = {
                (kind, text): self.embeddings[kind, text] for text in set(texts) - set(missing)
            }
            self.embeddings = known
        self.embeddings.update(zip(((kind, text) for text in missing), found))
        if not texts:
            return found
        return torch.stack([self.embeddings[kind, text] for text in texts])
