"""Options of the command lines: what numbers each takes, and errors in one line."""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from sqlenv.errors import UserError

LARGEST_INT = 2**31 - 1  # far above any use, and no sum or product of two overflows 64 bits


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, as the ``type`` of ``add_argument``.

    >>> Range(int, 1)("8"), str(Range(float, 0, above=True)), str(Range(int, 64, multiple_of=64))
    (8, 'a number above 0', 'a multiple of 64 from 64 up')

    Attributes:
        kind: ``int`` or ``float``; NaN and infinity are in no range.
        low: the smallest number; ``above`` excludes it.
        high: the largest number; None: any.
    """

    kind: type
    low: float
    high: float | None = None
    above: bool = False
    multiple_of: int = 1

    def __contains__(self, number: float) -> bool:
        largest = LARGEST_INT if self.kind is int else sys.float_info.max
        high = largest if self.high is None else self.high
        whole = self.kind is float or number % self.multiple_of == 0
        return self.low <= number <= high and not (self.above and number == self.low) and whole

    def __str__(self) -> str:
        what = "a number" if self.kind is float else "a whole number"
        if self.multiple_of > 1:
            what = f"a multiple of {self.multiple_of}"
        low = f"above {self.low:g}" if self.above else f"from {self.low:g}"
        high = f" to {self.high}" if self.high is not None else "" if self.above else " up"
        return f"{what} {low}{high}"

    def __call__(self, text: str) -> float:
        """The number. Raises argparse.ArgumentTypeError if it is none, or not in the range."""
        try:
            number = self.kind(text)
        except ValueError:
            number = None
        if number is None or number not in self:
            raise argparse.ArgumentTypeError(f"must be {self}, not {text}")
        return number


COUNT, COUNT_OR_ZERO = Range(int, 1), Range(int, 0)
POSITIVE, NON_NEGATIVE = Range(float, 0, above=True), Range(float, 0)
SEED = Range(int, 0, 2**32 - 1)  # what numpy and torch take


class OptionParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that shows the docstring of a module as it is laid out, and raises
    UserError for a wrong command line, without the usage of all options.
    """

    def __init__(self, description: str, **more):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=layout, **more)

    def error(self, message: str):
        raise UserError(f"{message.removeprefix('argument ')} (--help lists the options)")


def add_data_options(parser: argparse.ArgumentParser, default: str | None, shown: str) -> None:
    """``--data`` and ``--questions``; the help of the first shows what is taken without it."""
    parser.add_argument("--data", default=default, help=f"dataset, see docs/data.md ({shown})")
    parser.add_argument(
        "--questions", help="CSV or JSON lines of questions and SQL, where --data is a SQLite file"
    )


def check_writable(option: str, path: str | os.PathLike) -> None:
    """Raises UserError if no file or folder can be created at the path, or it is a folder: before
    there is anything to lose.
    """
    path = Path(path)
    above = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if path.is_dir():
        raise UserError(f"{option} {path}: cannot be written, it is a folder")
    if not above.is_dir():
        raise UserError(f"{option} {path}: cannot be written, {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: cannot be written, {above} does not allow it")
