"""Locks of files, which end with the process that holds them, however it ends."""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from .errors import UserError
from .notes import note

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None
try:
    import msvcrt
except ImportError:  # not Windows
    msvcrt = None

_HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}


def try_lock(handle: int) -> Literal["taken", "held", "none"]:
    """Locks an open file, which must be open for writing; does not wait.

    Returns:
        ``"taken"`` if this process has the lock now; ``"held"`` if another one has it; ``"none"`` where there are no
        locks: some network file systems (Lustre without ``-o flock``, NFS without its lock daemon) refuse them.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # NFS knows these better than flock's
        elif msvcrt is not None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            return "none"
    except OSError as error:
        return "held" if error.errno in _HELD else "none"
    return "taken"


def take_lock(file: Path, refusal: str, wait: float = 0.05) -> int:
    """Takes the lock that a file is, for as long as the handle that it returns is open.

    Where there are no locks, it is noted that a second process would not be noticed.

    Args:
        file: made if it is not there. Processes that this one starts do not inherit it.
        refusal: what is said if another process has the lock.
        wait: seconds to wait for it; another process may only be asking whether it is held, for which it takes it.

    Raises:
        UserError: another process has it.
    """
    handle, until = os.open(file, os.O_RDWR | os.O_CREAT, 0o666), time.monotonic() + wait
    while (answer := try_lock(handle)) == "held" and time.monotonic() < until:
        time.sleep(min(0.05, wait))
    if answer == "held":
        os.close(handle)
        raise UserError(refusal)
    if answer == "none":
        _note_no_locks(file.parent)
    _ours.add(_identity(os.fstat(handle)))
    return handle


def release(handle: int) -> None:
    """Gives back what :func:`take_lock` returned."""
    _ours.discard(_identity(os.fstat(handle)))
    os.close(handle)


def is_ours(file: Path) -> bool:
    """Whether this process has the lock. To ask by opening the file would drop it: any close of it does."""
    try:
        return _identity(os.stat(file)) in _ours
    except OSError:
        return False


_ours: set[tuple[int, ...]] = set()


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return os.getpid(), stat.st_dev, stat.st_ino  # a forked process has none of its parent's locks


@contextlib.contextmanager
def alone(file: Path, refusal: str, wait: float = 0.05) -> Iterator[None]:
    """Holds a lock within a block; see :func:`take_lock`."""
    handle = take_lock(file, refusal, wait)
    try:
        yield
    finally:
        release(handle)


def _note_no_locks(folder: Path) -> None:
    note(f"{folder} is where files cannot be locked, so that a second process that writes there would not be noticed; "
         "start only one")  # fmt: skip
