"""Questions with gold SQL and SQLite databases, in the formats in which they are published.

``open_dataset`` recognises the format by what lies in the folder. Each format has a reader, a
subclass of ``Dataset`` in a file of its own, that yields ``Example``s.
"""

from sqlenv.dataset.base import Dataset, chosen_languages
from sqlenv.dataset.example import Example, by_database, spread
from sqlenv.dataset.formats import EMBEDDED, load_dataset, open_dataset, read_dataset
from sqlenv.dataset.language import is_language, language_tag, parse_languages

__all__ = [
    "EMBEDDED",
    "Dataset",
    "Example",
    "by_database",
    "chosen_languages",
    "is_language",
    "language_tag",
    "load_dataset",
    "open_dataset",
    "parse_languages",
    "read_dataset",
    "spread",
]
