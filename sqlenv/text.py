"""SQL as text: tokens, detection of ORDER BY, canonical and readable form.

These functions only have to tell words from strings and comments. The tokenizer below does that in
one pass over any text, valid or not. It is no parser: SQLite decides what is valid SQL.
"""

import re
import string
from collections.abc import Iterator

import sqlparse
from sqlparse.exceptions import SQLParseError

# Words that cannot name a table or column without quotes. The embedded dataset avoids them, but its
# hash (embedded/generate.py) does not have this file: after a change here, change a file there.
_RESERVED = """
    add all alter and as autoincrement between case cast check collate commit constraint create
    current_date current_time current_timestamp default deferrable delete distinct drop else escape
    except exists foreign from group having if in index insert intersect into is isnull join limit
    not nothing notnull null on or order primary raise references returning select set table then
    to transaction union unique update using values when where"""
RESERVED = frozenset(_RESERVED.split())
# What ``canonical_sql`` writes in upper case: the above, and other words with a meaning in a query.
_OTHER = """
    asc by cross desc end filter full glob inner left like natural offset outer over partition
    recursive right with"""
KEYWORDS = RESERVED | frozenset(_OTHER.split())
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SIGN_FOLLOWS = ("(", ",", "=", "==", "<", "<=", ">", ">=", "<>", "!=", "||", "*", "/", "%")
MAX_FORMATTED = 5000  # characters of a query that `format_sql` lays out
LINE_WIDTH = 80  # of the lists in a query that `format_sql` lays out

SURROGATE = re.compile("[\ud800-\udfff]")  # half of a pair: not valid Unicode, and not in UTF-8

# To SQLite every character beyond ASCII is a letter: an accent of its own (NFD), an emoji, "¿", the
# no-break space. Only U+FEFF, the byte order mark, is white space where a token begins.
_LETTER = r"A-Za-z_\x80-\U0010ffff"
WORD = rf"(?!\ufeff)[{_LETTER}][{_LETTER}0-9$]*+"

# Unterminated strings and comments extend to the end of the text.
TOKEN = re.compile(
    rf"""
      (?P<space>[\t-\r\x20\ufeff]+)
    | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<fence>```)
    | (?P<string>[xX]'[^']*+(?:'|\Z)|'[^']*+(?:''[^']*+)*+(?:'|\Z))
    | (?P<quoted>"[^"]*+(?:""[^"]*+)*+(?:"|\Z)|`[^`]*+(?:``[^`]*+)*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z))
    | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
        [{_LETTER}0-9$]*)
    | (?P<word>{WORD})
    | (?P<mark>->>|->|<=|>=|<>|!=|==|\|\||<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL,
)


def tokenize(sql: str, start: int = 0) -> Iterator[re.Match]:
    """Yields matches of TOKEN that cover the text from ``start``; ``lastgroup`` is their kind."""
    return TOKEN.finditer(sql, start)


def is_ordered(sql: str) -> bool:
    """Returns whether the outermost query has an ORDER BY.

    The ORDER BY of a subquery, window or aggregate does not count.

    >>> is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY a)")
    False
    """
    depth, previous = 0, ""
    for token in tokenize(sql):
        if token.lastgroup in ("space", "comment"):
            continue
        text = token.group().lower()
        if depth == 0 and previous == "order" and text == "by":
            return True
        depth += (text == "(") - (text == ")")
        previous = text
    return False


def canonical_sql(sql: str) -> str:
    """Returns the query in canonical form, on one line, to be embedded or compared as text.

    Comments and trailing semicolons are removed, spaces are made uniform, keywords are in upper
    case and unquoted names in lower case (A to Z only, as in SQLite). Quoted text is not changed.
    The query keeps its meaning.

    >>> canonical_sql("select  Count( * ) from Singer -- all\\n where Country='France';")
    "SELECT count(*) FROM singer WHERE country = 'France'"
    """
    tokens = []
    for token in tokenize(sql):
        kind, text = token.lastgroup, token.group()
        if kind == "word":
            text = text.translate(ASCII_LOWER)
            kind, text = ("keyword", text.upper()) if text in KEYWORDS else ("name", text)
        if kind not in ("space", "comment"):
            tokens.append((kind, text))
    while tokens and tokens[-1][1] == ";":
        tokens.pop()
    pieces, signed = [], False
    for index, (kind, text) in enumerate(tokens):
        before = tokens[index - 1] if index else ("mark", "(")
        pieces.append(text if is_glued(before, (kind, text), signed) else f" {text}")
        # A plus or minus is a sign where no operand stands before it.
        signed = text in ("+", "-") and (before[0] == "keyword" or before[1] in SIGN_FOLLOWS)
    return "".join(pieces)


def format_sql(sql: str) -> str:
    """Returns the query laid out over several lines for a person to read.

    Keywords are in upper case; names, strings and comments are not changed. A text that is longer
    than MAX_FORMATTED, too deeply nested, or would change its meaning is returned unchanged.

    >>> print(format_sql("select name from singer where age > 20 order by age"))
    SELECT name
    FROM singer
    WHERE age > 20
    ORDER BY age
    """
    if len(sql) > MAX_FORMATTED:
        return sql
    try:
        # sqlparse's own option `keyword_case` also changes columns such as "type" and "language".
        text = sqlparse.format(upper_keywords(sql), reindent=True, wrap_after=LINE_WIDTH)
    except (SQLParseError, RecursionError):
        return sql
    return text if canonical_sql(text) == canonical_sql(sql) else sql


def upper_keywords(sql: str) -> str:
    """Returns the text with keywords in upper case; after a dot a word is a name."""
    pieces = [""]
    for token in tokenize(sql):
        text = token.group()
        is_keyword = token.lastgroup == "word" and text.translate(ASCII_LOWER) in KEYWORDS
        pieces.append(text.upper() if is_keyword and pieces[-1] != "." else text)
    return "".join(pieces)


def is_glued(before: tuple[str, str], token: tuple[str, str], signed: bool) -> bool:
    """Returns whether no space stands between two (kind, text) tokens."""
    (kind_before, text_before), (kind, text) = before, token
    if text == ".":
        return kind_before in ("name", "quoted")
    if text_before == ".":
        return kind in ("name", "quoted") or text == "*"
    if text == "(":
        return text_before == "(" or kind_before == "name"
    return text_before == "(" or text in (",", ")", ";") or (signed and kind == "number")
