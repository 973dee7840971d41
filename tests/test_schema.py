"""Reading schemas and writing them for a prompt, on small and on published databases."""

import sqlite3

import pytest
from test_dataset import multispider

from sqlenv import (
    Column,
    ForeignKey,
    Sandbox,
    Schema,
    Table,
    UserError,
    load_schema,
    sample_values,
    schema_text,
)
from sqlenv.schema import shown_type, table_line


def make(path, script):
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()
    return path


@pytest.fixture
def shop(tmp_path):
    return make(
        tmp_path / "shop.sqlite",
        """CREATE TABLE maker (maker_id INTEGER PRIMARY KEY, "full name" varchar( 20 ), "order");
        CREATE TABLE item (item_id INTEGER PRIMARY KEY AUTOINCREMENT, maker_id INTEGER,
            price REAL, label TEXT, FOREIGN KEY (MAKER_ID) REFERENCES Maker);
        CREATE TABLE sold (day TEXT, item_id INTEGER REFERENCES item(item_id),
            till INTEGER REFERENCES tills(id), clerk TEXT REFERENCES maker(nobody),
            PRIMARY KEY (day, item_id));
        CREATE VIEW cheap AS SELECT label, price / 2 AS "half cost" FROM item;
        CREATE VIEW broken AS SELECT * FROM gone;
        INSERT INTO maker VALUES (1, 'A  B' || char(10) || 'C', NULL), (2, 'D', x'00');
        INSERT INTO item VALUES (1, 1, 2.5, CAST(x'ff' AS TEXT)), (2, 1, 2.5, 'y');""",
    )


def test_load(shop):
    maker, item, sold = load_schema(shop).tables
    assert maker.columns == (
        Column("maker_id", "INTEGER", True),
        Column("full name", "varchar( 20 )", False),
        Column("order", "", False),
    )
    assert item.foreign_keys == (ForeignKey("maker_id", "maker", "maker_id"),)
    # The reference to a table that does not exist is gone, to a missing column is only named.
    assert sold.foreign_keys == (
        ForeignKey("item_id", "item", "item_id"),
        ForeignKey("clerk", "maker", None),
    )
    assert [c.name for c in sold.columns if c.primary_key] == ["day", "item_id"]


def test_a_foreign_key_without_columns_refers_to_the_primary_key_in_its_order(tmp_path):
    script = """CREATE TABLE pair (a, b, PRIMARY KEY (b, a));
    CREATE TABLE ref (x, y, FOREIGN KEY (x, y) REFERENCES pair);"""
    _, ref = load_schema(make(tmp_path / "pair.sqlite", script)).tables
    assert ref.foreign_keys == (ForeignKey("x", "pair", "b"), ForeignKey("y", "pair", "a"))


def test_generated_columns_are_columns(tmp_path):
    """They can be selected, also by a ``*``, and have values."""
    script = """CREATE TABLE line (price REAL, n INT, total REAL AS (price * n) STORED,
        label TEXT GENERATED ALWAYS AS ('n' || n)); INSERT INTO line VALUES (1.5, 2);"""
    path = make(tmp_path / "line.sqlite", script)
    (line,) = load_schema(path).tables
    assert line.columns[2:] == (Column("total", "REAL", False), Column("label", "TEXT", False))
    assert sample_values(path, 1)["line", "label"] == ("n2",)


def test_generated_columns_that_no_query_can_read_are_left_out(tmp_path):
    """The sandbox replaces strftime, and SQLite trusts no such function in a schema. Whether it
    trusts those of JSON depends on its version.
    """
    script = """CREATE TABLE t (a, year AS (strftime('%Y', a)), upper AS (upper(a)),
        n AS (a ->> '$.n'), extracted AS (json_extract(a, '$.n')))"""
    path = make(tmp_path / "g.sqlite", script)
    (table,) = load_schema(path).tables
    shown = [column.name for column in table.columns]
    assert shown[:2] == ["a", "upper"]
    with Sandbox() as sandbox:
        for name in ("a", "year", "upper", "n", "extracted"):
            assert (sandbox.run(path, f"SELECT {name} FROM t").status == "ok") == (name in shown)


def test_virtual_tables_are_left_out(tmp_path):
    """The sandbox denies them; a module that this SQLite lacks, as vec0 here, hides only its own.
    The tables in which a module stores its data are tables like others.
    """
    script = """CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT);
    CREATE VIRTUAL TABLE search USING fts5(body);
    INSERT INTO docs VALUES (1, 'hello');
    PRAGMA writable_schema = ON;
    INSERT INTO sqlite_master VALUES
        ('table', 'places', 'places', 0, 'CREATE VIRTUAL TABLE places USING vec0(at float[2])');"""
    path = make(tmp_path / "docs.sqlite", script)
    with Sandbox() as sandbox:
        runs = [sandbox.run(path, f"SELECT * FROM {t}") for t in ("docs", "search", "places")]
    assert [run.status for run in runs] == ["ok", "denied", "error"]
    names = [table.name for table in load_schema(path).tables]
    assert names[0] == "docs" and "search_content" in names
    assert "search" not in names and "places" not in names
    assert sample_values(path, 1)["docs", "body"] == ("hello",)


FULL = """\
CREATE TABLE maker (maker_id INTEGER PRIMARY KEY, "full name" TEXT, "order");
CREATE TABLE item (item_id INTEGER PRIMARY KEY, maker_id INTEGER REFERENCES maker(maker_id), \
price REAL, label TEXT);
CREATE TABLE sold (day TEXT, item_id INTEGER REFERENCES item(item_id), till INTEGER, \
clerk TEXT REFERENCES maker, PRIMARY KEY (day, item_id));
CREATE VIEW cheap (label TEXT, "half cost");"""


@pytest.mark.parametrize(
    "declared, shown",
    [
        ("int(11)", "INTEGER"),
        ("tinyint unsigned", "INTEGER"),
        ("bool", "INTEGER"),
        ("character varying(30)", "TEXT"),
        ("varchar2", "TEXT"),
        ("double precision", "REAL"),
        ("NUMERIC", "REAL"),
        ("Date", "DATE"),
        ("datetime", "DATETIME"),
        ("number(10)", "REAL"),
        ("decimal(5,2)", "REAL"),
        ("money", "money"),
        ("ENUM('F','M')", "ENUM('F','M')"),
        ("declared", "declared"),
        ("", ""),
    ],
)
def test_types_of_many_dialects_are_shown_as_a_few(declared, shown):
    column, line = Column("a", declared, False), f"CREATE TABLE t (a {shown});"
    assert table_line(Table("t", (column,), ())) == line.replace("(a )", "(a)")


def test_text_without_a_budget(shop):
    assert schema_text(load_schema(shop)) == FULL


def test_samples(shop):
    samples = sample_values(shop, 2)
    assert samples["item", "price"] == (2.5,)
    assert samples["item", "label"] == ("\ufffd", "y")
    maker, item, sold, _ = schema_text(load_schema(shop), samples=samples).split("\n")
    assert maker.endswith('"order"); -- maker_id: 1, 2; full name: A B C, D')
    assert item.endswith("-- item_id: 1, 2; maker_id: 1; price: 2.5; label: \ufffd, y")
    assert sold.endswith("(day, item_id));")


def test_text_shrinks_step_by_step(shop):
    schema, samples = load_schema(shop), sample_values(shop, 2)
    texts, budget = [], 10_000
    while not texts or texts[-1] != schema_text(schema, budget=budget, samples=samples):
        texts.append(schema_text(schema, budget=budget, samples=samples))
        budget = len(texts[-1]) - 1
    assert [len(text) for text in texts] == sorted({len(text) for text in texts}, reverse=True)
    assert texts[1] == FULL
    assert "TEXT" not in texts[2] and "price" in texts[2]
    assert "price" not in texts[3] and "till" in texts[3]  # one of the two widest tables
    assert "till" not in texts[4] and '"full name"' in texts[4]
    assert '"full name"' not in texts[5] and "REFERENCES item(item_id)" in texts[5]
    assert "label" in texts[5].split("\n")[3] and "label" not in texts[6]  # the view is last
    tables = "CREATE TABLE maker;\nCREATE TABLE item;\nCREATE TABLE sold;"
    assert texts[7:] == [f"{tables}\nCREATE VIEW cheap;"]


def test_a_schema_of_many_tables_is_shortened_in_few_steps():
    """The text that fits is that of shortening one table after the other, from the widest on."""
    columns = [Column("id", "INT", True), *(Column(f"c{i}", "TEXT", False) for i in range(9))]
    tables = tuple(Table(f"t{i:03d}", tuple(columns[: 2 + i % 9]), ()) for i in range(200))
    asked = []

    def count(text: str) -> int:
        asked.append(len(text))
        return len(text)

    for budget in (9_000, 6_000, 5_000, 1_000):
        text = schema_text(Schema(tables), budget=budget, count_tokens=count)
        longer = [size for size in asked if size > len(text)]
        assert len(text) <= budget < min(longer) or budget == 1_000
        assert len(asked) < 12
        asked.clear()


def test_views_are_read_unless_they_are_broken(shop):
    (cheap,) = load_schema(shop).views
    assert cheap == Table(
        "cheap", (Column("label", "TEXT", False), Column("half cost", "", False)), (), True
    )


def test_views_that_no_query_can_read_are_left_out(tmp_path):
    """SQLite has the columns of some of them: with another number of names, a function where it
    may not be, an unknown order, a view of a virtual table, and functions that the sandbox has
    replaced.
    """
    script = """CREATE TABLE t (a, b);
    CREATE VIRTUAL TABLE f USING fts5(body);
    CREATE VIEW good (x) AS SELECT a FROM t;
    CREATE VIEW more AS SELECT x FROM good;
    CREATE VIEW two (x, y) AS SELECT a FROM t;
    CREATE VIEW counted AS SELECT count(*), a FROM t WHERE count(*) > 1;
    CREATE VIEW sorted AS SELECT a FROM t ORDER BY a COLLATE zork;
    CREATE VIEW found AS SELECT body FROM f;
    CREATE VIEW years AS SELECT strftime('%Y', a) FROM t;
    CREATE VIEW padded AS SELECT printf('%05d', a) FROM t;"""
    path = make(tmp_path / "v.sqlite", script)
    views = [view.name for view in load_schema(path).views]
    assert views == ["good", "more"]
    with Sandbox() as sandbox:
        for name in ("good", "more", "two", "counted", "sorted", "found", "years", "padded"):
            readable = sandbox.run(path, f"SELECT * FROM {name}").status == "ok"
            assert readable == (name in views), name


def test_names_that_no_query_can_write_are_left_out(tmp_path):
    """Those with bytes that are not UTF-8, here Latin-1's."""
    path = make(tmp_path / "l.sqlite", "CREATE TABLE t (a, prexo); CREATE TABLE texo (a);")
    path.write_bytes(path.read_bytes().replace(b"exo", b"e\xe7o"))
    (table,) = load_schema(path).tables
    assert (table.name, [column.name for column in table.columns]) == ("t", ["a"])


def test_names_differ_in_the_case_of_letters_beyond_z(tmp_path):
    """To SQLite École is not école, and a key refers to the columns of the one that it names."""
    script = """CREATE TABLE École (Id INTEGER PRIMARY KEY);
    CREATE TABLE école (nom PRIMARY KEY, École, école REFERENCES ÉCOLE(nom));
    CREATE TABLE élève (é REFERENCES éCOLE(NOM), e REFERENCES École(ID));"""
    _, school, pupil = load_schema(make(tmp_path / "e.sqlite", script)).tables
    assert school.foreign_keys == (ForeignKey("école", "École", None),)
    assert pupil.foreign_keys == (ForeignKey("é", "école", "nom"), ForeignKey("e", "École", "Id"))


def test_a_name_with_a_line_break_stays_in_its_comment(tmp_path):
    path = make(
        tmp_path / "b.sqlite", 'CREATE TABLE t ("home\ntown" TEXT); INSERT INTO t VALUES (1)'
    )
    text = schema_text(load_schema(path), samples=sample_values(path, 1))
    assert text == 'CREATE TABLE t ("home\ntown" TEXT); -- home town: 1'


def test_descriptions(shop):
    """By table and column in any case, of views, too, in one line and cut at 120 characters; they
    go after values that do not match the question and before those that do.
    """
    descriptions = {"ITEM.Price": "in\n euro", "cheap.half cost": "x" * 200, "no.such": "y"}
    samples = {("item", "label"): ("y", "z"), ("item", "price"): (2.5,)}
    options = {"samples": samples, "matches": {("item", "label"): ("z",)}}
    options["descriptions"] = descriptions
    texts, budget = [], 10_000
    for _ in range(4):
        texts.append(schema_text(load_schema(shop), budget=budget, **options))
        budget = len(texts[-1]) - 1
    comments = [[line.partition(" -- ")[2] for line in text.split("\n")[:4]] for text in texts]
    view = f"half cost ({'x' * 120})"
    assert [(c[1], c[3]) for c in comments] == [
        ("price (in euro): 2.5; label: y, z", view),
        ("price (in euro)", view),
        ("", ""),
        ("", ""),
    ]
    named = "\n-- Values in the question: item.label = 'z'"
    assert [text.endswith(named) for text in texts] == [True, True, True, False]
    assert texts[2:] == [FULL + named, FULL]


def test_values_in_the_question(shop):
    """In one line behind the schema, whole, and quoted as SQL is: names and texts."""
    long = "a" * 99
    matches = {("item", "full name"): ("O'Hara", "two words"), ("sold", "day"): (long,)}
    first, _, last = schema_text(load_schema(shop), matches=matches).rpartition("\n")
    assert first == FULL
    names = """item."full name" = 'O''Hara', 'two words'"""
    assert last == f"-- Values in the question: {names}; sold.day = '{long}'"


def test_budget_is_in_the_counters_unit(shop):
    schema = load_schema(shop)
    words = len(FULL.split())

    def text(budget: int) -> str:
        return schema_text(schema, budget=budget, count_tokens=lambda text: len(text.split()))

    assert text(words) == FULL
    assert text(words - 1) != FULL


def test_a_changed_file_is_read_again(tmp_path):
    path = make(tmp_path / "a.sqlite", "CREATE TABLE a (x);")
    assert load_schema(path) is load_schema(path)
    make(path, "CREATE TABLE b (y); INSERT INTO b VALUES (hex(zeroblob(9999)));")
    assert [table.name for table in load_schema(path).tables] == ["a", "b"]


def test_unreadable_files_are_a_user_error(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("this is not a database" * 100)
    for path in (tmp_path / "missing.sqlite", text, tmp_path):
        with pytest.raises(UserError, match=str(path)):
            load_schema(path)
    assert not (tmp_path / "missing.sqlite").exists()


def test_published_schemas_survive_a_round_trip_through_text(tmp_path):
    databases = sorted((multispider() / "spider" / "database").glob("*/*.sqlite"))
    assert len(databases) > 100
    for path in databases:
        schema = load_schema(path)
        copy = sqlite3.connect(":memory:")
        copy.executescript(schema_text(schema))
        for table in schema.tables:
            rows = copy.execute("SELECT name, type FROM pragma_table_info(?)", [table.name])
            assert rows.fetchall() == [(c.name, shown_type(c.type)) for c in table.columns], path
        copy.close()
