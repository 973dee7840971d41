"""Puts generated tables into a page that is written by hand."""

import re
from pathlib import Path

from sqlenv.files import write_text


def fill(path: Path, sections: dict[str, str]) -> set[str]:
    """Replaces what stands between ``<!-- NAME -->`` and ``<!-- end -->`` by the section NAME; a
    place without a section stays as it is. Returns the names of the places.
    """
    places = set()

    def filled(match: re.Match) -> str:
        places.add(name := match[1])
        if name not in sections:
            return match[0]
        return f"<!-- {name} -->\n\n{sections[name]}\n\n<!-- end -->"

    text, place = path.read_text(encoding="utf-8"), r"<!-- ([\w.-]+) -->\n.*?<!-- end -->"
    write_text(path, re.sub(place, filled, text, flags=re.DOTALL))
    return places
