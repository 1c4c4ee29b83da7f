"""NIST SPHERE files (.sph, .wv1), the format of the LDC's speech corpora: PCM, mu-law, A-law, and embedded shorten.

A file is a text header of 1024 bytes or a multiple, then the samples. Nothing here trusts the two to agree: a file
whose samples are fewer or more than its header says, or add up to another checksum, is an error.
"""

import io
import re
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"NIST_1A\n"
_ORDERS = {"01": "<i2", "10": ">i2"}
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


def read_sphere(data: bytes) -> tuple[np.ndarray, int]:
    """Decodes a whole file.

    Returns:
        (N, channels) int16 samples, and the sample rate in Hz.

    Raises:
        AudioError: a damaged header, a coding that cannot be decoded, or samples that are not what the header says.
    """
    length, fields = read_header(data)
    coding = str(fields.get("sample_coding", "pcm")).strip().lower()
    count, channels = fields["sample_count"], fields["channel_count"]
    if coding == "pcm":
        samples = _pcm(data[length:], fields)
    elif coding in ("ulaw", "mu-law", "alaw"):
        table = _ALAW if coding == "alaw" else _MULAW
        samples = table[np.frombuffer(data, np.uint8, offset=length)[: count * channels]]
    elif re.fullmatch(r"pcm,embedded-shorten-v\d+\.\d+", coding):
        samples = _shorten(data, channels)
    else:
        raise AudioError(f"the SPHERE coding {coding!r} is not supported")
    if len(samples) != count * channels:
        raise AudioError(f"holds {len(samples) // channels:,} samples, but its header says {count:,}")
    _verify_checksum(samples, fields, coding)
    return samples.reshape(count, channels), fields["sample_rate"]


def _pcm(body: bytes, fields: dict) -> np.ndarray:
    order = str(fields.get("sample_byte_format", "")).strip()
    if fields.get("sample_n_bytes", 2) != 2 or order not in _ORDERS:
        raise AudioError(
            f"PCM of {fields.get('sample_n_bytes')} bytes a sample in byte order {order!r} is not supported; "
            "2 bytes in order '01' or '10' are"
        )
    size = 2 * fields["sample_count"] * fields["channel_count"]
    body = body[:size]  # some writers pad the file to whole blocks
    return np.frombuffer(body[: len(body) // 2 * 2], _ORDERS[order]).astype(np.int16)


def _shorten(data: bytes, channels: int) -> np.ndarray:
    """Interleaved samples of embedded shorten, decoded by FFmpeg (PyAV); it ends quietly where the data end."""
    import av

    try:
        with av.open(io.BytesIO(data), "r", format="nistsphere") as container:
            frames = [frame.to_ndarray() for frame in container.decode(audio=0)]  # each (channels, n)
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise AudioError(f"the shorten data cannot be decoded ({error})") from None
    if not frames:
        return np.zeros(0, np.int16)
    samples = np.concatenate(frames, axis=1)
    if samples.dtype != np.int16 or len(samples) != channels:
        raise AudioError(f"holds {len(samples)} channels of {samples.dtype} samples, but its header says {channels}")
    return samples.T.reshape(-1)


def _verify_checksum(samples: np.ndarray, fields: dict, coding: str) -> None:
    """The checksum is the sum of the 16-bit samples modulo 65,536."""
    expected = fields.get("sample_checksum")
    if expected is None or not coding.startswith("pcm"):
        return
    # writers of the other byte order are said to have summed the samples as they saw them
    sums = {int(array.sum(dtype=np.int64)) % 65_536 for array in (samples, samples.byteswap())}
    if expected not in sums:
        raise AudioError(f"the samples do not add up to the checksum {expected} of the header: the file is damaged")


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
