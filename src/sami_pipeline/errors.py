"""Errors that a user can mend: bad parameters, raw files and folders."""


class InputError(ValueError):
    """An input is wrong.

    The message is one line that names the file, the field, what is wrong and the remedy. On the
    command line it is printed without a traceback (``kedro --verbose`` shows it).
    """
