"""SQL as text: finding it in a model's completion, whether it orders, and one way of writing it.

All three need only to tell words from strings and comments, which the tokenizer below does in one
pass over any text, of any length, valid or not. It is no parser: SQLite decides what is SQL.
"""

import itertools
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
# The first words of statements are English words, too ("with", "explain"), so each pattern asks for
# what makes it SQL. A space stands for comments as well: see `leading_statement`.
_NAME = r"""(?:\w+|"[^"]{0,200}"|`[^`]{0,200}`|\[[^]]{0,200}\])"""
_QUERY = rf"""\b(?:select\b|with\b\s*(?:recursive\b\s*)?{_NAME}\s*(?:\([^()]*\)\s*)?\bas\s*
    (?:(?:not\s+)?materialized\s*)?\()"""
_CHANGE = rf"""\b(?:
      (?:alter|create|drop) (?:\s+or\s+replace)?
      (?:\s+(?:temp|temporary|unique|virtual|materialized))* \s+(?:index|table|trigger|view)\b
    | insert (?:\s+or\s+\w+)? \s+into\b | (?:replace|vacuum)\s+into\b
    | delete\s+from\b\s*{_NAME} (?:\s*\.\s*{_NAME})? (?=\s*(?:[;`]|\Z|(?:
      as|indexed|limit|not|order|returning|where)\b))
    | update\b (?:\s+or\s+\w+)? \s*{_NAME} (?:\s*\.\s*{_NAME})? (?:\s*as\s*{_NAME})?
      \s*\bset\b (?=\s*(?:\(|{_NAME}\s*=))
    | explain\s+query\s+plan\b
    )| \bexplain\s+(?={_QUERY})"""
# These only where a statement is expected; in capitals, the word alone will do.
_COMMAND = rf"""(?:values\s*\( | pragma\s+\w+\s*(?:[;=(.]|\Z) | attach\s*(?:database\s*)?["']
    | (?:analyze|begin|commit|detach|end|reindex|release|rollback|savepoint|use|vacuum)\b
      (?:\s*{_NAME}){{0,2}}\s*(?:;|\Z)
    | (?-i:ALTER|ANALYZE|ATTACH|BEGIN|CALL|COMMIT|COPY|CREATE|DECLARE|DELETE|DETACH|DROP|END|EXEC
      |EXECUTE|EXPLAIN|GRANT|INSERT|LOCK|MERGE|PRAGMA|REINDEX|RELEASE|REPLACE|REVOKE|ROLLBACK
      |SAVEPOINT|SET|SHOW|TRUNCATE|UPDATE|USE|VACUUM|VALUES)\b)"""
_FLAGS = re.IGNORECASE | re.VERBOSE
STATEMENT = re.compile(f"{_QUERY}|{_CHANGE}|{_COMMAND}", _FLAGS)
STATEMENT_IN_PROSE = re.compile(f"{_QUERY}|{_CHANGE}", _FLAGS)
ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
SIGN_FOLLOWS = ("(", ",", "=", "==", "<", "<=", ">", ">=", "<>", "!=", "||", "*", "/", "%")
FENCE = re.compile(r"```[ \t]*(?:sqlite|sql|postgresql|mysql)?[ \t]*\n?", re.IGNORECASE)
MARKER = re.compile(r"\bsql(?:ite)?(?:\s+query)?\W{0,3}?[:：]", re.IGNORECASE)
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
SPACE = re.compile(r"[\s;]*")
MAX_FENCES = 20  # looked at in one completion

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
    """Return the SQL statement in a completion, or None if nothing in it looks like one.

    Looked for in this order: at the very start; in the first fenced block that starts with a
    statement; after the first "SQL:"; anywhere, at the first SELECT, WITH … AS (, INSERT INTO or
    the like. It reaches to the first `;`, the next ```, a blank line (outside a fenced block) or
    the end, whichever comes first, none of them counted inside strings and comments.

    What stands between is left as it is, so prose in it fails as a syntax error. A statement that
    is no query is returned whole, and if another statement follows directly, the two stay
    together, so that the sandbox refuses them; no query is picked out of such a text:

    >>> extract_sql("Sure! SELECT name FROM singer; It lists the names.")
    'SELECT name FROM singer'
    >>> extract_sql("Sure! CREATE TABLE t AS SELECT name FROM singer")
    'CREATE TABLE t AS SELECT name FROM singer'
    >>> extract_sql("SELECT 1; DROP TABLE singer")
    'SELECT 1; DROP TABLE singer'
    """
    start, fenced = find_statement(completion)
    if start is None:
        return None
    end, first_end, rest = len(completion), None, None
    for token in tokenize(completion, start):
        kind, text = token.lastgroup, token.group()
        if kind == "fence":
            end = token.start()
            break
        blank_line = kind == "space" and text.count("\n") > 1 and not fenced
        if first_end is None and (text == ";" or blank_line):
            first_end, rest = token.span()
    if first_end is not None and leading_statement(completion[rest:end]) is None:
        end = first_end
    return completion[start:end].strip()


def find_statement(completion: str) -> tuple[int | None, bool]:
    """Return where the SQL starts (None: nowhere) and whether it stands in a fenced block."""
    fences = itertools.islice(FENCE.finditer(completion), MAX_FENCES)
    places = [(0, False)] + [(fence.end(), True) for fence in fences]
    places += [(marker.end(), False) for marker in [MARKER.search(completion)] if marker]
    for place, fenced in places:
        offset = leading_statement(completion[place:])
        if offset is not None:
            return place + offset, fenced
    found = [STATEMENT_IN_PROSE.search(form) for form in (completion, blank_comments(completion))]
    return min((match.start() for match in found if match), default=None), False


def leading_statement(text: str) -> int | None:
    """Return where in a text a statement starts, with nothing but comments before it, or None.

    Looks at the text as it is, too, since what seems a comment may be a quoted name or a dash.
    """
    for form in (text, blank_comments(text)):
        start = SPACE.match(form).end()
        if STATEMENT.match(form, start):
            return start
    return None


def blank_comments(text: str) -> str:
    """The text, as long as before, with spaces for comments."""
    return COMMENT.sub(lambda comment: " " * len(comment.group()), text)


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
