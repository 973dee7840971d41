"""The published formats, each on files of its own: Spider and its relatives, BIRD; and how a format
is recognised. MultiSpider is in test_dataset.py, one SQLite file with questions in test_pairs.py.
"""

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_kit import make_database, texts, write_json

from sqlenv import Example, UserError, chosen_languages, open_dataset
from sqlenv.dataset.base import listing
from tests.test_dataset import multispider

COUNT, NAMES = "SELECT count(*) FROM pet", "SELECT name FROM pet"


def entry(question, query=COUNT, db_id="pets", **more):
    return {"db_id": db_id, "question": question, "query": query, **more}


# --------------------------------------------------------------------------------------- Spider


@pytest.fixture
def spider(tmp_path):
    root = tmp_path / "spider"
    make_database(root / "database" / "pets" / "pets.sqlite")
    write_json(root / "train_spider.json", [entry("How many?", question_toks=["How"])])
    write_json(root / "train_others.json", [entry("Who?", NAMES)])
    write_json(root / "dev.json", [entry("Names?", NAMES), entry("Lost?", db_id="lost")])
    write_json(root / "tables.json", [{"db_id": "pets"}])
    return root


def test_spider_as_published(spider):
    dataset, path = open_dataset(spider), spider / "database" / "pets" / "pets.sqlite"
    assert dataset.load("en", "train") == [
        Example("How many?", "en", "pets", COUNT, path),
        Example("Who?", "en", "pets", NAMES, path),
    ]
    examples, missing = dataset.read("en", "dev")
    assert examples == [Example("Names?", "en", "pets", NAMES, path)] and missing == {"lost": 1}
    assert chosen_languages(dataset, "all", ["train", "dev"]) == ["en"]
    assert dataset.database_path("lost") == spider / "database" / "lost" / "lost.sqlite"


def test_a_relative_in_another_language(spider):
    """CSpider: one training file, and questions in Chinese, which no field says."""
    (spider / "train_others.json").unlink()
    (spider / "train_spider.json").rename(spider / "train.json")
    dataset = open_dataset(spider)
    assert chosen_languages(dataset, "zh", ["train", "dev"]) == ["zh"]
    assert [e.lang for e in dataset.load("zh", "train")] == ["zh"]
    with pytest.raises(UserError, match="does not say in which language its questions are"):
        chosen_languages(dataset, "en,zh", ["dev"])


@pytest.mark.parametrize("name", ["Spider-DK.json", "spider-realistic.json"])
def test_a_relative_with_a_dev_file_of_its_own(spider, name):
    (spider / "dev.json").rename(spider / name)
    assert texts(open_dataset(spider), "en", "dev") == ["Names?"]


def test_spider_syn(spider):
    """Its own question stands beside Spider's."""
    row = entry("", NAMES) | {"SpiderQuestion": "Names?", "SpiderSynQuestion": "Titles?"}
    del row["question"]
    write_json(spider / "dev.json", [row])
    assert texts(open_dataset(spider), "en", "dev") == ["Titles?"]


def test_spider_without_a_file(spider):
    (spider / "dev.json").unlink()
    dataset = open_dataset(spider)
    with pytest.raises(UserError, match="no dev questions: none of dev.json, .* train_spider.json"):
        dataset.read("en", "dev")
    with pytest.raises(UserError, match="unknown split 'sft': choose from train, dev"):
        dataset.read("en", "sft")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"query": ""}, "'query' is empty"),
        ({"question": None}, "'question' is empty or not a text"),
        ({"db_id": "a/b"}, "'a/b', which is not a plain name"),
    ],
)
def test_bad_entries_are_named_with_the_line(spider, change, words):
    """Line 1 is the bracket, lines 2 to 6 are the first entry: three fields and two braces."""
    write_json(spider / "dev.json", [entry("Names?"), entry("Who?") | change])
    with pytest.raises(UserError, match=f"dev.json:7: entry 2 .*{words}"):
        open_dataset(spider).read("en", "dev")


def test_published_spider_is_what_multispider_has(tmp_path):
    """Spider's layout, built of links, has the same questions, databases and gold."""
    data = multispider()
    questions = data / "dev3" / "dataset" / "multispider" / "with_English_value"
    for name, target in {
        "train_spider.json": questions / "train_en.json",
        "dev.json": questions / "dev_en.json",
        "tables.json": data / "spider" / "tables.json",
        "database": data / "spider" / "database",
    }.items():
        (tmp_path / name).symlink_to(target.resolve())

    def comparable(root, split):
        examples, missing = open_dataset(root).read("en", split)
        return [replace(e, db_path=e.db_path.resolve()) for e in examples], missing

    for split, size in (("train", 7000), ("dev", 1034)):
        examples, missing = comparable(tmp_path, split)
        assert (examples, missing) == comparable(data / "dev3", split)
        assert len(examples) + missing.total() == size


# ----------------------------------------------------------------------------------------- BIRD

DESCRIPTION = """\
original_column_name,column_name,column_description,data_format,value_description
name,,"the pet's
 name ",text,
birth YEAR ,year of birth,,integer,"from 1990
on"
sex,,,text,M: male
gone,,not in the database,text,
"""


def bird_entry(question, sql=COUNT, **more):
    return {"db_id": "pets", "question": question, "SQL": sql, **more}


@pytest.fixture
def bird(tmp_path):
    root = tmp_path / "bird"
    for folder, split in (("train", "train"), ("dev_20240627", "dev")):
        make_database(root / folder / f"{split}_databases" / "pets" / "pets.sqlite")
    folder = root / "dev_20240627" / "dev_databases" / "pets" / "database_description"
    folder.mkdir()
    (folder / "Pet.csv").write_text(DESCRIPTION, encoding="utf-8")
    write_json(root / "train" / "train.json", [bird_entry("Who?", NAMES, evidence=None)])
    levels = ["simple", "challenging"]
    dev = [
        bird_entry(f"How {level}?", evidence="pets are rows", difficulty=level, question_id=i)
        for i, level in enumerate(levels)
    ]
    write_json(root / "dev_20240627" / "dev.json", dev)
    return root


def test_bird_as_published(bird):
    dataset = open_dataset(bird)
    (example,) = dataset.load("en", "train")
    path = bird / "train" / "train_databases" / "pets" / "pets.sqlite"
    assert example == Example("Who?", "en", "pets", NAMES, path)
    first, second = dataset.load("en", "dev")
    assert (first.evidence, first.difficulty) == ("pets are rows", "simple")
    assert (second.difficulty, second.gold_sql) == ("challenging", COUNT)
    assert first.db_path.is_relative_to(bird / "dev_20240627")
    assert chosen_languages(dataset, "all", ["train", "dev"]) == ["en"]
    assert dataset.database_path("pets") == first.db_path


def test_descriptions_have_the_names_of_the_database(bird):
    """In one line; the description, else the column's long name, then what its values mean."""
    first, second = open_dataset(bird).load("en", "dev")
    assert first.descriptions is second.descriptions
    assert first.descriptions == {
        "pet.name": "the pet's name",
        "pet.Birth year": "year of birth; from 1990 on",
        "pet.sex": "M: male",
    }
    assert hash(first) != hash(second)


def test_a_description_from_windows_or_of_another_kind(bird, caplog):
    folder = bird / "dev_20240627" / "dev_databases" / "pets" / "database_description"
    (folder / "Pet.csv").write_bytes(DESCRIPTION.replace("male", "mâle – il").encode("cp1252"))
    (folder / "notes.csv").write_text("a,b\n1,2\n")
    (folder / "folder.csv").mkdir()
    (folder / "link.csv").symlink_to("gone.csv")
    (folder / "large.csv").write_text('original_column_name\n"' + "x" * 200_000)
    with caplog.at_level(logging.WARNING):
        example, _ = open_dataset(bird).load("en", "dev")
    assert example.descriptions["pet.sex"] == "M: mâle – il"
    for name in ("notes", "folder", "link", "large"):
        assert f"{name}.csv: not used" in caplog.text


def test_a_cell_of_a_description_may_have_any_character(bird):
    folder = bird / "dev_20240627" / "dev_databases" / "pets" / "database_description"
    text = "original_column_name,column_description\nname,a\u2028b\x0cc\nsex,of the pet\n"
    (folder / "Pet.csv").write_text(text, "utf-8")
    example, _ = open_dataset(bird).load("en", "dev")
    assert example.descriptions == {"pet.name": "a b c", "pet.sex": "of the pet"}


def test_a_split_of_bird_alone(bird):
    """As dev and mini-dev are published apart; the files lie in the folder itself."""
    folder = bird / "dev_20240627"
    (folder / "dev.json").rename(folder / "mini_dev_sqlite.json")
    dataset = open_dataset(folder)
    assert texts(dataset, "en", "dev") == ["How simple?", "How challenging?"]
    with pytest.raises(UserError, match="train_databases is expected, but it contains dev_datab"):
        dataset.read("en", "train")


def test_two_dev_splits_of_bird(bird):
    make_database(bird / "mini" / "dev_databases" / "pets" / "pets.sqlite")
    with pytest.raises(UserError, match="dev_20240627 and mini have one: name one of them"):
        open_dataset(bird).read("en", "dev")
    with pytest.raises(UserError, match="mini: one of dev.json and mini_dev_sqlite.json is expect"):
        open_dataset(bird / "mini").read("en", "dev")


def test_what_macos_and_other_programs_leave_in_a_folder_of_bird(bird):
    """A folder with the split's databases is the split, whatever is in it; hidden folders and what
    an archive from macOS has in __MACOSX are no splits.
    """
    for name in ("__MACOSX", ".Trash"):
        (bird / "dev_20240627" / name / "dev_databases").mkdir(parents=True)
        (bird / name / "dev_databases").mkdir(parents=True)
    for root in (bird, bird / "dev_20240627"):
        assert texts(open_dataset(root), "en", "dev") == ["How simple?", "How challenging?"]
    (bird / "dev_20240627" / "old" / "dev_databases").mkdir(parents=True)
    assert len(open_dataset(bird / "dev_20240627").load("en", "dev")) == 2


# ---------------------------------------------------------------------------------- recognition


def without_permission(monkeypatch, folder):
    """Forbids to look into a folder, as a test that root runs cannot do by its mode."""
    stat, listdir = os.stat, os.listdir

    def checked(call, looks_into):
        def wrapper(path, *args, **options):
            if isinstance(path, (str, os.PathLike)) and looks_into(Path(path)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *args, **options)

        return wrapper

    monkeypatch.setattr(os, "stat", checked(stat, lambda path: folder in path.parents))
    monkeypatch.setattr(os, "listdir", checked(listdir, folder.__eq__))
    monkeypatch.setattr(os, "scandir", checked(os.scandir, folder.__eq__))


def test_a_folder_that_cannot_be_read_is_no_split(spider, monkeypatch):
    """lost+found, at the root of a disk."""
    (spider / "lost+found").mkdir()
    without_permission(monkeypatch, spider / "lost+found")
    assert len(open_dataset(spider).load("en", "train")) == 2


def test_a_dataset_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    without_permission(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read .Permission denied"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be listed .Permission denied"):
        listing(tmp_path)


def test_two_formats_in_one_folder(spider):
    (spider / "dataset").mkdir()
    with pytest.raises(UserError, match=r"two formats, dataset/ \(MultiSpider\) and database/"):
        open_dataset(spider)


def test_a_folder_that_is_no_dataset(tmp_path):
    """The message says what was looked for and what is there."""
    (tmp_path / "dev.csv").touch()
    with pytest.raises(UserError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    words = ["dataset/", "database/ with dev.json", "train_databases/", "it contains dev.csv"]
    assert all(word in message for word in words) and "\n" not in message, message


def test_a_database_file_without_questions(tmp_path):
    with pytest.raises(UserError, match="is a file; a SQLite file needs its questions, --quest"):
        open_dataset(make_database(tmp_path / "shop.sqlite"))
