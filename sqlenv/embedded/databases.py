"""The embedded databases: reads databases.toml and writes the SQLite files, the same bytes of rows
every time.

Rows are drawn from a generator seeded with the table's name, so that a change to one table leaves
the others as they are. The kinds of columns are explained at the top of databases.toml.
"""

import math
import random
import sqlite3
import tomllib
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

HERE = Path(__file__).resolve().parent
UNSEEN = ("museum", "restaurants", "railway", "zoo")  # databases that only dev questions are about
# ... and those that only the encoder reads about, for more words than the others have
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
    name: str
    kind: str  # id, ref, person, combine, choice, int, real or date
    args: str
    nullable: bool
    additive: bool  # whether adding the numbers up makes sense

    @property
    def role(self) -> str:
        """What questions can do with it: key, ref, name, category, number or date."""
        roles = {
            "id": "key",
            "ref": "ref",
            "person": "name",
            "combine": "name",
            "choice": "category",
            "date": "date",
        }
        return roles.get(self.kind, "number")


@dataclass
class Table:
    db: str
    name: str
    size: int
    columns: list[Column] = field(default_factory=list)

    def with_role(self, *roles: str) -> list[Column]:
        return [column for column in self.columns if column.role in roles]

    @property
    def label(self) -> Column | None:
        """The column that names a row, if there is one."""
        return next(iter(self.with_role("name")), None)

    @property
    def key(self) -> str:
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


def create_table(table: Table) -> str:
    """The CREATE TABLE statement."""
    types = {"id": "INTEGER PRIMARY KEY", "int": "INTEGER", "real": "REAL", "date": "DATE"}
    lines = []
    for column in table.columns:
        kind = types.get(column.kind, "TEXT")
        if column.kind == "ref":
            kind = f"INTEGER REFERENCES {column.args}({column.name})"
        lines.append(f"  {column.name} {kind}")
    return f"CREATE TABLE {table.name} (\n" + ",\n".join(lines) + "\n)"


def _draw(column: Column, size: int, parents: dict[str, int], rng: random.Random) -> list:
    """``size`` values of a column."""
    kind, args = column.kind, column.args
    if kind == "id":
        return list(range(1, size + 1))
    if (
        kind == "ref"
    ):  # a quadratic skew: few busy parents, many quiet ones, and an eighth that no child refers to
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
    low, high = map(int, args.split())
    if kind == "date":
        days = (date(high, 12, 31) - date(low, 1, 1)).days
        return [str(date(low, 1, 1) + timedelta(rng.randint(0, days))) for _ in range(size)]
    if kind == "real":
        return [round(rng.uniform(low, high), rng.choice((0, 1, 2))) for _ in range(size)]
    wide = (
        high >= 20 * max(low, 1) and high > 1000
    )  # money and crowds are spread over orders of magnitude
    return [
        round(low * (high / low) ** rng.random()) if wide else rng.randint(low, high)
        for _ in range(size)
    ]


def _part_from_mean(values: list) -> None:
    """Moves what equals the mean of a column by a cent, in place: whether such a value is above
    the average would hang on the order in which the database adds up."""
    present = [value for value in values if value is not None]
    mean = sum(present) / len(present)
    for row, value in enumerate(values):
        if value is not None and math.isclose(value, mean):
            values[row] = round(value + 0.01, 2)


def write_database(tables: dict[str, Table], path: Path) -> None:
    """Creates one SQLite file with its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = {table.name: table.size for table in tables.values()}
    with sqlite3.connect(path) as connection:
        for table in tables.values():
            connection.execute(create_table(table))
            values = []
            for column in table.columns:
                rng = random.Random(f"{table.db}.{table.name}.{column.name}")
                drawn = _draw(column, table.size, sizes, rng)
                if column.nullable:
                    for row in rng.sample(range(table.size), table.size // 10):
                        drawn[row] = None
                if column.kind == "real":
                    _part_from_mean(drawn)
                values.append(drawn)
            holes = ", ".join("?" * len(table.columns))
            connection.executemany(f"INSERT INTO {table.name} VALUES ({holes})", zip(*values))
    connection.close()
