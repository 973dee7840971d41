"""Generated schemas: databases that can be built and asked about, in every language."""

import random
import re
import sqlite3
from contextlib import closing

import pytest

from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.databases import write_database
from sqlenv.embedded.draw import Draw
from sqlenv.embedded.generate import draw_questions, main
from sqlenv.embedded.lexicon import Lexicon
from sqlenv.embedded.schemas import GeneratedSchema, SchemaGenerator, invented_word, make_column
from sqlenv.text import RESERVED

GENERATOR = SchemaGenerator(LANGUAGES)


def draw(seed: int, invented: float = 0.0) -> GeneratedSchema:
    return GENERATOR.draw("generated", random.Random(seed), invented=invented)


def ask(schema: GeneratedSchema, folder, count: int) -> list[dict]:
    """Questions about the schema in all languages; gold has been run on its database."""
    lexicons = {lang: Lexicon(lang) for lang in LANGUAGES}
    for lang, lexicon in lexicons.items():
        lexicon.entries[schema.db] = schema.words[lang]
    path = folder / f"{schema.db}.sqlite"
    write_database(schema.tables, path)
    with closing(sqlite3.connect(path)) as connection:
        assert not connection.execute("PRAGMA foreign_key_check").fetchall()
        return draw_questions(
            Draw(schema.db, schema.tables, connection, random.Random(0)), count, lexicons
        )


def identifiers(schema: GeneratedSchema) -> list[str]:
    return [n for t in schema.tables.values() for n in (t.name, *(c.name for c in t.columns))]


def test_a_seed_gives_one_schema_and_another_another():
    assert draw(1) == draw(1)
    assert len({tuple(identifiers(draw(seed))) for seed in range(50)}) == 50


def test_sizes_and_styles_vary():
    schemas = [draw(seed) for seed in range(200)]
    sizes = {len(schema.tables) for schema in schemas}
    assert {1, 2, 3, 4, 5, 12} <= sizes and max(sizes) == 12
    names = [name for schema in schemas for name in identifiers(schema)]
    assert any("_" in name and name.islower() for name in names)
    assert any(re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name) for name in names)
    assert any(re.fullmatch(r"([A-Z][a-z]+){2,}", name) for name in names)
    assert any(name.isupper() and "_" in name for name in names)


@pytest.mark.parametrize("invented", [0.0, 0.7])
def test_names_are_unique_and_not_reserved(invented):
    reserved = {word.lower() for word in RESERVED}
    for seed in range(100):
        schema = draw(seed, invented)
        tables = [name.lower() for name in schema.tables]
        assert len(set(tables)) == len(tables) and not reserved & set(tables)
        for table in schema.tables.values():
            columns = [column.name.lower() for column in table.columns]
            assert len(set(columns)) == len(columns) and not reserved & set(columns)
            for column in table.with_role("ref"):
                assert column.args in schema.tables
            for lang in LANGUAGES:
                words = schema.words[lang][table.name]
                assert {column.name for column in table.columns[1:]} <= set(words)


@pytest.mark.parametrize("invented", [0.0, 0.6])
@pytest.mark.parametrize("seed", range(6))
def test_questions_in_every_language(seed, invented, tmp_path):
    """Gold runs and gives rows; every slot of the text is filled."""
    for entry in ask(draw(seed, invented), tmp_path, 25):
        for lang in LANGUAGES:
            assert not re.search(r"[{}]|\bNone\b", entry[lang]), entry[lang]
            assert entry[lang][0] == entry[lang][0].upper()


def test_invented_names_stand_in_the_question(tmp_path):
    """In a schema whose names are all invented, the table that is read stands in the question of
    each language as it does in the SQL, but for case, prefix and plural.
    """
    schema = draw(11, invented=1.0)
    for entry in ask(schema, tmp_path, 20):
        table = re.search(r"FROM (\w+)", entry["query"])[1]
        word = schema.words["ja"][table]["n"]
        assert word.lower() in table.lower().replace("_", "")
        for lang in LANGUAGES:
            assert word in entry[lang].lower(), (lang, entry)


def with_codes(seed: int) -> tuple[GeneratedSchema, set[str]]:
    """A schema, and the names of its codes that no other columns have."""
    schema = draw(seed)
    columns = [column for table in schema.tables.values() for column in table.columns]
    others = {column.name for column in columns if column.kind != "code"}
    return schema, {column.name for column in columns if column.kind == "code"} - others


def test_codes_are_asked_for_and_compared_but_not_counted_with(tmp_path):
    """Codes: phone numbers, for example. They are shown, and compared with = and IN only."""
    schemas = [(schema, codes) for schema, codes in map(with_codes, range(60)) if codes][:6]
    shown = compared = 0
    for number, (schema, codes) in enumerate(schemas):
        code = f"(?:T\\d\\.)?(?:{'|'.join(codes)})"
        for entry in ask(schema, tmp_path / str(number), 60):
            sql = entry["query"]
            assert not re.search(rf"(AVG|SUM|MIN|MAX)\({code}\)|(ORDER|GROUP) BY {code}\b", sql)
            assert not re.search(rf"\b{code} ([<>]|BETWEEN)", sql), sql
            shown += bool(re.search(rf"SELECT (.*, )?{code}\b.* FROM", sql))
            compared += bool(re.search(rf"\b{code} (= '|IN \('|IS NULL)", sql))
    assert shown > 3 and compared > 3


def test_a_condition_is_not_true_of_all_values(tmp_path):
    """An answer that is yes or no is no condition."""
    for seed in range(6):
        for entry in ask(draw(seed), tmp_path, 40):
            assert not re.search(r"IN \('(no', 'yes|yes', 'no)'\)", entry["query"])


def test_answers_stay_yes_or_no_in_invented_schemas():
    tables = [table for seed in range(80) for table in draw(seed, 0.9).tables.values()]
    values = [column.args for table in tables for column in table.columns]
    assert values.count("yes|no") > 5
    column = make_column("has_pool", "choice yes|no", random.Random(0), invented=True)
    assert column.args == "yes|no"


def test_invented_words_are_new_each_time():
    words = [invented_word(random.Random(seed)) for seed in range(300)]
    assert len(set(words)) > 280 and all(re.fullmatch("[a-z]{3,14}", word) for word in words)


def test_show_prints_questions_on_new_schemas(capsys):
    assert main(["--show", "vi", "3", "--invented", "0.5"]) == 0
    assert capsys.readouterr().out.count("SELECT") >= 3
