"""Values for the prompt of a question."""

import sqlite3

import pytest

from sqlenv import UserError, question_values, sample_values
from sqlenv.values import MATCH, MAX_VALUES, pieces


def make(path, rows, script=""):
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE city (id INTEGER PRIMARY KEY, name TEXT, note TEXT, size REAL)"
    )
    connection.executemany("INSERT INTO city VALUES (?, ?, ?, ?)", rows)
    connection.executescript(script)
    connection.commit()
    connection.close()
    return path


NAMES = [
    *(
        "Lima",
        "São Paulo",
        "Vie\u0323\u0302t Tri\u0300",
        "New York",
        "York",
        "北京",
        "서울",
        "تهران",
    ),
    *("O'Hara", "F", "東京都", "ירושלים", "２０１４"),
]


@pytest.fixture
def cities(tmp_path):
    return make(tmp_path / "c.sqlite", [(i, name, None, 0.5) for i, name in enumerate(NAMES)])


@pytest.mark.parametrize(
    ("question", "named"),
    [
        ("How large is lima?", ["Lima"]),
        ("Quantos vivem em Sao Paulo?", ["São Paulo"]),  # without accents
        ("Quantos vivem em SA\u0303O PAULO?", ["São Paulo"]),  # with accents of their own
        ("Bao nhiêu người ở Việt Trì?", ["Vie\u0323\u0302t Tri\u0300"]),  # NFC against NFD
        ("Is New York large?", ["New York", "York"]),  # the longer one first
        ("Is old York large?", ["York"]),
        ("北京有多少人？", ["北京"]),  # no spaces
        ("서울에서 사는 사람은 몇 명?", ["서울"]),  # a particle behind it
        ("كم عدد السكان في طهران أو تهران؟", ["تهران"]),
        ("כמה גרים בירושלים?", ["ירושלים"]),  # a preposition before it
        ("Where is o'hara?", ["O'Hara"]),
        ("Grade F?", ["F"]),
        ("Of whom?", []),  # an f in a word is no F
        ("What happened in 2014?", ["２０１４"]),  # full-width digits
        ("Where is Limerick?", []),  # 2 of the 4 pieces of Lima
        ("", []),
    ],
)
def test_values_that_a_question_names(cities, question, named):
    matches = question_values(cities, question, 9)
    assert list(matches.get(("city", "name"), ())) == named


def test_sample_values_are_of_the_first_rows(tmp_path):
    """Not of the first entries of an index that has the column."""
    script = "CREATE INDEX by_name ON city (name)"
    path = make(tmp_path / "i.sqlite", [(1, "b", None, 1), (2, "c", None, 1), (3, "a", None, 1)],
                script)  # fmt: skip
    assert sample_values(path, 2)["city", "name"] == ("b", "c")


def test_up_to_a_count_of_each_column(cities):
    """The first different values, in the order of the table; of the named ones the likeliest.
    Numbers and empty columns have no named ones.
    """
    samples = sample_values(cities, 3)
    assert samples["city", "id"] == (0, 1, 2) and samples["city", "size"] == (0.5,)
    assert samples["city", "name"][0] == "Lima" and len(samples["city", "name"]) == 3
    assert samples["city", "note"] == ()
    question = "Is New York as large as 3?"
    assert question_values(cities, question, 3) == {("city", "name"): ("New York", "York")}
    assert question_values(cities, question, 1) == {("city", "name"): ("New York",)}


def test_pieces_by_hand():
    """The share that decides: " li", "lim", "ima" and "ma ", of which Limerick has two."""
    assert pieces("Lima") == {" li", "lim", "ima", "ma "}
    assert pieces("x") == {" x "} and pieces("京") == {"京"} and pieces("!?_") == set()
    assert len(pieces("Lima") & pieces("Limerick")) == 2 < 4 * MATCH


def test_long_texts_and_many_values_are_left_out(tmp_path):
    """A text of 101 characters is no value, and of more than MAX_VALUES the first are searched."""
    rows = [(i, f"name {i:05d}", None, None) for i in range(MAX_VALUES + 1)]
    path = make(
        tmp_path / "c.sqlite", rows, f"UPDATE city SET note = '{'long ' * 20}.' WHERE id = 1"
    )
    for i, is_searched in ((MAX_VALUES - 1, True), (MAX_VALUES, False)):
        matches = question_values(path, f"Where is name {i:05d}?", 1)
        assert (matches["city", "name"] == (f"name {i:05d}",)) == is_searched
    assert ("city", "note") not in question_values(path, "long " * 20, 1)


def test_values_that_no_line_can_show_are_left_out(tmp_path):
    """With a line break, one of Unicode's, or a NUL; the same words without are found."""
    texts = ["Foo\nBar", "Foo\u2028Bar", "Foo\0Bar", "Foo Bar"]
    path = make(tmp_path / "c.sqlite", [(i, text, None, 0.5) for i, text in enumerate(texts)])
    assert question_values(path, "where is foo bar", 5) == {("city", "name"): ("Foo Bar",)}


def test_values_that_sql_could_not_compare_are_left_out(tmp_path):
    """Texts with bytes that are not UTF-8, and those of columns whose names have a line break."""
    script = """INSERT INTO city VALUES (1, CAST(x'53e36f205061756c6f' AS TEXT), 'São Paulo', 0);
    CREATE TABLE "sold
    2024" (place); INSERT INTO "sold
    2024" VALUES ('São Paulo');"""
    path = make(tmp_path / "c.sqlite", [], script)
    assert question_values(path, "in São Paulo?", 5) == {("city", "note"): ("São Paulo",)}


def test_a_changed_file_is_read_again(tmp_path):
    path = make(tmp_path / "c.sqlite", [(1, "Lima", None, None)])
    assert question_values(path, "Lima or Oslo?", 1) == {("city", "name"): ("Lima",)}
    path.unlink()
    make(path, [(1, "Oslo", "x" * 9000, None)])
    assert question_values(path, "Lima or Oslo?", 1) == {("city", "name"): ("Oslo",)}


def test_missing_and_damaged_files_are_a_user_error(tmp_path):
    (tmp_path / "text.sqlite").write_text("this is not a database" * 100)
    for path in (tmp_path / "missing.sqlite", tmp_path / "text.sqlite", tmp_path):
        with pytest.raises(UserError, match=str(path)):
            question_values(path, "Lima?", 1)


def test_a_column_that_cannot_be_read_has_no_values(tmp_path):
    """Its expression fails on a row, or its order is one that only another program defines."""
    script = """
    CREATE TABLE river (note TEXT, name TEXT COLLATE nocase, length INT);
    INSERT INTO river VALUES ('no JSON', 'Rímac', -9223372036854775808);
    ALTER TABLE river ADD COLUMN shown INT AS (abs(length));
    PRAGMA writable_schema = ON;
    UPDATE sqlite_master SET sql = replace(sql, 'nocase', 'locale');
    """
    path = make(tmp_path / "c.sqlite", [(1, "Lima", None, None)], script)
    matches = question_values(path, "Is there no JSON in Lima?", 3)
    samples = sample_values(path, 3)
    assert matches == {("city", "name"): ("Lima",), ("river", "note"): ("no JSON",)}
    assert samples["city", "name"] == ("Lima",) and samples["river", "note"] == ("no JSON",)
    assert samples["river", "name"] == samples["river", "shown"] == ()
