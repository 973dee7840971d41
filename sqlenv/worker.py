"""The process that runs untrusted SQL and can be killed; `sandbox.py` starts it as a script.

It imports the standard library only (so it starts in some 20 ms) and speaks marshal frames with a
length in front over stdin and stdout: first its settings, then one database and query after the
other. Inside it, several fences stand one behind the other: the file is opened read-only and
immutable, SQLite's limits are pinned, an authorizer lets through nothing but reading, a progress
handler stops a long query, and the operating system bounds memory, CPU time and written files.
The parent kills the process if all of that fails to stop a query in time.
"""

import functools
import marshal
import math
import re
import resource
import sqlite3
import struct
import sys
import time
from collections import OrderedDict

HEADER = struct.Struct("<I")  # the length of the frame that follows
OPEN_DATABASES = 16  # connections kept, least recently used out first
PROGRESS_OPS = 1000  # SQLite's virtual-machine steps between two looks at the clock

LIMITS = {
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 30,  # real gold queries need more than 20
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}

# Functions of their arguments alone, so that a query gives the same result on every run.
ALLOWED = """avg count group_concat max min string_agg sum total
    abs acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log
    log10 log2 mod pi pow power radians round sign sin sinh sqrt tan tanh trunc
    char concat concat_ws format glob hex instr length like lower ltrim octet_length printf quote
    replace rtrim soundex substr substring trim unhex unicode upper
    coalesce if ifnull iif likelihood likely nullif typeof unlikely
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank
    row_number date datetime julianday strftime time unixepoch"""
FUNCTIONS = frozenset(ALLOWED.split())
DATE_FUNCTIONS = ("date", "datetime", "julianday", "strftime", "time", "unixepoch")
# Arguments by which a date function would read the clock or the time zone of this machine.
CLOCK = frozenset({"now", "subsec", "subsecond", "localtime", "utc"})
# Width and precision in a printf format.
WIDTHS = re.compile(r"%[-+ 0,#!]*(\d+|\*)?(?:\.(\d+|\*))?")

# Statements that are refused whatever follows. The authorizer stops all that could do harm; this
# list makes the answer uniform where it has nothing to say (EXPLAIN; REINDEX without an index).
STATEMENT = re.compile(
    r"(?>[\s;\ufeff]|--[^\n]*|/\*.*?\*/)*+(alter|analyze|attach|begin|commit|create|delete|detach"
    r"|drop|end|explain|insert|pragma|reindex|release|replace|rollback|savepoint|update|vacuum)\b",
    re.IGNORECASE | re.DOTALL,
)

decode = functools.partial(str, encoding="utf-8", errors="replace")


class Database:
    """A read-only connection that notes what the query in hand reads and whether it was refused.

    Nothing but reading is let through, so a query leaves no state behind for the next one.
    """

    def __init__(self, uri, functions, max_bytes, max_sql):
        self.reads, self.denied, self.deadline = set(), None, math.inf
        # A cached statement would skip the authorizer.
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        self.connection.text_factory = decode
        for pragma in ("query_only=ON", "trusted_schema=OFF", "temp_store=MEMORY"):
            self.connection.execute(f"PRAGMA {pragma}")
        names = self.connection.execute("SELECT name FROM sqlite_master WHERE type != 'index'")
        self.tables = {name.lower() for (name,) in names}
        for limit, value in LIMITS.items():
            self.connection.setlimit(limit, value)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_bytes)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, max_sql)
        for name in DATE_FUNCTIONS:
            wrapper = functools.partial(self.date_function, functions, name)
            self.connection.create_function(name, -1, wrapper, deterministic=True)
        for name in ("printf", "format"):
            wrapper = functools.partial(print_function, functions, max_bytes)
            self.connection.create_function(name, -1, wrapper, deterministic=True)
        self.connection.set_progress_handler(lambda: time.monotonic() > self.deadline, PROGRESS_OPS)
        self.connection.set_authorizer(self.authorize)

    def authorize(self, action, first, second, schema, view):
        """SQLite's question about each thing a statement would do, asked while it is prepared."""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second.lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and self.may_read(first.lower(), second.lower()):
            return sqlite3.SQLITE_OK
        self.denied = f"{first or ''} {second or ''}".strip()
        return sqlite3.SQLITE_DENY

    def may_read(self, table, column):
        if table in self.tables and not table.startswith("sqlite_"):
            self.reads.add((table, column))
            return True
        # A table expression (WITH) is asked about when none of its columns is used, as in count(*).
        # Table-valued functions are refused before, when SQLite has them declare their columns.
        return column == "" and not table.startswith(("sqlite_", "pragma_"))

    def date_function(self, functions, name, *arguments):
        """SQLite's own date function, refused where its result depends on the clock."""
        times = arguments[1:] if name == "strftime" else arguments
        texts = [decode(a) if isinstance(a, bytes) else str(a) for a in arguments]
        # SQLite reads these arguments up to a NUL.
        if not times or any(t.split("\0")[0].strip().lower() in CLOCK for t in texts):
            self.denied = f"{name}() of the current time"
            raise PermissionError(self.denied)
        return call(functions, name, arguments)


def call(functions, name, arguments):
    marks = ",".join("?" * len(arguments))
    return functions.execute(f"SELECT {name}({marks})", arguments).fetchone()[0]


def as_integer(functions, value):
    return functions.execute("SELECT coalesce(CAST(? AS INTEGER), 0)", [value]).fetchone()[0]


def print_function(functions, max_bytes, *arguments):
    """SQLite's printf, with an error where the text is too long: SQLite itself spends seconds on
    a width of 9e8 and then gives NULL."""
    if not arguments or arguments[0] is None:
        return None
    form = decode(arguments[0]) if isinstance(arguments[0], bytes) else str(arguments[0])
    widths = {width for pair in WIDTHS.findall(form) for width in pair if width}
    if "*" in widths:  # taken from an argument
        widths = widths - {"*"} | {as_integer(functions, a) for a in arguments[1:]}
    text = None
    if all(abs(int(width)) <= max_bytes for width in widths):
        text = call(functions, "printf", arguments)
    if text is None:
        raise OverflowError("printf: text too long")  # sqlite3 makes SQLITE_TOOBIG of it
    return text


def execute(database, sql, max_rows, max_bytes):
    """Run one query; return (status, columns, rows, error)."""
    if STATEMENT.match(sql):
        return "denied", (), [], "only SELECT is allowed"
    cursor, rows, size = database.connection.cursor(), [], 0
    try:
        # `SELECT 1;;` counts as several statements for Python, so trailing semicolons go.
        cursor.execute(sql.rstrip("; \t\r\n\f"))
        if cursor.description is None:
            return "error", (), [], "there is no statement in the text"
        for row in cursor:
            rows.append(row)
            size += 8 * len(row) + sum(len(c) for c in row if isinstance(c, (str, bytes)))
            if len(rows) > max_rows or size > max_bytes:
                limit = f"{max_rows} rows or {max_bytes} bytes"
                return "too_large", (), [], f"the result has more than {limit}"
        return "ok", tuple(column[0] for column in cursor.description), rows, None
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        denied = f" ({database.denied})" if database.denied else ""
        return classify(error, database.denied), (), [], f"{error}{denied}"
    finally:
        cursor.close()


def classify(error, denied):
    """The status that an exception from sqlite3 stands for."""
    if denied is not None:
        return "denied"
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
        return "timeout"
    # DataError is SQLITE_TOOBIG; the limit on compound SELECTs has no code of its own.
    if isinstance(error, sqlite3.DataError) or "too many terms in compound" in str(error):
        return "too_large"
    return "error"


class Server:
    """The loop: read a query, answer it, until the parent closes the pipe or dies."""

    def __init__(self, settings):
        self.timeout, self.max_rows, self.max_bytes, self.max_sql, memory_mb = settings
        self.databases = OrderedDict()
        self.functions = sqlite3.connect(":memory:", isolation_level=None)
        self.functions.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self.max_bytes)
        # For the whole process, and on every operating system.
        self.functions.execute(f"PRAGMA hard_heap_limit={memory_mb << 20}")
        limit_process(memory_mb)

    def database(self, uri, stamp):
        """The connection for a file as it was at `stamp`; a file replaced since is opened anew."""
        key = uri, stamp
        if key not in self.databases:
            if len(self.databases) >= OPEN_DATABASES:
                self.databases.popitem(last=False)[1].connection.close()
            self.databases[key] = Database(uri, self.functions, self.max_bytes, self.max_sql)
        self.databases.move_to_end(key)
        return self.databases[key]

    def answer(self, uri, stamp, sql):
        """Return (status, columns, rows, error, seconds, reads) for one query."""
        start = time.monotonic()
        limit_cpu(self.timeout)
        try:
            database = self.database(uri, stamp)
        except sqlite3.Error as error:
            return "unreadable", (), [], str(error), 0.0, []
        database.reads, database.denied = set(), None
        database.deadline = start + self.timeout
        try:
            result = execute(database, sql, self.max_rows, self.max_bytes)
        except MemoryError:
            result = "too_large", (), [], "the query needs more memory than it is given"
        return *result, time.monotonic() - start, sorted(database.reads)


def limit_process(memory_mb):
    """Take from this process, for good, more memory than it needs and the writing of files."""
    lower(resource.RLIMIT_FSIZE, 0)
    lower(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":  # elsewhere the address space also counts what all processes share
        lower(resource.RLIMIT_AS, (memory_mb + 256) << 20)


def lower(limit, value):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def limit_cpu(timeout):
    """Let the process use the CPU for one more query. The count is over its life, so it moves on.

    The parent's kill comes earlier; this one ends a worker whose parent is no longer there.
    """
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + timeout) + 2
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def receive(pipe):
    """The next message, or None where the parent has closed the pipe."""
    header = pipe.read(HEADER.size)
    return marshal.loads(pipe.read(*HEADER.unpack(header))) if header else None


def send(pipe, message):
    data = marshal.dumps(message)
    pipe.write(HEADER.pack(len(data)) + data)
    pipe.flush()


def main():
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    server = Server(receive(pipe_in))
    send(pipe_out, "ready")
    while (query := receive(pipe_in)) is not None:
        send(pipe_out, server.answer(*query))


if __name__ == "__main__":
    main()
