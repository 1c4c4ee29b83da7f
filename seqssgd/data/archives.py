"""Files out of archives, without unpacking them."""

import bz2
import contextlib
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from seqssgd.errors import UserError

ROOM, RATIO = 100_000_000, 30  # bytes that an archive may unpack to, and beside them how many for each of its own
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class _Limited:
    """A stream that gives no more than ``most`` bytes."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self.stream, self.most, self.left = stream, most, most

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"it unpacks to more than {self.most:,} bytes, as no true one does")
        return data


@contextlib.contextmanager
def unpacked(source: Path) -> Iterator[Any]:
    """The contents of a file, compressed or not, in a stream that ends where they are far more than the file."""
    with open(source, "rb") as file:
        begin = file.read(6)
    opened = next((opener for magic, opener in OPENERS.items() if begin.startswith(magic)), open)
    with opened(source, "rb") as stream:
        yield _Limited(stream, ROOM + RATIO * Path(source).stat().st_size)


def read_members(source: Path, names: Collection[str], largest: int) -> dict[str, bytes]:
    """The contents of ordinary files in a tar archive, by name without folders; of several the first is taken.

    Nothing is unpacked to disk, so that no member can reach outside.

    Args:
        source: the archive, compressed or not.
        names: the files that are wanted; reading ends where all are found.
        largest: bytes; larger files are passed over.

    Raises:
        FileNotFoundError: there is no archive.
        UserError: it is none, or not complete, or a small one that stands for much.
    """
    contents: dict[str, bytes] = {}
    try:
        with unpacked(source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
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
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(
            f"{source} is neither a folder nor a complete tar archive ({error}); download it again"
        ) from None
    return contents
