"""Fuzzes the sandbox with generated and mutated statements.

    python -m benchmarks.fuzz_sandbox                         100,000 statements, some minutes
    python -m benchmarks.fuzz_sandbox --start 100000          100,000 others

A third of the statements are gold queries of a dataset with parts deleted, repeated, swapped or
replaced. A third come from a grammar of functions, tables, writing statements and extreme values.
A third are the hostile queries of the tests, some mutated. Statement i depends only on the seed
and i. The statements run on copies of the dataset's databases. After each batch, no file may have
changed or appeared, and a harmless query must give the same result on each database as before. A
run that hangs is ended. Prints the number of statements of each status; a failure gives exit
code 1.
"""

import argparse
import faulthandler
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sqlenv import EMBEDDED, Execution, Sandbox, load_dataset
from sqlenv.errors import exit_code

HOSTILE = Path(__file__).parents[1] / "tests" / "hostile_sql.jsonl"
STATUSES = ("ok", "error", "denied", "timeout", "too_large")
STALLED = 600  # seconds after which a batch that has not finished ends the run
TOKEN = re.compile(r"\s+|\w+|'[^']*'|.", re.DOTALL)

VALUES = """NULL 0 1 -1 2 0.5 1e308 9e999 9223372036854775807 -9223372036854775808 1e-320 0x7f
    99999999999999999999 '' 'a' 'now' 'localtime' '%' '%9999999d' '%.*f' x'' x'00ff' x'6e6f77'
    'O''Hara' "France" 'file:copy?mode=rwc' '[1,{"a":[null,"x"]}]' '$[1].a' '$[#-1]'""".split()
FUNCTIONS = """abs/1 avg/1 ceil/1 char/2 coalesce/2 count/1 date/1 date/2 datetime/2 exp/1
    format/2 glob/2 group_concat/2 hex/1 ifnull/2 iif/3 instr/2 julianday/1 length/1 like/2 like/3
    likely/1 ln/1 lower/1 ltrim/2 max/1 max/3 min/1 nullif/2 pow/2 printf/2 printf/3 quote/1
    replace/3 round/2 strftime/2 substr/3 sum/1 time/1 total/1 trim/2 typeof/1 unicode/1
    unixepoch/1 upper/1 zeroblob/1 json/1 json_array/2 json_extract/2 json_group_array/1
    json_group_object/2 json_object/2 json_patch/2 json_quote/1 json_remove/2 json_set/3 json_type/1
    json_valid/1""".split()
WINDOWS = """cume_dist() rank() row_number() ntile({e}) lag({e}) first_value({e}) nth_value({e},2)
    sum({e}) count(*) group_concat({e})""".split()
# Denied, or long in time or space.
RARE = """? :a (1,2) random() current_timestamp load_extension({e}) subtype({e}) randomblob({e})
    fts3_tokenizer({e}) last_insert_rowid() changes() sqlite_version() jsonb({e})
    nosuchfunction({e})
    date() strftime({e}) printf('%.*c',9e8,'x') printf('%.3000000c','a') max(*) count(DISTINCT*)
    hex(hex(printf('%.2000000c','x'))) replace(printf('%.9999c','a'),'a',printf('%.9999c','b'))
    instr(printf('%.2000000c','a'),printf('%.1000000c','a')||'b')""".split()
RARE += [
    "{e} MATCH {e}",
    "{e} REGEXP {e}",
    "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n)",
    "(SELECT count(*) FROM {t} a, {t} b, {t} c, {t} d, {t} e, {t} f, {t} g)",
]
TABLES = """sqlite_master sqlite_schema sqlite_temp_master sqlite_sequence sqlite_stat1 dbstat c n
    pragma_database_list pragma_table_info('x') json_each('[1]') json_tree sqlite_stmt nowhere
    generate_series(1,9) fts3tokenize main.sqlite_master temp.x""".split()
OPERATORS = """+ - * / % || = == <> < <= > >= AND OR IS LIKE GLOB & | << >> -> ->>""".split()
OPERATORS += ["IS NOT", "NOT LIKE", "IS DISTINCT FROM"]
STATEMENTS = [
    "INSERT INTO {t} {q}",
    "REPLACE INTO {t} VALUES ({e})",
    "UPDATE {t} SET {c} = {e} WHERE {e}",
    "DELETE FROM {t} WHERE {e}",
    "CREATE TEMP TABLE {t} AS {q}",
    "CREATE VIEW v AS {q}",
    "DROP TABLE {t}",
    "ATTACH {e} AS a",
    "VACUUM INTO {e}",
    "PRAGMA {c} = {e}",
    "EXPLAIN {q}",
    "BEGIN; {q}",
    "WITH c AS ({q}) DELETE FROM {t}",
    "{q}; {q}",
    "{q}; DROP TABLE {t}",
    "ALTER TABLE {t} RENAME TO copy",
    "VALUES ({e}, {e})",
    "WITH RECURSIVE n(x) AS (SELECT {e} UNION ALL SELECT x + 1 FROM n LIMIT 99) {q}",
]
PIECES = """( ) , ; -- /* */ ' " ` [ . ；SELECT FROM WHERE LIMIT EXISTS( CAST( NOT DISTINCT
    JOIN""".split()
PIECES += [
    "\0",
    "\ud800",
    "\ufeff",
    "UNION ALL SELECT",
    "GROUP BY",
    "ORDER BY",
    "OVER (",
    "WITH c AS (",
]
WRAPS = [
    "SELECT * FROM ({q}) AS s",
    "SELECT count(*) FROM ({q})",
    "WITH c AS ({q}) SELECT * FROM c AS a, c AS b",
    "{q} UNION {q}",
    "{q} EXCEPT {q}",
    "SELECT ({q})",
    "SELECT 1 WHERE EXISTS ({q})",
    "/* c */ {q} -- c",
    "{q};",
]


@dataclass(frozen=True)
class Source:
    """A database, gold queries on it, and its tables with their columns."""

    path: Path
    queries: list[str]
    tables: dict[str, list[str]]


class Fuzzer:
    """Generates statements, each from its own random generator."""

    def __init__(self, sources: list[Source], hostile: list[str], seed: int):
        self.sources, self.hostile, self.seed = sources, hostile, seed

    def statement(self, index: int) -> tuple[Path, str]:
        """Statement number ``index``, and the database to run it on."""
        self.random = random.Random(f"{self.seed} {index}")
        self.source, self.scope = self.pick(self.sources), []
        kind = index % 3
        if kind == 0:
            sql = self.mutated(self.pick(self.source.queries))
        elif kind == 1:
            sql = self.pick(STATEMENTS) if self.chance(0.2) else "{q}"
            sql = self.filled(sql)
        else:
            sql = self.pick(self.hostile)
            sql = self.mutated(sql) if self.chance(0.8) else sql
        return self.source.path, sql

    def pick(self, items: list):
        return items[self.random.randrange(len(items))]

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def filled(self, pattern: str) -> str:
        """Replaces {q}, {e}, {t} and {c} by queries, expressions, tables and columns."""
        generators = {"q": self.query, "e": self.expression, "t": self.table, "c": self.column}
        return re.sub(r"\{([qetc])\}", lambda match: generators[match[1]](), pattern)

    def column(self) -> str:
        noise = ["*", "rowid", "x", "1"]
        return self.pick(self.scope if self.scope and self.chance(0.95) else noise)

    def table(self) -> str:
        return self.pick(TABLES if self.chance(0.05) else list(self.source.tables))

    def expression(self, depth: int = 0) -> str:
        """A random expression, up to four levels deep."""
        if self.chance(0.005):
            return self.filled(self.pick(RARE))
        kind = self.random.randrange(10) if depth < 4 else self.random.randrange(4)
        if kind < 2:
            return self.column()
        if kind < 4:
            return self.pick(VALUES)
        if kind == 8:
            parts = [self.expression(depth + 1) for _ in range(3)]
            return "CASE WHEN {} THEN {} ELSE CAST({} AS TEXT) END".format(*parts)
        left = self.expression(depth + 1)
        if kind < 6:
            return f"{left} {self.pick(OPERATORS)} {self.expression(depth + 1)}"
        if kind == 9:
            return f"{left} IN (SELECT {self.column()} FROM {self.table()})"
        if self.chance(0.05):
            return self.filled(self.pick(WINDOWS)) + " OVER (PARTITION BY 1 ORDER BY 1)"
        name, arity = self.pick(FUNCTIONS).split("/")
        arguments = ", ".join(self.expression(depth + 1) for _ in range(int(arity)))
        return f"{name}({arguments})"

    def query(self, depth: int = 0) -> str:
        """A random SELECT over one to three tables."""
        tables = [self.table() for _ in range(self.pick([1, 1, 1, 2, 3]))]
        outer = self.scope
        self.scope = [
            f"t{i}.{column}"
            for i, table in enumerate(tables)
            for column in self.source.tables.get(table, ["rowid"])
        ]
        results = ", ".join(self.expression(depth) for _ in range(self.random.randrange(1, 4)))
        sql = f"SELECT {self.pick(['', '', 'DISTINCT '])}{results} FROM {tables[0]} AS t0"
        for i, table in enumerate(tables[1:], 1):
            sql += f" {self.pick(['JOIN', 'LEFT JOIN', ',', 'CROSS JOIN'])} {table} AS t{i}"
        for clause in ("WHERE {e}", "GROUP BY {e}", "ORDER BY {e}", "LIMIT {e}"):
            if self.chance(0.2):
                sql += " " + self.filled(clause)
        self.scope = outer
        return sql

    def mutated(self, sql: str) -> str:
        """The statement after one to three mutations."""
        self.scope = [column for columns in self.source.tables.values() for column in columns]
        for _ in range(self.pick([1, 1, 1, 3])):
            sql = self.mutated_once(sql)[:5000]
        return sql

    def mutated_once(self, sql: str) -> str:
        """The statement after one mutation of its tokens."""
        tokens = TOKEN.findall(sql) or [""]
        at, to = sorted(self.random.randrange(len(tokens) + 1) for _ in range(2))
        kind = self.random.randrange(16)
        if kind > 8:  # an operand becomes another
            words = [i for i, token in enumerate(tokens) if re.match(r"[a-z0-9']", token)]
            tokens[self.pick(words or [0])] = self.expression(2)
        elif kind == 0:
            tokens[at:to] = []
        elif kind == 1:
            tokens[at:at] = tokens[at:to] * self.random.randrange(1, 30)
        elif kind == 2:
            tokens = tokens[to:] + tokens[at:to] + tokens[:at]
        elif kind == 3:
            tokens[at : at + 1] = [f" {self.expression(2)} "]
        elif kind == 4:
            tokens[at : at + 1] = [f" {self.pick(PIECES)} "]
        elif kind == 5:
            tokens[at:at] = [self.pick(PIECES) * self.random.randrange(1, 200)]
        elif kind == 6:
            tokens[at:] = TOKEN.findall(self.pick(self.source.queries))[at:]
        elif kind == 7:
            tokens[at:at] = [chr(self.pick([0, 9, 39, 59, 160, 0x202E, 0x1F600, 0xDC00]))]
        else:
            return self.pick(WRAPS).replace("{q}", sql)
        return "".join(tokens)


def copy_databases(data: str, folder: Path) -> list[Source]:
    """Copies a dataset's databases into a folder."""
    sources = []
    examples = load_dataset(data, "en", "train") + load_dataset(data, "en", "dev")
    for path in sorted({example.db_path for example in examples}):
        copy = folder / path.name
        shutil.copy(path, copy)
        with sqlite3.connect(copy) as connection:
            names = "SELECT name FROM sqlite_master WHERE type = 'table'"
            tables = {
                f'"{table}"': [
                    f'"{row[1]}"' for row in connection.execute(f'PRAGMA table_info("{table}")')
                ]
                for (table,) in connection.execute(names).fetchall()
            }
        connection.close()
        queries = [example.gold_sql for example in examples if example.db_path == path]
        sources.append(Source(copy, queries, tables))
    return sources


def hostile_texts() -> list[str]:
    """The hostile queries of the tests that are single strings and do not time out."""
    lines = [json.loads(line) for line in HOSTILE.read_text(encoding="utf-8").splitlines()]
    return [
        line["sql"]
        for line in lines
        if isinstance(line["sql"], str) and "timeout" not in line["status"]
    ]


def contents(folder: Path) -> dict[str, str]:
    """The digest of each file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def problem(execution: Execution) -> str | None:
    """Describes what is wrong with a result of any statement; None if it is valid."""
    if execution.status not in STATUSES:
        return f"status {execution.status!r}"
    if execution.status != "ok" and (execution.rows or execution.columns or not execution.error):
        return f"{execution.status} with rows, columns or no error"
    if any(len(row) != len(execution.columns) for row in execution.rows):
        return "rows of another width than the columns"
    return None


def harmless_rows(sandbox: Sandbox, sources: list[Source]) -> list:
    """The results of a harmless query on each database."""
    queries = [(s.path, f"SELECT count(*) FROM {next(iter(s.tables))}") for s in sources]
    return [execution.rows for execution in sandbox.run_many(queries)]


def run_batch(sandbox: Sandbox, statements: list[tuple[Path, str]]) -> Counter:
    """Runs statements and counts their statuses. Raises AssertionError if a result is invalid."""
    counts = Counter()
    for (_, sql), execution in zip(statements, sandbox.run_many(statements)):
        wrong = problem(execution)
        if wrong:
            raise AssertionError(f"{wrong}: {sql!r}")
        died = "the worker process ended" in (execution.error or "")
        counts["worker died" if died else execution.status] += 1
        if died:
            tqdm.write(f"{execution.error}: {sql!r}")
    return counts


def fuzz(arguments: argparse.Namespace, folder: Path) -> Counter:
    """Runs all statements. Raises AssertionError with their numbers after a failure."""
    sources = copy_databases(arguments.data, folder)
    fuzzer = Fuzzer(sources, hostile_texts(), arguments.seed)
    os.chdir(folder)  # a file with a relative name would appear here
    counts, files = Counter(), contents(folder)
    bar = tqdm(total=arguments.statements, unit=" statements")
    with bar, Sandbox(workers=arguments.workers, timeout=arguments.timeout) as sandbox:
        rows = harmless_rows(sandbox, sources)
        end = arguments.start + arguments.statements
        for start in range(arguments.start, end, arguments.batch):
            faulthandler.dump_traceback_later(STALLED, exit=True)
            numbers = range(start, min(start + arguments.batch, end))
            try:
                counts += run_batch(sandbox, [fuzzer.statement(number) for number in numbers])
                if contents(folder) != files:
                    raise AssertionError("a file was changed, created or deleted")
                if harmless_rows(sandbox, sources) != rows:
                    raise AssertionError("a harmless query gives another result than before")
            except AssertionError as error:
                raise AssertionError(f"statements {start} to {numbers[-1]}: {error}") from error
            bar.update(len(numbers))
            bar.set_postfix(counts)
    faulthandler.cancel_dump_traceback_later()
    return counts


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=EMBEDDED, help="dataset root (%(default)s)")
    parser.add_argument("--statements", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first statement")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=500, help="statements between two checks")
    parser.add_argument("--timeout", type=float, default=0.1)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            counts = fuzz(arguments, Path(folder))
        except AssertionError as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            os.chdir("/")  # some systems cannot remove the current folder
    end = arguments.start + arguments.statements
    print(f"seed {arguments.seed}, statements {arguments.start} to {end - 1}: no harm done")
    for status, count in counts.most_common():
        print(f"{status:12} {count:8} {count / arguments.statements:7.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
