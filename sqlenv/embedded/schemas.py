"""Schemas without end: draws a fresh schema from the sources (sources.py), with identifiers in one
of many styles, and the words for it in every language.

In an *invented* schema tables and columns have made-up words for names, which stand in the question
as foreign nouns, so that a question can only be understood by comparing its words with the schema,
letter by letter.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from sqlenv.embedded.databases import Column, Table
from sqlenv.embedded.sources import FLAG, SourceColumn, SourceTable, load_sources
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
        self.case = rng.choices(("snake", "camel", "pascal", "upper", "flat"), (12, 4, 4, 2, 1))[0]
        self.plural = rng.random() < 0.5
        self.prefix = rng.choices(("", "tbl_", "t_", "dim_"), (12, 1, 1, 1))[0]
        self.key = rng.choice(("id", "{table}_id", "{table}_id", "{table}_no", "{table}_code"))
        self.abbreviate = rng.random() < 0.05
        self.usual = rng.random() < 0.5  # the usual name of a concept, not a synonym
        self.qualify = rng.random() < 0.1  # the table's name in its columns' names

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

    def table(self, words: str) -> str:
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


def invented_values(rng: random.Random, count: int) -> list[str]:
    """Different invented texts for a column, written alike: one or two words, in one case."""
    write = rng.choice((str.capitalize, str.capitalize, str.lower, str.upper, str.title))
    longest = rng.choice((1, 1, 2))
    values: dict[str, None] = {}
    while len(values) < count:
        words = [invented_word(rng) for _ in range(rng.randint(1, longest))]
        values[write(" ".join(words))] = None
    return list(values)


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
    """Draws schemas. Loads the sources once.

    Args:
        langs: the languages that words are made for.
        invent: draws an invented word.
    """

    def __init__(
        self, langs: tuple[str, ...], invent: Callable[[random.Random], str] = invented_word
    ):
        self.langs, self.invent, self.domains = langs, invent, load_sources(langs)

    def draw(
        self, db: str, rng: random.Random, *, invented: float = 0.0, largest: int = 12
    ) -> GeneratedSchema:
        """A schema called ``db``; the same generator state gives the same schema.

        Args:
            invented: share of its tables, columns and columns' values that are invented words.
            largest: the most tables that it may have.
        """
        return SchemaDraw(self, db, rng, invented).draw(largest)


class SchemaDraw:
    """The state of drawing one schema."""

    def __init__(self, generator: SchemaGenerator, db: str, rng: random.Random, invented: float):
        self.langs, self.domains = generator.langs, generator.domains
        self.invent = generator.invent
        self.rng, self.invented, self.style = rng, invented, Style(rng)
        self.schema = GeneratedSchema(db, {}, {lang: {} for lang in self.langs})
        self.names: dict[str, str] = {}  # source -> name of its table
        self.renamed: set[str] = set()  # tables with an invented name

    def draw(self, largest: int) -> GeneratedSchema:
        for source, table in self._choose(min(self.rng.choice(SIZES), largest)).items():
            self._add_table(source, table)
        return self.schema

    def _choose(self, size: int) -> dict[str, SourceTable]:
        """Tables of one domain, or of two, parents before children: a table's parents come along
        while there is room.
        """
        count = 1 if size <= 8 and self.rng.random() < 0.7 else 2
        domains = self.rng.sample(list(self.domains), count)
        pool = {key: table for domain in domains for key, table in self.domains[domain].items()}
        chosen: dict[str, SourceTable] = {}

        def add(key: str) -> None:
            for parent, _ in pool[key].references:
                if parent not in chosen and len(chosen) + 1 < size:
                    add(parent)
            if key not in chosen and len(chosen) < size:
                chosen[key] = pool[key]

        for key in self.rng.sample(list(pool), len(pool)):
            add(key)
        return chosen

    def _new_word(self) -> str | None:
        """An invented word for the next table or column, if it gets one."""
        return self.invent(self.rng) if self.rng.random() < self.invented else None

    def _words(self, section: str, word: str, kind) -> dict[str, dict]:
        """The forms of an invented word."""
        return {
            lang: WORDING[lang][0](section, invented_noun(lang, word), kind) for lang in self.langs
        }

    def _add_table(self, source: str, drawn: SourceTable) -> None:
        rng, style, word = self.rng, self.style, self._new_word()
        short = word or style.choose(drawn.names)
        name = style.table(short)
        while name.lower() in {other.lower() for other in self.schema.tables}:
            name += rng.choice("23456789")
        self.names[source] = name
        if word:
            self.renamed.add(name)
        words = self._words("table", word, drawn.person) if word else drawn.words
        for lang in self.langs:
            self.schema.words[lang][name] = dict(words[lang])
        table = Table(self.schema.db, name, rng.randint(12, 120))
        key = style.write(style.key.format(table=short))
        table.columns.append(Column(key, "id", "", False, False))
        # Forms and columns of a table share a dictionary, so no column may be called like a form.
        used = {key.lower(), *(form for lang in self.langs for form in words[lang])}
        for parent, own_words in drawn.references:
            if parent in self.names:
                self._add_reference(table, self.schema.tables[self.names[parent]], own_words, used)
        labels = [column for column in drawn.columns if column.is_label]
        others = [column for column in drawn.columns if not column.is_label]
        count = rng.randint(min(3, len(others)), len(others))
        for column in [*labels, *rng.sample(others, count)]:
            self._add_column(table, column, short, used)
        for column in table.columns:
            if column.kind == "combine":  # its values are unique
                heads, tails = column.args.split(" + ")
                combinations = (heads.count("|") + 1) * (tails.count("|") + 1)
                table.size = min(table.size, combinations)
        self.schema.tables[name] = table

    def _add_reference(self, table: Table, parent: Table, own_words: dict, used: set[str]) -> None:
        """A foreign key, called like the key of its parent, unless that says only "id"."""
        name = parent.key
        if name.lower() in used or len(name) < 4:
            name = f"{parent.name}_{parent.key}"
        if name.lower() in used:
            return
        used.add(name.lower())
        table.columns.append(Column(name, "ref", parent.name, False, False))
        for lang in self.langs:
            parent_words = self.schema.words[lang][parent.name]
            # "written by authors" speaks of authors: not if they have an invented name here.
            own = own_words.get(lang) if parent.name not in self.renamed else None
            self.schema.words[lang][table.name][name] = own or WORDING[lang][1](parent_words)

    def _add_column(self, table: Table, drawn: SourceColumn, short: str, used: set[str]) -> None:
        word = None if drawn.is_label else self._new_word()
        text = word or self.style.choose(drawn.names)
        name = self.style.write(f"{short}_{text}" if self.style.qualify else text)
        if name.lower() in used:
            return
        used.add(name.lower())
        kind = drawn.kind
        has_word = all("null" in drawn.words[lang] for lang in self.langs)
        if has_word and not drawn.is_label and self.rng.random() < 0.12:
            kind = kind.removesuffix(" ?") + " ?"
        column = make_column(name, kind, self.rng, invented=self.rng.random() < self.invented)
        table.columns.append(column)
        role = "flag" if f"{column.kind} {column.args}" == FLAG else column.role
        words = self._words("column", word, role) if word else drawn.words
        for lang in self.langs:
            self.schema.words[lang][table.name][name] = words[lang]


def make_column(name: str, kind: str, rng: random.Random, *, invented: bool) -> Column:
    """A column with values of a kind, sometimes with NULL.

    Args:
        invented: text values are invented words, but for codes and answers of yes or no.
    """
    kind, nullable = kind.removesuffix(" ?"), kind.endswith(" ?")
    additive = kind.endswith(" +")
    kind, _, args = kind.removesuffix(" +").partition(" ")
    if kind in ("name", "combine", "person"):
        if invented:
            heads, tails = invented_values(rng, 14), invented_values(rng, 13)
            args, kind = f"{'|'.join(heads)} + {'|'.join(tails)}", "combine"
        elif kind == "name":
            args, kind = f"{'|'.join(NAMES)} + {'|'.join(TAILS)}", "combine"
        return Column(name, kind, args, False, False)
    if kind == "choice" and invented and f"{kind} {args}" != FLAG:
        args = "|".join(invented_values(rng, rng.randint(3, 8)))
    elif kind in ("int", "real"):
        low, high = (float(text) for text in args.split())
        scale = 1 if high - low >= 2 else 10  # a narrow range would have two values only
        low, high = round(low * scale), max(round(high * scale), 3)
        args = f"{max(low, 1) if high > 1000 else low} {high}"  # large: on a logarithmic scale
    return Column(name, "int" if kind == "year" else kind, args, nullable, additive)
