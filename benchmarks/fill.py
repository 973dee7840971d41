"""Puts generated tables into a page that is written by hand."""

import re
from pathlib import Path

from sqlenv.files import write_text


def fill(path: Path, sections: dict[str, str]) -> None:
    """Replaces what stands between ``<!-- NAME -->`` and ``<!-- end -->`` by the section NAME; a
    place without a section stays as it is.
    """

    def filled(match: re.Match) -> str:
        name = match[1]
        if name not in sections:
            return match[0]
        return f"<!-- {name} -->\n\n{sections[name]}\n\n<!-- end -->"

    text = path.read_text(encoding="utf-8")
    write_text(path, re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", filled, text, flags=re.DOTALL))
