"""The embedded dataset: the build, the splits, the databases, gold SQL and questions."""

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from sqlenv import Sandbox, UserError, canonical_sql, is_ordered, load_dataset
from sqlenv.embedded import LANGUAGES, generate
from sqlenv.embedded.databases import ENCODER, UNSEEN, load_databases
from sqlenv.embedded.draw import Draw
from sqlenv.embedded.generate import build
from sqlenv.embedded.lexicon import Lexicon

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("sft", "train", "encoder", "dev")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A fresh build in a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return build()


def question_files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("dataset/multispider/*/*.json"))}


def database_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("dataset/spider/database/*/*.sqlite"))}


@pytest.fixture(scope="module")
def entries(built) -> dict[tuple[str, str], list[dict]]:
    """{(split, lang): entries}"""
    files = question_files(built)
    return {
        (split, lang): json.loads(files[f"{split}_{lang}.json"].read_text(encoding="utf-8"))
        for split in SPLITS
        for lang in LANGUAGES
    }


@pytest.fixture(scope="module")
def connections(built):
    """{db_id: connection}"""
    opened = {name: sqlite3.connect(path) for name, path in database_files(built).items()}
    yield opened
    for connection in opened.values():
        connection.close()


@pytest.fixture(scope="module")
def queries(entries) -> list[tuple[str, str]]:
    """(db_id, SQL) of all splits."""
    return [(e["db_id"], e["query"]) for split in SPLITS for e in entries[split, "en"]]


def dump(path: Path) -> list[str]:
    """A database as SQL text: its schema and all rows."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


# ----------------------------------------------------------------------------- the build


def test_two_builds_are_equal(built, tmp_path):
    """The second in another process that orders its sets differently."""
    printed = subprocess.run(
        [sys.executable, "-m", "sqlenv.embedded.generate"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "12345", "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
        text=True,
    )
    second = Path(printed.stdout.strip())
    assert second.is_relative_to(tmp_path)
    first_files, second_files = question_files(built), question_files(second)
    assert list(first_files) == list(second_files) and len(first_files) == 28
    for name in first_files:
        assert first_files[name].read_bytes() == second_files[name].read_bytes(), name
    first_databases, second_databases = database_files(built), database_files(second)
    assert list(first_databases) == list(second_databases)
    for name in first_databases:
        assert dump(first_databases[name]) == dump(second_databases[name]), name


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A build that writes one small file and counts how often it does."""
    written = []

    def write_dataset(folder: Path) -> None:
        (folder / "number").write_text(str(len(written)))
        written.append(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(generate, "write_dataset", write_dataset)
    return written


def test_it_is_built_once_and_again_when_a_source_changes(fake, tmp_path, monkeypatch):
    first = build()
    assert build() == first
    assert len(fake) == 1
    monkeypatch.setattr(generate, "source_hash", lambda: "changed")
    assert (build() / "number").read_text() == "1"
    build()
    assert len(fake) == 2
    names = {path.name for path in first.parent.iterdir()}
    assert names == {first.name, f"{first.name}.lock", "changed", "changed.lock"}


def test_a_build_that_fails_leaves_the_one_before(fake, tmp_path, monkeypatch):
    first = build()

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left on device")

    monkeypatch.setattr(generate, "source_hash", lambda: "changed")
    monkeypatch.setattr(generate, "write_dataset", fail)
    with pytest.raises(UserError, match="no space"):
        build()
    assert [path.name for path in first.iterdir()] == ["number"]
    assert {p.name for p in first.parent.iterdir() if p.is_dir()} == {first.name}


def test_questions_are_shown_with_formatted_sql(capsys):
    assert generate.main(["--show", "vi", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("\nSELECT ") >= 2 and shown.count("\nFROM ") >= 2


@pytest.mark.parametrize("words", [("xx", "1"), ("vi", "many")])
def test_wrong_arguments_of_show_are_a_user_error(words, capsys):
    assert generate.main(["--show", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: --show {' '.join(words)}: ")


def test_the_source_hash_changes_with_every_source(tmp_path, monkeypatch):
    """Code, databases and the words of each language, but not the module that only uses them."""
    (tmp_path / "lexicon").mkdir()
    names = ["generate.py", "databases.toml", "lexicon/vi.toml"]
    for name in names:
        (tmp_path / name).write_text("first")
    monkeypatch.setattr(generate, "HERE", tmp_path)
    hashes = [generate.source_hash()]
    for name in names:
        (tmp_path / name).write_text("second")
        hashes.append(generate.source_hash())
    assert len(set(hashes)) == 4
    (tmp_path / "fresh.py").write_text("other questions about fresh schemas")
    assert generate.source_hash() == hashes[-1]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_loader_reads_it(built, entries, split, lang):
    examples = load_dataset(built, lang, split)
    assert [(e.question, e.db_id, e.gold_sql) for e in examples] == [
        (e["question"], e["db_id"], e["query"]) for e in entries[split, lang]
    ]
    assert all(example.lang == lang for example in examples)


# ------------------------------------------------------------------------------ the splits


def test_sizes(entries):
    for (split, lang), rows in entries.items():
        least = {"sft": 3000, "train": 3000, "encoder": 3000, "dev": 1000}[split]
        assert len(rows) >= least, (split, lang)


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_sql_in_the_same_order_in_every_language(entries, split):
    english = [(e["db_id"], e["query"], e["shape"]) for e in entries[split, "en"]]
    for lang in LANGUAGES:
        assert [(e["db_id"], e["query"], e["shape"]) for e in entries[split, lang]] == english, lang


def test_no_sql_is_in_two_splits(entries):
    texts = [{canonical_sql(e["query"]).lower() for e in entries[s, "en"]} for s in SPLITS]
    assert len(set().union(*texts)) == sum(map(len, texts))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_no_question_is_in_two_splits(entries, lang):
    texts = [{e["question"].casefold() for e in entries[split, lang]} for split in SPLITS]
    assert len(set().union(*texts)) == sum(map(len, texts))


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("split", SPLITS)
def test_no_question_has_two_answers_and_no_query_is_asked_twice(entries, split, lang):
    rows = entries[split, lang]
    assert len({(e["db_id"], e["question"]) for e in rows}) == len(rows)
    assert len({(e["db_id"], e["query"]) for e in rows}) == len(rows)


class OneSentence:
    """A lexicon in which all questions have the same text."""

    def phrase(self, question, rng) -> str:
        return "What is it?"


def test_questions_have_different_texts(connections):
    """In every language."""
    draw = Draw("shop", load_databases()["shop"], connections["shop"], random.Random(0))
    lexicons = {"en": Lexicon("en"), "vi": OneSentence()}
    assert len(generate.draw_questions(draw, 1, lexicons)) == 1
    with pytest.raises(RuntimeError, match="shop: only 1 of 2"):
        generate.draw_questions(draw, 2, lexicons)


def test_every_database_is_in_the_splits_that_it_belongs_to(entries):
    counts = {split: Counter(e["db_id"] for e in entries[split, "en"]) for split in SPLITS}
    known = set(load_databases()) - set(UNSEEN) - set(ENCODER)
    new = {
        split: {f"{split}_{n:03}" for n in range(count)}
        for split, (count, _) in generate.GENERATED.items()
    }
    assert set(counts["sft"]) == known
    assert set(counts["train"]) == known | new["train"]
    assert set(counts["encoder"]) == set(ENCODER) | new["encoder"]
    assert set(counts["dev"]) == known | set(UNSEEN) | new["dev"]


def test_dev_has_three_equal_parts(entries):
    """336 questions each; the part is that of the database."""
    rows = entries["dev", "vi"]
    assert Counter(e["part"] for e in rows) == dict.fromkeys(
        ("known schema", "new schema", "new words"), 336
    )
    assert {e["db_id"] for e in rows if e["part"] == "new words"} == set(UNSEEN)
    assert all(e["db_id"].startswith("dev_") for e in rows if e["part"] == "new schema")


# --------------------------------------------------------------------------- the databases


def tables(connection) -> list[str]:
    return [n for (n,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]


def is_generated(name: str) -> bool:
    return re.fullmatch(r"(train|encoder|dev)_\d+", name) is not None


def test_databases_tables_and_rows(connections):
    assert len(connections) >= 16
    for name, connection in connections.items():
        most_tables, fewest_tables, fewest_rows = (12, 1, 4) if is_generated(name) else (6, 3, 30)
        assert fewest_tables <= len(tables(connection)) <= most_tables, name
        for table in tables(connection):
            (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            assert fewest_rows <= count <= 500, (name, table)


def test_foreign_keys_are_declared_and_lead_somewhere(connections):
    for name, connection in connections.items():
        keys = [connection.execute(f"PRAGMA foreign_key_list({t})").fetchall()
                for t in tables(connection)]  # fmt: skip
        assert sum(map(len, keys)) >= 2 or is_generated(name), name
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == [], name


def test_parents_without_children_exist(connections, queries):
    """Otherwise the results of NOT IN and EXISTS would be trivial."""
    assert all(connections[db].execute(sql).fetchone() for db, sql in queries if " NOT IN " in sql)


def columns(connection):
    """(table, column, declared type, values) of each column but the keys."""
    for table in tables(connection):
        keys = {row[3] for row in connection.execute(f"PRAGMA foreign_key_list({table})")}
        for _, column, kind, _, _, primary in connection.execute(f"PRAGMA table_info({table})"):
            if column not in keys and not primary:
                rows = connection.execute(f"SELECT {column} FROM {table}")
                yield table, column, kind, [value for (value,) in rows]


def test_values_are_null_repeated_text_numbers_and_dates(connections):
    for name, connection in connections.items():
        if is_generated(name):  # one may have a table of numbers only
            continue
        rows = list(columns(connection))
        assert any(None in values for *_, values in rows), f"{name}: no NULL"
        texts = [values for *_, kind, values in rows if kind == "TEXT"]
        assert any(len(set(values)) < len(values) / 2 for values in texts), f"{name}: no duplicates"
        assert any(kind in ("INTEGER", "REAL") for *_, kind, _ in rows), f"{name}: no numbers"
        for table, column, kind, values in rows:
            types = {type(value) for value in values if value is not None}
            expected = {"TEXT": {str}, "DATE": {str}, "INTEGER": {int}, "REAL": {float}}[kind]
            assert types == expected, (name, table, column)
            if kind == "DATE":
                dates = [v for v in values if v is not None]
                assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", v) for v in dates), (name, column)
    kinds = {kind for c in connections.values() for *_, kind, _ in columns(c)}
    assert kinds == {"TEXT", "INTEGER", "REAL", "DATE"}


# ------------------------------------------------------------------------------- gold SQL


def test_every_gold_query_runs_in_the_sandbox_and_returns_rows(built, queries):
    paths = database_files(built)
    with Sandbox(timeout=30) as sandbox:
        executions = sandbox.run_many([(paths[db], sql) for db, sql in queries])
    bad = [(db, sql, e.status, e.error) for (db, sql), e in zip(queries, executions)
           if e.status != "ok" or not e.rows]  # fmt: skip
    assert bad == []


def test_gold_answers_do_not_depend_on_the_order_in_which_rows_are_read(connections, queries):
    """With reverse_unordered_selects, a LIMIT through a tie or an ORDER BY with ties gives another
    result."""
    forwards = [connections[db].execute(sql).fetchall() for db, sql in queries]
    for connection in connections.values():
        connection.execute("PRAGMA reverse_unordered_selects = ON")
    backwards = [connections[db].execute(sql).fetchall() for db, sql in queries]
    for connection in connections.values():
        connection.execute("PRAGMA reverse_unordered_selects = OFF")
    different = []
    for (db, sql), rows, reversed_rows in zip(queries, forwards, backwards):
        if is_ordered(sql):
            same = rows == reversed_rows
        else:
            same = Counter(rounded(rows)) == Counter(rounded(reversed_rows))
        if not same:
            different.append((db, sql))
    assert different == []


def rounded(rows: list[tuple]) -> list[tuple]:
    """Sums depend on the order of their terms in the last digits."""
    return [tuple(round(c, 6) if isinstance(c, float) else c for c in row) for row in rows]


FEATURES = {
    "projection": r"^SELECT \w+ FROM \w+$",
    "=": r"WHERE .* = ",
    "<": r" < ",
    ">": r" > ",
    ">=": r" >= ",
    "BETWEEN": r" BETWEEN \S+ AND ",
    "LIKE": r" LIKE '",
    "LIKE at the start": r" LIKE '[^%]",
    "IN": r"(?<!NOT) IN \(",
    "AND": r"WHERE (?!.*BETWEEN).* AND ",
    "OR": r" OR ",
    "IS NULL": r" IS NULL",
    "AVG": r"^SELECT AVG\(",
    "MAX": r"^SELECT MAX\(",
    "MIN": r"^SELECT MIN\(",
    "SUM": r"^SELECT SUM\(",
    "COUNT": r"^SELECT COUNT\(\*\)",
    "DISTINCT": r"^SELECT DISTINCT ",
    "COUNT DISTINCT": r"COUNT\(DISTINCT ",
    "GROUP BY": r" GROUP BY ",
    "HAVING": r" HAVING ",
    "ORDER BY DESC": r" ORDER BY \S+ DESC$",
    "ORDER BY ASC": r" ORDER BY \S+ ASC$",
    "ORDER BY ... LIMIT 1": r" ORDER BY .* LIMIT 1$",
    "ORDER BY ... LIMIT n": r" ORDER BY .* LIMIT [2-9]$",
    "a join": r"^(?!.* JOIN .* JOIN ).* JOIN ",
    "two joins": r" JOIN .* JOIN ",
    "nested": r"[<>] \(SELECT ",
    "EXISTS": r"EXISTS \(SELECT",
    "NOT IN": r" NOT IN \(SELECT",
    "INTERSECT": r" INTERSECT ",
    "EXCEPT": r" EXCEPT ",
    "UNION": r" UNION ",
}


@pytest.mark.parametrize("split", SPLITS)
def test_every_kind_of_sql_occurs(entries, split):
    sqls = [e["query"] for e in entries[split, "en"]]
    counts = {name: sum(1 for sql in sqls if re.search(pattern, sql))
              for name, pattern in FEATURES.items()}  # fmt: skip
    least = {"sft": 10, "train": 5, "encoder": 5, "dev": 1}[split]
    assert {name: n for name, n in counts.items() if n < least} == {}


# ------------------------------------------------------------------------------ questions


def literals(sql: str) -> tuple[list[str], list[str]]:
    """The texts (without the % of LIKE) and numbers of a query that a question must name; not the
    1 of LIMIT 1 ("the oldest") and of EXISTS (SELECT 1 ...).

    >>> literals("SELECT a FROM t AS T1 WHERE b LIKE '%x%' AND c > 1.5 ORDER BY d LIMIT 1")
    (['x'], ['1.5'])
    """
    texts = [text.replace("''", "'").strip("%") for text in re.findall(r"'((?:[^']|'')*)'", sql)]
    bare = re.sub(r"'(?:[^']|'')*'", "''", sql)
    bare = re.sub(r"LIMIT 1$|SELECT 1 |\bT\d\b", "", bare)
    return texts, re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", bare)


def stands_in(number: str, question: str) -> bool:
    """As a number of its own, not as a part of another."""
    return re.search(rf"(?<![\d.]){re.escape(number)}(?!\.?\d)", question) is not None


def test_literals_by_hand():
    sql = "SELECT a FROM t AS T1 WHERE b = 'O''Hara' AND c > 1.5 AND d = '2020-01-02' LIMIT 3"
    assert literals(sql) == (["O'Hara", "2020-01-02"], ["1.5", "3"])
    assert literals("SELECT a FROM t WHERE EXISTS (SELECT 1 FROM u) LIMIT 1") == ([], [])
    assert stands_in("5", "more than 5.") and stands_in("5", "超过5个")
    assert not stands_in("5", "more than 15, 5.5 or 50")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_literal_stands_in_the_question_as_in_the_database(entries, lang):
    missing, seen = [], 0
    for split in SPLITS:
        for e in entries[split, lang]:
            texts, numbers = literals(e["query"])
            seen += len(texts) + len(numbers)
            absent = [text for text in texts if text not in e["question"]]
            absent += [number for number in numbers if not stands_in(number, e["question"])]
            if absent:
                missing.append((e["question"], e["query"], absent))
    assert missing == [] and seen > 2000


UNTIDY = {
    "an unfilled slot": r"[{}]",
    "two spaces": r"  ",
    "two commas": r",\s*,|、、|，，",
    "a space before a full stop or comma": r" [.,、。，]",
    "a comma before the end": r"[,、，]\s*[.?!。？！]",
    "two marks at the end": r"[.?!。？！]{2,}$",
    "a space at the ends": r"^\s|\s$",
    "no mark at the end": r"[^.?!。？！]$",
    "a Python value": r"\bNone\b|\bTrue\b|\bFalse\b|Condition\(",
    "a missing form": r"<|>|\bForms\b",
    "a SQL word": r"\b(?:SELECT|WHERE|FROM|JOIN|LIMIT|COUNT|BETWEEN|GROUP BY|NULL)\b",
    "a line break": r"[\n\t\r]",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_questions_are_tidy(entries, lang):
    untidy = defaultdict(list)
    for split in SPLITS:
        for e in entries[split, lang]:
            for name, pattern in UNTIDY.items():
                if re.search(pattern, e["question"]):
                    untidy[name].append(e["question"])
    assert {name: (len(texts), texts[:5]) for name, texts in untidy.items()} == {}


SCRIPTS = {
    "ja": "[\u3040-\u30ff]",  # kana
    "zh": "[\u4e00-\u9fff]",
    "vi": "[ăâđêôơưạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹáàãéèíìóòõúùýĩũ]",
}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_questions_are_in_their_language(entries, lang):
    """In a script of its own, starting with a capital, and never the English text."""
    for split in SPLITS:
        english = {e["query"]: e["question"] for e in entries[split, "en"]}
        for e in entries[split, lang]:
            assert lang == "en" or e["question"] != english[e["query"]]
            assert not re.search(r"[^\W\d_]", e["question"])[0].islower(), e["question"]
            assert re.search(SCRIPTS.get(lang, "[A-Za-z]"), e["question"], re.IGNORECASE)
            assert lang != "zh" or not re.search(SCRIPTS["ja"], e["question"])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_shape_has_several_phrasings_and_all_are_asked(entries, lang):
    templates = Lexicon(lang).templates
    english = Lexicon("en").templates
    assert templates.keys() == english.keys() == {e["shape"] for e in entries["train", lang]}
    for shape, phrasings in templates.items():
        assert len(set(phrasings)) == len(phrasings) >= 2, shape


def test_questions_are_written_in_composed_characters(entries):
    """é and ế are single characters: otherwise equal words would be different tokens."""
    for rows in entries.values():
        for e in rows:
            assert unicodedata.is_normalized("NFC", e["question"]), e["question"]
