"""SQL about generated schemas, each used for one batch: training data that cannot be memorised.

An encoder that is trained on a few hundred schemas knows which words go with the columns of those,
and takes other columns for each other. Here every schema is new, made of the lexicons' concepts
(`sqlenv/embedded/`), and a part of its names is invented.
"""

import random
from collections.abc import Iterable, Sequence

from encoder.batches import Entry
from sqlenv.embedded.fresh import FreshQuestions

QUERIES = 8  # about one schema
INVENTED, WEIGHTS = (0.0, 0.3), (3, 1)  # shares of invented names of a schema
LARGEST = 6  # tables of a schema


class FreshEntries:
    """Draws entries about new schemas.

    Args:
        langs: the languages of the questions.
        excluded: SQL that no entry may have.
    """

    def __init__(self, langs: Sequence[str], excluded: Iterable[str] = ()):
        self.questions = FreshQuestions(tuple(langs), excluded)

    def draw(self, count: int, languages: int, rng: random.Random) -> list[Entry]:
        """`count` entries, each with questions in this many languages."""
        entries = []
        while len(entries) < count:
            (invented,) = rng.choices(INVENTED, WEIGHTS)
            schema, drawn = self.questions.translated(
                rng, QUERIES, languages, invented=invented, largest=LARGEST
            )
            name = f"schema {len(entries) // QUERIES}"
            entries += [Entry(sql, name, schema, tuple(texts.items())) for sql, texts in drawn]
        return entries[:count]
