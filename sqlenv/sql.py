"""SQL as text: finding it in a model's completion, whether it orders, and one way of writing it.

All three need only to tell words from strings and comments, which the tokenizer below does in one
pass over any text, of any length, valid or not. It is no parser: SQLite decides what is SQL.
"""

import re
import string
from collections.abc import Iterator

# Words that cannot name a table or column without quotes.
_RESERVED = """
    add all alter and as autoincrement between case cast check collate commit constraint create
    current_date current_time current_timestamp default deferrable delete distinct drop else escape
    except exists foreign from group having if in index insert intersect into is isnull join limit
    not nothing notnull null on or order primary raise references returning select set table then
    to transaction union unique update using values when where"""
RESERVED = frozenset(_RESERVED.split())
# What `canonical_sql` writes in capitals: the above, and words that have a meaning in a query.
_OTHER = """
    asc by cross desc end filter full glob inner left like natural offset outer over partition
    recursive right with"""
KEYWORDS = RESERVED | frozenset(_OTHER.split())
STATEMENT = re.compile(
    r"(?:alter|analyze|attach|begin|commit|create|delete|detach|drop|end|explain|insert|pragma"
    r"|reindex|release|replace|rollback|savepoint|select|update|vacuum|values|with)\b",
    re.IGNORECASE,
)
# "with" is an English word too, so it must look like the start of a common table expression.
QUERY = re.compile(
    r"\b(?:select\b|with\s+(?:recursive\s+)?[\w\"`\[\]]+\s*(?:\([^()]*\)\s*)?as\s*"
    r"(?:(?:not\s+)?materialized\s*)?\()",
    re.IGNORECASE,
)
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SIGN_FOLLOWS = ("(", ",", "=", "==", "<", "<=", ">", ">=", "<>", "!=", "||", "*", "/", "%")
FENCE = re.compile(r"```[ \t]*(?:sqlite|sql|postgresql|mysql)?[ \t]*\n?", re.IGNORECASE)
MARKER = re.compile(r"\bsql(?:ite)?(?:\s+query)?\W{0,3}?[:：]", re.IGNORECASE)
IGNORED = re.compile(r"(?>\s|--[^\n]*|/\*.*?\*/)*+", re.DOTALL)

# Unterminated strings and comments reach to the end of the text.
TOKEN = re.compile(
    r"""
      (?P<space>\s+)
    | (?P<comment>--[^\n]*|/\*.*?(?:\*/|\Z))
    | (?P<fence>```)
    | (?P<string>x?'[^']*+(?:''[^']*+)*+(?:'|\Z))
    | (?P<quoted>"[^"]*+(?:""[^"]*+)*+(?:"|\Z)|`[^`]*+(?:``[^`]*+)*+(?:`|\Z)|\[[^\]]*+(?:\]|\Z))
    | (?P<number>(?:0x[0-9a-f]+|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\w*)
    | (?P<word>[^\W\d][\w$]*)
    | (?P<mark>->>|->|<=|>=|<>|!=|==|\|\||<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def tokenize(sql: str, start: int = 0) -> Iterator[re.Match]:
    """Yield matches of TOKEN that cover the text from `start` on; `lastgroup` is their kind."""
    return TOKEN.finditer(sql, start)


def extract_sql(completion: str) -> str | None:
    """Return the query in a completion, or None if nothing in it looks like one.

    Looked for in this order: at the very start; in the first fenced block that starts with a
    query; after the first "SQL:"; at the first SELECT or WITH … AS ( anywhere. From there it
    reaches to the first `;`, the next ```, a blank line (outside a fenced block) or the end,
    whichever comes first, none of them counted inside strings and comments.

    What stands between is left as it is, so prose in it fails as a syntax error. If a further
    statement follows the `;`, it stays too, so that the sandbox refuses the two:

    >>> extract_sql("Sure! SELECT name FROM singer; It lists the names.")
    'SELECT name FROM singer'
    >>> extract_sql("SELECT 1; DROP TABLE singer")
    'SELECT 1; DROP TABLE singer'
    """
    start, fenced = find_query(completion)
    if start is None:
        return None
    end, semicolon = len(completion), None
    for token in tokenize(completion, start):
        kind, text = token.lastgroup, token.group()
        blank_line = kind == "space" and text.count("\n") > 1 and not fenced
        if kind == "fence" or blank_line:
            end = token.start()
            break
        if text == ";" and semicolon is None:
            semicolon = token.start()
    if semicolon is not None:
        rest = IGNORED.match(completion, semicolon + 1, end).end()
        if not STATEMENT.match(completion, rest, end):
            end = semicolon
    return completion[start:end].strip()


def find_query(completion: str) -> tuple[int | None, bool]:
    """Return where the query starts (None: nowhere) and whether it stands in a fenced block."""
    start = IGNORED.match(completion).end()
    if QUERY.match(completion, start):
        return start, False
    for fence in FENCE.finditer(completion):
        start = IGNORED.match(completion, fence.end()).end()
        if QUERY.match(completion, start):
            return start, True
    marker = MARKER.search(completion)
    if marker:
        start = IGNORED.match(completion, marker.end()).end()
        if QUERY.match(completion, start):
            return start, False
    query = QUERY.search(completion)
    return (query.start() if query else None), False


def is_ordered(sql: str) -> bool:
    """Return whether the outermost query has an ORDER BY (not a subquery, window or aggregate).

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
    """Return the query as one line in one way of writing, to be embedded or compared as text.

    Comments and trailing semicolons go, spaces become uniform, keywords upper case, and names
    outside quotes lower case (as SQLite does, A to Z only); what is in quotes stays as it is.
    The meaning stays the same.

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


def is_glued(before: tuple[str, str], token: tuple[str, str], signed: bool) -> bool:
    """Return whether no space stands between two (kind, text) tokens."""
    (kind_before, text_before), (kind, text) = before, token
    if text == ".":
        return kind_before in ("name", "quoted")
    if text_before == ".":
        return kind in ("name", "quoted") or text == "*"
    if text == "(":
        return text_before == "(" or kind_before == "name"
    return text_before == "(" or text in (",", ")", ";") or (signed and kind == "number")
