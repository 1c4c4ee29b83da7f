"""Locks of files, which end with the process that holds them, however it ends."""

import errno
from pathlib import Path
from typing import Literal

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


def note_no_locks(folder: str | Path) -> None:
    """Notes that a second process in this folder would not be noticed."""
    note(f"{folder} is where files cannot be locked, so that a second process that writes there would not be noticed; "
         "start only one")  # fmt: skip
