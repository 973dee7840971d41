"""Recognises the format of a dataset by what lies in its folder."""

from collections import Counter
from os import PathLike
from pathlib import Path

from sqlenv.dataset.base import Dataset, listing
from sqlenv.dataset.bird import Bird
from sqlenv.dataset.example import Example
from sqlenv.dataset.multispider import MultiSpider
from sqlenv.dataset.pairs import Pairs
from sqlenv.dataset.spider import Spider
from sqlenv.errors import UserError

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded"
FORMATS = (MultiSpider, Spider, Bird)


def open_dataset(
    path: str | PathLike, questions: str | PathLike | None = None, *, need_gold: bool = True
) -> Dataset:
    """Opens a dataset; the embedded one is built on first use.

    Args:
        path: its root folder, EMBEDDED, or with ``questions`` one SQLite file.
        questions: a CSV or JSON-lines file of questions on that database.
        need_gold: refuse questions without gold SQL, which only such a file can have.

    Raises:
        UserError: it cannot be read, is in none of the formats, or in several; or as in ``Pairs``.
    """
    root = Path(path)
    if questions:
        return Pairs(root, Path(questions), need_gold=need_gold)
    if root.resolve() == EMBEDDED:
        from sqlenv.embedded.generate import build  # loaded only if the embedded dataset is used

        return MultiSpider(build())
    try:
        matching = [format for format in FORMATS if format.matches(root)]
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror})") from error
    if len(matching) > 1:
        formats = " and ".join(format.looked_for for format in matching)
        raise UserError(f"{root}: has two formats, {formats}; name a folder that has one of them")
    if not matching:
        looked_for = ", ".join(format.looked_for for format in FORMATS)
        raise UserError(f"{root}: not a dataset: looked for {looked_for}, but {_contents(root)}")
    return matching[0](root)


def _contents(root: Path) -> str:
    """What is at the path, for a message."""
    if root.is_dir():
        return f"it contains {listing(root)}"
    if root.is_file():
        return "it is a file; a SQLite file needs its questions, --questions FILE"
    return "it does not exist"


def load_dataset(path: str | PathLike, lang: str, split: str) -> list[Example]:
    """``Dataset.load`` of the dataset at ``path``: the questions of a split whose database exists,
    in the order of the file.
    """
    return open_dataset(path).load(lang, split)


def read_dataset(path: str | PathLike, lang: str, split: str) -> tuple[list[Example], Counter[str]]:
    """``Dataset.read`` of the dataset at ``path``: these questions, and the number of those skipped
    for each missing database.
    """
    return open_dataset(path).read(lang, split)
