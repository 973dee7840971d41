"""The concepts of generated schemas are complete and consistent, in every language."""

import re
from collections import Counter

import pytest

from sqlenv.embedded import LANGUAGES
from sqlenv.embedded.concepts import PARTS, load_concepts, load_words
from sqlenv.embedded.sources import load_sources
from sqlenv.embedded.wording import WORDING

COLUMNS, TABLES = load_concepts()
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
INTEGER, DECIMAL = r"-?\d+", r"-?\d+(\.\d+)?"
KINDS = re.compile(
    rf"name|person|choice [^|]+(\|[^|]+){{1,6}}|int {INTEGER} {INTEGER}( \+)?"
    rf"|real {DECIMAL} {DECIMAL}( \+)?|(year|date) [12]\d{{3}} [12]\d{{3}}"
)


def test_there_are_many_concepts():
    assert sum(map(len, TABLES.values())) >= 400 and len(COLUMNS) >= 1500


@pytest.mark.parametrize("domain", TABLES)
def test_a_domain_is_consistent(domain):
    """Columns exist, foreign keys stay in the domain and are not circular, and every table is tied
    to the others.
    """
    tables = TABLES[domain]
    linked = set()
    for key, table in tables.items():
        assert set(table.columns) <= set(COLUMNS), key
        assert 5 <= len(table.columns) <= 9 and len(set(table.columns)) == len(table.columns), key
        assert set(table.refs) <= set(tables) - {key} and len(table.refs) <= 2, key
        linked |= {*table.refs, key} if table.refs else set()
    assert linked == set(tables)
    order = []
    while len(order) < len(tables):
        ready = [k for k, t in tables.items() if k not in order and set(t.refs) <= set(order)]
        assert ready, "foreign keys form a circle"
        order += ready


@pytest.mark.parametrize("concepts", [COLUMNS, *TABLES.values()], ids=["columns", *TABLES])
def test_names_are_identifiers(concepts):
    for key, concept in concepts.items():
        assert SNAKE_CASE.fullmatch(key), key
        assert 3 <= len(concept.names) == len(set(concept.names)) <= 5, key
        assert all(SNAKE_CASE.fullmatch(name) for name in concept.names), key


def test_kinds_can_be_drawn():
    for key, column in COLUMNS.items():
        assert KINDS.fullmatch(column.kind), (key, column.kind)
        if column.kind.startswith(("int", "real", "year", "date")):
            low, high = map(float, column.kind.split()[1:3])
            assert low < high, key


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_concept_has_its_noun(lang):
    """All forms, none empty; and the tables of a domain, and the columns of a table, can be told
    apart by their nouns.
    """
    words = load_words(lang)
    table_keys = {key for tables in TABLES.values() for key in tables}
    assert set(words["tables"]) == table_keys and set(words["columns"]) == set(COLUMNS)
    for section, parts in zip(("tables", "columns"), PARTS[lang]):
        for key, noun in words[section].items():
            forms = {name: form for name, form in noun.items() if name != "obl"}
            assert tuple(forms) == parts and all(noun.values()), key
            assert all(form == form.strip() for form in noun.values()), key
    for tables in TABLES.values():
        nouns = Counter(next(iter(words["tables"][key].values())) for key in tables)
        assert max(nouns.values()) == 1, nouns.most_common(1)
        for key, table in tables.items():
            nouns = Counter(next(iter(words["columns"][c].values())) for c in table.columns)
            assert max(nouns.values()) == 1, (key, nouns.most_common(1))


def generic(lang: str, column: str, role: str) -> dict:
    return WORDING[lang][0]("column", load_words(lang)["columns"][column], role)


AFTER = {
    "en": "have a founding year after {v}",
    "de": "ein Gründungsjahr nach {v} haben",
    "es": "tienen un año de fundación posterior a {v}",
    "fr": "ont une année de fondation postérieure à {v}",
    "ja": "設立年が{v}年より後の",
    "vi": "có năm thành lập sau năm {v}",
    "zh": "成立年份晚于{v}年",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_years_are_after_and_before_not_above_and_below(lang):
    """Year columns have all forms of numbers, and are worded as times."""
    year, number = (generic(lang, "founded_year", role) for role in ("year", "number"))
    assert set(year) == set(number)
    after = year["gt"]["base"] if lang == "ja" else year["gt"]
    assert after == AFTER[lang]
    assert all(year[key] != number[key] for key in ("ge", "lt", "max", "min"))
    sources = load_sources((lang,)).values()
    columns = [c for tables in sources for table in tables.values() for c in table.columns]
    assert year in [c.words[lang] for c in columns if c.kind.startswith("year ")]


def test_spanish_times_agree_with_their_noun():
    year = generic("es", "founded_year", "year")
    assert year["desc"] == "del más reciente al más antiguo"
    date = WORDING["es"][0]("column", {"sg": "fecha", "pl": "fechas", "gender": "f"}, "date")
    assert date["asc"] == "de la más antigua a la más reciente"


def test_french_adjectives_follow_an_average():
    price = WORDING["fr"][0]("column", {"sg": "prix moyen", "pl": "", "gender": "m"}, "number")
    assert (price["n"], price["cpl"]) == ("prix moyen", "")
