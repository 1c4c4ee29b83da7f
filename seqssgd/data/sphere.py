"""NIST SPHERE files (.sph, .wv1), the format of the LDC's speech corpora: PCM, mu-law, A-law, and embedded shorten.

A file is a text header of 1024 bytes or a multiple, then the samples. Nothing here trusts the two to agree: a file
whose samples are fewer or more than its header says, or add up to another checksum, is an error.
"""

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAGIC = b"NIST_1A\n"
_ORDERS = {"01": "<i2", "10": ">i2"}
_BLOCK = 1 << 18  # samples
_FIELDS = ("channel_count", "sample_count", "sample_rate")


class AudioError(ValueError):
    """A recording that cannot be used. The message is the reason, without the name of the file."""


class Header(NamedTuple):
    """What a SPHERE header says: its length in bytes, its fields by name (``-i`` as int, ``-r`` as float, else str)."""

    length: int
    fields: dict[str, Any]


def read_header(data: bytes) -> Header:
    """The header at the beginning of ``data``; an ``AudioError`` if it is damaged or lacks what decoding needs."""
    if not data.startswith(MAGIC):
        raise AudioError("is not a SPHERE file: it does not begin with NIST_1A")
    size = data[len(MAGIC) : len(MAGIC) + 8].strip()
    if not size.isdigit() or len(data) < int(size):
        raise AudioError("the SPHERE header is cut off")
    fields: dict[str, Any] = {}
    for line in data[16 : int(size)].decode("latin-1").split("\n"):
        if line.strip() == "end_head":
            break
        match = re.fullmatch(r"(\S+)\s+-(i|r|s\d+)\s?(.*)", line.rstrip("\r"))
        if match is None:
            if line.strip() and not line.startswith(";"):
                raise AudioError(f"the SPHERE header has a line that is no field: {line.strip()[:60]!r}")
            continue
        name, kind, value = match.groups()
        try:
            fields[name] = int(value) if kind == "i" else float(value) if kind == "r" else value[: int(kind[1:])]
        except ValueError:
            raise AudioError(f"the SPHERE header says {name} {value.strip()!r}, which is no number") from None
    else:
        raise AudioError("the SPHERE header has no end_head")
    fields.setdefault("channel_count", 1)
    for name in _FIELDS:
        value = fields.get(name)
        if not isinstance(value, int | float) or value < (name != "sample_count") or value != int(value):
            raise AudioError(f"the SPHERE header says {name} {value!r}")
        fields[name] = int(value)
    return Header(int(size), fields)


class Opened(NamedTuple):
    """An open file: what its header says, and its samples in blocks (n, channels) of int16, which can be read once."""

    rate: int
    channels: int
    frames: int
    blocks: Iterator[np.ndarray]


def read_sphere(data: bytes) -> tuple[np.ndarray, int]:
    """Decodes a whole file.

    Returns:
        (N, channels) int16 samples, and the sample rate in Hz.

    Raises:
        AudioError: a damaged header, a coding that cannot be decoded, or samples that are not what the header says.
    """
    opened = open_sphere(io.BytesIO(data))
    blocks = [np.zeros((0, opened.channels), np.int16), *opened.blocks]
    return np.concatenate(blocks), opened.rate


def open_sphere(file: BinaryIO) -> Opened:
    """A SPHERE file that is decoded a block at a time.

    Raises:
        AudioError: a damaged header, or a coding that cannot be decoded; while the blocks are read, samples that cannot
            be decoded; after the last one, samples that are not what the header says.
    """
    file.seek(0)
    begin = file.read(16)
    size = begin[len(MAGIC) :].strip()
    length, fields = read_header(begin + file.read(max(0, int(size) - 16) if size.isdigit() else 0))
    coding = str(fields.get("sample_coding", "pcm")).strip().lower()
    count, channels = fields["sample_count"], fields["channel_count"]
    if coding == "pcm":
        blocks = _coded(file, length, count * channels, _pcm_order(fields), None)
    elif coding in ("ulaw", "mu-law", "alaw"):
        blocks = _coded(file, length, count * channels, "u1", _ALAW if coding == "alaw" else _MULAW)
    elif re.fullmatch(r"pcm,embedded-shorten-v\d+\.\d+", coding):
        blocks = _shorten(file, channels)
    else:
        raise AudioError(f"the SPHERE coding {coding!r} is not supported")
    return Opened(fields["sample_rate"], channels, count, _checked(blocks, count, channels, fields, coding))


def _checked(
    blocks: Iterator[np.ndarray], count: int, channels: int, fields: dict, coding: str
) -> Iterator[np.ndarray]:
    """Interleaved samples as blocks (n, channels), held against the header in the end."""
    found, rest = 0, np.zeros(0, np.int16)
    sums = np.zeros(2, np.int64)
    for block in blocks:
        # writers of the other byte order are said to have summed the samples as they saw them
        sums += [block.sum(dtype=np.int64), block.byteswap().sum(dtype=np.int64)]
        found += len(block)
        block = np.concatenate([rest, block])
        whole = len(block) // channels * channels
        rest = block[whole:]
        yield block[:whole].reshape(-1, channels)
    if found != count * channels:
        raise AudioError(f"holds {found // channels:,} samples, but its header says {count:,}")
    expected = fields.get("sample_checksum")  # the sum of the 16-bit samples modulo 65,536
    if expected is not None and coding.startswith("pcm") and expected not in (sums % 65_536).tolist():
        raise AudioError(f"the samples do not add up to the checksum {expected} of the header: the file is damaged")


def _pcm_order(fields: dict) -> str:
    order = str(fields.get("sample_byte_format", "")).strip()
    if fields.get("sample_n_bytes", 2) != 2 or order not in _ORDERS:
        raise AudioError(
            f"PCM of {fields.get('sample_n_bytes')} bytes a sample in byte order {order!r} is not supported; "
            "2 bytes in order '01' or '10' are"
        )
    return _ORDERS[order]


def _coded(file: BinaryIO, begin: int, count: int, kind: str, table: np.ndarray | None) -> Iterator[np.ndarray]:
    """``count`` samples of that kind, through a table if there is one; what follows is padding, or another file."""
    file.seek(begin)
    width = np.dtype(kind).itemsize
    while count:
        data = file.read(width * min(count, _BLOCK))
        codes = np.frombuffer(data[: len(data) // width * width], kind)
        if not len(codes):
            return
        count -= len(codes)
        yield codes.astype(np.int16) if table is None else table[codes]
    if file.read(len(MAGIC)) == MAGIC:
        raise AudioError("is followed by another SPHERE file; separate the two")


def _shorten(file: BinaryIO, channels: int) -> Iterator[np.ndarray]:
    """Interleaved samples of embedded shorten, decoded by FFmpeg (PyAV); it ends quietly where the data end."""
    import av

    file.seek(0)
    try:
        with av.open(file, "r", format="nistsphere") as container:
            for frame in container.decode(audio=0):
                samples = frame.to_ndarray()  # (channels, n)
                if samples.dtype != np.int16 or len(samples) != channels:
                    raise AudioError(
                        f"holds {len(samples)} channels of {samples.dtype} samples, but its header says {channels}"
                    )
                yield samples.T.reshape(-1)
    except AudioError:
        raise
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise AudioError(f"the shorten data cannot be decoded ({error})") from None


def _mulaw_table() -> np.ndarray:
    """ITU-T G.711 mu-law, code to 16-bit sample."""
    code = ~np.arange(256, dtype=np.uint8)
    magnitude = (((code & 15).astype(np.int32) << 3) + 132 << ((code >> 4) & 7)) - 132
    return np.where(code & 128, -magnitude, magnitude).astype(np.int16)


def _alaw_table() -> np.ndarray:
    """ITU-T G.711 A-law, code to 16-bit sample."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32) << 4
    magnitude = np.where(exponent == 0, mantissa + 8, (mantissa + 264) << np.maximum(exponent - 1, 0))
    return np.where(code & 128, magnitude, -magnitude).astype(np.int16)


_MULAW, _ALAW = _mulaw_table(), _alaw_table()
