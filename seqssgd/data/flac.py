"""What a FLAC file says of itself: the checksum of its samples, and whether another file follows."""

import re
from typing import BinaryIO

import numpy as np

from seqssgd.data.views import read_at, size_of

_BEGIN = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker, and the header of its first block


def is_one_flac(file: BinaryIO) -> bool:
    """Whether the file is a FLAC, without a tag before it or another one after it."""
    return read_at(file, 0, 4) == b"fLaC" and not flacs_after(file, 0)


def flacs_after(file: BinaryIO, begin: int) -> list[int]:
    """Where further FLAC files begin, one of which begins at ``begin``."""
    found, position, size = [], begin + 4, size_of(file)
    while position < size:
        data = read_at(file, position, 1 << 20)
        found += [position + match.start() for match in _BEGIN.finditer(data)]
        position += max(1, len(data) - 7) if position + len(data) < size else len(data)
    return sorted(set(found))


def checksum(file: BinaryIO) -> tuple[bytes, int] | None:
    """The MD5 of the samples that a FLAC should hold, and their bits; None if it does not say, or is no FLAC."""
    begin = read_at(file, 0, 42)
    file.seek(0)
    if begin[:4] != b"fLaC" or begin[26:42] in (b"", bytes(16)):
        return None
    return begin[26:42], (int.from_bytes(begin[20:22]) >> 4 & 31) + 1


def packed(samples: np.ndarray, bits: int) -> bytes:
    """Samples that use the upper ``bits`` as FLAC's checksum takes them: in as few whole bytes as hold the bits."""
    width = -(-bits // 8)
    right = (samples >> (8 * samples.itemsize - bits)).astype("<i4")
    return right.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
