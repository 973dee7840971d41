"""Sample values of a database for a prompt: any, and those that a question seems to name.

A question names a value ("books from São Paulo") without its column, and in another spelling than
the database. So values are matched as CodeS (arXiv 2402.16347) does: an index over all text values
finds candidates by the pieces of a few characters that they share with the question.
"""

import contextlib
import functools
import itertools
import os
import re
import sqlite3
import unicodedata
from collections import Counter
from dataclasses import dataclass

from sqlenv.errors import UserError
from sqlenv.files import read_only_uri
from sqlenv.schema import Values, load_schema, open_read_only, quote_name

ROWS = 100_000  # of a table that are searched for values to match
MAX_VALUES = 10_000  # different ones of a column
LONGEST = 100  # characters; longer texts are no values that a question names
MATCH = 0.6  # share of a value's pieces that the question has
WORD = re.compile(r"[^\W_]+")


def sample_values(db_path: str | os.PathLike, count: int) -> Values:
    """Returns up to ``count`` different values of each (table, column), without NULL.

    Raises:
        UserError: as in ``load_schema``.
    """
    return _sample_values(*_version(db_path), count)


@functools.lru_cache(maxsize=256)
def _sample_values(path: str, _mtime: int, _size: int, count: int) -> Values:
    # The inner LIMIT avoids reading the whole of a large table.
    return _read_values(
        path,
        "SELECT DISTINCT v FROM (SELECT {column} AS v FROM {table} NOT INDEXED LIMIT 1000) "
        f"WHERE v IS NOT NULL LIMIT {count:d}",
    )


def question_values(db_path: str | os.PathLike, text: str, count: int) -> Values:
    """Returns the text values that a question seems to name, up to ``count`` of each (table,
    column) that has any, the likeliest first.

    Args:
        text: the question, and what else may name values.

    Raises:
        UserError: as in ``load_schema``.
    """
    return _question_values(*_version(db_path), text, count)


# A run makes the prompt of a question more than once; an index is too large to keep many.
@functools.lru_cache(maxsize=20_000)
def _question_values(path: str, mtime: int, size: int, text: str, count: int) -> Values:
    return _index(path, mtime, size).search(text, count)


def _version(db_path: str | os.PathLike) -> tuple[str, int, int]:
    """A file's path, time of change and size: a changed file is read again."""
    read_only_uri(db_path)  # the checks
    path, status = os.path.realpath(db_path), os.stat(db_path)
    return path, status.st_mtime_ns, status.st_size


@dataclass(frozen=True)
class ValueIndex:
    """The text values of a database by their pieces.

    Attributes:
        values: n different (table, column, value).
        sizes: n, how many pieces each value has.
        postings: the indices of the values that have a piece.
    """

    values: list[tuple[str, str, str]]
    sizes: list[int]
    postings: dict[str, list[int]]

    def search(self, text: str, count: int) -> Values:
        """Up to ``count`` values of each (table, column) with at least a share MATCH of their
        pieces in the text. Of two with the same share, the longer one is the likelier.
        """
        shared = Counter()
        for piece in pieces(text):
            shared.update(self.postings.get(piece, ()))
        ranks = {i: (n / self.sizes[i], self.sizes[i]) for i, n in shared.items()}
        matches: dict[tuple[str, str], tuple] = {}
        for i in sorted(ranks, key=lambda i: (ranks[i], -i), reverse=True):
            table, column, value = self.values[i]
            if ranks[i][0] >= MATCH and len(matches.get((table, column), ())) < count:
                matches[table, column] = (*matches.get((table, column), ()), value)
        return matches


@functools.lru_cache(maxsize=8)
def _index(path: str, _mtime: int, _size: int) -> ValueIndex:
    index = ValueIndex([], [], {})
    texts = _read_values(
        path,
        f"SELECT DISTINCT v FROM (SELECT {{column}} AS v FROM {{table}} NOT INDEXED LIMIT {ROWS}) "
        f"WHERE typeof(v) = 'text' AND length(v) <= {LONGEST} LIMIT {MAX_VALUES}",
    )
    for (table, column), values in texts.items():
        for value in values:
            if cut := pieces(value) if all(map(can_be_shown, (table, column, value))) else ():
                for piece in cut:
                    index.postings.setdefault(piece, []).append(len(index.values))
                index.values.append((table, column, value))
                index.sizes.append(len(cut))
    return index


def can_be_shown(text: str) -> bool:
    """Whether a name or text can be written in one line of a prompt, so that SQL has it, too: it
    has no line break, no NUL, and no bytes that are not UTF-8.
    """
    return text.splitlines() == [text] and not {"\0", "\ufffd"} & set(text)


def pieces(text: str) -> set[str]:
    """The pieces of a few characters by which texts are compared, without case and accents.

    A word gives its runs of three characters, with a space at its beginning and at its end. Words
    in scripts that write no spaces between words, or join particles to them, give runs of two.

    >>> sorted(pieces("La São")), sorted(pieces("東京都"))
    ([' la', ' sa', 'ao ', 'la ', 'sao'], ['京都', '東京'])
    """
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in decomposed if unicodedata.category(c) != "Mn").casefold()
    runs = set()
    for word in WORD.findall(plain):
        if any(unicodedata.category(c) == "Lo" for c in word):
            runs.update({word} if len(word) == 1 else map("".join, itertools.pairwise(word)))
        else:
            padded = f" {word} "
            runs.update(padded[i : i + 3] for i in range(len(word)))
    return runs


def _read_values(db_path: str | os.PathLike, sql: str) -> Values:
    """What a query returns for each column of each table, named by {table} and {column} in it;
    nothing for a column whose values SQLite cannot compute or compare.
    """
    schema, values = load_schema(db_path), {}
    with contextlib.closing(open_read_only(db_path)) as connection:
        try:
            for table in schema.tables:
                for column in table.columns:
                    names = {"table": quote_name(table.name), "column": quote_name(column.name)}
                    try:
                        rows = connection.execute(sql.format(**names)).fetchall()
                    except sqlite3.OperationalError:  # a missing collation, malformed JSON
                        rows = []
                    values[table.name, column.name] = tuple(value for (value,) in rows)
        except sqlite3.Error as error:
            raise UserError(f"{os.fspath(db_path)}: cannot be read ({error})") from error
    return values
