"""Files out of archives, without unpacking them."""

import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from seqssgd.errors import UserError


def read_members(source: Path, names: Collection[str], largest: int) -> dict[str, bytes]:
    """The contents of ordinary files in a tar archive, by name without folders; of several the first is taken.

    Nothing is unpacked to disk, so that no member can reach outside.

    Args:
        source: the archive, compressed or not.
        names: the files that are wanted; reading ends where all are found.
        largest: bytes; larger files are passed over.

    Raises:
        FileNotFoundError: there is no archive.
        UserError: it is none, or not complete.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in names and name not in contents and member.isfile() and member.size <= largest:
                    file = archive.extractfile(member)
                    assert file is not None  # as for every member that is a file
                    contents[name] = file.read()
                if len(contents) == len(names):
                    break
    except FileNotFoundError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{source} is neither a folder nor a complete tar archive ({error}); download it again"
        ) from None
    return contents
