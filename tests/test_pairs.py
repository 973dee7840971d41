"""One SQLite file with a CSV or JSON-lines file of questions: a bookshop with accents and spaces in
its names, in Portuguese, Korean and Arabic; and bad input, by line.
"""

import json
import sqlite3
import tracemalloc
import unicodedata

import pytest
from dataset_kit import make_database, texts

from sqlenv import (
    Example,
    Sandbox,
    UserError,
    canonical_sql,
    chosen_languages,
    open_dataset,
    results_match,
)

BOOKSHOP = """
    CREATE TABLE livro (id INTEGER PRIMARY KEY, título TEXT, "ano de edição" INT, preço REAL);
    INSERT INTO livro VALUES (1, 'Dom Casmurro', 1899, 30), (2, 'Việt sử', 1950, 45.5);
    CREATE VIEW barato AS SELECT título FROM livro WHERE preço < 40;
"""
CSV = """\
lang,question,sql
pt,Quantos livros há?,SELECT count(*) FROM livro
pt,"Quais são os títulos, por ano?","SELECT título FROM livro ORDER BY ""ano de edição"" DESC"
ko,책은 몇 권입니까?,SELECT count(*) FROM livro
ar,كم عدد الكتب؟,SELECT count(*) FROM livro
pt,Que livros são baratos?,SELECT * FROM barato
"""


@pytest.fixture
def shop(tmp_path):
    return make_database(tmp_path / "minha loja.sqlite", BOOKSHOP)


def opened(shop, text, need_gold=True, name="pairs.csv"):
    file = shop.with_name(name)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(shop, file, need_gold=need_gold)


def both(dataset, lang):
    """The questions of both splits."""
    return {e.question for split in ("train", "dev") if lang in dataset.languages(split)
            for e in dataset.load(lang, split)}  # fmt: skip


def test_a_bookshop_in_three_languages(shop):
    """Three queries: round(0.2 x 3) = 1 of them is dev, with all its questions."""
    dataset = opened(shop, CSV)
    assert both(dataset, "ko") == {"책은 몇 권입니까?"} and both(dataset, "ar") == {"كم عدد الكتب؟"}
    assert len(both(dataset, "pt")) == 3
    golds = {
        split: {e.gold_sql for lang in dataset.languages(split) for e in dataset.load(lang, split)}
        for split in ("train", "dev")
    }
    assert len(golds["dev"]) == 1 and len(golds["train"]) == 2
    assert not golds["dev"] & golds["train"]
    (example,) = [e for e in dataset.load("pt", "train") + dataset.load("pt", "dev")
                  if e.question == "Que livros são baratos?"]  # fmt: skip
    assert example == Example(
        example.question, "pt", "minha loja", "SELECT * FROM barato", shop.absolute()
    )
    assert dataset.database_path("minha loja") == shop
    with pytest.raises(UserError, match="db_id 'loja' is not that of --data"):
        dataset.database_path("loja")


def test_the_split_by_query_does_not_depend_on_the_order_or_the_spelling(shop):
    """Nor on further rows. The hashes of 36 of 200 queries are below a fifth of the range."""
    rows = [f"pergunta {i},SELECT {i} FROM livro" for i in range(200)]
    dev = set(texts(opened(shop, "\n".join(["question,sql", *rows])), "pt", "dev"))
    assert len(dev) == 36
    some = set(texts(opened(shop, "\n".join(["question,sql", *rows[:50]])), "pt", "dev"))
    assert some == {f"pergunta {i}" for i in range(50)} & dev
    rows = [row.replace("SELECT", "select  ") + ";" for row in reversed(rows)]
    assert set(texts(opened(shop, "\n".join(["question,sql", *rows])), "pt", "dev")) == dev


@pytest.mark.parametrize(
    ("rows", "train", "dev"),
    [
        ("A?,SELECT 1\nB?,SELECT 2", 1, 1),
        ("A?,SELECT 1\nB?,SELECT 1", 2, 0),  # one query
        ("A?,SELECT 1\nB?,\nC?,", 2, 1),  # nothing is measured without SQL
        ("A?,SELECT 1\nB?,SELECT 2\nC?,", 2, 1),
        ("A?,\nB?,", 1, 1),
    ],
)
def test_no_split_is_empty_if_that_can_be(shop, rows, train, dev):
    """Of questions with and without SQL, dev gets one with SQL."""
    dataset = opened(shop, f"question,sql\n{rows}\n", need_gold=False)
    splits = [row["split"] for _, row in dataset.rows]
    assert (splits.count("train"), splits.count("dev")) == (train, dev)
    if "SELECT" in rows and dev:
        assert all(example.gold_sql for example in dataset.load("pt", "dev"))


def test_the_split_of_a_column(shop):
    text = "split;question;query;evidence;difficulty;part;note\n"
    text += "Dev;A?;SELECT 1;um;fácil;x;…\n\ntrain;B?;SELECT 1;;;;\n"
    dataset = opened(shop, text)
    (example,) = dataset.load("pt-br", "dev")
    assert (example.evidence, example.difficulty, example.part) == ("um", "fácil", "x")
    assert example.lang == "pt-BR" and texts(dataset, "pt", "train") == ["B?"]


def test_questions_without_a_language(shop):
    """They have any one that is asked for, otherwise the tag of an undetermined one."""
    dataset = opened(shop, "question\tsql\nA?\tSELECT 1\nB?\tSELECT 2\n")
    assert chosen_languages(dataset, "all", ["train", "dev"]) == ["und"]
    assert chosen_languages(dataset, "pt", ["train", "dev"]) == ["pt"]
    with pytest.raises(UserError, match="does not say in which language"):
        chosen_languages(dataset, "pt,en", ["dev"])


def test_json_lines(shop):
    rows = [
        {"question": "A?", "query": "SELECT 1", "sql": "", "difficulty": 3},
        {"Question": "B?", "sql": "SELECT 2", "n": 3},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    dataset = opened(shop, "\ufeff" + text, name="pairs.jsonl")
    assert sorted(texts(dataset, "en", "dev") + texts(dataset, "en", "train")) == ["A?", "B?"]
    assert [row["difficulty"] for _, row in dataset.rows] == ["3", ""]


def test_spaces_behind_separators_and_lines_without_a_cell(shop):
    text = '\n sql; question\n\nSELECT 1; "A; a?"\n  \n ; \nSELECT 2;B?\n'
    dataset = opened(shop, text)
    golds = {e.question: e.gold_sql for s in dataset.splits for e in dataset.load("pt", s)}
    assert golds == {"A; a?": "SELECT 1", "B?": "SELECT 2"}


def test_questions_without_sql_where_nothing_needs_gold(shop):
    """The column may be missing, too."""
    dataset = opened(shop, "question,sql\nA?,SELECT 1\nB?,\n", need_gold=False)
    golds = {e.question: e.gold_sql for s in dataset.splits for e in dataset.load("pt", s)}
    assert golds == {"A?": "SELECT 1", "B?": ""}
    dataset = opened(shop, "question\nA?\nB?\n", need_gold=False)
    assert sorted(texts(dataset, "pt", "train") + texts(dataset, "pt", "dev")) == ["A?", "B?"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frage,sql\nA?,SELECT 1", ":1: no column 'question' among 'frage', 'sql'"),
        ("question,gold\nA?,SELECT 1", ":1: no column 'sql' among 'question', 'gold'"),
        ("question|sql\nA?|SELECT 1", ":1: no column 'question' among 'question|sql'; .* comma"),
        ("question,sql,sql\nA?,SELECT 1,", ":1: two columns 'sql'"),
        ("question,sql\nA?,SELECT 1, 2", ":2: has 3 cells where the first line has 2; quote"),
        ('question,sql\n"A\n?",SELECT 1\nB?', ":4: has 1 cells"),
        ('question,sql\nA?,SELECT 1\n"B?,SELECT 2\n', ":3: malformed CSV"),
        ('[{"question": "A?", "sql": "SELECT 1"}]', "pairs.csv: a JSON list; JSON lines are read"),
        ("question,sql\n", "pairs.csv: has no question"),
        ("question,sql\n,SELECT 1", ":2: has no question"),
        ("question,sql\nA?, ", ":2: the question has no SQL"),
        ("question,sql\nA?,SELECT 1\nB?,SELECT\n", ":3: the SQL fails: "),
        ("question,sql\nA?,SELECT nome FROM livro", ":2: the SQL fails: no such column: nome"),
        ("question,sql\nA?,DELETE FROM livro", ":2: the SQL fails: "),
        ("question,sql\nA?,SELECT 1; SELECT 2", ":2: the SQL fails: "),
        ("question,sql\nA?,SELECT date('now')", ":2: the sandbox refuses the SQL: .* the clock"),
        ("question,sql\nA?,SELECT CURRENT_DATE", ":2: the sandbox refuses the SQL: .* the clock"),
        ("question,sql\nA?,SELECT random()", ":2: the SQL fails: not authorized .*random"),
        ("question,sql\nA?,SELECT 1\n\nA?,SELECT 2", ":4: the question of line 2 again"),
        ("question,sql\nê?,SELECT 1\ne\u0302?,SELECT 2", ":3: the question of line 2 again"),
        ("lang,question,sql\npt,A?,SELECT 1\n,B?,SELECT 2", ":3: lang '' is not the tag"),
        ("lang,question,sql\nportuguês,A?,SELECT 1", ":2: lang 'português' is not the tag"),
        ("split,question,sql\ntest,A?,SELECT 1", ":2: split 'test' is neither train nor dev"),
        (b"question,sql\nA?,SELECT 1\n" + b"\xe9?,SELECT 2", ":3: not UTF-8"),
        ("question,sql\nA?,SELECT 1".encode("utf-16"), ":1: not UTF-8"),
        ('{"question": "A?", "sql": "SELECT 1"}\n{"question": ', ":2: malformed JSON"),
        ('{"question": "A?", "sql": "SELECT 1"}\n[1]', ":2: an object with question and sql"),
        ('{"question": "A?", "sql": 1}', ":1: gold_sql is not a text"),
        ('{"question": "A?"}', ":1: the question has no SQL"),
        ('{"question": "\\ud800", "sql": "SELECT 1"}', ":1: question is not valid Unicode"),
    ],
)
def test_bad_files_are_named_with_the_line(shop, text, words):
    with pytest.raises(UserError, match=words) as caught:
        opened(shop, text)
    assert "pairs.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_checking_gold_holds_the_rows_of_one_query_at_a_time(shop, monkeypatch):
    """Of 24 queries with 2 ** 10 rows, each a tuple (48 bytes) of a text (149 bytes)."""
    monkeypatch.setattr("sqlenv.gold.KEPT_BYTES", 0)
    tables = " JOIN ".join(f"livro AS t{i}" for i in range(10))
    rows = [f"{i}?,\"SELECT printf('%0100d', {i}) FROM {tables}\"" for i in range(24)]
    tracemalloc.start()
    opened(shop, "\n".join(["question,sql", *rows]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24 * 2**10 * (48 + 149) / 2


def test_bad_databases(shop, tmp_path):
    file = tmp_path / "pairs.csv"
    file.write_text("question,sql\nA?,SELECT 1\n")
    with pytest.raises(UserError, match="with --questions a SQLite file, but it is a folder"):
        open_dataset(tmp_path, file)
    with pytest.raises(UserError, match="but it does not exist"):
        open_dataset(tmp_path / "gone.sqlite", file)
    with pytest.raises(UserError, match="pairs.csv: cannot be read as a SQLite database"):
        open_dataset(file, file)
    with pytest.raises(UserError, match="gone.csv: no such file; in its folder: minha loja.sqlite"):
        open_dataset(shop, tmp_path / "gone.csv")


def test_all_broken_sql_is_named_at_once(shop):
    """In one run; of many lines the first ten."""
    rows = [f"{i}?,SELECT x{i} FROM livro" for i in range(12)]
    with pytest.raises(UserError) as caught:
        opened(shop, "\n".join(["question,sql", "ok?,SELECT 1", *rows]))
    lines = str(caught.value).split("\n")
    assert lines[0].endswith("pairs.csv:3: the SQL fails: no such column: x0")
    assert lines[9].endswith("pairs.csv:12: the SQL fails: no such column: x9")
    assert lines[10:] == ["and 2 more"]


def test_an_empty_database_is_refused(tmp_path):
    """A mistyped name makes one."""
    (tmp_path / "typo.sqlite").touch()
    with pytest.raises(UserError, match="typo.sqlite: the database has no table"):
        opened(tmp_path / "typo.sqlite", "question,sql\nA?,SELECT 1\n")


def test_a_language_or_split_without_a_question(shop):
    """A single query cannot be split: it is for training."""
    dataset = opened(shop, "lang,question,sql\npt,A?,SELECT 1\npt,B?,SELECT 1\n")
    with pytest.raises(UserError, match="pairs.csv: no train question in the language ko"):
        dataset.read("ko", "train")
    with pytest.raises(UserError, match="--lang ko: not a language of .*train: pt; dev: none"):
        chosen_languages(dataset, "ko", ["train", "dev"])
    assert texts(dataset, "pt", "train") == ["A?", "B?"]


# ------------------------------------------------------------------------------------- Unicode

NFC, NFD = (unicodedata.normalize(form, "Việt sử") for form in ("NFC", "NFD"))


def test_texts_in_another_normal_form_are_other_texts(shop):
    """As to SQLite: the database has NFC. Nothing is normalised, in a question or in SQL."""
    with Sandbox() as sandbox:
        runs = sandbox.run_many(
            [(shop, f"SELECT id FROM livro WHERE título = '{text}'") for text in (NFC, NFD)]
            + [(shop, f"SELECT '{text}'") for text in (NFC, NFD)]
        )
    assert [len(run.rows) for run in runs] == [1, 0, 1, 1]
    assert not results_match(runs[2], runs[3], ordered=False)
    dataset = opened(shop, f"question,sql\n{NFD}?,SELECT 1\nB?,SELECT 2\n")
    assert f"{NFD}?" in texts(dataset, "vi", "train") + texts(dataset, "vi", "dev")


def test_gold_in_the_form_that_the_database_has_not_is_refused(shop):
    """It would return no row, for ever; which a literal that occurs nowhere does in both forms."""
    sql = "SELECT id FROM livro WHERE título = '{}'"
    with pytest.raises(UserError, match=":2: the SQL returns rows only .* form NFC"):
        opened(shop, f"question,sql\nA?,{sql.format(NFD)}")
    opened(shop, f"question,sql\nA?,{sql.format('não há')}\nB?,{sql.format(NFC)}")


def test_full_width_digits_are_no_numbers(shop):
    """SQLite reads them as a name, within a text as themselves."""
    opened(shop, "question,sql\n１９００年以降？,SELECT id FROM livro WHERE '５' < '６'\n")
    with pytest.raises(UserError, match=":2: the SQL fails: no such column: １９００"):
        opened(shop, 'question,sql\nA?,SELECT id FROM livro WHERE "ano de edição" > １９００\n')


def test_names_with_marks(tmp_path):
    """A name in NFD, and one in Devanagari: the canonical form runs, and means the same."""
    name = unicodedata.normalize("NFD", "tên")
    path = make_database(tmp_path / "t.sqlite", f"CREATE TABLE {name} (नाम TEXT)")
    connection = sqlite3.connect(path)
    connection.execute(f"INSERT INTO {name} VALUES ('x')")
    sql = canonical_sql(f"select नाम from {name}")
    assert connection.execute(sql).fetchall() == [("x",)]
    connection.close()
