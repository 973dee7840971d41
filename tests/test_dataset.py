"""Loading datasets: a small one, MultiSpider's published files if available, and bad input."""

import json
import logging
import os
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from sqlenv import (
    EMBEDDED,
    Example,
    Sandbox,
    UserError,
    by_database,
    canonical_sql,
    chosen_languages,
    extract_sql,
    load_dataset,
    open_dataset,
    read_dataset,
    results_match,
)
from sqlenv.dataset import spread
from sqlenv.dataset.language import is_language, language_tag, parse_languages
from sqlenv.embedded import LANGUAGES


def multispider() -> Path:
    """The folder with published MultiSpider data; skips the test if there is none."""
    default = Path(__file__).parents[2] / "shared" / "data" / "multispider"
    root = Path(os.environ.get("TEXT2SQL_DATA", default))
    if not (root / "spider" / "database").is_dir():
        pytest.skip(f"no MultiSpider data in {root}; set TEXT2SQL_DATA to its folder")
    return root


ENTRIES = [
    {"db_id": "pets", "question": "Wie viele Tiere?", "query": "SELECT count(*) FROM pet"},
    {"db_id": "lost", "question": "Wer fehlt?", "query": "SELECT 1", "extra": [1]},
    {"db_id": "pets", "question": "Welche?", "query": "SELECT name FROM pet"},
    {"db_id": "lost", "question": "Und wer noch?", "query": "SELECT 2"},
]


@pytest.fixture
def root(tmp_path):
    questions = tmp_path / "dataset" / "multispider" / "with_English_value"
    questions.mkdir(parents=True)
    (questions / "dev_de.json").write_text(json.dumps(ENTRIES, indent=1), encoding="utf-8")
    pets = tmp_path / "dataset" / "spider" / "database" / "pets"
    pets.mkdir(parents=True)
    connection = sqlite3.connect(pets / "pets.sqlite")
    connection.execute("CREATE TABLE pet (name TEXT)")
    connection.close()
    return tmp_path


def write(root, content):
    file = root / "dataset" / "multispider" / "with_English_value" / "dev_de.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_read(root):
    db_path = root / "dataset" / "spider" / "database" / "pets" / "pets.sqlite"
    examples, missing = read_dataset(root, "de", "dev")
    assert examples == [
        Example("Wie viele Tiere?", "de", "pets", "SELECT count(*) FROM pet", db_path),
        Example("Welche?", "de", "pets", "SELECT name FROM pet", db_path),
    ]
    assert missing == Counter(lost=2)


def test_skipped_questions_are_reported_in_one_line(root, caplog):
    with caplog.at_level(logging.WARNING):
        assert len(load_dataset(str(root), "de", "dev")) == 2
    (record,) = caplog.records
    assert record.getMessage() == "dev_de: 2 questions skipped, no database: lost (2)"


def test_a_link_written_as_a_file_is_followed(root):
    (root / "dataset" / "spider").rename(root / "elsewhere")
    (root / "dataset" / "spider").write_text("../elsewhere\n")
    (example, _), _ = read_dataset(root, "de", "dev")
    assert example.db_path.samefile(root / "elsewhere" / "database" / "pets" / "pets.sqlite")


def test_byte_order_mark(root):
    write(root, b"\xef\xbb\xbf" + json.dumps(ENTRIES).encode())
    assert len(load_dataset(root, "de", "dev")) == 2


@pytest.mark.parametrize(
    ("lang", "split", "words"),
    [
        ("xx", "dev", ["dev_xx.json", "dev_de.json"]),
        ("x_x", "dev", ["'x_x'", "BCP 47"]),
        ("de", "test", ["'test'", "train, dev"]),
        ("fr", "dev", ["dev_fr.json", "dev_de.json"]),
    ],
)
def test_what_does_not_exist(root, lang, split, words):
    with pytest.raises(UserError) as caught:
        load_dataset(root, lang, split)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('[\n{"db_id": "pets",\n"query": }]', ["dev_de.json:3", "malformed"]),
        (b'[{"db_id": "\xff"}]', ["dev_de.json", "UTF-8"]),
        ("{}", ["dev_de.json:1", "list"]),
        ("[]", ["dev_de.json:1", "empty"]),
        ('[\n\n{"db_id": "a", "question": "b", "query": "c"},\n 3]', [":4: entry 2", "object"]),
        ('[\n{"db_id": "a", "question": "b"}]', [":2: entry 1", "'query' is missing"]),
        ('[{"db_id": "a", "question": 5, "query": "c"}]', [":1: entry 1", "'question'"]),
        ('[{"db_id": " ", "question": "b", "query": "c"}]', [":1: entry 1", "'db_id'"]),
        ('[{"db_id": "a", "question": "\\ud800", "query": "c"}]', [":1: entry 1", "'question'"]),
        ('[{"db_id": "a", "question": "b", "query": "\\ud800"}]', [":1: entry 1", "'query'"]),
        (
            '[{"db_id": "a", "question": "b", "query": "c", "part": "\\ud800"}]',
            [":1: entry 1", "'part'", "not valid Unicode"],
        ),
        (f"[{'9' * 5000}]", ["dev_de.json:1", "malformed JSON"]),
        (f"[{'[' * 99_999}", ["dev_de.json:1", "malformed JSON"]),
        ('[{"db_id": "../a", "question": "b", "query": "c"}]', [":1: entry 1", "'../a'"]),
        ('[{"db_id": "/etc", "question": "b", "query": "c"}]', [":1: entry 1", "'/etc'"]),
        ('[{"db_id": "..", "question": "b", "query": "c"}]', [":1: entry 1", "'..'"]),
    ],
)
def test_bad_files_are_named_with_the_line(root, content, words):
    write(root, content)
    with pytest.raises(UserError) as caught:
        load_dataset(root, "de", "dev")
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_all_databases_missing(root):
    write(root, json.dumps(ENTRIES[1:2]))
    with pytest.raises(UserError, match=r"lost \(1\)"):
        load_dataset(root, "de", "dev")


def test_not_a_dataset_folder(tmp_path):
    (tmp_path / "something").touch()
    with pytest.raises(UserError, match="something"):
        load_dataset(tmp_path, "de", "dev")
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(tmp_path / "nowhere", "de", "dev")
    with pytest.raises(UserError, match="it is a file"):
        load_dataset(tmp_path / "something", "de", "dev")


# ------------------------------------------------------------------------------------ languages


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("en", "en"), ("PT-br", "pt-BR"), ("zh-hans-CN", "zh-Hans-CN"), ("fil", "fil"),
        ("de-1996", "de-1996"), ("gap-latn", "gap-Latn"), ("und", "und"),
    ],
)  # fmt: skip
def test_tags_in_the_usual_case(text, tag):
    """RFC 5646, section 2.1.1: regions in upper case, scripts with a capital, all else lower."""
    assert language_tag(text) == tag


@pytest.mark.parametrize(
    "text",
    ["", "e", "english", "pt_BR", "vi ", "-", "en-", "größe", "all", "auc", "gap", "parts"],
)
def test_what_is_no_tag(text):
    """``all``, ``auc`` and ``gap`` are words of the options and reports."""
    assert not is_language(text)
    with pytest.raises(UserError, match="BCP 47"):
        language_tag(text)


def test_the_order_of_languages_does_not_matter():
    """English first; so all of the embedded dataset have the order that they had as a list."""
    assert parse_languages("vi,en") == parse_languages("en,vi,en,VI") == ["en", "vi"]
    dataset = open_dataset(EMBEDDED)
    assert chosen_languages(dataset, "all", ["train", "dev"]) == list(LANGUAGES)
    assert chosen_languages(dataset, "zh,de,en", ["sft"]) == ["en", "de", "zh"]


def test_all_languages_are_those_that_each_split_has(root, caplog):
    """dev is there in de and pt-BR, train in de and en."""
    folder = root / "dataset" / "multispider" / "with_English_value"
    for name in ("dev_pt-BR.json", "train_de.json", "train_en.json", "dev_notes.json"):
        (folder / name).write_bytes((folder / "dev_de.json").read_bytes())
    dataset = open_dataset(root)
    assert chosen_languages(dataset, "all", ["dev"]) == ["de", "pt-BR"]
    assert chosen_languages(dataset, "pt-br", ["dev"]) == ["pt-BR"] and not caplog.records
    assert [e.lang for e in load_dataset(root, "pt-br", "dev")] == ["pt-BR"] * 2
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert chosen_languages(dataset, "all", ["train", "dev"]) == ["de"]
    assert "train: en, de; dev: de, pt-BR" in caplog.text
    with pytest.raises(UserError, match="--lang pt-BR: not a language of .*train: en, de"):
        chosen_languages(dataset, "pt-BR", ["train", "dev"])
    with pytest.raises(UserError, match="--lang all: no language .*sft: none"):
        chosen_languages(dataset, "all", ["sft"])


def test_by_database_keeps_the_order():
    examples = [Example(f"q{i}", "en", db_id, "SELECT 1", Path()) for i, db_id in enumerate("bab")]
    first, second, third = examples
    groups = by_database(examples)
    assert groups == {"b": [first, third], "a": [second]} and list(groups) == ["b", "a"]


def test_spread():
    """By hand; and of questions that are sorted by database, as many of each."""
    assert spread("abcdefg", 3) == ["a", "c", "e"]
    assert spread("abc", 0) == spread("abc", 3) == spread("abc", 9) == ["a", "b", "c"]
    assert Counter(spread("a" * 40 + "b" * 20, 6)) == {"a": 4, "b": 2}


def test_embedded_dataset():
    sizes = {lang: len(load_dataset(EMBEDDED, lang, "dev")) for lang in LANGUAGES}
    assert len(set(sizes.values())) == 1 and sizes["en"] >= 300  # parallel


def test_published_dev_runs_and_matches_itself():
    examples, missing = read_dataset(multispider() / "dev3", "en", "dev")
    assert (len(examples), missing) == (972, Counter(wta_1=62))
    with Sandbox(timeout=20) as sandbox:
        gold = sandbox.run_many([(e.db_path, e.gold_sql) for e in examples])
        same = sandbox.run_many([(e.db_path, canonical_sql(e.gold_sql)) for e in examples])
    for example, first, second in zip(examples, gold, same, strict=True):
        assert first.status == "ok", (example, first.error)
        assert first.reads and first.reads == second.reads, example
        assert results_match(first, first, ordered=True)
        assert results_match(first, second, ordered=True), example
        assert extract_sql(example.gold_sql) == example.gold_sql.strip().rstrip("; ")
    assert sum(not execution.rows for execution in gold) == 49


@pytest.mark.parametrize("lang", LANGUAGES)
def test_published_sample_in_seven_languages(lang):
    root = multispider() / "sample7"
    for split, size in (("train", 13), ("dev", 74)):
        examples, missing = read_dataset(root, lang, split)
        assert len(examples) + missing.total() == size
    assert {example.lang for example in load_dataset(root, lang, "dev")} == {lang}
