"""The one exception that a command line turns into a message instead of a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """An error that the user can cause and mend: a missing file, a bad setting, malformed data.

    Its message is one clear line that names the file, line or setting and says what to do.
    Command lines print that line and exit with code 2; any other exception is a bug.
    """


def exit_code(run: Callable[[], int | None]) -> int:
    """Does a command line's work: its exit code, 0 for None; after a UserError prints it, and 2."""
    try:
        return run() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
