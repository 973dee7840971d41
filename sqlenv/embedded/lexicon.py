"""Writes a question in one language: fills a template of its shape with nouns and predicates.

A lexicon file has the templates of each shape, the noun forms of each table and column, and for
each column the predicates of conditions (lexicon/en.toml explains the format). Conditions can be
nested: "were written by authors who {a}" contains a condition on authors.
"""

import random
import re
import tomllib
from pathlib import Path

from sqlenv.embedded.draw import Condition, Question, Superlative

HERE = Path(__file__).resolve().parent


class Forms(str):
    """A phrase with further forms as attributes, ``f"{noun.pl}"``; as a string its base form."""

    def __new__(cls, forms: dict[str, str] | str):
        base = forms if isinstance(forms, str) else forms.get("base", "")
        phrase = super().__new__(cls, base)
        if isinstance(forms, dict):
            phrase.__dict__.update(forms)
        return phrase


class Lexicon:
    """The words of one language."""

    def __init__(self, lang: str):
        text = (HERE / "lexicon" / f"{lang}.toml").read_text(encoding="utf-8")
        self.entries = tomllib.loads(text)
        self.templates = self.entries.pop("templates")
        self.words = self.entries.pop("words")

    def phrase(self, question: Question, rng: random.Random) -> str:
        """The question in this language; ``rng`` chooses one of the templates of its shape."""
        slots = {name: self._slot(question.db, value) for name, value in question.slots.items()}
        text = rng.choice(self.templates[question.shape]).format(**slots)
        # In some languages a relative clause ends with a comma, which is dropped before other
        # punctuation.
        text = re.sub(r"(?:\s*,)+\s*([?.,:;!])", r"\1", text)
        for wrong, right in self.words.get("contractions", {}).items():
            text = text.replace(wrong, right)
        return re.sub(r"[^\W\d_]", lambda letter: letter[0].upper(), text, count=1)

    def _slot(self, db: str, value) -> Forms | str:
        """The text for a slot: a condition, a superlative, a table, a column or a literal."""
        if isinstance(value, Condition):
            return self._condition(db, value)
        if isinstance(value, Superlative):
            return Forms(self.entries[db][value.table][value.column][value.key])
        if isinstance(value, tuple):  # (table,) or (table, column)
            entry = self.entries[db]
            for name in value:
                entry = entry[name]
            return Forms({form: text for form, text in entry.items() if isinstance(text, str)})
        return str(value)

    def _join_by_or(self, values: list[str]) -> str:
        """The values joined by "or", which in Spanish is "u" before an o."""
        text = values[0]
        for value in values[1:]:
            before_o = value[0] in "oO" and "or_before_o" in self.words
            text += self.words["or_before_o" if before_o else "or"] + value
        return text

    def _condition(self, db: str, condition: Condition) -> Forms:
        """The predicate of a condition in all its forms."""
        entry = self.entries[db][condition.table][condition.column][condition.key]
        values = [str(value) for value in condition.values]
        slots = dict(zip("vw", [self._join_by_or(values)] if condition.key == "eq" else values))
        if condition.inner:
            slots["a"] = self._condition(db, condition.inner)
        if isinstance(entry, str):
            return Forms(entry.format(**slots))
        return Forms({form: text.format(**slots) for form, text in entry.items()})
