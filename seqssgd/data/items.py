"""What may go wrong with one of many items, and what with the machine."""

import errno
import re

from seqssgd.errors import UserError, not_installed

# What an item cannot be blamed for.
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS, errno.EIO, errno.ESTALE}


def reason_of(error: Exception, name: str, known: type[Exception]) -> str:
    """The reason to leave an item out, for whatever reading it has raised.

    Args:
        error: what was raised.
        name: of the item, for messages.
        known: the class whose message is the reason; others are named with their class.

    Raises:
        UserError: the machine is to blame: there is no memory left, or a package is missing.
        OSError, RuntimeError: likewise: the disk is full, too many files are open, or torch has no memory left.
    """
    if isinstance(error, known):
        return str(error)
    if isinstance(error, MemoryError):
        raise UserError(f"there is no memory left for {name}; close other programs, or give fewer jobs") from None
    if isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)):
        raise error
    if isinstance(error, ModuleNotFoundError):
        raise not_installed(error) from None
    if isinstance(error, OSError) and error.errno in _MACHINE:
        raise error
    text = (str(error).strip() or "no more is known").splitlines()[0]
    return f"cannot be used ({type(error).__name__}: {text})"


NOWHERE = "is a link to nothing, as git-annex and DVC leave them; fetch its content"


def printable(name: str) -> str:
    """A file's name as text: bytes that are not UTF-8 are written as ``\\udcXX``."""
    return name.encode("utf-8", "backslashreplace").decode()
