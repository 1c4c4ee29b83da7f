"""What is in a prepared set: whether its files are still those that were prepared, and a fingerprint of its items.

``dataset.json`` has the size and the SHA-256 checksum of every file, and is of the same time as they are. A file of
that size and time is taken for the one that was prepared; if the times differ (it is a copy, or was written anew) the
file is read through and its checksum compared.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssgd.errors import UserError
from seqssgd.notes import note

if TYPE_CHECKING:
    import numpy as np


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_item(name: str, data: "bytes | np.ndarray") -> int:
    """A number that tells an item's name and content; the sum over a set, in any order, tells the set's."""
    digest = hashlib.sha256(f"{len(name)} {name} ".encode("utf-8", "backslashreplace"))
    digest.update(data if isinstance(data, bytes) else data.data)
    return int.from_bytes(digest.digest()[:16])


def of_samples(name: str, samples: "np.ndarray") -> int:
    """:func:`of_item` for a recording's samples, of int16 or of int32 whose upper bits are used: the same for both."""
    import numpy as np

    upper = samples.astype("<i4") << 16 if samples.dtype == np.int16 else samples.astype("<i4")
    return of_item(name, np.ascontiguousarray(upper))


def as_text(total: int) -> str:
    """The fingerprint of a set whose items give ``total``."""
    return f"{total % 2**128:032x}"


def seal(folder: Path, files: Iterable[str]) -> None:
    """Gives the files of a folder the time of its ``dataset.json``."""
    status = (folder / "dataset.json").stat()
    for file in files:
        os.utime(folder / file, ns=(status.st_atime_ns, status.st_mtime_ns))


def check_set(folder: Path, name: str, info: Mapping[str, Any]) -> str | None:
    """Makes sure that the files of a set are those that were prepared.

    Args:
        folder: the prepared folder.
        name: of the set.
        info: the contents of its ``dataset.json``.

    Returns:
        the fingerprint of its items; ``None``, and a note on standard error, if an earlier version prepared it, which
        took none.

    Raises:
        UserError: a file has changed.
    """
    if name not in info.get("content", {}):
        note(
            f"{folder / name} was prepared without checksums, so whether it has changed since is not known; "
            "prepare it in a new folder to have them"
        )
        return None
    from seqssgd.data.progress import ProgressBar  # whose package belongs to an extra

    checksums, sealed = info.get("sha256", {}), (folder / "dataset.json").stat().st_mtime_ns
    moved = [file for file in info["sets"][name]["files"] if (folder / file).stat().st_mtime_ns != sealed]
    with ProgressBar(len(moved), unit=f"files of {folder / name} checked", err=True) as progress:
        for file in moved:
            if checksum(folder / file) != checksums.get(file):
                raise UserError(
                    f"{folder / file} has changed since it was prepared; remove {folder} and prepare it again"
                )
            progress.advance()
    return str(info["content"][name])
