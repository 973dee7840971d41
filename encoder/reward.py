"""The semantic reward: how well SQL means what was asked, a number in [0, 1].

The reward depends on the query's normalised text alone (`text.py`), so comments, aliases and prose
around the query cannot raise it. SQL too long or too deeply nested to be read to its end scores 0,
since the rest could change the meaning.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from encoder.model import ContrastiveEncoder
from encoder.text import sql_text
from sqlenv import UserError, load_schema

TARGETS = ("question", "gold", "both")
SCORES = ("calibrated", "cosine")
CACHED = 20_000  # embeddings kept, about 10 MB at 128 numbers each


class SemanticReward:
    """Scores SQL against questions, gold queries, or both.

    Args:
        encoder: a trained ContrastiveEncoder.
        target: what the SQL is compared with: "question" (the paper's reward), "gold" for the gold
            SQL, or "both" for the mean of the two cosines.
        score: "calibrated" for the probability that the SQL is right, as fitted to held-out pairs;
            "cosine" for the cosine itself, or 0 if it is negative.
        gate: SQL that does not run scores 0.
    Raises:
        UserError: score is "calibrated" and the encoder is not calibrated for the target.
        ValueError: target or score is none of these words.
    """

    def __init__(
        self,
        encoder: ContrastiveEncoder,
        *,
        target: str = "question",
        score: str = "calibrated",
        gate: bool = True,
    ):
        for name, value, choices in (("target", target, TARGETS), ("score", score, SCORES)):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")
        if score == "calibrated" and target not in encoder.calibrations:
            raise UserError(
                f"--encoder: it is not calibrated for target {target!r}: train it with "
                "python -m encoder.train"
            )
        self.encoder, self.target, self.score, self.gate = encoder, target, score, gate
        self.embeddings: dict[tuple[str, str], Tensor] = {}

    def __call__(
        self,
        questions: Sequence[str],
        golds: Sequence[str],
        sqls: Sequence[str | None],
        valid: Sequence[bool],
        db_paths: Sequence[Path],
    ) -> list[float]:
        """Scores N queries.

        Args:
            questions: N questions.
            golds: their gold SQL; not looked at with target "question".
            sqls: the SQL to score; None, where there is none, scores 0.
            valid: whether the SQL runs.
            db_paths: the databases, whose schemas tell which names the SQL did not make up.
        Returns:
            N scores in [0, 1].
        """
        scores = [0.0] * len(sqls)
        scored = [
            i for i, sql in enumerate(sqls) if sql is not None and (valid[i] or not self.gate)
        ]
        as_read = partial(sql_text, with_schema=self.encoder.with_schema)
        schemas = [load_schema(db_paths[i]) for i in scored]
        texts = [as_read(sqls[i], schema) for i, schema in zip(scored, schemas)]
        fits = self.encoder.fits(texts)
        targets = [] if self.target == "question" else [golds[i] for i in scored]
        values = self.cosines(
            [questions[i] for i in scored],
            [as_read(gold, schema) for gold, schema in zip(targets, schemas)],
            [text if fit else "" for text, fit in zip(texts, fits)],
        )  # (len(scored),)
        if self.score == "calibrated":
            values = self.encoder.calibrations[self.target].score(values)
        for i, fit, value in zip(scored, fits, values.tolist()):
            scores[i] = max(value, 0.0) if fit else 0.0
        return scores

    def cosines(self, questions: list[str], golds: list[str], sqls: list[str]) -> Tensor:
        """Cosines of N SQL texts with the target, float32[N]; all SQL as `sql_text` returns it."""
        right = self._embed(sqls, "sql")  # (N, D)
        targets = []
        if self.target != "gold":
            targets.append(self._embed(questions, "query"))
        if self.target != "question":
            targets.append(self._embed(golds, "sql"))
        return torch.stack([(left * right).sum(dim=-1) for left in targets]).mean(dim=0)

    def _embed(self, texts: list[str], kind: str) -> Tensor:
        """Embeddings, (N, D); a recently embedded text is taken from the cache."""
        missing = [text for text in dict.fromkeys(texts) if (kind, text) not in self.embeddings]
        computed = self.encoder.embed(missing, kind).cpu()  # (len(missing), D)
        if len(self.embeddings) + len(missing) > CACHED:
            cached = set(texts) - set(missing)
            self.embeddings = {(kind, text): self.embeddings[kind, text] for text in cached}
        self.embeddings.update(zip(((kind, text) for text in missing), computed))
        if not texts:
            return computed
        return torch.stack([self.embeddings[kind, text] for text in texts])
