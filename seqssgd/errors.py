"""The one exception for mistakes that a user can mend."""


class UserError(ValueError):
    """A wrong input, path or setting. The message is one line that names the thing and how to mend it.

    Command-line programs print it as ``error: …`` and exit with status 2, without a traceback.
    """
