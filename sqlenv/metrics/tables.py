"""Tables, of shares above all, for the terminal and for Markdown."""

import unicodedata

Rows = list[tuple[str, ...]]  # of a table; the first row is the heading


def share_cell(share: dict | None, *, digits: int = 1) -> str:
    """A share with its 95 % interval, in percent: ``61.4 (56.1-66.7)``; ``-`` without a value. That
    of a share of a gain can be negative: ``-36.4 (-75.5 to -5.8)``.

    Args:
        share: ``{"value", "low", "high", "n"}`` as ``sqlenv.share`` returns it.
        digits: decimal places of the interval.
    """
    if share is None or share["value"] is None:
        return "-"
    value, low, high = (100 * share[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.{digits}f}{'-' if low >= 0 else ' to '}{high:.{digits}f})"


def signed_cell(difference: dict) -> str:
    """A difference of shares with its interval, in percentage points: ``+1.2 (-0.6 to +3.1)``."""
    if difference["value"] is None:
        return "-"
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def width_of(text: str) -> int:
    """How many columns of a terminal a text takes: two for Chinese or Japanese characters, none for
    accents of their own.
    """
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


def padded(text: str, width: int) -> str:
    return text + " " * (width - width_of(text))


def column_widths(rows: Rows) -> list[int]:
    return [max(width_of(row[i]) for row in rows) for i in range(len(rows[0]))]


def text_table(rows: Rows) -> str:
    """Aligned columns for the terminal."""
    widths = column_widths(rows)
    lines = [
        "  ".join(padded(text, width) for text, width in zip(row, widths)).rstrip() for row in rows
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(rows: Rows, *, aligned: bool = False) -> str:
    """A Markdown table; ``aligned`` pads the cells, so that it can also be read as text."""
    rows = [tuple(text.replace("|", "\\|") for text in row) for row in rows]
    widths = [max(3, width) if aligned else 0 for width in column_widths(rows)]
    lines = [
        "| " + " | ".join(padded(text, width) for text, width in zip(row, widths)) + " |"
        for row in rows
    ]
    rule = "|".join(" " + "-" * (width or 3) + " " for width in widths)
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])
