"""The one exception that means "the input is wrong, and here is the remedy"."""


class UserError(ValueError):
    """Bad input. The message is one line that names the file or field and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """
