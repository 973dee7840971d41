"""Contrastive question-SQL encoder: says how well a SQL query fits a question in any language."""

from encoder.model import ContrastiveEncoder
from encoder.reward import SemanticReward

__all__ = ["ContrastiveEncoder", "SemanticReward"]
