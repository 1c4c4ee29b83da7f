"""The one exception for mistakes that a user can mend, and how programs report it."""

import errno
import os
import sys
from collections.abc import Callable

_MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


class UserError(ValueError):
    """A wrong input, path or setting. The message is one line that names the thing and how to mend it.

    Command-line programs print it as ``error: …`` and exit with status 2, without a traceback.
    """


def run_cli(main: Callable[[], int | None]) -> int:
    """Calls ``main`` and returns the exit status of the program: ``sys.exit(run_cli(main))``.

    ``None`` counts as 0. A :class:`UserError`, a full disk or a refused permission is printed as one line
    ``error: …`` (status 2); Ctrl-C gives 130; a reader that went away (``… | head``) ends the program
    quietly with 141, as the signal SIGPIPE would. Every other exception is a bug and keeps its traceback.
    """
    try:
        status = main() or 0
        sys.stdout.flush()  # here, so that a closed pipe is noticed inside this try
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the interpreter flushes stdout once more when it exits; give it somewhere to flush to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        print(f"error: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        return 2
