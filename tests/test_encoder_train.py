"""What the encoder is trained on, and training: batches by hand, resume, the command line."""

import json
import random
import re
import sqlite3
from collections import Counter

import pytest
import torch

from encoder import ContrastiveEncoder, SemanticReward, word_vectors
from encoder import train as training
from encoder.batches import (
    KINDS,
    Entry,
    draw_negatives,
    epoch_batches,
    hard_negatives,
    hold_out,
    load_entries,
    make_batch,
)
from encoder.fresh import FreshEntries
from encoder.text import sql_text
from sqlenv import Column, Mutant, Schema, Table, UserError, load_schema, open_dataset

TABLES = {"shop": ["customers", "orders"], "school": ["students", "teachers"]}
COLUMNS = ["name", "age", "city", "salary", "phone"]
PHRASES = {
    "en": {"list": "List the {column} of all {table}", "max": "Largest {column} of {table}?"},
    "vi": {"list": "Liệt kê {column} của mọi {table}", "max": "{column} lớn nhất {table}?"},
}
QUERIES = {"list": "SELECT {column} FROM {table}", "max": "SELECT max({column}) FROM {table}"}
DATABASE = """
    CREATE TABLE singer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INT, height INT);
    CREATE TABLE writer (id INTEGER PRIMARY KEY, name TEXT, country TEXT, age INT);
    CREATE TABLE song (id INTEGER PRIMARY KEY, singer_id INT REFERENCES singer (id), title TEXT);
    INSERT INTO singer VALUES (1, 'Ann', 'France', 30, 170), (2, 'Bob', 'France', 40, 180),
        (3, 'Cid', 'Japan', 40, 160), (4, 'Dee', 'Peru', 50, 150);
    INSERT INTO writer VALUES (1, 'Eve', 'Japan', 41), (2, 'Cid', 'Peru', 30);
    INSERT INTO song VALUES (1, 1, 'A'), (2, 1, 'B'), (3, 3, 'A'), (4, NULL, 'C');
"""
# For each kind a gold query and a hard negative that belongs to it.
HARD_NEGATIVES = {
    "comparison": (
        "SELECT name FROM singer WHERE age > 40",
        "SELECT name FROM singer WHERE age >= 40",
    ),
    "distinct": ("SELECT count(DISTINCT country) FROM singer", "SELECT count(country) FROM singer"),
    "aggregate": ("SELECT max(age) FROM singer", "SELECT min(age) FROM singer"),
    "column": ("SELECT avg(age) FROM singer", "SELECT avg(height) FROM singer"),
    "table": ("SELECT name FROM singer", "SELECT name FROM writer"),
    "literal": (
        "SELECT name FROM singer WHERE age >= 40",
        "SELECT name FROM singer WHERE age >= 41",
    ),
    "sort": ("SELECT name FROM singer ORDER BY age", "SELECT name FROM singer ORDER BY age DESC"),
    "limit": (
        "SELECT name FROM singer ORDER BY age DESC LIMIT 1",
        "SELECT name FROM singer ORDER BY age DESC LIMIT 2",
    ),
    "join": (
        "SELECT T1.name FROM singer AS T1 JOIN song AS T2 ON T1.id = T2.singer_id",
        "SELECT T1.name FROM singer AS T1",
    ),
    "and_or": (
        "SELECT name FROM singer WHERE age > 30 AND country = 'France'",
        "SELECT name FROM singer WHERE age > 30 OR country = 'France'",
    ),
    "condition": (
        "SELECT name FROM singer WHERE age > 30 AND country = 'France'",
        "SELECT name FROM singer WHERE country = 'France'",
    ),
    "having": (
        "SELECT country, count(*) FROM singer WHERE height > 175 GROUP BY country",
        "SELECT country, count(*) FROM singer GROUP BY country HAVING height > 175",
    ),
    "set_operation": (
        "SELECT name FROM singer INTERSECT SELECT name FROM writer",
        "SELECT name FROM singer UNION SELECT name FROM writer",
    ),
    "negation": (
        "SELECT name FROM singer WHERE id NOT IN (SELECT singer_id FROM song WHERE singer_id > 0)",
        "SELECT name FROM singer WHERE id IN (SELECT singer_id FROM song WHERE singer_id > 0)",
    ),
}


@pytest.fixture(scope="module")
def singers(tmp_path_factory):
    path = tmp_path_factory.mktemp("singers") / "singers.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(DATABASE)
    connection.close()
    return path


def test_there_is_a_case_for_each_kind():
    assert set(HARD_NEGATIVES) == set(KINDS)


@pytest.mark.parametrize("kind", HARD_NEGATIVES)
def test_a_hard_negative_of_each_kind_runs_differs_and_has_its_label(singers, kind):
    gold, expected = HARD_NEGATIVES[kind]
    by_text = {
        sql_text(mutant.sql): mutant for mutant in hard_negatives(gold, load_schema(singers))
    }
    negative = by_text[sql_text(expected)]
    connection = sqlite3.connect(singers)
    rows = [connection.execute(sql).fetchall() for sql in (gold, negative.sql)]
    connection.close()
    assert rows[0] != rows[1]
    assert negative.kind == kind


def test_hard_negatives_leave_the_inside_of_literals_alone(singers):
    gold = "SELECT name FROM singer WHERE country = 'age > 40 AND count(name)'"
    inside = [m for m in hard_negatives(gold, load_schema(singers)) if m.kind != "literal"]
    assert inside and all(
        "'age > 40 AND count(name)'" in m.sql for m in inside if "country" in m.sql
    )


def test_kinds_are_drawn_by_weight_however_many_hard_negatives_they_have():
    """One DISTINCT against ten columns, which weigh 3: a quarter of 400 first draws, and all in the
    end.
    """
    pool = [Mutant(f"c{i}", "column") for i in range(10)] + [Mutant("d", "distinct")]
    rng = random.Random(0)
    first = [draw_negatives(pool, 1, rng)[0].kind for _ in range(400)]
    assert 70 < first.count("distinct") < 130
    assert sorted(draw_negatives(pool, 20, rng)) == sorted(pool)
    assert draw_negatives([], 3, rng) == []


def synthetic_entries() -> list[Entry]:
    """40 SQL queries: 2 databases of 20, each with questions in 2 languages."""
    schemas = {
        db_id: Schema(
            tuple(Table(n, tuple(Column(c, "TEXT", False) for c in COLUMNS), ()) for n in tables)
        )
        for db_id, tables in TABLES.items()
    }
    return [
        Entry(
            query.format(column=column, table=table),
            db_id,
            schemas[db_id],
            tuple(
                (lang, phrases[shape].format(column=column, table=table))
                for lang, phrases in PHRASES.items()
            ),
        )
        for shape, query in QUERIES.items()
        for db_id, tables in TABLES.items()
        for table in tables
        for column in COLUMNS
    ]


def test_an_epoch_shows_every_entry_once_and_half_the_batches_one_database():
    entries = [Entry(f"s{i}", f"db{i % 2}", Schema(()), ()) for i in range(160)]
    batches = epoch_batches(entries, 10, random.Random(0))
    assert sorted(e.gold for b in batches for e in b) == sorted(e.gold for e in entries)
    assert sum(len({entry.db_id for entry in batch}) == 1 for batch in batches) >= 7  # of 16


def test_held_out_sql_is_never_trained_on():
    known, held_out = hold_out(synthetic_entries(), share=0.1, seed=0)
    assert len(known) == 36 and len(held_out) == 4
    assert not {(e.db_id, e.gold) for e in known} & {(e.db_id, e.gold) for e in held_out}
    with pytest.raises(UserError, match="too few"):
        hold_out([Entry("s", "alone", Schema(()), ())] * 9, share=0.1, seed=0)


def draw_batch(entries, questions, negatives, with_schema=False):
    return make_batch(
        entries,
        questions=questions,
        negatives=negatives,
        with_schema=with_schema,
        rng=random.Random(1),
    )


def test_a_batch_by_hand():
    """Two SQL queries, two questions each, and all their hard negatives, but for one each, which an
    attack may replace; the hard negative that is the other SQL of the batch occurs once.
    """
    entries = [
        e
        for e in synthetic_entries()
        if e.gold in ("SELECT max(age) FROM orders", "SELECT max(city) FROM orders")
    ]
    batch = draw_batch(entries, questions=2, negatives=50)
    assert sorted(batch.questions) == sorted(text for e in entries for _, text in e.questions)
    assert batch.positives == [0, 0, 1, 1]
    assert batch.sqls[:2] == [entry.gold for entry in entries]
    assert len(set(batch.sqls)) == len(batch.sqls)
    wrong = {sql_text(m.sql) for e in entries for m in hard_negatives(e.gold, e.schema)}
    assert "SELECT min(age) FROM orders" in wrong and len(wrong - set(batch.sqls)) <= 2
    few = draw_batch(entries, questions=1, negatives=0)
    assert len(few.questions) == 2 and len(few.sqls) == 2


def test_a_batch_with_the_schema_shows_the_tables_beside_the_sql():
    entries = synthetic_entries()[:1]
    batch = draw_batch(entries, questions=1, negatives=8, with_schema=True)
    sqls = {sql for sql in batch.sqls if "FROM customers" in sql}
    assert len(sqls) > 3
    assert all("customers(name, age, city, salary, phone)" in sql for sql in sqls)


def test_fresh_entries_are_about_a_few_schemas_that_never_come_again():
    """Twice 20 entries in 3 of 4 languages: 8 about each schema but the last."""
    fresh, rng = FreshEntries(("en", "de", "ja", "vi")), random.Random(0)
    first, second = (fresh.draw(20, 3, rng) for _ in range(2))
    sizes = Counter(entry.schema for entry in first)
    assert sorted(sizes.values()) == [4, 8, 8]
    assert {e.db_id: e.schema for e in first}.keys() == {"schema 0", "schema 1", "schema 2"}
    assert not sizes.keys() & {entry.schema for entry in second}
    for entry in first:
        assert len({lang for lang, _ in entry.questions}) == 3 == len(entry.questions)
        assert set(load_tables(entry.gold)) <= {table.name for table in entry.schema.tables}
    assert {lang for entry in first for lang, _ in entry.questions} == {"en", "de", "ja", "vi"}
    assert fresh.draw(20, 3, random.Random(0)) == first


def test_fresh_entries_have_no_excluded_sql():
    gold = [entry.gold for entry in FreshEntries(("en",)).draw(16, 1, random.Random(3))]
    left = FreshEntries(("en",), gold).draw(16, 1, random.Random(3))
    assert not {sql.lower() for sql in gold} & {entry.gold.lower() for entry in left}


def load_tables(sql: str) -> set[str]:
    """The words after FROM and JOIN."""
    return set(re.findall(r"\b(?:FROM|JOIN) (\w+)", sql))


def arguments(output="unused", **changed):
    args = training.parse_arguments(["--output", str(output)])
    vars(args).update(
        steps=60,
        batch_size=10,
        questions=2,
        lr=2e-3,
        dtype="float32",
        dim=32,
        hidden=64,
    )
    vars(args).update(changed)
    return args


def tiny(args) -> ContrastiveEncoder:
    return training.new_encoder(args, synthetic_entries())


def test_training_lowers_the_loss_and_finds_the_right_sql():
    args, entries = arguments(), synthetic_entries()
    encoder = tiny(args)
    scale = encoder.scale.item()

    def recall() -> float:
        questions = encoder.embed([e.questions[1][1] for e in entries], "query")
        sqls = encoder.embed([sql_text(e.gold) for e in entries], "sql")
        return (sqls @ questions.T).argmax(0).eq(torch.arange(40)).float().mean().item()

    before = recall()
    losses = [loss for _, loss, _ in training.train(encoder, entries, args)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert recall() > max(0.8, before + 0.2)
    assert encoder.scale.item() != scale and not encoder.training


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    """Stopped after step 5, with a checkpoint of step 4; dropout is on, batches are drawn, some of
    them about generated schemas.
    """
    args, entries = arguments(steps=8, save_every=2, fresh=0.5), synthetic_entries()
    fresh = FreshEntries(("en", "vi"))

    def run(checkpoint, stop=8):
        encoder = tiny(args)
        encoder.backbone.embeddings.dropout.p = 0.1
        steps = training.train(encoder, entries, args, checkpoint, fresh)
        return encoder, [(done, loss) for _, (done, loss, _) in zip(range(stop), steps)]

    whole, losses = run(tmp_path / "whole.pt")
    run(tmp_path / "killed.pt", stop=6)  # the generator is left behind in its sixth step
    resumed, rest = run(tmp_path / "killed.pt")
    assert rest == losses[4:] and rest[0][0] == 5
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    with pytest.raises(UserError, match="other settings"):
        list(training.train(tiny(args), entries, arguments(steps=9), tmp_path / "killed.pt"))
    (tmp_path / "killed.pt").write_bytes(b"cut off")
    with pytest.raises(UserError, match="remove it"):
        list(training.train(tiny(args), entries, args, tmp_path / "killed.pt"))


def test_calibration_has_all_kinds_of_pairs_with_one_question_per_query(monkeypatch):
    """Right SQL is gold and a rewrite of it, wrong SQL another gold and a hard negative: each of
    the four pairs is drawn for about 10 of 40 questions.
    """
    asked, schema = [], synthetic_entries()[0].schema
    entries = [
        Entry(f"SELECT name FROM customers WHERE age > {n}", "shop", schema, (("en", f"{n}?"),))
        for n in range(10, 410, 10)
    ]

    class Reward:
        def __init__(self, *_, **options):
            pass

        def cosines(self, questions, golds, sqls):
            asked.append((golds, sqls))
            return torch.linspace(0, 1, len(sqls))

    monkeypatch.setattr(training, "SemanticReward", Reward)
    training.calibrate(tiny(arguments()), entries, entries, seed=0)
    (golds, right), (_, wrong) = asked[:2]
    pairs = Counter((r == gold, w in golds) for gold, r, w in zip(golds, right, wrong))
    assert len(pairs) == 4 and min(pairs.values()) >= 4


def test_another_answer_to_the_same_question_is_not_wrong(monkeypatch):
    """Two queries that answer "Who?" and one that does not: this one is wrong SQL for both."""
    asked, schema = [], synthetic_entries()[0].schema
    entries = [
        Entry("SELECT name FROM customers", "shop", schema, (("en", "Who?"), ("en", "Names?"))),
        Entry("SELECT phone FROM customers", "shop", schema, (("en", "Who?"),)),
        Entry("SELECT age FROM customers", "shop", schema, (("en", "Ages?"), ("vi", "Who?"))),
    ]

    def cosines(_, questions, golds, sqls):
        asked.append(sqls)
        return torch.linspace(0, 1, len(sqls))

    monkeypatch.setattr(SemanticReward, "cosines", cosines)
    monkeypatch.setattr(training, "hard_negatives", lambda *_: ())
    training.calibrate(tiny(arguments()), entries[:2], entries, seed=0)
    assert asked[1] == [sql_text(entries[2].gold)] * 3
    assert len(hold_out(entries[1:], share=0.5, seed=0)[1]) == 1
    with pytest.raises(UserError, match="0 different SQL texts are too few"):
        hold_out(entries[:2], share=0.5, seed=0)


@pytest.mark.parametrize(
    "changed", ["a question", "a held-out question", "a column", "the number of questions"]
)
def test_a_run_on_other_data_is_not_resumed(tmp_path, capsys, monkeypatch, changed):
    """The tokenizer would have other tokens. With the data as it was, the same command goes on,
    also from a checkpoint that was written before there was a hash.
    """
    write_dataset(tmp_path / "data")
    options = ["--data", str(tmp_path / "data"), "--lang", "en", "--batch-size", "8", "--epochs"]
    options += ["1", "--save-every", "2", "--hidden", "32", "--output", str(tmp_path / "out")]
    calibrate = training.calibrate
    monkeypatch.setattr(training, "calibrate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        training.run(training.parse_arguments(options))
    monkeypatch.setattr(training, "calibrate", calibrate)
    file = tmp_path / "data" / "dataset" / "multispider" / "with_English_value" / "train_en.json"
    before = file.read_text()
    shop = tmp_path / "data" / "dataset" / "spider" / "database" / "shop" / "shop.sqlite"
    if changed == "a column":
        connection = sqlite3.connect(shop)
        connection.execute("ALTER TABLE orders ADD COLUMN day")
        connection.close()
    elif changed == "the number of questions":  # one batch less
        file.write_text(json.dumps(json.loads(before)[8:]))
    else:
        entries = load_entries(open_dataset(tmp_path / "data"), langs=["en"], splits=["train"])
        known, held_out = hold_out(entries, share=0.1, seed=0)
        ((_, question),) = (held_out if changed == "a held-out question" else known)[0].questions
        file.write_text(before.replace(question, "Quite another question?"))
    assert training.main(options) == 2
    error = capsys.readouterr().err
    assert "out.checkpoint.pt is of a run on other data" in error and "Traceback" not in error
    if changed != "a column":
        file.write_text(before)
        if changed == "a held-out question":
            state = torch.load(tmp_path / "out.checkpoint.pt")
            del state["data_hash"]
            torch.save(state, tmp_path / "out.checkpoint.pt")
        assert training.main(options) == 0


def test_a_resumed_run_keeps_the_dtype_that_was_measured(tmp_path, monkeypatch):
    entries = synthetic_entries()
    monkeypatch.setattr(training, "fastest_dtype", lambda *_: "bfloat16")
    args = arguments(steps=4, save_every=2, dtype="auto")
    for _ in zip(range(3), training.train(tiny(args), entries, args, tmp_path / "killed.pt")):
        pass
    assert args.dtype == "bfloat16"
    monkeypatch.setattr(training, "fastest_dtype", lambda *_: "float32")
    args = arguments(steps=4, save_every=2, dtype="auto")
    rest = list(training.train(tiny(args), entries, args, tmp_path / "killed.pt"))
    assert [done for done, _, _ in rest] == [3, 4] and args.dtype == "bfloat16"


def write_dataset(root) -> None:
    """The synthetic entries in MultiSpider's published layout."""
    folder = root / "dataset" / "multispider" / "with_English_value"
    folder.mkdir(parents=True)
    for lang in PHRASES:
        rows = [
            {"db_id": entry.db_id, "query": entry.gold, "question": dict(entry.questions)[lang]}
            for entry in synthetic_entries()
        ]
        (folder / f"train_{lang}.json").write_text(json.dumps(rows), encoding="utf-8")
    for db_id, tables in TABLES.items():
        place = root / "dataset" / "spider" / "database" / db_id
        place.mkdir(parents=True)
        connection = sqlite3.connect(place / f"{db_id}.sqlite")
        for table in tables:
            connection.execute(f"CREATE TABLE {table} ({', '.join(COLUMNS)})")
        connection.close()


def test_questions_of_one_sql_are_together_however_it_is_written(tmp_path):
    write_dataset(tmp_path)
    file = tmp_path / "dataset" / "multispider" / "with_English_value" / "train_vi.json"
    rows = json.loads(file.read_text(encoding="utf-8"))
    for row in rows:
        row["query"] = row["query"].lower().replace(" ", "  ")
    file.write_text(json.dumps(rows), encoding="utf-8")
    entries = load_entries(open_dataset(tmp_path), langs=["en", "vi"], splits=["train"])
    assert len(entries) == 40
    assert all([lang for lang, _ in entry.questions] == ["en", "vi"] for entry in entries)


def test_command_line_trains_from_scratch_and_from_its_own_output(tmp_path, capsys):
    write_dataset(tmp_path / "data")
    options = ["--data", str(tmp_path / "data"), "--lang", "en,vi", "--batch-size", "16"]
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert training.main([*options, "--output", first, "--steps", "3"]) == 0
    again = [*options, "--output", second, "--steps", "1", "--base", first, "--with-schema"]
    again += ["--fresh", "1"]
    assert training.main(again) == 0
    loaded = ContrastiveEncoder.load(second)
    assert loaded.with_schema
    shop = tmp_path / "data" / "dataset" / "spider" / "database" / "shop" / "shop.sqlite"
    for target in ("question", "gold", "both"):
        reward = SemanticReward(loaded, target=target)
        sql = "SELECT age FROM orders"
        (score,) = reward(["List the age"], [sql], [sql], [True], [shop])
        assert 0 <= score <= 1
    summary = json.loads((tmp_path / "second" / "training.json").read_text())
    assert summary["arguments"]["steps"] == 1 and "output" not in summary["arguments"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "first", "second"]
    assert training.main([*options, "--output", first]) == 2
    assert "first already exists" in capsys.readouterr().err
    assert training.main([*options, "--output", str(tmp_path / "x"), "--batch-size", "0"]) == 2
    assert "--batch-size: must be a whole number from 1 up, not 0" in capsys.readouterr().err


def test_words_for_a_name_begin_with_similar_embeddings(monkeypatch):
    """With generated schemas the vocabulary has their words, too: the tokens of a price, in English
    and Vietnamese, are closer than those of a price and a name.
    """
    monkeypatch.setattr(training, "TOKENIZER_ENTRIES", 200)
    monkeypatch.setattr(training, "ALIGNED_SCHEMAS", 60)
    monkeypatch.setattr(word_vectors, "STEPS", 150)
    fresh = FreshEntries(("en", "vi"))
    encoder = training.new_encoder(arguments(), synthetic_entries(), fresh)
    vectors = encoder.backbone.get_input_embeddings().weight

    def mean(text):
        return vectors[encoder.tokenizer.encode(text, add_special_tokens=False)].mean(0)

    def similarity(left, right):
        return torch.cosine_similarity(mean(left), mean(right), dim=0).item()

    assert similarity("price", "giá") > 0.3 > abs(similarity("price", "tên"))
    plain = training.new_encoder(arguments(), synthetic_entries())
    assert len(encoder.tokenizer) > len(plain.tokenizer)


def test_generated_schemas_are_a_share_of_the_batches(monkeypatch):
    """A quarter of 40 batches: 10, give or take 7."""
    args, fresh, seen = arguments(steps=40, fresh=0.25), FreshEntries(("en",)), []

    def note(_, entries, optimizer, *rest):
        seen.append(entries)
        optimizer.step()
        return 0.0, 0.0

    monkeypatch.setattr(training, "train_step", note)
    list(training.train(tiny(args), synthetic_entries(), args, None, fresh))
    assert all(len(batch) == 10 for batch in seen)
    assert 3 <= sum(batch[0].db_id == "schema 0" for batch in seen) <= 17


def test_a_language_without_generated_questions_is_refused(tmp_path, capsys):
    write_dataset(tmp_path / "data")
    folder = tmp_path / "data" / "dataset" / "multispider" / "with_English_value"
    (folder / "train_en.json").rename(folder / "train_pt.json")
    options = ["--data", str(tmp_path / "data"), "--lang", "pt", "--fresh", "0.5"]
    assert training.main([*options, "--output", str(tmp_path / "out")]) == 2
    assert (
        "--fresh has questions in en, de, es, fr, ja, vi, zh, not in pt" in capsys.readouterr().err
    )


def test_the_bar_of_a_resumed_run_starts_where_it_was(tmp_path, capsys, monkeypatch):
    """One batch was left of six: the bar ends at 6/6, not at 1/6."""
    write_dataset(tmp_path / "data")
    monkeypatch.setattr(training, "train", lambda *_: iter([(6, 0.5, 0.5)]))
    options = ["--data", str(tmp_path / "data"), "--lang", "en,vi", "--steps", "6"]
    assert training.main([*options, "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().err
    assert "6/6" in shown and "1/6" not in shown
