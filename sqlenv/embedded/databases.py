"""The embedded databases: reads databases.toml and writes the SQLite files, always the same rows.

The values of each column are drawn from a random generator that is seeded with the names of the
database, table and column, so that a change to one column does not change the others. The kinds of
columns are explained at the top of databases.toml.
"""

import math
import random
import re
import sqlite3
import string
import tomllib
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNSEEN = ("museum", "restaurants", "railway", "zoo")  # databases of dev questions only
# Databases of encoder questions only, which widen the encoder's vocabulary.
ENCODER = (
    *("pets", "television", "dealers", "bank", "shipping", "gym"),
    *("athletics", "software", "theater", "elections", "insurance", "climate"),
)

FIRST = """
Ada Ahmed Aiko Akira Amara Anh Beatriz Bruno Carla Chen Clara Dalia Diego Elena Emil Fatima Felix
Greta Hana Hugo Ines Ivan Jonas Julia Kenji Lan Leila Linh Lucas Mai Marta Mei Minh Nadia Nils Noor
Olga Omar Paula Quang Rafael Rosa Samir Sofia Tariq Thomas Uma Victor Wei Yuki Zoe
""".split()
LAST = """
Abe Alvarez Arnaud Bauer Becker Castro Cho Costa Dao Dubois Eder Farouk Fischer Garcia Ghali Haas
Hoang Ito Jansen Kato Keller Khan Laurent Lehmann Lopez Mansour Meyer Mori Moreau Nakata Nguyen
Novak Okafor Ortiz Pham Petit Quint Ramos Renard Roth Saito Santos Silva Stein Tanaka Tran Ueda
Vargas Vidal Wagner Wang Yamada Zhang
""".split()


@dataclass(frozen=True)
class Column:
    """A column as described in databases.toml."""

    name: str
    kind: str  # id, ref, person, combine, choice, code, int, real or date
    args: str
    nullable: bool
    additive: bool  # whether the sum of its values is meaningful

    @property
    def role(self) -> str:
        """What questions use it for: key, ref, name, category, code, number or date."""
        roles = {
            "id": "key",
            "ref": "ref",
            "person": "name",
            "combine": "name",
            "choice": "category",
            "code": "code",
            "date": "date",
        }
        return roles.get(self.kind, "number")


@dataclass
class Table:
    """A table as described in databases.toml."""

    db: str
    name: str
    size: int
    columns: list[Column] = field(default_factory=list)

    def with_role(self, *roles: str) -> list[Column]:
        """The columns that have one of these roles."""
        return [column for column in self.columns if column.role in roles]

    @property
    def label(self) -> Column | None:
        """The column that names a row, if there is one."""
        return next(iter(self.with_role("name")), None)

    @property
    def key(self) -> str:
        """The name of the primary key."""
        return self.columns[0].name


def load_databases() -> dict[str, dict[str, Table]]:
    """All databases of databases.toml: {database: {table: Table}}."""
    text = tomllib.loads((HERE / "databases.toml").read_text(encoding="utf-8"))
    return {
        db: {name: _table(db, name, entries) for name, entries in tables.items()}
        for db, tables in text.items()
    }


def _table(db: str, name: str, entries: dict) -> Table:
    table = Table(db, name, entries["rows"])
    for column, text in entries.items():
        if column != "rows":
            nullable, additive = text.endswith(" ?"), "+" in text.removesuffix(" ?")[-1]
            kind, _, args = text.removesuffix(" ?").removesuffix(" +").partition(" ")
            table.columns.append(Column(column, kind, args, nullable, additive))
    return table


def create_table(table: Table, tables: dict[str, Table]) -> str:
    """The CREATE TABLE statement; ``tables`` are all of the database."""
    types = {"id": "INTEGER PRIMARY KEY", "int": "INTEGER", "real": "REAL", "date": "DATE"}
    lines = []
    for column in table.columns:
        kind = types.get(column.kind, "TEXT")
        if column.kind == "ref":
            kind = f"INTEGER REFERENCES {column.args}({tables[column.args].key})"
        lines.append(f"  {column.name} {kind}")
    return f"CREATE TABLE {table.name} (\n" + ",\n".join(lines) + "\n)"


def _code(pattern: str, rng: random.Random) -> str:
    """A code such as "A-204". In the pattern an A is any letter, and 9s are a number."""
    text = re.sub("A", lambda _: rng.choice(string.ascii_uppercase), pattern)
    return re.sub(
        "9+", lambda nines: str(rng.randint(10 ** (len(nines[0]) - 1), int(nines[0]))), text
    )


def _draw(column: Column, size: int, parents: dict[str, int], rng: random.Random) -> list:
    """Draws ``size`` values of a column; ``parents`` has the size of each table."""
    kind, args = column.kind, column.args
    if kind == "id":
        return list(range(1, size + 1))
    if kind == "ref":
        # Skewed: few parents with many children, many with few, and an eighth without any.
        order = rng.sample(range(1, parents[args] + 1), max(parents[args] * 7 // 8, 1))
        return [order[int(len(order) * rng.random() ** 2)] for _ in range(size)]
    if kind == "person":
        return rng.sample([f"{first} {last}" for first in FIRST for last in LAST], size)
    if kind == "combine":
        heads, tails = (part.split("|") for part in args.split(" + "))
        return rng.sample([f"{head} {tail}" for head in heads for tail in tails], size)
    if kind == "choice":
        values = args.split("|")
        return rng.choices(values, [1 / (rank + 2) for rank in range(len(values))], k=size)
    if kind == "code":
        return [_code(rng.choice(args.split("|")), rng) for _ in range(size)]
    low, high = map(int, args.split())
    if kind == "date":
        days = (date(high, 12, 31) - date(low, 1, 1)).days
        return [str(date(low, 1, 1) + timedelta(rng.randint(0, days))) for _ in range(size)]
    if kind == "real":
        return [round(rng.uniform(low, high), rng.choice((0, 1, 2))) for _ in range(size)]
    # Money and numbers of people are log-uniform over orders of magnitude.
    log_uniform = high >= 20 * max(low, 1) and high > 1000
    return [
        round(low * (high / low) ** rng.random()) if log_uniform else rng.randint(low, high)
        for _ in range(size)
    ]


def _separate_from_mean(values: list) -> None:
    """Changes values that equal the mean of their column by 0.01, in place.

    Otherwise the order of summation would decide whether such a value is above the average.
    """
    present = [value for value in values if value is not None]
    mean = sum(present) / len(present)
    for row, value in enumerate(values):
        if value is not None and math.isclose(value, mean):
            values[row] = round(value + 0.01, 2)


def write_database(tables: dict[str, Table], path: Path) -> None:
    """Creates a SQLite file with its tables and rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as connection, connection:
        fill_database(connection, tables)


def fill_database(connection: sqlite3.Connection, tables: dict[str, Table]) -> None:
    """Creates the tables with their rows in an empty database."""
    sizes = {table.name: table.size for table in tables.values()}
    for table in tables.values():
        connection.execute(create_table(table, tables))
        values = []
        for column in table.columns:
            rng = random.Random(f"{table.db}.{table.name}.{column.name}")
            drawn = _draw(column, table.size, sizes, rng)
            if column.nullable:
                for row in rng.sample(range(table.size), table.size // 10):
                    drawn[row] = None
            if column.kind == "real":
                _separate_from_mean(drawn)
            values.append(drawn)
        marks = ", ".join("?" * len(table.columns))
        connection.executemany(f"INSERT INTO {table.name} VALUES ({marks})", zip(*values))
