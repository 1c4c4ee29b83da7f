"""The frames of MP3, or MPEG audio of another layer: where its streams begin and end, and that all of them are there.

A stream that begins with a Xing, Info or VBRI header says how many frames and bytes it has. One without cannot be told
from a shorter one, unless it ends within a frame. Frames carry no checksum that would tell of damage inside; some of it
the decoder notices.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from seqssgd.data.sphere import AudioError
from seqssgd.data.views import read_at, size_of

_KBITS = {  # by (version 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SEARCHED = 65_536  # bytes in which a frame must follow


class _Frame(NamedTuple):
    kind: tuple  # version, layer and rate, which all frames of a stream share
    length: int  # bytes; 0: of a free format, whose frames cannot be told
    info: int  # offset of a Xing or Info header, if there is one


def is_mpeg(file: BinaryIO) -> bool:
    """Whether a file begins with a frame of MPEG audio, with or without a tag before it."""
    return _frame(read_at(file, skip_tags(file, 0), 4)) is not None


def frames_at(file: BinaryIO, place: int) -> bool:
    """Whether two frames of MPEG audio follow on each other from that place on."""
    frame = _frame(read_at(file, place, 4))
    return bool(frame and frame.length and _frame(read_at(file, place + frame.length, 4)))


def mpeg_streams(file: BinaryIO) -> list[tuple[int, int]]:
    """Beginning and end of the streams that follow on each other in a file of MPEG audio.

    Raises:
        AudioError: the file ends before its header says, within a frame, or there is something else between frames.
    """
    size, position, found = size_of(file), skip_tags(file, 0), []
    start, frames, promised = position, 0, None
    while position < size:
        frame = _frame(read_at(file, position, 4))
        if frame is not None and frame.length == 0:
            if not (frames or found or promised):
                return [(0, size)]
            frame = None  # a damaged header: no stream changes to a free format
        if frame is None:
            after = skip_tags(file, position)
            if after == position:
                if _follows(file, position):
                    raise AudioError(f"is damaged: no frame of MPEG audio at byte {position:,}")
                break  # what writers put at the end
            position = after
            if frames:
                found.append((start, position, frames, promised))
                start, frames, promised = position, 0, None
            continue
        info = _promise(read_at(file, position, 64), frame.info)
        if frames and (info is not None or (promised is not None and frames == promised[0])):
            found.append((start, position, frames, promised))
            start, frames, promised = position, 0, None
        if position + frame.length > size:
            raise AudioError("is cut off within a frame")
        if info is not None and not frames and promised is None:
            promised = (info[0], start + info[1] if info[1] else None)
        else:
            frames += 1
        position += frame.length
    if frames or promised:
        found.append((start, position, frames, promised))
    for _, end, frames, promised in found:
        if promised and promised[0] is not None:
            missing, short = promised[0] - frames, promised[1] is None or promised[1] > end
            if missing > 1 or (missing == 1 and short):
                raise AudioError(f"is cut off: {missing:,} of {promised[0]:,} frames are missing")
    return [(start, end) for start, end, *_ in found] or [(0, size)]


def skip_tags(file: BinaryIO, position: int) -> int:
    """Where the tags (ID3v2, ID3v1, APE) end that begin at ``position``."""
    while True:
        head = read_at(file, position, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 0x80:
            length = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            position += 10 + length + 10 * bool(head[5] & 0x10)
        elif head[:3] == b"TAG":
            position += 128
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            position += int.from_bytes(head[12:16], "little") + 32 * bool(head[23] & 0x80 and head[23] & 0x20)
        else:
            return position


def _frame(head: bytes) -> _Frame | None:
    """The frame that a header of four bytes begins; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate == 15 or rate == 3:
        return None
    first, mono = version == 3, head[3] >> 6 == 3
    bits, hertz = 1000 * _KBITS[first, layer][bitrate], _RATES[version][rate]
    if layer == 1:
        length = (12 * bits // hertz + padding) * 4
    else:
        length = (144 if first or layer == 2 else 72) * bits // hertz + padding
    side = ((17 if mono else 32) if first else (9 if mono else 17)) if layer == 3 else 0
    return _Frame((version, layer, hertz), length if bits else 0, side and 4 + side)


def _promise(frame: bytes, offset: int) -> tuple[int | None, int | None] | None:
    """Frames and bytes by a Xing, Info or VBRI header; None if there is none."""
    if frame[36:40] == b"VBRI":
        return int.from_bytes(frame[50:54]), int.from_bytes(frame[46:50])
    header = frame[offset : offset + 16]
    if not offset or len(header) < 16 or header[:4] not in (b"Xing", b"Info"):
        return None
    flags, numbers = header[7], [int.from_bytes(header[i : i + 4]) for i in (8, 12)]
    frames = numbers.pop(0) if flags & 1 else None
    return frames, numbers[0] if flags & 2 else None


def _follows(file: BinaryIO, position: int) -> bool:
    """Whether a frame follows somewhere, which another one follows."""
    data = read_at(file, position, _SEARCHED)
    place = data.find(b"\xff")
    while place >= 0:
        frame = _frame(data[place : place + 4])
        if frame is not None and frame.length:
            after = _frame(read_at(file, position + place + frame.length, 4))
            if after is not None and after.kind == frame.kind:
                return True
        place = data.find(b"\xff", place + 1)
    return False


# ---- the decoder -----------------------------------------------------------------------------------------------------

_listening = threading.Lock()
# How the lines begin that libmpg123 says, most without its name, of what it finds between frames, which is judged here:
# those of its parse.c and libmpg123.c that need no option to be shown.
_ITS_LINES = (
    rb"\[src/libmpg123/",
    rb"Note: (Skipped (RIFF header|ID3v1 tag|-?\d+ bytes in input)|Trying to resync\.|Could be a BMP album art)",
    rb"Note: (Illegal Audio-MPEG-Header 0x|Junk at the beginning \(0x|Looks like a RIFF header|free format frame )",
    rb"Note: (Hit end of \(available\) data during resync|Xing stream size |missing -?\d+ bytes in bit reservoir )",
    rb"\n?Warning: (Xing stream size off by |.*Frankenstein)",
)
_ITS = re.compile(rb"(?m)^(?:" + b"|".join(_ITS_LINES) + rb").*\n?")


@contextlib.contextmanager
def damage_heard() -> Iterator[None]:
    """Makes an error of what libmpg123 finds wrong while it decodes: it goes on without a frame, and says so on
    standard error alone, without the file's name. What else is said there meanwhile is passed on.

    Raises:
        AudioError: it found something wrong.
    """
    with _listening, tempfile.TemporaryFile() as file:
        real = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            file.seek(0)
            said = file.read()
            os.write(2, _ITS.sub(b"", said))
            found = re.search(rb"libmpg123/layer\w*\.c:.*error: (.*)", said)
    if found:
        raise AudioError(f"is damaged: {found[1].decode(errors='replace').strip(' !')} (libmpg123)")
