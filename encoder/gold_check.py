"""Whether a semantic reward can be trusted on a dataset: what it gives to gold SQL and to the gold
SQL of other questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encoder.reward import SemanticReward
from sqlenv import Example
from sqlenv.dataset import spread

QUESTIONS = 256
TRUSTED = 0.75  # share of questions whose gold must score above another question's; chance is 0.5


@dataclass(frozen=True)
class GoldCheck:
    """Measured on ``count`` questions.

    Attributes:
        gold: mean score of gold SQL.
        other: mean score of the gold SQL of another question on the same database.
        higher: share of questions whose gold scores above that of the other.
        accepted: share of gold SQL that scores above a half: the metric ``semantic`` of gold.
    """

    count: int
    gold: float
    other: float
    higher: float
    accepted: float

    def __str__(self) -> str:
        return (
            f"gold SQL scores {self.gold:.2f}, that of another question {self.other:.2f}; gold "
            f"scores higher for {100 * self.higher:.0f} % of {self.count} questions"
        )

    @property
    def trusted(self) -> bool:
        return self.higher >= TRUSTED

    def report(self, data: str) -> str:
        """What ``train.py`` prints before it trains on the dataset ``data``."""
        if self.trusted:
            return str(self)
        return (
            f"{self}: it hardly tells right SQL from other SQL of {data}; train an encoder on it "
            "(python -m encoder.train), or drop the reward by --reward semantic=0"
        )


def check_on_gold(semantic: SemanticReward, examples: Sequence[Example]) -> GoldCheck | None:
    """Scores gold and the gold of another question, of ``QUESTIONS`` spread over all languages and
    databases; None if no two questions on the same database have different gold SQL.
    """
    pairs, examples = [], [example for example in examples if example.gold_sql]
    different: dict[Path, set[str]] = {}
    for example in examples:
        different.setdefault(example.db_path, set()).add(example.gold_sql)
    usable = [i for i, example in enumerate(examples) if len(different[example.db_path]) > 1]
    for i in spread(usable, QUESTIONS):
        example, later = examples[i], [*examples[i + 1 :], *examples[:i]]
        others = (e.gold_sql for e in later if e.db_path == example.db_path)
        pairs.append((example, next(gold for gold in others if gold != example.gold_sql)))
    if not pairs:
        return None
    questions = [example.question for example, _ in pairs]
    golds, paths = [e.gold_sql for e, _ in pairs], [e.db_path for e, _ in pairs]
    runs = [True] * len(pairs)
    right = semantic(questions, golds, golds, runs, paths)
    wrong = semantic(questions, golds, [other for _, other in pairs], runs, paths)
    higher = sum((r > w) + (r == w) / 2 for r, w in zip(right, wrong))
    accepted = sum(score > 0.5 for score in right)
    sums = sum(right), sum(wrong), higher, accepted
    return GoldCheck(len(pairs), *(value / len(pairs) for value in sums))
