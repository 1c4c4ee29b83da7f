"""The one exception for mistakes that a user can mend, and how programs report it."""

import contextlib
import errno
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable
from types import ModuleType

# What the machine may say, whatever the program does: rights, disks, folders that are deleted under it.
_MENDABLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.ESTALE,
}  # fmt: skip
FULL = {errno.ENOSPC, errno.EDQUOT}


class UserError(ValueError):
    """A wrong input, path or setting. The message is one line that names the thing and how to mend it.

    Command-line programs print it as ``error: …`` and exit with status 2, without a traceback. Line breaks and what a
    terminal obeys, in names and values that it repeats, become spaces.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(message)))


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

    ``None`` counts as 0. A :class:`UserError`, a full disk or memory, a refused permission, or a file or folder that is
    gone is printed as one line ``error: …`` (status 2); Ctrl-C gives 130; a reader that went away (``… | head``) ends
    the program quietly with 141, as the signal SIGPIPE would. Every other exception is a bug and keeps its traceback.
    Warnings that no user can use are not shown (:func:`ignore_warnings`).
    A standard stream that was closed (``>&-``) takes what is written to it and forgets it.
    """
    _complete_streams()
    try:
        with warnings.catch_warnings():
            ignore_warnings()
            status = main() or 0
        sys.stdout.flush()  # here, so that a closed pipe is noticed inside this try
        return status
    except UserError as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        forget_output()
        return 141
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        reason = next(iter(str(error).splitlines()), "")
        wanted = re.search(r"allocate ([\d.]+ \w+)", reason)
        return _refuse(
            f"not enough memory{f' ({wanted[1]} were asked for at once)' if wanted else ''}; "
            "make the model or what is read at a time smaller"
        )
    except OSError as error:
        path = error.filename
        path = os.fsdecode(path) if isinstance(path, bytes) else path
        name = f"{path}: " if path else ""
        if error.errno in FULL:
            disk = f" at {_disk(path)}" if path else ""
            return _refuse(f"{name}the disk{disk} is full ({error.strerror}); make room and run the same command again")
        if error.errno not in _MENDABLE:
            raise
        return _refuse(f"{name}{error.strerror}")


def ignore_warnings() -> None:
    """Leaves out, in a process of a program, what Pillow finds odd in images, which it does not name: they are judged
    where they are decoded. The package leaves other people's programs the filters that they have."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def forget_output() -> None:
    """From now on what goes to standard output is forgotten: nobody reads it, or it cannot be written.

    The interpreter writes out what is left once more when it exits, and would complain.
    """
    with contextlib.suppress(OSError, ValueError):  # no file behind it, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complete_streams() -> None:
    """Opens the standard streams that are closed, and makes them take every character on every terminal."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # or else the next file that is opened becomes standard output
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+" if number == 0 else "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _refuse(message: str) -> int:
    _complain(f"error: {message}")
    return 2


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # there is nowhere left to say it
        print(text, file=sys.stderr, flush=True)


def _disk(path: str) -> str:
    """Where the disk is mounted that a file lies on."""
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
