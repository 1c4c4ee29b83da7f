"""How long the container of a recording says that it is, and what of it is there.

Decoders take a file that ends early for a shorter one, and one that follows in the same file for a tail of no
interest. Here the sizes in the headers are held against the file.
"""

import re
from collections.abc import Callable
from typing import BinaryIO, Literal, NamedTuple

from seqssgd.data.mpeg import frames_at
from seqssgd.data.sphere import AudioError
from seqssgd.data.views import read_at, size_of

# How recordings begin, of the forms whose ends are known.
_BEGINS = re.compile(
    rb"(?s)(?:RIFF|RIFX|RF64|BW64)....WAVE|riff\x2e\x91\xcf\x11|FORM....(?:AIF[FC]|8SVX|16SV)|\.snd\x00\x00|dns\.|"
    rb"caff\x00\x01|Creative Voice File|OggS\x00\x02|fLaC[\x00\x80]\x00\x00\x22|ID3[\x02-\x04]|NIST_1A\n"
)
FOLLOWED = "is followed by a recording of another form in the same file; take them apart"
NO_LENGTH = "does not say how long it is, as a stream or after a crash; read to the end of the file"


class Part(NamedTuple):
    """One recording in a file: where it begins and ends, and the bytes (by offset from its beginning) to read instead
    of its own, which give a stream the length that its header lacks."""

    start: int
    end: int
    patches: dict[int, bytes] = {}


class Layout(NamedTuple):
    """The recordings in a file, which follow on each other, and what is to be said about it."""

    parts: list[Part]
    note: str | None = None


class _Found(NamedTuple):
    """What a header says: where the recording ends, and the patches if the header does not know."""

    end: int
    patches: dict[int, bytes] | None = None


def chunked_layout(file: BinaryIO) -> Layout | None:
    """The recordings in a file of WAV (RIFF, RIFX, RF64, BW64, W64), AIFF, 8SVX, AU, CAF or VOC; None for others.

    Raises:
        AudioError: the file ends before its header says.
    """
    size, start, parts, noted = size_of(file), 0, [], False
    while reader := _reader(file, start):
        found = reader(file, start, size)
        if found is None:  # no samples in it, which the decoder will say
            break
        if found.end <= start:
            raise AudioError("is damaged: by its header it ends before it begins")
        if found.end > size:
            raise AudioError(f"is cut off: {found.end - size:,} bytes of its samples are missing")
        noted |= found.patches is not None
        parts.append(Part(start, found.end, found.patches or {}))
        start = next((place for place in (found.end, found.end + 1) if _reader(file, place)), found.end)
    check_end(file, start)
    if not parts:
        return Layout([Part(0, size)]) if start == 0 and _reader(file, 0) else None
    if len(parts) == 1 and read_at(file, 0, 4) in (b"RIFF", b"RIFX", b"FORM") and read_at(file, 8, 3) != b"8SV":
        parts[0] = parts[0]._replace(end=size)  # chunks that follow on the samples
    return Layout(parts, NO_LENGTH if noted else None)


def check_end(file: BinaryIO, end: int) -> None:
    """Makes sure that no recording of another form follows where those of a file end.

    Raises:
        AudioError: one does.
    """
    if end > 0 and any(_begins(file, place) for place in (end, end + 1)):
        raise AudioError(FOLLOWED)


def _begins(file: BinaryIO, place: int) -> bool:
    return bool(_BEGINS.match(read_at(file, place, 20))) or frames_at(file, place)


def begins_within(file: BinaryIO, begin: int) -> bool:
    """Whether a recording of another form seems to begin after ``begin`` in a FLAC, whose end is not known."""
    position, size = begin + 4, size_of(file)
    while position < size:
        data = read_at(file, position, 1 << 20)
        if any(len(match[0]) > 5 and match[0][:4] != b"fLaC" for match in _BEGINS.finditer(data)):
            return True
        position += max(1, len(data) - 20)
    return False


def _reader(file: BinaryIO, start: int) -> Callable[[BinaryIO, int, int], _Found | None] | None:
    begin = read_at(file, start, 16)
    if begin[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and begin[8:12] == b"WAVE":
        return _wave
    if begin[:4] == b"riff" and begin[4:8] == b"\x2e\x91\xcf\x11":
        return _wave64
    readers = {b"FORM": _form, b".snd": _au, b"dns.": _au, b"caff": _caf, b"Crea": _voc}
    return readers.get(begin[:4])


def _is_unknown(size: int) -> bool:
    """Whether a size of 32 bits is one that programs write which cannot go back to the header."""
    return 0x7F000000 <= size <= 0x80000000 or size >= 0xFFFF0000


def _wave(file: BinaryIO, start: int, size: int) -> _Found | None:
    order = "big" if read_at(file, start, 4) == b"RIFX" else "little"
    total = int.from_bytes(read_at(file, start + 4, 4), order)
    position, long_total, long_data = start + 12, 0, None
    while len(head := read_at(file, position, 8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:], order)
        begin = position + 8
        if name == b"ds64":
            long_total, long_data = (int.from_bytes(read_at(file, begin + i, 8), "little") for i in (0, 8))
        if name == b"data":
            break
        position = begin + length + length % 2
    else:
        return None
    if length == 0xFFFFFFFF and long_data is not None:
        length, total = long_data, long_total
        unknown = length == 0 and begin < size
    else:
        whole = start + 8 + total
        unknown = _is_unknown(length) and begin + length > size
        unknown |= length == 0 and begin < size and (whole <= begin or _is_unknown(total))
    if unknown:
        patches = {4: _u32(size - start - 8, order), begin - 4 - start: _u32(size - begin, order)}
        return _Found(size, patches if long_data is None else {})
    end = begin + length + length % 2
    return _Found(begin + length if end > size else _end_of_chunks(file, end, start + 8 + total, size))


def _wave64(file: BinaryIO, start: int, size: int) -> _Found | None:
    position = start + 40
    while len(head := read_at(file, position, 24)) == 24:
        length = int.from_bytes(head[16:], "little")
        if head[:4] == b"data":
            end = position + length
            return _Found(end if end > size else _end_of_chunks(file, _up(end, 8, start), _total64(file, start), size))
        position += max(24, _up(length, 8))
    return None


def _total64(file: BinaryIO, start: int) -> int:
    return start + int.from_bytes(read_at(file, start + 16, 8), "little")


def _form(file: BinaryIO, start: int, size: int) -> _Found | None:
    total = int.from_bytes(read_at(file, start + 4, 4))
    position, frames_at, frame_bytes = start + 12, None, 1
    while len(head := read_at(file, position, 8)) == 8:
        name, length = head[:4], int.from_bytes(head[4:])
        begin = position + 8
        if name == b"COMM":
            common = read_at(file, begin, 22)
            frames_at, coding = begin + 2, common[18:22] if length > 18 else b"NONE"
            bits = {b"ulaw": 8, b"ULAW": 8, b"alaw": 8, b"ALAW": 8}.get(coding, int.from_bytes(common[6:8]))
            frame_bytes = max(1, int.from_bytes(common[:2]) * -(-bits // 8))
        if name in (b"SSND", b"BODY"):
            break
        position = begin + length + length % 2
    else:
        return None
    unknown = _is_unknown(length) and begin + length > size
    unknown |= length <= 8 and begin + 8 < size and (start + 8 + total <= begin + 8 or _is_unknown(total))
    if unknown:
        patches = {4: _u32(size - start - 8, "big"), begin - 4 - start: _u32(size - begin, "big")}
        if frames_at is not None:
            patches[frames_at - start] = _u32((size - begin - 8) // frame_bytes, "big")
        return _Found(size, patches)
    end = begin + length
    return _Found(max(end, start + 8 + total) if end > size or start + 8 + total > size
                  else _end_of_chunks(file, end + length % 2, start + 8 + total, size))  # fmt: skip


def _au(file: BinaryIO, start: int, size: int) -> _Found | None:
    order = "big" if read_at(file, start, 4) == b".snd" else "little"
    offset, length = (int.from_bytes(read_at(file, start + i, 4), order) for i in (4, 8))
    begin = start + offset
    if length == 0xFFFFFFFF or (length == 0 and begin < size):
        return _Found(size, {8: _u32(size - begin, order)})
    return _Found(begin + length)


def _caf(file: BinaryIO, start: int, size: int) -> _Found | None:
    position = start + 8
    while len(head := read_at(file, position, 12)) == 12:
        name, length = head[:4], int.from_bytes(head[4:], signed=True)
        begin = position + 12
        if name == b"data":
            if length == -1:
                return _Found(size, {begin - 8 - start: (size - begin).to_bytes(8)})
            end = begin + length
            while len(head := read_at(file, end, 12)) == 12 and not _begins(file, end):  # chunks that follow
                after = end + 12 + max(0, int.from_bytes(head[4:], signed=True))
                if after > size and head[:4] != b"pakt":  # no chunk
                    break
                end = after
            return _Found(end)
        position = begin + max(0, length)
    return None


def _voc(file: BinaryIO, start: int, size: int) -> _Found | None:
    position, sounds, end = start + int.from_bytes(read_at(file, start + 20, 2), "little"), 0, start
    while len(head := read_at(file, position, 4)) == 4 and head[0]:
        length = int.from_bytes(head[1:], "little")
        if head[0] in (1, 2, 3, 6, 9):  # sound, more of it, silence, a repetition, sound of the newer kind
            sounds, end = sounds + 1, position + 4 + length
        position += 4 + length
    if sounds > 1:
        raise AudioError(f"holds {sounds} blocks of sound, of which only the first could be read; convert it to WAV")
    return _Found(end) if sounds else None


def _end_of_chunks(file: BinaryIO, end: int, total: int, size: int) -> int:
    """Where the next recording begins, if one follows: after the samples, or after the chunks that follow them."""
    for place in (end, total, total + total % 2):
        if end <= place < size and _reader(file, place):
            return place
    return min(end, size)


def _u32(value: int, order: Literal["little", "big"]) -> bytes:
    return min(value, 0xFFFFFFFF).to_bytes(4, order)


def _up(value: int, multiple: int, base: int = 0) -> int:
    return base + -(-(value - base) // multiple) * multiple
