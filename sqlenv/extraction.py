"""Extraction of the SQL from a completion, whatever is around it: reasoning, tags, fences, prose.

It is no parser: SQLite decides what is valid SQL. Every step is linear in the length of the text.
"""

import re

from sqlenv.text import tokenize

MAX_ANSWER = 100_000  # characters after the reasoning; the sandbox takes no longer SQL either

# The first words of statements are English words, too ("with", "explain"), so each pattern also
# requires what follows them in SQL. Comments are blanked before matching: `leading_statement`.
# Names are possessive (++): two of them side by side would be split in every possible way.
_NAME = r"""(?:\w++|"[^"]{0,200}"|`[^`]{0,200}`|\[[^]]{0,200}\])"""
# "select the names", "the SELECT statement reads", "`SELECT`" and "**SELECT**" are prose.
_SELECT = r"""select\b(?!\s++(?:(?:all\s++)?the|these|those|clause|keyword|query|statement)\s++
    (?!(?:from|as)\b)\w) (?![`"']\W|\*\*)"""
_QUERY = rf"""\b(?:{_SELECT}|with\b\s*(?:recursive\b\s*)?{_NAME}\s*(?:\([^()]*\)\s*)?\bas\s*
    (?:(?:not\s+)?materialized\s*)?\()"""
_CHANGE = rf"""\b(?:
      (?:alter|create|drop) (?:\s+or\s+replace)?
      (?:\s+(?:temp|temporary|unique|virtual|materialized))* \s+(?:index|table|trigger|view)\b
    | insert (?:\s+or\s+\w++)? \s+into\b | (?:replace|vacuum)\s+into\b
    | delete\s+from\b\s*{_NAME} (?:\s*\.\s*{_NAME})? (?=\s*(?:[;`]|\Z|(?:
      as|indexed|limit|not|order|returning|where)\b))
    | update\b (?:\s+or\s+\w++)? \s*{_NAME} (?:\s*\.\s*{_NAME})? (?:\s*as\s*{_NAME})?
      \s*\bset\b (?=\s*(?:\(|{_NAME}\s*=))
    | explain\s+query\s+plan\b
    )| \bexplain\s+(?={_QUERY})"""
# Matched only where a statement is expected. In upper case the keyword alone is enough.
_COMMAND = rf"""(?:values\s*\( | pragma\s+\w++\s*(?:[;=(.]|\Z) | attach\s*(?:database\s*)?["']
    | (?:analyze|begin|commit|detach|end|reindex|release|rollback|savepoint|use|vacuum)\b
      (?:\s*{_NAME}){{0,2}}\s*(?:;|\Z)
    | (?-i:ALTER|ANALYZE|ATTACH|BEGIN|CALL|COMMIT|COPY|CREATE|DECLARE|DELETE|DETACH|DROP|END|EXEC
      |EXECUTE|EXPLAIN|GRANT|INSERT|LOCK|MERGE|PRAGMA|REINDEX|RELEASE|REPLACE|REVOKE|ROLLBACK
      |SAVEPOINT|SET|SHOW|TRUNCATE|UPDATE|USE|VACUUM|VALUES)\b)"""
_FLAGS = re.IGNORECASE | re.VERBOSE
STATEMENT = re.compile(f"{_QUERY}|{_CHANGE}|{_COMMAND}", _FLAGS)
STATEMENT_IN_PROSE = re.compile(f"{_QUERY}|{_CHANGE}", _FLAGS)

# A tag in quotes ("`<answer>`", LIKE '%<sql>%') is mentioned or compared with, not used.
_TAG = r"""(?<!['"`%])</?(?:{names})>|</?(?:{names})>(?!['"`%])"""
_REASONING = "think|thinking|thought|reasoning"
REASONING = re.compile(_TAG.format(names=_REASONING), re.IGNORECASE)
REASONING_AT_THE_END = re.compile(rf"<(?:{_REASONING})>\s*\Z", re.IGNORECASE)
ANSWER = re.compile(_TAG.format(names="answer|solution|sql"), re.IGNORECASE)
# What ends a statement and is in no valid SQL: </answer>, </s>, <|im_end|>, <｜end▁of▁sentence｜>.
TAG_STARTS = ("</", "<|", "<｜")
_LANGUAGE = r"(?:sqlite3?|(?:my|ms|p|pl|postgre|t)?sql)\b|[\w+#.-]++(?=[ \t]*\r?\n)"
FENCE = re.compile(rf"`{{3,}}[ \t]*(?P<language>{_LANGUAGE})?", re.IGNORECASE)
MARKER = re.compile(r"\bsql(?:ite)?(?:\s+query)?\W{0,3}?[:：]", re.IGNORECASE)
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
SPACE = re.compile(r"[\s;]*")
# The end of a line and a line of white space, which people may write as U+3000 or a no-break space.
BLANK_LINE = re.compile(r"[^\S\n]*+\n[^\S\n]*+\n")
FROM = re.compile(r"\bfrom\b", re.IGNORECASE)
# The text up to a closing quote. A quote that follows a word, a bracket or a quote closes; any
# other one opens a name or a string in the SQL: `SELECT `a` FROM t`.
_QUOTED = r"""[^{q}]*+(?:(?<![\w)\]"'`;*]){q}[^{q}]*+{q}[^{q}]*+)*+"""
CODE_SPAN = re.compile(rf"(?<!`)`({_QUOTED.format(q='`')})`")
UP_TO = {quote: re.compile(_QUOTED.format(q=quote)) for quote in "`\"'"}
UP_TO |= {"{": re.compile("[^}]*"), "“": re.compile("[^”]*")}
UP_TO["*"] = re.compile(r"(?:[^*]|\*(?!\*)|(?<=/)\*)*+")  # bold: **SELECT a FROM t**, not /**/


def extract_sql(completion: str, *, prompt: str = "") -> str | None:
    """Returns the SQL statement in a completion, or None if it contains none.

    Reasoning up to the last ``</think>`` is not looked at, and a completion that ends inside its
    reasoning has no answer. In the rest, the statement is searched for in this order: in the last
    ``<answer>``, ``<solution>`` or ``<sql>`` that contains one; in the last fenced block that
    starts with one; at the start; after the first "SQL:"; in the last inline code that is a query
    of a table; at the first SELECT, WITH … AS (, INSERT INTO and so on anywhere. It ends at the
    first ``;``, the next fence or closing tag, the quote or backtick that closes one before it, a
    blank line (outside a fenced block) or the end of the text, whichever comes first. Strings and
    comments are skipped.

    The text in between is not changed, so prose in it fails as a syntax error. Statements other
    than queries are returned whole. If another statement follows directly, both are returned
    together, so that the sandbox refuses them.

    Args:
        completion: what the model wrote; with more than MAX_ANSWER characters after its reasoning,
            it has no answer.
        prompt: what the model was given. If it ends in ``<think>``, as with some chat templates,
            the completion starts inside the reasoning, unless a statement is the first in it.

    >>> extract_sql("<think>SELECT * FROM singer?</think> Sure! SELECT name FROM singer; It works.")
    'SELECT name FROM singer'
    >>> extract_sql("Sure! CREATE TABLE t AS SELECT name FROM singer")
    'CREATE TABLE t AS SELECT name FROM singer'
    >>> extract_sql("SELECT 1; DROP TABLE singer")
    'SELECT 1; DROP TABLE singer'
    """
    answer = after_reasoning(completion, prompt)
    if len(answer) > MAX_ANSWER:
        return None
    tags = list(ANSWER.finditer(answer))
    ends = [tag.start() for tag in tags[1:]] + [len(answer)]
    parts = [answer[tag.end() : end] for tag, end in zip(tags, ends) if not is_closing(tag)]
    sqls = (statement_in(part) for part in [*reversed(parts), answer])
    return next((sql for sql in sqls if sql is not None), None)


def after_reasoning(completion: str, prompt: str) -> str:
    """Returns the completion from the end of its reasoning on; nothing if that does not end."""
    start, inside = 0, False
    for tag in REASONING.finditer(completion):
        start, inside = tag.end(), not is_closing(tag)
    if start == 0 and REASONING_AT_THE_END.search(prompt[-100:]):
        inside = leading_statement(completion[:MAX_ANSWER]) is None
    return "" if inside else completion[start:]


def is_closing(tag: re.Match) -> bool:
    """Whether a match of REASONING or ANSWER is a closing tag."""
    return tag.group().startswith("</")


def statement_in(text: str) -> str | None:
    """Returns the statement in a text without reasoning and tags; None if there is none."""
    text, start, fenced = find_statement(text)
    if start is None:
        return None
    end, first_end, rest = len(text), None, None
    for token in tokenize(text, start):
        kind, value = token.lastgroup, token.group()
        if kind == "fence" or value == "<" and text.startswith(TAG_STARTS, token.start()):
            end = token.start()
            break
        if first_end is None and (value == ";" or (not fenced and is_blank_line(text, token))):
            first_end, rest = token.span()
    if first_end is not None and leading_statement(text[rest:end]) is None:
        end = first_end
    return text[start:end].strip()


def is_blank_line(text: str, token: re.Match) -> bool:
    """Whether a blank line begins at a token. To SQL, U+3000 is no white space but a letter."""
    ends_line = token.lastgroup == "space" and "\n" in token.group()
    return ends_line and bool(BLANK_LINE.match(text, token.start()))


def find_statement(text: str) -> tuple[str, int | None, bool]:
    """Returns the part of the text that ends the SQL at the latest, where the SQL starts in it
    (None: nowhere), and whether the part is a fenced block.
    """
    start, fences = leading_statement(text), list(FENCE.finditer(text))
    untagged = next((i for i, fence in enumerate(fences) if fence["language"]), len(fences))
    # An odd fence after a statement closes one that the prompt opened.
    opened_before = start is not None and untagged % 2
    for block in [] if opened_before else reversed(fenced_blocks(text, fences)):
        offset = leading_statement(block)
        if offset is not None:
            return block, offset, True
    marker = MARKER.search(text)
    if start is None and marker:
        offset = leading_statement(text[marker.end() :])
        start = None if offset is None else marker.end() + offset
    if start is not None:
        return text, start, False
    for span in reversed(CODE_SPAN.findall(text)):
        offset = leading_statement(span)
        if offset is not None and FROM.search(span):
            return span, offset, False
    matches = [STATEMENT_IN_PROSE.search(version) for version in (text, blank_comments(text))]
    start = min((match.start() for match in matches if match), default=None)
    return text if start is None else unwrapped(text, start), start, False


def fenced_blocks(text: str, fences: list[re.Match]) -> list[str]:
    """Returns the contents of fenced blocks in SQL or without a language; the last may be open."""
    blocks, opening = [], None
    for fence, end in zip(fences, [fence.start() for fence in fences[1:]] + [len(text)]):
        # A fence with a language opens a block, even if the one before was not closed.
        opening = fence if opening is None or fence["language"] else None
        if opening is not None and "sql" in (opening["language"] or "sql").lower():
            blocks.append(text[opening.end() : end])
    return blocks


def unwrapped(text: str, start: int) -> str:
    """Returns the text up to what closes a quote, code or bold text that opens before ``start``."""
    opening = text[max(0, start - 20) : start].rstrip(" \t")[-1:]
    return text[: UP_TO[opening].match(text, start).end()] if opening in UP_TO else text


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
