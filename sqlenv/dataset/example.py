"""A question with its database and gold SQL."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Example:
    """A question in one language, with its database and the gold SQL that answers it.

    Attributes:
        lang: a BCP 47 tag, such as "pt-BR".
        gold_sql: "" where the dataset has none, see ``open_dataset``.
        db_path: made absolute, so that results that are kept by it stay right after ``chdir``.
        part: of its split, where the dataset names parts: results are also reported by part.
        evidence: a hint at what the words of the question mean in the database, as BIRD has it.
        difficulty: the dataset's own level, as BIRD has it: results are also reported by level.
        descriptions: ``"table.column"`` -> what the column holds, as BIRD has it; the examples of a
            database share it.
    """

    question: str
    lang: str
    db_id: str
    gold_sql: str
    db_path: Path
    part: str = ""
    evidence: str = ""
    difficulty: str = ""
    descriptions: dict[str, str] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "db_path", Path(self.db_path).absolute())


def by_database(examples: Iterable) -> dict[str, list]:
    """Groups examples, or other objects with a ``db_id``, by database, in order of appearance."""
    groups: dict[str, list] = {}
    for example in examples:
        groups.setdefault(example.db_id, []).append(example)
    return groups


def spread(items: Sequence, count: int) -> list:
    """``count`` items at even distances; all of them if there are fewer, or if ``count`` is 0. Of
    questions that are sorted by database, the first ones would be about a few databases only.

    >>> spread("abcdefg", 3)
    ['a', 'c', 'e']
    """
    if not 0 < count < len(items):
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]
