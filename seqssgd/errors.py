"""The one exception for mistakes that a user can mend, and how programs report it."""

import errno
import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType

_MENDABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


class UserError(ValueError):
    """A wrong input, path or setting. The message is one line that names the thing and how to mend it.

    Command-line programs print it as ``error: …`` and exit with status 2, without a traceback.
    """


def require(module: str, extra: str = "recipes") -> ModuleType:
    """Imports a module of another package, or one of ours that needs others, which torch alone does not bring.

    Args:
        module: its full name.
        extra: the part of this package's installation that has it.

    Raises:
        UserError: a package is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise not_installed(error, extra) from None


def not_installed(error: ModuleNotFoundError, extra: str = "recipes") -> Exception:
    """What to raise in place of ``error``: itself, if a module of this package is missing, else what to install."""
    package = (error.name or "").partition(".")[0]
    ours = package in ("", "seqssgd")
    return error if ours else UserError(f"the package {package} is not installed: pip install 'seqssgd[{extra}]'")


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
