"""The one exception that a command line turns into a message instead of a traceback."""


class UserError(Exception):
    """An error that the user can cause and mend: a missing file, a bad setting, malformed data.

    Its message is one clear line that names the file, line or setting and says what to do.
    Command lines print that line and exit with code 2; any other exception is a bug.
    """
