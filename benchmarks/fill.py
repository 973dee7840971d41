"""Puts generated tables into a page that is written by hand."""

import re
from pathlib import Path

from sqlenv.errors import UserError
from sqlenv.files import write_text


def fill(path: Path, sections: dict[str, str]) -> None:
    """Replaces what stands between ``<!-- NAME -->`` and ``<!-- end -->`` by the section NAME.

    Raises:
        UserError: a place has no section.
    """

    def filled(match: re.Match) -> str:
        name = match[1]
        if name not in sections:
            raise UserError(f"{path}: there is no table {name!r}; of {', '.join(sections)}")
        return f"<!-- {name} -->\n\n{sections[name]}\n\n<!-- end -->"

    text = path.read_text(encoding="utf-8")
    write_text(path, re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL))
