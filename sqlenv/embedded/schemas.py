"""Schemas without end: draws a fresh schema from the concepts (concepts.toml), with identifiers in
one of many styles, and the words for it in every language.

In an *invented* schema tables and columns have made-up words for names, which stand in the question
as foreign nouns, so that a question can only be understood by comparing its words with the schema,
letter by letter.
"""

import random
from dataclasses import dataclass, replace

from sqlenv.embedded.concepts import ColumnConcept, TableConcept, load_concepts, load_words
from sqlenv.embedded.databases import Column, Table
from sqlenv.embedded.wording import WORDING
from sqlenv.text import RESERVED

SIZES = (1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 7, 8, 10, 12)  # tables of a schema
NAMES = (
    "Amber Cedar Delta Ember Falcon Granite Harbor Indigo Juniper Lotus Meadow Nova Onyx".split()
)
TAILS = "Bay Court Field Gate Hill House Lane Point Ridge Row Square Star View".split()
ONSETS = "b br c cl d dr f fl g gr h j k kl l m n p pl pr r s sk sl st t tr v w z".split()
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("", "", "l", "m", "n", "nd", "r", "rk", "t")  # none that English plurals change


@dataclass
class GeneratedSchema:
    """A schema with its words.

    Attributes:
        tables: by name, parents before children, as ``Draw`` takes them.
        words: per language what a ``Lexicon`` has for a database: the forms of each table and of
            its columns.
    """

    db: str
    tables: dict[str, Table]
    words: dict[str, dict[str, dict]]


class Style:
    """How the identifiers of one schema are written."""

    def __init__(self, rng: random.Random):
        self.rng = rng
        self.case = rng.choices(("snake", "camel", "pascal", "upper", "flat"), (6, 2, 2, 1, 1))[0]
        self.plural = rng.random() < 0.5
        self.prefix = rng.choices(("", "tbl_", "t_", "dim_"), (12, 1, 1, 1))[0]
        self.key = rng.choice(("id", "{table}_id", "{table}_id", "{table}_no", "{table}_code"))
        self.abbreviate = rng.random() < 0.15
        self.usual = rng.random() < 0.5  # the usual name of a concept, not a synonym

    def write(self, words: str) -> str:
        """``"birth_date"`` in this style; never a word that SQL reserves."""
        parts = words.split("_")
        if self.abbreviate:
            parts = [part[:1] + "".join(c for c in part[1:] if c not in "aeiou") for part in parts]
        text = {
            "snake": "_".join(parts),
            "camel": parts[0] + "".join(part.capitalize() for part in parts[1:]),
            "pascal": "".join(part.capitalize() for part in parts),
            "upper": "_".join(parts).upper(),
            "flat": "".join(parts),
        }[self.case]
        return f"{text}_" if text.lower() in {word.lower() for word in RESERVED} else text

    def choose(self, names: tuple[str, ...]) -> str:
        return names[0] if self.usual else self.rng.choice(names)

    def table(self, names: tuple[str, ...]) -> str:
        words = self.choose(names)
        return self.prefix + self.write(english_plural(words) if self.plural else words)


def english_plural(words: str) -> str:
    """The plural of an English identifier: of its last word, by the regular rules."""
    if words.endswith(("s", "x", "ch", "sh")):
        return words + "es"
    if words.endswith("y") and words[-2] not in VOWELS:
        return words[:-1] + "ies"
    return words + "s"


def invented_word(rng: random.Random) -> str:
    """A pronounceable word that no text has: one to three syllables."""
    count = rng.choices((1, 2, 3), (2, 5, 2))[0]
    text = "".join(
        rng.choice(ONSETS) + rng.choice(VOWELS) + (rng.choice(CODAS) if last else "")
        for last in [False] * (count - 1) + [True]
    )
    return text if len(text) > 2 else text + rng.choice("lmnrt")


def invented_noun(lang: str, word: str) -> dict[str, str]:
    """A made-up word as a foreign noun of the language."""
    plural = {"sg": word, "pl": f"{word}s"}
    return {
        "en": plural,
        "de": plural | {"gen": f"{word}s", "gender": "n"},
        "es": plural | {"gender": "m"},
        "fr": plural | {"gender": "m h"},
        "ja": {"n": word, "counter": "個"},
        "vi": {"n": word, "sg": word},
        "zh": {"n": word, "m": "个"},
    }[lang]


class SchemaGenerator:
    """Draws schemas. Loads the concepts and their nouns once.

    Args:
        langs: the languages that words are made for.
    """

    def __init__(self, langs: tuple[str, ...]):
        self.columns, self.domains = load_concepts()
        self.langs, self.nouns = langs, {lang: load_words(lang) for lang in langs}

    def draw(self, db: str, rng: random.Random, *, invented: float = 0.0) -> GeneratedSchema:
        """A schema called ``db``; the same generator state gives the same schema.

        Args:
            invented: share of its tables and columns that have invented names.
        """
        concepts = self._choose_tables(rng)
        style = Style(rng)
        schema = GeneratedSchema(db, {}, {lang: {} for lang in self.langs})
        keys: dict[str, str] = {}  # table concept -> name of its table
        for key, concept in concepts.items():
            word = invented_word(rng) if rng.random() < invented else None
            names = (word,) if word else concept.names
            name = style.table(names)
            while name.lower() in {other.lower() for other in schema.tables}:
                name += rng.choice("23456789")
            keys[key] = name
            self._add_table(schema, name, key, word, concept, concepts, keys, style, invented)
        return schema

    def _choose_tables(self, rng: random.Random) -> dict[str, TableConcept]:
        """Tables of one domain, or of two, parents before children: a table's parents come along
        while there is room.
        """
        size = rng.choice(SIZES)
        domains = rng.sample(list(self.domains), 1 if size <= 8 and rng.random() < 0.7 else 2)
        pool = {key: table for domain in domains for key, table in self.domains[domain].items()}
        chosen: dict[str, TableConcept] = {}

        def add(key: str) -> None:
            for parent in pool[key].refs:
                if parent not in chosen and len(chosen) + 1 < size:
                    add(parent)
            if key not in chosen and len(chosen) < size:
                chosen[key] = pool[key]

        for key in rng.sample(list(pool), len(pool)):
            add(key)
        return chosen

    def _add_table(
        self, schema, name, key, word, concept, concepts, keys, style: Style, invented: float
    ) -> None:
        rng = style.rng
        short = style.choose(concept.names) if word is None else word
        table = Table(schema.db, name, rng.randint(12, 120))
        id_name = style.write(style.key.format(table=short))
        table.columns.append(Column(id_name, "id", "", False, False))
        for lang in self.langs:
            noun = self.nouns[lang]["tables"][key] if word is None else invented_noun(lang, word)
            schema.words[lang][name] = dict(WORDING[lang][0]("table", noun, concept.person))
        # Forms and columns of a table share a dictionary, so no column may be called like a form.
        used = {
            id_name.lower(),
            *(form for lang in self.langs for form in schema.words[lang][name]),
        }
        for parent in concept.refs:
            if parent in keys and parent in concepts:
                self._add_reference(schema, table, schema.tables[keys[parent]], used)
        self._add_columns(schema, table, concept, style, invented, used)
        schema.tables[name] = table

    def _add_reference(self, schema, table: Table, parent: Table, used: set[str]) -> None:
        """A foreign key, called like the key of its parent, unless that says only "id"."""
        name = parent.key
        if name.lower() in used or len(name) < 4:
            name = f"{parent.name}_{parent.key}"
        if name.lower() in used:
            return
        used.add(name.lower())
        table.columns.append(Column(name, "ref", parent.name, False, False))
        for lang in self.langs:
            forms = WORDING[lang][1](schema.words[lang][parent.name])
            schema.words[lang][table.name][name] = forms

    def _add_columns(
        self, schema, table: Table, concept: TableConcept, style: Style, invented, used: set[str]
    ) -> None:
        rng = style.rng
        labels = [key for key in concept.columns if self.columns[key].kind in ("name", "person")]
        others = [key for key in concept.columns if key not in labels]
        count = rng.randint(min(3, len(others)), len(others))
        for key in [*labels, *rng.sample(others, count)]:
            drawn = self.columns[key]
            word = invented_word(rng) if rng.random() < invented and key not in labels else None
            name = style.write(style.choose(drawn.names) if word is None else word)
            if name.lower() in used:
                continue
            used.add(name.lower())
            column = make_column(name, drawn, concept.person and key == "name", rng)
            table.columns.append(column)
            for lang in self.langs:
                nouns = self.nouns[lang]["columns"]
                noun = nouns[key] if word is None else invented_noun(lang, word)
                forms = WORDING[lang][0]("column", noun, column.role)
                schema.words[lang][table.name][name] = forms


def make_column(name: str, concept: ColumnConcept, person: bool, rng: random.Random) -> Column:
    """The column of a concept, in the kinds of databases.toml; every eighth can be NULL."""
    kind, _, args = concept.kind.removesuffix(" +").partition(" ")
    additive, nullable = concept.kind.endswith(" +"), rng.random() < 0.12
    if kind == "person" or person:
        return Column(name, "person", "", False, False)
    if kind == "name":
        return Column(name, "combine", f"{'|'.join(NAMES)} + {'|'.join(TAILS)}", False, False)
    column = Column(name, kind, args, nullable, additive)
    if kind == "year":
        return replace(column, kind="int")
    if kind in ("int", "real"):
        low, high = (float(text) for text in args.split())
        scale = 1 if high - low >= 2 else 10  # a narrow range would have two values only
        low, high = round(low * scale), max(round(high * scale), 3)
        if high > 1000:  # drawn on a logarithmic scale
            low = max(low, 1)
        return replace(column, args=f"{low} {high}")
    return column
