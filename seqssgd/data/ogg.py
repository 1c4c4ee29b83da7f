"""The pages of an Ogg file (RFC 3533): none damaged, none missing, and where its streams begin and end."""

import zlib
from typing import BinaryIO

from seqssgd.data.sphere import AudioError
from seqssgd.data.views import read_at, size_of

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_FIRST, _LAST = 2, 4  # flags of a page
_SEARCHED = 1 << 20  # bytes behind the last page; the largest page has 65,307


def checksum(page: bytes) -> int:
    """The checksum of a page whose own checksum is zero.

    Ogg feeds the bits of a byte the other way round than zlib, with the same polynomial, from 0 and without inversion.
    """
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reflected:032b}"[::-1], 2)


def ogg_links(file: BinaryIO) -> list[tuple[int, int]]:
    """Beginning and end of the streams that follow on each other in a file that begins with ``OggS``.

    Raises:
        AudioError: a page is damaged or missing, the file ends within a stream, or streams lie side by side.
    """
    size, position, starts = size_of(file), 0, []
    serial, following, ended = None, 0, True
    while position < size:
        page = read_at(file, position, 27)
        page += read_at(file, position + 27, page[26]) if len(page) == 27 else b""
        if page[:4] != b"OggS"[: len(page)]:
            if ended and b"OggS" not in read_at(file, position, _SEARCHED):
                break  # what writers put at the end
            raise AudioError(f"is damaged: no page of Ogg at byte {position:,}")
        body = sum(page[27:])
        if len(page) < 27 or len(page) < 27 + page[26] or position + len(page) + body > size:
            raise AudioError("is cut off within a page of Ogg")
        page += read_at(file, position + len(page), body)
        flags, own, number = page[5], page[14:18], int.from_bytes(page[18:22], "little")
        if checksum(page[:22] + bytes(4) + page[26:]) != int.from_bytes(page[22:26], "little"):
            raise AudioError(f"is damaged: the page of Ogg at byte {position:,} has another checksum")
        if flags & _FIRST:
            if not ended:
                raise AudioError("holds several streams side by side, or one that was cut off and another after it")
            starts.append(position)
            serial, following, ended = own, number, False
        if ended or own != serial or number != following:
            raise AudioError(f"is damaged: pages of Ogg are missing before byte {position:,}")
        following, ended = number + 1, bool(flags & _LAST)
        position += len(page)
    if not ended:
        raise AudioError("is cut off: its last page of Ogg is missing")
    return list(zip(starts, [*starts[1:], position], strict=True))
