"""The contrastive encoder and the semantic reward.

`ContrastiveEncoder` embeds questions in any language and SQL in one vector space; the cosine of the
two says how well the SQL fits the question. `SemanticReward` turns that cosine into a reward.
`python -m encoder.train` trains an encoder, `python -m encoder.evaluate` measures one.
The folder does not depend on GRPO: `grpo` imports it, never the other way round.
"""

from encoder.model import ContrastiveEncoder
from encoder.reward import SemanticReward

__all__ = ["ContrastiveEncoder", "SemanticReward"]
