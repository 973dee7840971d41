"""Questions about fresh schemas, without end: training data of models that have to read."""

import random
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

from sqlenv.embedded.databases import fill_database
from sqlenv.embedded.draw import Draw
from sqlenv.embedded.generate import draw_questions
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.schemas import SchemaGenerator, invented_word
from sqlenv.embedded.shapes import SHAPES
from sqlenv.schema import Schema, read_schema

NAME = "fresh"  # of every database
# Forms of a table or column in the lexicons that are a noun, and those of a column that say a
# condition, with {v} and {w} for its values.
NOUNS = {"sg", "pl", "n", "np", "s", "akk", "dat", "gen", "pl_dat"}
CONDITIONS = {"eq", "gt", "ge", "lt", "between", "max", "min"}


class FreshQuestions:
    """Draws schemas with questions.

    Args:
        langs: the languages of the questions.
        excluded: SQL that no question may have.
        invent: draws an invented word.
    """

    def __init__(
        self,
        langs: tuple[str, ...],
        excluded: Iterable[str] = (),
        invent: Callable[[random.Random], str] = invented_word,
    ):
        self.langs, self.excluded = langs, frozenset(sql.lower() for sql in excluded)
        self.generator = SchemaGenerator(langs, invent)
        self.lexicons = {lang: Lexicon(lang) for lang in langs}

    def draw(
        self,
        rng: random.Random,
        count: int,
        *,
        invented: float = 0.0,
        largest: int = 12,
        shapes: Sequence[str] = tuple(SHAPES),
    ) -> tuple[Schema, list[tuple[str, str]]]:
        """A schema and ``count`` pairs (question, gold SQL), each in a random language.

        Args:
            invented, largest: as in ``SchemaGenerator.draw``.
            shapes: of the SQL.
        """
        schema, entries = self.translated(
            rng, count, 1, invented=invented, largest=largest, shapes=shapes
        )
        return schema, [(text, sql) for sql, texts in entries for text in texts.values()]

    def translated(
        self,
        rng: random.Random,
        count: int,
        languages: int,
        *,
        invented: float = 0.0,
        largest: int = 12,
        shapes: Sequence[str] = tuple(SHAPES),
    ) -> tuple[Schema, list[tuple[str, dict[str, str]]]]:
        """As ``draw``, but returns ``count`` gold queries with their questions, each in this many
        random languages: (SQL, {language: question}).
        """
        while True:
            drawn = self.generator.draw(NAME, rng, invented=invented, largest=largest)
            for lang, lexicon in self.lexicons.items():
                lexicon.entries[NAME] = drawn.words[lang]
            with closing(sqlite3.connect(":memory:")) as connection:
                fill_database(connection, drawn.tables)
                draw, seen = Draw(NAME, drawn.tables, connection, rng), set(self.excluded)
                try:
                    entries = [self._entry(draw, seen, shapes, languages) for _ in range(count)]
                except RuntimeError:  # too few different questions about a small schema
                    continue
                return read_schema(connection), entries

    def keywords(
        self, rng: random.Random, count: int, *, invented: float = 0.0, largest: int = 12
    ) -> tuple[Schema, list[tuple[str, str]]]:
        """As ``draw``, but the questions are nouns alone, a table's and some of its columns':
        "hotel: price, city". They show more names a token than sentences do.
        """
        drawn = self.generator.draw(NAME, rng, invented=invented, largest=largest)
        with closing(sqlite3.connect(":memory:")) as connection:
            fill_database(connection, drawn.tables)
            schema = read_schema(connection)
        return schema, [self._nouns(drawn.words, rng) for _ in range(count)]

    def concepts(self, rng: random.Random, count: int) -> dict[str, tuple[set[str], set[str]]]:
        """The tables and columns of ``count`` schemas by their noun in the first language: their
        names, and what questions say for them in all languages.
        """
        by_noun: dict[str, tuple[set[str], set[str]]] = {}

        def add(name: str, forms: list) -> None:
            names, wordings = by_noun.setdefault(noun_of(forms[0]), (set(), set()))
            names.add(name)
            wordings.update(text for each in forms for text in wordings_of(each))

        for _ in range(count):
            words = self.generator.draw(NAME, rng).words
            for table, forms in words[self.langs[0]].items():
                add(table, [words[lang][table] for lang in self.langs])
                for column in forms:
                    if noun_of(forms[column]):
                        add(column, [words[lang][table][column] for lang in self.langs])
        return by_noun

    def _nouns(self, words: dict[str, dict], rng: random.Random) -> tuple[str, str]:
        lang = rng.choice(self.langs)
        table, forms = rng.choice(list(words[lang].items()))
        known = {name: text for name, form in forms.items() if (text := noun_of(form))}
        asked = rng.sample(list(known), min(len(known), rng.choice((1, 1, 2, 3))))
        owner, nouns = noun_of(forms), [known[name] for name in asked]
        comma, colon = ("、", "：") if lang in ("ja", "zh") else (", ", ": ")
        listed = comma.join(nouns) or "*"
        text = rng.choice((f"{owner}{colon}{listed}", f"{listed} ({owner})"))
        return text, f"SELECT {', '.join(asked) or '*'} FROM {table}"

    def _entry(
        self, draw: Draw, seen: set, shapes: Sequence[str], languages: int
    ) -> tuple[str, dict[str, str]]:
        langs = draw.rng.sample(self.langs, min(languages, len(self.langs)))
        lexicons = {lang: self.lexicons[lang] for lang in langs}
        (entry,) = draw_questions(draw, 1, lexicons, seen, shapes)
        return entry["query"], {lang: entry[lang] for lang in langs}


def noun_of(forms) -> str | None:
    """The noun among the forms of a table or column; None for a foreign key, which has none."""
    return (forms.get("sg") or forms.get("n")) if isinstance(forms, dict) else None


def wordings_of(forms: dict) -> Iterator[str]:
    """The nouns and the conditions among the forms of a table or column."""
    for key, form in forms.items():
        if isinstance(form, dict):  # a condition in Japanese has three forms
            form = form.get("base")
        if key in CONDITIONS | NOUNS and isinstance(form, str):  # not a column called like a key
            yield re.sub(r"\{\w\}", "", form).strip()
