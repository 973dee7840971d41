"""UserError, the exception that command lines print as a message, without a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """An error that the user can cause and fix: a missing file, a bad setting, malformed data.

    The message is one line that names the file, line or setting and says what to do. Command lines
    print it and exit with code 2. Any other exception is a bug.
    """


def exit_code(run: Callable[[], int | None], speaks: Callable[[], bool] = lambda: True) -> int:
    """Runs a command and returns its exit code: 2 after a UserError, which is printed, and 130, as
    shells have it, after Ctrl-C.

    Args:
        speaks: whether it is this process that prints the error, of several that fail by it.
    """
    try:
        return run() or 0
    except UserError as error:
        if speaks():
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
