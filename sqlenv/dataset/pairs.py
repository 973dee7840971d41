"""One SQLite file, and a CSV or JSON-lines file of questions with SQL:

    question,sql
    "Quantos livros há?",SELECT count(*) FROM livro

Columns (or keys, of an object a line): question and sql (or query); optional are lang, split (train
or dev), part, evidence and difficulty. Others are ignored.
"""

import csv
import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from sqlenv.dataset.base import Dataset
from sqlenv.dataset.entries import read_text
from sqlenv.dataset.example import Example
from sqlenv.dataset.language import is_language, language_tag
from sqlenv.errors import UserError
from sqlenv.gold import GoldResults
from sqlenv.sandbox.sandbox import Execution, Sandbox
from sqlenv.schema import check_has_table
from sqlenv.text import SURROGATE, canonical_sql

SEPARATORS = (",", ";", "\t")  # of a CSV file
# How the sandbox's errors end for what reads the clock: date('now'), CURRENT_DATE.
CLOCK = re.compile(r"of the current time\)$|\(current_(date|time|timestamp)\)$")
DEV_SHARE = 0.2  # of the queries, where no column names the splits
SHOWN = 10  # problems that are shown at once
# Our name -> its names in files.
COLUMNS = {"question": ["question"], "gold_sql": ["sql", "query"]} | {
    name: [name] for name in ("lang", "split", "part", "evidence", "difficulty")
}
Row = tuple[int, dict[str, str]]  # the line on which it starts, and its texts by our names


class Pairs(Dataset):
    """Questions on one database. Reads them all, and runs their SQL.

    Raises:
        UserError: the database is none; the file is malformed, repeats a question, or has SQL that
            fails or, with ``need_gold``, a question without SQL. It names the file and the line.
    """

    def __init__(self, database: Path, questions: Path, *, need_gold: bool):
        super().__init__(database)
        if not database.is_file():
            problem = "is a folder" if database.is_dir() else "does not exist"
            raise UserError(f"--data {database}: with --questions a SQLite file, but it {problem}")
        check_has_table(database)
        self.file, self.rows = questions, list(read_rows(questions, need_gold))
        if not self.rows:
            raise UserError(f"{questions}: has no question")
        for line, row in self.rows:
            if problem := row_problem(row, self._has("lang"), self._has("split"), need_gold):
                raise UserError(f"{questions}:{line}: {problem}")
        self.default_lang = "" if self._has("lang") else "und"  # BCP 47: undetermined
        self._check_repeated()
        self._check_gold()
        self.has_split = self._has("split")
        if not self.has_split:
            add_splits([row for _, row in self.rows])

    def languages(self, split: str) -> list[str]:
        return list({self._lang(row): None for _, row in self.rows if row["split"] == split})

    def questions(self, lang: str, split: str) -> list[Example]:
        db_id, chosen = self.root.stem, []
        for _, row in self.rows:
            if row["split"] == split and (self.default_lang or self._lang(row) == lang):
                texts = {name: row[name] for name in row if name not in ("lang", "split")}
                chosen.append(Example(lang=lang, db_id=db_id, db_path=self.root, **texts))
        if not chosen:
            tag = "" if lang == self.default_lang else f" in the language {lang}"
            few = not self.has_split and not any(row["split"] == split for _, row in self.rows)
            need = "it takes two queries" if few else "a column split says which questions are"
            raise UserError(f"{self.file}: no {split} question{tag}; {need}")
        return chosen

    def database_path(self, db_id: str) -> Path:
        if db_id != self.root.stem:
            raise UserError(f"db_id {db_id!r} is not that of --data {self.root}")
        return self.root

    def _has(self, name: str) -> bool:
        return any(row[name] for _, row in self.rows)

    def _lang(self, row: dict[str, str]) -> str:
        return self.default_lang or language_tag(row["lang"])

    def _check_repeated(self) -> None:
        lines: dict[tuple[str, str], int] = {}
        for line, row in self.rows:
            key = self._lang(row), unicodedata.normalize("NFC", row["question"])
            if key in lines:
                raise UserError(f"{self.file}:{line}: the question of line {lines[key]} again")
            lines[key] = line

    def _check_gold(self) -> None:
        """Runs all SQL. What SQLite might run, given more time or memory, is not refused."""
        golds = [(line, row["gold_sql"]) for line, row in self.rows if row["gold_sql"]]
        empty, problems = [], []
        with Sandbox() as sandbox:
            for (line, sql), run in zip(golds, self._run(sandbox, [sql for _, sql in golds])):
                if problem := sql_problem(run):
                    problems.append(f"{self.file}:{line}: {problem}")
                if run.status == "ok" and not run.num_rows:
                    empty += [(line, form, sql) for form in ("NFC", "NFD")]
            if problems:
                more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
                raise UserError("\n".join(problems[:SHOWN] + more))
            # The same text in another normal form is another text to SQLite.
            empty = [(line, form, unicodedata.normalize(form, sql)) for line, form, sql in empty
                     if not unicodedata.is_normalized(form, sql)]  # fmt: skip
            for (line, form, _), run in zip(empty, self._run(sandbox, [e[-1] for e in empty])):
                if run.num_rows:
                    raise UserError(
                        f"{self.file}:{line}: the SQL returns rows only if it is written in the "
                        f"Unicode form {form}, as the texts of {self.root} are; write it so"
                    )

    def _run(self, sandbox: Sandbox, sqls: list[str]) -> list[Execution]:
        return GoldResults(sandbox).run([(self.root, sql) for sql in sqls])


def sql_problem(run: Execution) -> str:
    """Why no run can use the SQL; "" if nothing is wrong, or time or memory did not suffice."""
    if run.status == "denied" and CLOCK.search(run.error or ""):
        return (
            "the sandbox refuses the SQL: its result depends on the clock; write a fixed date or "
            "time"
        )
    return f"the SQL fails: {run.error}" if run.status in ("error", "denied") else ""


def row_problem(row: dict[str, str], has_lang: bool, has_split: bool, need_gold: bool) -> str:
    """What is wrong with a row of a file in which some rows have a language or a split; "" if
    nothing is.
    """
    if not row["question"]:
        return "has no question"
    if need_gold and not row["gold_sql"]:
        return (
            "the question has no SQL; SFT, training an encoder and rewards that compare with gold "
            "need it (--recipe label_free does not)"
        )
    if has_lang and not is_language(row["lang"]):
        return f"lang {row['lang']!r} is not the tag of a language, such as en or pt-BR"
    if has_split and row["split"] not in Pairs.splits:
        return f"split {row['split']!r} is neither {' nor '.join(Pairs.splits)}"
    for name, text in row.items():
        if SURROGATE.search(text):
            return f"{name} is not valid Unicode (half of a surrogate pair)"
    return ""


def add_splits(rows: list[dict[str, str]]) -> None:
    """Splits by query: all questions of a query are in one split, and its hash alone decides which,
    so that neither their order nor further rows move a query. Questions without SQL are for
    training; if none has any, each question counts as a query. No split is empty if that can be.
    """
    keys = [canonical_sql(row["gold_sql"]) for row in rows]
    if not any(keys):
        keys = [unicodedata.normalize("NFC", row["question"]) for row in rows]
    places = {key: place_of(key) for key in keys if key}  # from 0 to 1
    order = sorted(places, key=places.__getitem__)
    count = max(1, sum(place < DEV_SHARE for place in places.values()))  # of queries in dev
    most = len(order) - 1 if all(keys) else len(order)  # questions without SQL are in train, too
    dev = set(order[: min(count, most)])
    for row, key in zip(rows, keys):
        row["split"] = "dev" if key in dev else "train"


def place_of(query: str) -> float:
    """A place from 0 to 1 that depends on the query alone."""
    return int.from_bytes(hashlib.sha256(query.encode()).digest()[:8]) / 2**64


def read_rows(file: Path, need_gold: bool) -> Iterator[Row]:
    """The rows of a CSV file or, if its first character is ``{``, the objects of JSON lines.

    Raises:
        UserError: it is missing, malformed, or lacks a column, which with ``need_gold`` is that of
            the SQL, too.
    """
    text = read_text(file)
    if text.lstrip().startswith("["):
        raise UserError(f"{file}: a JSON list; JSON lines are read, an object on a line")
    json_lines, required = text.lstrip().startswith("{"), ["question"] + ["gold_sql"] * need_gold
    for line, cells in _json_rows(file, text) if json_lines else _csv_rows(file, text, required):
        row = {}
        for ours, names in COLUMNS.items():
            value = next((cells[name] for name in names if cells.get(name) not in (None, "")), "")
            if ours in ("part", "difficulty") and isinstance(value, (int, float)):
                value = str(value)  # a level may be a number
            if not isinstance(value, str):
                raise UserError(f"{file}:{line}: {ours} is not a text")
            row[ours] = value.strip()
        row["split"] = row["split"].lower()
        yield line, row


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = getattr(error, "msg", error)
                raise UserError(f"{file}:{number}: malformed JSON: {problem}") from error
            if not isinstance(value, dict):
                raise UserError(f"{file}:{number}: an object with question and sql is expected")
            yield number, {name.lower(): cell for name, cell in value.items()}


def _csv_rows(file: Path, text: str, required: list[str]) -> Iterator[tuple[int, dict]]:
    separator = max(SEPARATORS, key=text.lstrip("\r\n").partition("\n")[0].count)
    options = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    reader = csv.reader(io.StringIO(text, newline=""), **options)
    names, line = [], 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(map(str.strip, cells)):
                continue
            if not names:
                names = [cell.strip().lower() for cell in cells]
                _check_header(f"{file}:{start}", names, required)
            elif len(cells) != len(names):
                raise UserError(
                    f"{file}:{start}: has {len(cells)} cells where the first line has "
                    f"{len(names)}; quote a cell that contains {separator!r}"
                )
            else:
                yield start, dict(zip(names, cells))
    except csv.Error as error:
        raise UserError(f"{file}:{line}: malformed CSV: {error}") from error


def _check_header(where: str, names: list[str], required: list[str]) -> None:
    for column in required:
        if not any(name in names for name in COLUMNS[column]):
            raise UserError(
                f"{where}: no column {COLUMNS[column][0]!r} among {', '.join(map(repr, names))}; "
                "the first line names the columns, separated by comma, semicolon or tab"
            )
    if doubled := [name for name in names if name and names.count(name) > 1]:
        raise UserError(f"{where}: two columns {doubled[0]!r}")
