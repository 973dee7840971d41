"""What every format offers: languages, questions and databases."""

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sqlenv.dataset.example import Example
from sqlenv.dataset.language import in_order, language_tag, parse_languages
from sqlenv.errors import UserError

# A db_id becomes a part of a path, which must stay inside the folder of databases.
PLAIN_NAME = re.compile(r"[^./\\\x00-\x1f\x7f\s][^/\\\x00-\x1f\x7f]*")

logger = logging.getLogger(__name__)


class Dataset(ABC):
    """A dataset in one of the formats. Opening it only looks at which files there are.

    Attributes:
        root: the folder, or the file, that ``--data`` names.
        splits: the names of its splits.
        default_lang: of questions whose language the data does not name; "" where it names it. A
            dataset that names none gives its questions any one tag that is asked for.
    """

    looked_for: str  # what distinguishes the format, for messages
    splits: tuple[str, ...] = ("train", "dev")
    default_lang = ""

    def __init__(self, root: Path):
        self.root = root

    @abstractmethod
    def languages(self, split: str) -> list[str]:
        """The languages of a split; none if it has no file."""

    @abstractmethod
    def questions(self, lang: str, split: str) -> list[Example]:
        """The questions of a split in the order of its file, whether their database exists or not.

        Raises:
            UserError: a file is missing or malformed; the message names the file and the line.
        """

    @abstractmethod
    def database_path(self, db_id: str) -> Path:
        """The path of a database; the file may be missing.

        Raises:
            UserError: the ``db_id`` is not a possible one.
        """

    def read(self, lang: str, split: str) -> tuple[list[Example], Counter[str]]:
        """The questions of a split whose database exists, and the number of those skipped for each
        missing database.

        Raises:
            UserError: the language or split is unknown, or as in ``questions``.
        """
        if split not in self.splits:
            raise UserError(f"unknown split {split!r}: choose from {', '.join(self.splits)}")
        examples, missing = [], Counter()
        for example in self.questions(language_tag(lang), split):
            # Each database is looked up until it is known to be missing.
            if example.db_id in missing or not example.db_path.is_file():
                missing[example.db_id] += 1
            else:
                examples.append(example)
        return examples, missing

    def load(self, lang: str, split: str) -> list[Example]:
        """As ``read``, with a warning about the questions that are skipped.

        Raises:
            UserError: as in ``read``, or no database exists.
        """
        examples, missing = self.read(lang, split)
        counts = ", ".join(f"{db_id} ({count})" for db_id, count in sorted(missing.items()))
        if not examples:
            first = self.database_path(next(iter(missing)))
            raise UserError(
                f"{self.root}: no database of {split}_{lang} exists: {counts}; such as {first}"
            )
        if missing:
            what = f"{missing.total()} questions skipped, no database"
            logger.warning("%s_%s: %s: %s", split, lang, what, counts)
        return examples


def chosen_languages(dataset: Dataset, text: str, splits: Sequence[str]) -> list[str]:
    """The languages that ``--lang`` names, in the order of ``in_order``; for "all" those that each
    of the splits has, with a warning about others.

    Raises:
        UserError: a text that is no tag, or a language that a split lacks.
    """
    named = parse_languages(text)
    if dataset.default_lang:
        if named and len(named) > 1:
            raise UserError(
                f"--lang {text}: {dataset.root} does not say in which language its questions are; "
                "give one"
            )
        return named or [dataset.default_lang]
    by_split = {split: in_order(dataset.languages(split)) for split in splits}
    listed = "; ".join(
        f"{split}: {', '.join(langs) or 'none'}" for split, langs in by_split.items()
    )
    common = [lang for lang in by_split[splits[0]] if all(lang in x for x in by_split.values())]
    if absent := [lang for lang in named or [] if lang not in common]:
        raise UserError(f"--lang {absent[0]}: not a language of {dataset.root} ({listed})")
    if not common:
        raise UserError(f"--lang {text}: no language of {dataset.root} is in each split ({listed})")
    if named is None and set(common) != set().union(*by_split.values()):
        logger.warning("--lang all: %s, which each split has (%s)", ", ".join(common), listed)
    return named or common


def check_plain_name(db_id: str) -> None:
    """Raises UserError for a ``db_id`` that could lead out of the folder of databases."""
    if not PLAIN_NAME.fullmatch(db_id):
        raise UserError(f"db_id {db_id!r} is not a plain name")


def listing(folder: Path) -> str:
    """The first names in a folder, for messages. Raises UserError if it cannot be read."""
    try:
        names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (", ".join(names[:20]) or "nothing") + more
