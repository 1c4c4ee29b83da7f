"""One recording in, the bytes of a lossless FLAC out; whatever is wrong with a recording is an ``AudioError``."""

import io
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import soundfile

from seqssgd.data import sphere
from seqssgd.data.sphere import AudioError

# Subtypes that 16 bits hold without loss, and lossy ones, where more bits would keep nothing more.
_16_BITS = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"}
_LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}
_BLOCK = 1 << 20  # samples


class Recording(NamedTuple):
    """Decoded audio: (N, channels) samples, int16, or int32 whose upper 24 bits are used, and the rate in Hz."""

    samples: np.ndarray
    rate: int
    flac: bytes | None = None  # the file itself, if that already is a FLAC


def read_file(path: str | Path) -> Recording:
    """The recording in a file: SPHERE, or whatever soundfile reads."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise AudioError("there is no such file") from None
    except OSError as error:
        raise AudioError(f"cannot be read ({error.strerror})") from None
    return decode(data)


def read_row(table, index: int, column: str, rate: int, channel: int | None = None) -> Recording:
    """The recording in a row of a ``datasets.Dataset`` whose column is ``Audio(decode=False)``, at the given rate.

    ``channel`` (from 1) is the one to take of recordings with several.
    """
    cell = table[index][column] or {}
    if cell.get("bytes") is None and not cell.get("path"):
        raise AudioError("has no audio")
    recording = read_file(cell["path"]) if cell.get("bytes") is None else decode(cell["bytes"])
    if channel is not None:
        recording = take_channel(recording, channel)
    return resample(recording, rate)


def read_pcm(data: bytes, rate: int, order: str) -> Recording:
    """The recording in headerless 16-bit mono samples; ``order`` is ``"<i2"`` or ``">i2"``."""
    if len(data) % 2:
        raise AudioError(f"is cut off: {len(data):,} bytes are no whole number of 16-bit samples")
    return Recording(np.frombuffer(data, order).astype(np.int16)[:, None], rate)


def decode(data: bytes) -> Recording:
    """The recording in the bytes of a file, all of it: one that is shorter than its own header says is an error."""
    if not data:
        raise AudioError("is empty")
    if data.startswith(sphere.MAGIC):
        return Recording(*sphere.read_sphere(data))
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            narrow = file.subtype in _16_BITS | _LOSSY
            floats = file.subtype in ("FLOAT", "DOUBLE")
            if file.frames >= 2**36:
                raise AudioError("is a stream that does not say how long it is; encode it again as a file")
            samples = _read_blocks(file, "float64" if floats else "int16" if narrow else "int32")
            rate, kind = file.samplerate, f"{file.format} {file.subtype}"
            frames = len(samples) if file.subtype in _LOSSY else file.frames  # theirs is an estimate
            flac = data if file.format == "FLAC" else None
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be decoded ({error.error_string.strip().rstrip('.')})") from None
    if len(samples) != frames:
        raise AudioError(f"holds {len(samples):,} samples, but its header says {frames:,}")
    if floats:
        samples = _from_floats(samples)
    elif not narrow and (samples & 0xFF).any():
        raise AudioError(f"has more bits a sample ({kind}) than the 24 that FLAC keeps")
    _check_length(data)
    return Recording(samples, rate, flac)


def flac_of(recording: Recording) -> tuple[bytes, float]:
    """The FLAC of a recording that is fit for training, and its duration in seconds.

    Raises:
        AudioError: no samples, or more than one channel.
    """
    samples, rate, flac = recording
    if not len(samples):
        raise AudioError("holds no samples")
    if samples.shape[1] != 1:
        raise AudioError(f"has {samples.shape[1]} channels where one is meant")
    return flac or encode_flac(samples[:, 0], rate), len(samples) / rate


def take_channel(recording: Recording, number: int) -> Recording:
    """Channel ``number`` (from 1) of a recording with several; one with a single channel as it is."""
    count = recording.samples.shape[1]
    if count == 1:
        return recording
    if not 1 <= number <= count:
        raise AudioError(f"has {count} channels, and no channel {number}")
    return Recording(recording.samples[:, number - 1 : number], recording.rate)


def mix_channels(recording: Recording) -> Recording:
    """The mean of all channels as one."""
    samples, rate, _ = recording
    if samples.shape[1] == 1:
        return recording
    return Recording(np.rint(samples.mean(1, keepdims=True, dtype=np.float64)).astype(samples.dtype), rate)


def resample(recording: Recording, rate: int) -> Recording:
    """A recording of one channel at another sample rate, by FFmpeg's resampler (PyAV); others as they are."""
    samples = recording.samples
    if recording.rate == rate or samples.shape[1] != 1 or not len(samples):
        return recording
    import av

    kind = "s16" if samples.dtype == np.int16 else "s32"
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T), kind, "mono")
    frame.rate = recording.rate
    resampler = av.AudioResampler(kind, "mono", rate)
    parts = [part.to_ndarray()[0] for part in [*resampler.resample(frame), *resampler.resample(None)]]
    result = np.concatenate(parts)[:, None]
    return Recording(result if kind == "s16" else result & ~0xFF, rate)


def encode_flac(samples: np.ndarray, rate: int) -> bytes:
    """(N,) int16 samples, or int32 ones whose lowest 8 bits are 0, as a FLAC file of 16 or 24 bits."""
    buffer = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "PCM_24"
    try:
        soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise AudioError(f"cannot be kept as FLAC at {rate:,} Hz ({error})") from None
    return buffer.getvalue()


def _from_floats(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] with 24 bits, the resolution of a 32-bit float near full scale."""
    if not np.isfinite(samples).all():
        raise AudioError(f"has {int((~np.isfinite(samples)).sum()):,} samples that are not finite (NaN or infinite)")
    peak = np.abs(samples).max(initial=0.0)
    if peak > 1:
        raise AudioError(f"has samples up to {peak:.3g}, beyond the full scale of 1")
    return np.minimum(np.rint(samples * 2**23), 2**23 - 1).astype(np.int32) << 8


def _check_length(data: bytes) -> None:
    """libsndfile takes a WAV or AIFF file that ends early for a shorter one; the sizes in its header tell."""
    missing = 0
    if data[:4] == b"FORM":
        missing = 8 + int.from_bytes(data[4:8], "big") - len(data)
    elif data[:4] == b"RIFF":
        position, name, size = 12, b"", 0
        while position + 8 <= len(data) and name != b"data":
            name, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
            position += 8 + size + size % 2 * (name != b"data")
        if name == b"data" and size < 0x7FFFFFFF:  # streams that never learnt their length have a huge one
            missing = position - len(data)
    if missing > 0:
        raise AudioError(f"is cut off: {missing:,} bytes of its samples are missing")


def _read_blocks(file: soundfile.SoundFile, dtype: Literal["int16", "int32", "float64"]) -> np.ndarray:
    """All samples, (N, channels), of a file whose header may give any number of them."""
    blocks = [file.read(_BLOCK, dtype, always_2d=True)]
    while len(blocks[-1]) == _BLOCK:
        blocks.append(file.read(_BLOCK, dtype, always_2d=True))
    return np.concatenate(blocks)
