"""Languages are tags of the data (BCP 47), such as ``pt``, ``pt-BR`` or ``zh-Hans``; the code lists
none.
"""

import re
from collections.abc import Iterable

from sqlenv.errors import UserError

TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*", re.IGNORECASE | re.ASCII)
# Tags of languages (Allar, Waorani, Gal) that have another meaning: as --lang and as keys of
# reports, which stand beside the languages' own. Written with a script, as gap-Latn, they are tags.
RESERVED = ("all", "auc", "gap")


def is_language(text: str) -> bool:
    """Whether a text is a tag, and so a key of a report is that of a language."""
    return TAG.fullmatch(text) is not None and text.lower() not in RESERVED


def language_tag(text: str) -> str:
    """The tag in the usual case, since case does not matter.

    >>> language_tag("PT-br"), language_tag("zh-hans-cn")
    ('pt-BR', 'zh-Hans-CN')

    Raises:
        UserError: it is none.
    """
    if not is_language(text):
        raise UserError(f"{text!r}: not the tag of a language (BCP 47), such as en or pt-BR")
    case = {2: str.upper, 4: str.title}
    first, *more = text.split("-")
    return "-".join([first.lower(), *(case.get(len(part), str.lower)(part) for part in more)])


def in_order(langs: Iterable[str]) -> list[str]:
    """Without duplicates, in one order, so that the same languages draw the same questions:
    English, which the others are compared with, then alphabetically.
    """
    return sorted(set(langs), key=lambda lang: (lang != "en", lang))


def parse_languages(text: str) -> list[str] | None:
    """The value of ``--lang``: ``"vi,en"`` -> ``["en", "vi"]``, ``"all"`` -> None.

    Raises:
        UserError: a part of it is not a tag.
    """
    if text == "all":
        return None
    try:
        return in_order(map(language_tag, text.split(",")))
    except UserError as error:
        raise UserError(f"--lang {error}, a comma list of them, or all") from error
