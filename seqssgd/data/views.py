"""A part of an open file as a file of its own, with some of its bytes replaced."""

import io
import os
from collections.abc import Mapping
from typing import BinaryIO


class View(io.RawIOBase):
    """Bytes ``start`` to ``end`` of a seekable binary file; ``patches`` are other bytes by their offset in the view."""

    def __init__(self, file: BinaryIO, start: int, end: int, patches: Mapping[int, bytes] | None = None) -> None:
        super().__init__()
        self._file, self._start, self._size, self._position = file, start, end - start, 0
        self._patches = dict(patches or {})

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def readinto(self, buffer) -> int:
        """As of any file."""
        first = self._position
        self._file.seek(self._start + first)
        data = self._file.read(max(0, min(len(buffer), self._size - first)))
        buffer[: len(data)] = data
        for offset, patch in self._patches.items():
            begin, end = max(offset, first), min(offset + len(patch), first + len(data))
            if begin < end:
                buffer[begin - first : end - first] = patch[begin - offset : end - offset]
        self._position += len(data)
        return len(data)


def size_of(file: BinaryIO) -> int:
    """The bytes of a seekable file."""
    return file.seek(0, os.SEEK_END)


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Up to ``count`` bytes from ``offset`` on; none where no file has any, as a damaged header may say."""
    if not 0 <= offset < 2**62:
        return b""
    file.seek(offset)
    return file.read(count)
