"""Lists of questions as JSON, the files of Spider, BIRD and MultiSpider."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlenv.dataset.base import PLAIN_NAME, listing
from sqlenv.errors import UserError
from sqlenv.text import SURROGATE

SPIDER_FIELDS = {"db_id": ["db_id"], "question": ["question"], "gold_sql": ["query"]}


def read_text(file: Path) -> str:
    """The text of a file, with or without a byte order mark.

    Raises:
        UserError: it is missing, cannot be read, or is not UTF-8.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; in its folder: {listing(file.parent)}")
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        line = file.read_bytes().count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 text (byte {error.start})") from error


def read_entries(
    file: Path,
    fields: Mapping[str, Sequence[str]] = SPIDER_FIELDS,
    optional: Sequence[str] = (),
) -> list[dict[str, str]]:
    """The entries of a JSON list of objects, as texts by our names.

    Args:
        fields: what an entry must have: our name -> its names in files; the first in the entry
            counts.
        optional: what it may have; "" where it lacks it.

    Raises:
        UserError: the file is missing or malformed, or an entry lacks a field. The message names
            the file and the line.
    """
    text = read_text(file)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        line, problem = getattr(error, "lineno", 1), getattr(error, "msg", error)
        raise UserError(f"{file}:{line}: malformed JSON: {problem}") from error
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file}:1: a non-empty list of questions is expected")
    rows = []
    for index, entry in enumerate(entries):
        row, problem = _row(entry, fields, optional)
        if problem:
            line = _line_of_entry(text, index)
            raise UserError(f"{file}:{line}: entry {index + 1} {problem}")
        rows.append(dict.fromkeys(optional, "") | row)
    return rows


def _row(
    entry: object, fields: Mapping[str, Sequence[str]], optional: Sequence[str]
) -> tuple[dict, str | None]:
    """The texts of an entry by our names, and what is wrong with it."""
    if not isinstance(entry, dict):
        *first, last = (names[-1] for names in fields.values())
        return {}, f"is not an object with {', '.join(first)} and {last}"
    row = {}
    for ours, names in fields.items():
        name = next((name for name in names if name in entry), names[-1])
        row[ours] = value = entry.get(name)
        if not isinstance(value, str) or not value.strip():
            problem = "is empty or not a text" if name in entry else "is missing"
            return row, f"cannot be used: its {name!r} {problem}"
    row |= {name: str(entry[name]) for name in optional if entry.get(name) is not None}
    for ours, value in row.items():
        if SURROGATE.search(value):
            name = fields.get(ours, [ours])[-1]
            return row, f"has {name!r} that is not valid Unicode (half of a surrogate pair)"
    if not PLAIN_NAME.fullmatch(row["db_id"]):
        return row, f"has db_id {row['db_id']!r}, which is not a plain name"
    return row, None


def _line_of_entry(text: str, index: int) -> int:
    """The line on which an entry of a JSON list starts; the text is valid JSON."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    position = text.index("[") + 1
    for _ in range(index):
        _, position = decoder.raw_decode(text, between.match(text, position).end())
    return text.count("\n", 0, between.match(text, position).end()) + 1
