"""The worker process that runs untrusted SQL; ``sandbox.py`` starts it as a script.

It imports only the standard library, so that it starts in about 20 ms. It reads and writes marshal
frames, preceded by their length, over stdin and stdout: first its settings, then chunks of queries.
There are several layers of protection: the file is opened read-only and immutable; SQLite's limits
are set; an authorizer allows only reading; a progress handler stops long queries; the operating
system limits memory, CPU time and written files. A query's time is CPU time, so that a busy machine
does not change its result. The parent kills the process if it sends nothing for much longer.

Some queries that SQLite would run are denied: those on virtual tables other than JSON's, and on
views that call a function which SQLite does not trust in a schema: the replaced ones (date
functions and printf) and, in older versions, JSON's. docs/evaluation.md gives the reason for each
number in LIMITS and for each function.
"""

import functools
import marshal
import math
import re
import resource
import signal
import sqlite3
import struct
import sys
import time
from collections import OrderedDict

HEADER = struct.Struct("<I")  # the length of the frame that follows
OPEN_DATABASES = 64  # cached connections; the least recently used is closed first
FETCH_ROWS = 32  # rows between two checks of their size
FLUSH_INTERVAL = 0.002  # seconds for which answers are buffered, to be sent together
CHUNK_SECONDS = 0.05  # seconds of work after which the rest of a chunk is returned to the parent
ENDING = "; \t\r\n\f"  # what may follow a statement
MAX_ERROR = 300  # characters of an error message
KILL_DELAY = 0.5  # seconds of CPU time, at most, in which a query can still stop by itself
TICK = 0.01  # seconds: timers of CPU time are no finer
PROGRESS_OPS = 1000  # SQLite's virtual-machine steps between two checks of the time

PRAGMAS = ("query_only=ON", "trusted_schema=OFF", "temp_store=MEMORY", "cache_size=-500")
LIMITS = {
    # The time to plan a condition grows with the square of its depth, and SQLite cannot be
    # interrupted meanwhile.
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
# How the messages start that name one of these limits.
LIMIT_MESSAGES = (
    "Expression tree is too large",
    "too many terms in compound SELECT",
    "LIKE or GLOB pattern too complex",
)

# Functions that depend only on their arguments, so that a query has the same result on every run.
ALLOWED = """avg count group_concat max median min percentile percentile_cont percentile_disc
    string_agg sum total
    abs acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log
    log10 log2 mod pi pow power radians round sign sin sinh sqrt tan tanh trunc
    char concat concat_ws format glob hex instr length like lower ltrim octet_length printf quote
    replace rtrim soundex substr substring trim unhex unicode unistr unistr_quote upper zeroblob
    coalesce if ifnull iif likelihood likely nullif typeof unlikely
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank
    row_number date datetime julianday strftime time timediff unixepoch
    -> ->> json json_array json_array_insert json_array_length json_error_position json_extract
    json_group_array json_group_object json_insert json_object json_patch json_pretty json_quote
    json_remove json_replace json_set json_type json_valid jsonb jsonb_array jsonb_array_insert
    jsonb_extract jsonb_group_array jsonb_group_object jsonb_insert jsonb_object jsonb_patch
    jsonb_remove jsonb_replace jsonb_set"""
FUNCTIONS = frozenset(ALLOWED.split())
TABLE_FUNCTIONS = frozenset({"json_each", "json_tree", "jsonb_each", "jsonb_tree"})
DATE_FUNCTIONS = ("date", "datetime", "julianday", "strftime", "time", "timediff", "unixepoch")
# Arguments with which a date function would read the clock or the time zone of this machine.
CLOCK = frozenset({"now", "subsec", "subsecond", "localtime", "utc"})
# In a printf format: width and precision (a star reads the next argument) and the conversion.
CONVERSION = re.compile(r"%[-+ 0,#!]*([0-9]+|\*)?(?:\.([0-9]+|\*)?)?l*(.)", re.DOTALL)

# Statements that are always denied. The authorizer stops everything harmful; this list gives
# the same status where it is not asked (EXPLAIN; REINDEX without an index).
STATEMENT = re.compile(
    r"(?>[\s;\ufeff]|--[^\n]*|/\*.*?\*/)*+(alter|analyze|attach|begin|commit|create|delete|detach"
    r"|drop|end|explain|insert|pragma|reindex|release|replace|rollback|savepoint|update|vacuum)\b",
    re.IGNORECASE | re.DOTALL,
)

decode = functools.partial(str, encoding="utf-8", errors="replace")


class Database:
    """A read-only connection that records what a query reads and whether it was denied.

    Only reading is allowed, so a query leaves no state for the next one.
    """

    def __init__(self, uri, functions, max_bytes, max_sql):
        self.reads, self.denied = set(), None
        self.start_time(0.0, math.inf)
        self.functions = functions
        # A cached statement would bypass the authorizer.
        self.connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
        self.connection.text_factory = decode
        allow_double_quotes(self.connection)
        # This reads the schema, which SQLite refuses as a whole if trusted_schema is off and an
        # index or a generated column calls a function that it does not trust.
        names = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        self.tables = {name.lower() for (name,) in self.connection.execute(names)}
        for pragma in PRAGMAS:
            self.connection.execute(f"PRAGMA {pragma}")
        for limit, value in LIMITS.items():
            self.connection.setlimit(limit, value)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max_bytes)
        self.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, max_sql)
        for name in filter(function_names(functions).__contains__, DATE_FUNCTIONS):
            wrapper = functools.partial(self.date_function, name)
            self.connection.create_function(name, -1, wrapper, deterministic=True)
        for name in ("printf", "format"):
            wrapper = functools.partial(print_function, functions, max_bytes)
            self.connection.create_function(name, -1, wrapper, deterministic=True)
        # SQLite reads its own tables when it first uses a table function.
        for name in TABLE_FUNCTIONS - self.tables:
            if is_built_in(functions, name):
                self.connection.execute(f"SELECT 1 FROM {name} LIMIT 0")
        self.connection.set_progress_handler(self.is_late, PROGRESS_OPS)
        self.connection.set_authorizer(self.authorize)

    def start_time(self, start, limit):
        """Gives a query ``limit`` seconds from now on, ``start`` in CPU time."""
        self.wall_deadline, self.cpu_deadline = time.monotonic() + limit, start + limit

    def is_late(self):
        """Whether the query has used its CPU time. Asked first is the other clock, which is ten
        times as fast to read: this process has one thread, so it cannot be late by that one alone.
        """
        return time.monotonic() > self.wall_deadline and time.process_time() > self.cpu_deadline

    def authorize(self, action, first, second, schema, view):
        """SQLite's authorizer callback: called for each action when a statement is prepared."""
        if action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE):
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and second.lower() in FUNCTIONS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_READ and self.may_read(first.lower(), second.lower()):
            return sqlite3.SQLITE_OK
        self.denied = f"{first or ''} {second or ''}".strip()
        return sqlite3.SQLITE_DENY

    def may_read(self, table, column):
        """Whether a column may be read; records it if so."""
        if table.startswith("sqlite_"):
            return False
        if table in self.tables:
            self.reads.add((table, column))
            return True
        if table in TABLE_FUNCTIONS:
            return True
        # The callback is also called for table expressions (WITH) of which no column is used, as
        # in count(*), and for tables that SQLite has without CREATE, such as dbstat.
        return column == "" and not is_built_in(self.functions, table)

    def date_function(self, name, *arguments):
        """SQLite's own date function, denied if its result depends on the clock."""
        times = arguments[1:] if name == "strftime" else arguments
        texts = [decode(a) if isinstance(a, bytes) else str(a) for a in arguments]
        # SQLite reads these arguments up to a NUL.
        if not times or any(t.split("\0")[0].strip().lower() in CLOCK for t in texts):
            self.denied = f"{name}() of the current time"
            raise PermissionError(self.denied)
        return call(self.functions, name, arguments)


@functools.lru_cache(maxsize=1)
def function_names(functions):
    """The names of the functions that this SQLite has."""
    return {name for (name,) in functions.execute("SELECT name FROM pragma_function_list")}


@functools.lru_cache(maxsize=1000)
def is_built_in(functions, table):
    """Whether an empty database has this table."""
    try:
        functions.execute(f'SELECT 1 FROM "{table.replace(chr(34), chr(34) * 2)}" LIMIT 0')
    except sqlite3.OperationalError as error:
        return not str(error).startswith("no such table")
    return True


def call(functions, name, arguments):
    """Calls SQLite's own function of this name."""
    marks = ",".join("?" * len(arguments))
    try:
        return functions.execute(f"SELECT {name}({marks})", arguments).fetchone()[0]
    except sqlite3.DataError as error:
        raise OverflowError(f"{name}: text too long") from error  # makes it SQLITE_TOOBIG again


def as_digits(functions, value):
    """The value as SQLite converts it to an integer, as a string of digits."""
    query = "SELECT CAST(coalesce(CAST(? AS INTEGER), 0) AS TEXT)"
    return functions.execute(query, [value]).fetchone()[0]


def print_function(functions, max_bytes, *arguments):
    """SQLite's printf, with an error if the text is too long: SQLite itself spends seconds on a
    width of 9e8 and then returns NULL, as it does for an empty text."""
    if not arguments or arguments[0] is None:
        return None
    template, *values = arguments
    template = decode(template) if isinstance(template, bytes) else str(template)
    # Ten digits exceed every limit, and int() does not accept 5000 of them.
    digits = (width.lstrip("-0")[:10] or 0 for width in widths(functions, template, values))
    if any(int(width) > max_bytes for width in digits):
        raise OverflowError("printf: text too long")  # sqlite3 turns it into SQLITE_TOOBIG
    text = call(functions, "printf", (template, *values))
    if text is None and call(functions, "printf", ("x" + template, *values)) is None:
        raise OverflowError("printf: text too long")
    return text


def widths(functions, template, values):
    """Yields the widths and precisions that printf would use for these values, as digits."""
    values = iter(values)
    for match in CONVERSION.finditer(template):
        *numbers, conversion = match.groups()
        for number in filter(None, numbers):
            yield number if number != "*" else as_digits(functions, next(values, None))
        if conversion not in "%n":
            next(values, None)


def execute(database, sql, max_rows, max_bytes):
    """Runs a query; returns (status, columns, rows, error)."""
    if STATEMENT.match(sql):
        return "denied", (), [], "only SELECT is allowed"
    cursor = database.connection.cursor()
    try:
        # Python takes `SELECT 1;;` for several statements, so trailing semicolons are removed.
        cursor.execute(sql.rstrip(ENDING))
        if cursor.description is None:
            return "error", (), [], "there is no statement in the text"
        columns, rows = tuple(column[0] for column in cursor.description), []
        size = len(marshal.dumps(columns))
        while size <= max_bytes and (part := cursor.fetchmany(FETCH_ROWS)):
            size += len(marshal.dumps(part))
            rows += part
            if len(rows) > max_rows:
                break
        if size > max_bytes or len(rows) > max_rows:
            limit = f"{max_rows} rows or {max_bytes} bytes"
            return "too_large", (), [], f"the result has more than {limit}"
        return "ok", columns, rows, None
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        denied = f" ({database.denied})" if database.denied else ""
        line = " ".join(f"{error}{denied}".split())  # on one line, since it may quote the query
        return classify(error, database.denied), (), [], line[:MAX_ERROR]
    finally:
        cursor.close()


def classify(error, denied):
    """The status for an exception of sqlite3."""
    message = str(error)
    if denied is not None or message.startswith("unsafe use of"):  # in a view
        return "denied"
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
        return "timeout"
    # DataError is SQLITE_TOOBIG; the other limits have no code of their own.
    if isinstance(error, sqlite3.DataError) or message.startswith(LIMIT_MESSAGES):
        return "too_large"
    return "error"


class Server:
    """Answers queries with cached connections."""

    def __init__(self, settings):
        self.max_rows, self.max_bytes, self.max_sql, memory_mb = settings
        self.databases = OrderedDict()
        self.functions = sqlite3.connect(":memory:", isolation_level=None)
        self.functions.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, self.max_bytes)
        self.missing = (
            missing_features(self.functions),
            limit_heap(self.functions, memory_mb) + limit_process(memory_mb),
        )

    def database(self, uri, version):
        """The connection to a version of a file; a file replaced since is opened again."""
        key = uri, version
        if key not in self.databases:
            if len(self.databases) >= OPEN_DATABASES:
                self.databases.popitem(last=False)[1].connection.close()
            self.databases[key] = Database(uri, self.functions, self.max_bytes, self.max_sql)
        self.databases.move_to_end(key)
        return self.databases[key]

    def answer(self, database, sql, limit):
        """Returns (status, columns, rows, error, seconds, reads) for one query."""
        start = time.process_time()
        try:
            database = self.database(*database)
        except sqlite3.Error as error:
            return "unreadable", (), [], str(error), 0.0, frozenset()
        database.reads, database.denied = set(), None
        database.start_time(start, limit)
        try:
            result = execute(database, sql, self.max_rows, self.max_bytes)
        except MemoryError:
            result = "too_large", (), [], "the query needs more memory than it is given"
        return *result, time.process_time() - start, frozenset(database.reads)

    def serve(self, chunk, pipe):
        """Answers the queries of a chunk in order; each answer says whether it is the last."""
        limit, queries = chunk
        limit_cpu(limit + CHUNK_SECONDS)
        # Kills this process if the query is inside one long step of SQLite when its time is up.
        # Set once for all queries, since the system takes longer to set it than to run some.
        before = CHUNK_SECONDS if len(queries) > 1 else 0
        signal.setitimer(signal.ITIMER_PROF, before + limit + min(limit / 4, KILL_DELAY) + TICK)
        start = flushed = time.monotonic()
        for number, query in enumerate(queries, 1):
            database, sql = query
            answer = self.answer(database, sql, limit)
            now = time.monotonic()
            last = number == len(queries) or now > start + CHUNK_SECONDS
            if last:
                signal.setitimer(signal.ITIMER_PROF, 0)  # sending a large result takes time, too
            send(pipe, (*answer, last))
            if last or now > flushed + FLUSH_INTERVAL:
                pipe.flush()
                flushed = now
            if last:
                break


def allow_double_quotes(connection):
    """Makes SQLite read "France" as a text where no column has that name, as is its default."""
    if hasattr(connection, "setconfig"):  # from Python 3.12 on
        for option in ("DQS_DML", "DQS_DDL"):
            connection.setconfig(getattr(sqlite3, f"SQLITE_DBCONFIG_{option}"), True)


def missing_features(connection):
    """Returns [what gold queries need and this SQLite lacks]."""
    allow_double_quotes(connection)
    try:
        connection.execute('SELECT "France"')
    except sqlite3.OperationalError:
        return ['text in double quotes, as in country = "France" (Python 3.12 can switch it on)']
    return []


def limit_heap(connection, memory_mb):
    """Limits what SQLite allocates in this process. Returns [name of the limit] if it has no
    effect, otherwise []."""
    limit = connection.execute(f"PRAGMA hard_heap_limit={memory_mb << 20}").fetchone()
    option = "SELECT sqlite_compileoption_used('DEFAULT_MEMSTATUS=0')"
    counted = connection.execute(option).fetchone() == (0,)
    return [] if limit and counted else ["SQLite's memory (hard_heap_limit)"]


def limit_process(memory_mb):
    """Limits the memory and forbids the writing of files, permanently for this process.

    Returns the names of the limits that the operating system lacks.
    """
    limits = {
        "written files (RLIMIT_FSIZE)": ("RLIMIT_FSIZE", 0),
        "core dumps (RLIMIT_CORE)": ("RLIMIT_CORE", 0),
        "a worker's memory (RLIMIT_AS)": ("RLIMIT_AS", (memory_mb + 256) << 20),
    }
    return [name for name, limit in limits.items() if not set_limit(*limit)]


def set_limit(name, value):
    """Lowers a limit; returns False if the system does not have it."""
    if name == "RLIMIT_AS" and sys.platform == "darwin":  # on macOS it is another limit
        return False
    try:
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    except (AttributeError, ValueError, OSError):
        return False
    return True


def limit_cpu(seconds):
    """Limits the CPU time from now on. The system counts from the start of the process.

    The parent kills earlier; this limit ends a worker whose parent has died.
    """
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = math.ceil(time.process_time() + seconds) + 2
    if hard == resource.RLIM_INFINITY or soft < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def receive(pipe):
    """Reads the next message; None if the parent has closed the pipe."""
    header = pipe.read(HEADER.size)
    return marshal.loads(pipe.read(*HEADER.unpack(header))) if header else None


def send(pipe, message):
    """Writes a message without flushing the pipe."""
    data = marshal.dumps(message)
    pipe.write(HEADER.pack(len(data)) + data)


def main():
    """Answers chunks of queries until the parent closes the pipe or dies."""
    pipe_in, pipe_out = sys.stdin.buffer, sys.stdout.buffer
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # a parent that ignores it passes that on
    server = Server(receive(pipe_in))
    send(pipe_out, server.missing)
    pipe_out.flush()
    while (chunk := receive(pipe_in)) is not None:
        server.serve(chunk, pipe_out)


if __name__ == "__main__":
    main()
