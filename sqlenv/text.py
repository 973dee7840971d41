"""SQL as text: extraction from a completion, detection of ORDER BY, canonical and readable form.

These functions only have to tell words from strings and comments. The tokenizer below does that in
one pass over any text, valid or not. It is no parser: SQLite decides what is valid SQL.
"""

import itertools
import re
import string
from collections.abc import Iterator

import sqlparse
from sqlparse.exceptions import SQLParseError

# Words that cannot name a table or column without quotes.
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
# The first words of statements are English words, too ("with", "explain"), so each pattern also
# requires what follows them in SQL. Comments are blanked before matching: `leading_statement`.
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
# Matched only where a statement is expected. In upper case the keyword alone is enough.
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
MAX_FENCES = 20  # of a completion that are searched for SQL
MAX_FORMATTED = 5000  # characters of a query that `format_sql` lays out
LINE_WIDTH = 80  # of the lists in a query that `format_sql` lays out

# Unterminated strings and comments extend to the end of the text.
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
    """Yields matches of TOKEN that cover the text from ``start``; ``lastgroup`` is their kind."""
    return TOKEN.finditer(sql, start)


def extract_sql(completion: str) -> str | None:
    """Returns the SQL statement in a completion, or None if it contains none.

    The statement is searched for in this order: at the start of the completion; in the first
    fenced block that starts with a statement; after the first "SQL:"; at the first SELECT,
    WITH … AS (, INSERT INTO and so on anywhere. It ends at the first ``;``, the next fence, a blank
    line (outside a fenced block) or the end of the text, whichever comes first. Strings and
    comments are skipped.

    The text in between is not changed, so prose in it fails as a syntax error. Statements other
    than queries are returned whole. If another statement follows directly, both are returned
    together, so that the sandbox refuses them:

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
    """Returns where the SQL starts (None: nowhere) and whether that is in a fenced block."""
    fences = itertools.islice(FENCE.finditer(completion), MAX_FENCES)
    places = [(0, False)] + [(fence.end(), True) for fence in fences]
    places += [(marker.end(), False) for marker in [MARKER.search(completion)] if marker]
    for place, fenced in places:
        offset = leading_statement(completion[place:])
        if offset is not None:
            return place + offset, fenced
    texts = (completion, blank_comments(completion))
    matches = [STATEMENT_IN_PROSE.search(text) for text in texts]
    return min((match.start() for match in matches if match), default=None), False


def leading_statement(text: str) -> int | None:
    """Returns where a statement starts in a text, with only comments before it; None if nowhere.

    The text is also searched unchanged: what looks like a comment may be a quoted name or a dash.
    """
    for version in (text, blank_comments(text)):
        start = SPACE.match(version).end()
        if STATEMENT.match(version, start):
            return start
    return None


def blank_comments(text: str) -> str:
    """Returns the text with every comment replaced by as many spaces."""
    return COMMENT.sub(lambda comment: " " * len(comment.group()), text)


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
