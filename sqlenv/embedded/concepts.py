"""The concepts of which schemas are generated (concepts.toml), and their nouns in each language
(words/LANG.toml).
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
# The parts of a noun in a words file, separated by " | ": of tables, and of columns.
PARTS = {
    "en": (("sg", "pl"), ("sg", "pl")),
    "de": (("sg", "gen", "pl", "gender"), ("sg", "gen", "pl", "gender")),  # weak nouns: and "obl"
    "es": (("sg", "pl", "gender"), ("sg", "pl", "gender")),
    "fr": (("sg", "pl", "gender"), ("sg", "pl", "gender")),
    "ja": (("n", "counter"), ("n",)),
    "vi": (("n", "sg"), ("n",)),
    "zh": (("n", "m"), ("n", "m")),
}


@dataclass(frozen=True)
class ColumnConcept:
    """A property of things.

    Attributes:
        kind: how its values are drawn, see concepts.toml.
        names: identifiers for it in lower snake_case, the usual one first.
    """

    kind: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class TableConcept:
    """A kind of thing that a table has rows of.

    Attributes:
        names: identifiers for it in lower snake_case and the singular, the usual one first.
        columns: its properties, keys of the column concepts.
        refs: tables of its domain that it has foreign keys to.
        person: whether the things are people.
    """

    names: tuple[str, ...]
    columns: tuple[str, ...]
    refs: tuple[str, ...]
    person: bool = False


def load_concepts() -> tuple[dict[str, ColumnConcept], dict[str, dict[str, TableConcept]]]:
    """The column concepts by key, and the table concepts by domain and key."""
    text = tomllib.loads((HERE / "concepts.toml").read_text(encoding="utf-8"))
    columns = {
        key: ColumnConcept(entry["kind"], tuple(entry["names"]))
        for key, entry in text["columns"].items()
    }
    tables = {
        domain: {
            key: TableConcept(
                tuple(entry["names"]),
                tuple(entry["columns"]),
                tuple(entry["refs"]),
                entry.get("person", False),
            )
            for key, entry in concepts.items()
        }
        for domain, concepts in text["tables"].items()
    }
    return columns, tables


def load_words(lang: str) -> dict[str, dict[str, dict[str, str]]]:
    """The nouns of all concepts: ``{"tables" or "columns": {concept: {part: form}}}``. German nouns
    have the part ``obl``, the accusative and dative singular, only where it differs from ``sg``.
    """
    text = tomllib.loads((HERE / "words" / f"{lang}.toml").read_text(encoding="utf-8"))
    words = {}
    for section, parts in zip(("tables", "columns"), PARTS[lang]):
        names = (*parts, "obl") if lang == "de" else parts
        words[section] = {
            key: dict(zip(names, noun.split(" | "))) for key, noun in text[section].items()
        }
    return words
