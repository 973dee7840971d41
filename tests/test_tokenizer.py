"""The tokenizer for models that copy names: it cuts words alike, and loses nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpo.tokenizer import spellings, train_tokenizer

TEXTS = [
    "CREATE TABLE birth_dates (birth_id INTEGER PRIMARY KEY, BirthDate DATE);",
    "SELECT T1.name FROM birth AS T1 JOIN date AS T2 ON T1.id = T2.id WHERE T1.name = 'Hà Nội'",
    "What is the birth date of each name?",
    "東京にあるホテルの名前",
] * 20
TOKENIZER = train_tokenizer(TEXTS, 2000)


def pieces(text: str) -> list[str]:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    return [TOKENIZER.decode([index]) for index in ids]


@given(st.text(max_size=80))
def test_decoding_gives_the_text_back(text):
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["birth_date", "(birth,date)", "birth.date", "birth, date"])
def test_a_word_is_one_token_wherever_it_stands(text):
    assert "birth" in pieces(text) and "date" in pieces(text)


def test_a_word_after_another_has_the_space_in_its_token():
    assert pieces("the birth date, name") == ["the", " birth", " date", ", ", "name"]


def test_words_are_cut_at_changes_of_case():
    assert pieces("BirthDate") == ["Birth", "Date"]


def test_an_unknown_word_is_spelled_alike_in_question_and_schema():
    assert pieces("name brosims, kea_brosim, KeaBrosim") == [
        *("name", " ", "bro", "si", "m", "s", ", ", "ke", "a", "_", "bro", "si", "m", ", "),
        *("Ke", "a", "Bro", "si", "m"),
    ]


def test_keywords_keep_the_spaces_around_them():
    assert pieces("SELECT T1.name FROM birth") == ["SELECT ", "T1.", "name", " FROM ", "birth"]
    assert pieces("AS T1 JOIN date AS T2 ON ")[0] == "AS T1 JOIN "


def test_spellings_are_the_syllables_of_a_word():
    """In all its ways of writing: here alone and with the space before it."""
    forms = spellings(TOKENIZER)["birth"]
    texts = {
        TOKENIZER.decode([index]): [TOKENIZER.decode([part]) for part in ids]
        for index, ids in forms.items()
    }
    assert texts["birth"] == ["bi", "r", "th"] and texts[" birth"] == [" ", "bi", "r", "th"]
    assert "select" not in spellings(TOKENIZER)
