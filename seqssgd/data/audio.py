"""Decoding: a recording's file or bytes in, its samples out; whatever is wrong with them is an ``AudioError``.

A recording is decoded a block at a time (:func:`open_audio`), and all of it or not at all: what its container says of
its length, its checksums and its end is held against the file (see the modules ``containers``, ``ogg`` and ``mpeg``),
and recordings that follow on each other in one file are read as one.
"""

import contextlib
import hashlib
import io
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from seqssgd.data import flac, sphere
from seqssgd.data.containers import FOLLOWED, Layout, Part, begins_within, check_end, chunked_layout
from seqssgd.data.hub import why_not_read
from seqssgd.data.mpeg import damage_heard, is_mpeg, mpeg_streams, skip_tags
from seqssgd.data.ogg import ogg_links
from seqssgd.data.recording import Recording, noted, resample, take_channel
from seqssgd.data.sphere import AudioError
from seqssgd.data.views import View, read_at, size_of

# Subtypes that 16 bits hold without loss, and lossy ones, where more bits would keep nothing more.
_16_BITS = {"PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW"}
_LOSSY = {"VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III"}
_BLOCK = 1 << 18  # samples of every channel
MOST = 1 << 28  # samples of all channels in memory: 4.7 hours at 16 kHz, of which silence needs no megabyte


class AudioStream:
    """An open recording; made by :func:`open_audio`.

    Attributes:
        rate: in Hz.
        channels: of every block.
        frames: samples of every channel as the header has it; None where that is an estimate, or not known.
        note: what is to be said about the file, or None.
    """

    def __init__(self, rate: int, channels: int, frames: int | None, blocks: Iterator[np.ndarray], note: str | None):
        self.rate, self.channels, self.frames, self.note, self._blocks = rate, channels, frames, note, blocks

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples in order, each block (n, channels) of int16 or int32; can be read once.

        Raises:
            AudioError: the recording is damaged, or is not all there; where that shows in the end, after the last
                block.
        """
        return self._blocks


@contextlib.contextmanager
def open_audio(source: str | Path | bytes) -> Iterator[AudioStream]:
    """The recording in a file, or in the bytes of one: SPHERE, or whatever soundfile reads.

    Raises:
        AudioError: there is no such file, it is no recording, or not a whole one.
    """
    with _open(source) as file:
        yield _stream(file)


def read_file(path: str | Path) -> Recording:
    """The recording in a file: SPHERE, or whatever soundfile reads."""
    with _open(path) as file:
        return _decode(file)


def decode(data: bytes) -> Recording:
    """The recording in the bytes of a file, all of it: one that is shorter than its own header says is an error."""
    return _decode(io.BytesIO(data))


def read_row(
    table, index: int, column: str, rate: int, channel: int | None = None, folders: Collection[str] | None = None
) -> Recording:
    """The recording in a row of a ``datasets.Dataset`` whose column is ``Audio(decode=False)``, at the given rate.

    ``channel`` (from 1) is the one to take of recordings with several; files are read below ``folders`` only, or
    anywhere.
    """
    cell = table[index][column] or {}
    if cell.get("array") is not None:
        recording = _from_array(cell["array"], cell.get("sampling_rate"))
    elif cell.get("bytes") is None and not cell.get("path"):
        raise AudioError("has no audio")
    elif cell.get("bytes") is None and (reason := why_not_read(cell["path"], folders)):
        raise AudioError(reason)
    else:
        recording = read_file(cell["path"]) if cell.get("bytes") is None else decode(cell["bytes"])
    if channel is not None:
        recording = take_channel(recording, channel)
    return resample(recording, rate)


def _from_array(samples: object, rate: object) -> Recording:
    """The recording in samples (N,) or (channels, N): in [-1, 1], or whole numbers of 16 bits."""
    array = np.asarray(samples)
    rate = int(rate) if isinstance(rate, float) and rate.is_integer() else rate  # of a column with empty cells
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or not isinstance(rate, int) or rate < 1:
        raise AudioError("holds no samples with their rate")
    columns = array.reshape(1, -1).T if array.ndim == 1 else array.T
    if array.dtype.kind == "f":
        return Recording(_from_floats(columns.astype(np.float64)), rate)
    if array.size and not -(2**15) <= array.min() <= array.max() < 2**15:
        raise AudioError("has whole-numbered samples of more than 16 bits")
    return Recording(columns.astype(np.int16), rate)


def read_pcm(data: bytes, rate: int, order: str) -> Recording:
    """The recording in headerless 16-bit mono samples; ``order`` is ``"<i2"`` or ``">i2"``."""
    if len(data) % 2:
        raise AudioError(f"is cut off: {len(data):,} bytes are no whole number of 16-bit samples")
    return Recording(np.frombuffer(data, order).astype(np.int16)[:, None], rate)


@contextlib.contextmanager
def _open(source: str | Path | bytes) -> Iterator[BinaryIO]:
    """A file that can be read from any place; what comes through a pipe is written to a temporary one."""
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(source, "rb"))
            if not file.seekable():
                copy = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, copy)
                file = copy
        except FileNotFoundError:
            raise AudioError("there is no such file") from None
        except ValueError as error:  # a name with a zero byte
            raise AudioError(f"cannot be read ({error})") from None
        except OSError as error:
            raise AudioError(f"cannot be read ({error.strerror})") from None
        yield file


def _decode(file: BinaryIO) -> Recording:
    stream = _stream(file)
    blocks, count = [], 0
    for block in stream.blocks():
        blocks.append(block)
        count += block.size
        if count > MOST:
            raise AudioError(f"holds more than {MOST:,} samples; cut it into utterances")
    samples = np.concatenate(blocks) if blocks else np.zeros((0, stream.channels), np.int16)
    whole = read_at(file, 0, size_of(file)) if stream.note is None and flac.is_one_flac(file) else None
    return noted(Recording(samples, stream.rate, whole), stream.note)


def _stream(file: BinaryIO) -> AudioStream:
    if not size_of(file):
        raise AudioError("is empty")
    if read_at(file, 0, len(sphere.MAGIC)) == sphere.MAGIC:
        opened = sphere.open_sphere(file)
        return AudioStream(opened.rate, opened.channels, opened.frames, opened.blocks, None)
    layout = _layout(file)
    decoders = [_Decoder(file, part) for part in layout.parts]
    forms = {(decoder.sound.samplerate, decoder.sound.channels) for decoder in decoders}
    if len(forms) > 1:
        raise AudioError("holds several recordings, one after the other, with other rates or channels")
    (rate, channels), first = forms.pop(), decoders[0]
    frames = first.sound.frames if len(decoders) == 1 and not first.lossy else None
    return AudioStream(rate, channels, frames, _blocks(decoders), layout.note)


def _layout(file: BinaryIO) -> Layout:
    """The recordings in a file, by its container."""
    size = size_of(file)
    if layout := chunked_layout(file):
        return layout
    if read_at(file, 0, 4) == b"OggS":
        links = ogg_links(file)
        check_end(file, links[-1][1])
        return Layout([Part(*link) for link in links])
    begin = skip_tags(file, 0)
    if read_at(file, begin, 4) == b"fLaC":
        starts = [begin, *flac.flacs_after(file, begin)]
        if begins_within(file, begin):
            raise AudioError(FOLLOWED)
        return Layout([Part(*pair) for pair in zip(starts, [*starts[1:], size], strict=True)])
    if is_mpeg(file):
        streams = mpeg_streams(file)
        check_end(file, streams[-1][1])
        return Layout([Part(*stream) for stream in streams])
    return Layout([Part(0, size)])


def _blocks(decoders: list["_Decoder"]) -> Iterator[np.ndarray]:
    wide = not all(decoder.narrow for decoder in decoders)
    for decoder in decoders:
        for block in decoder.blocks():
            yield block.astype(np.int32) << 16 if wide and block.dtype == np.int16 else block


class _Decoder:
    """One recording in a file, through soundfile."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        view: Any = View(file, *part)  # as much of a file as its readers ask for
        self._md5 = flac.checksum(view)
        self._listening = damage_heard if is_mpeg(view) else contextlib.nullcontext
        view.seek(0)
        with self._listening():
            try:
                self.sound = soundfile.SoundFile(view)
            except (soundfile.SoundFileError, TypeError, ValueError) as error:
                raise AudioError(f"cannot be decoded ({_reason(error)})") from None
        subtype = self.sound.subtype
        self.lossy, self.floats = subtype in _LOSSY, subtype in ("FLOAT", "DOUBLE")
        self.narrow = subtype in _16_BITS or self.lossy
        if self.sound.frames >= 2**36:
            raise AudioError("is a stream that does not say how long it is; encode it again as a file")
        if self.sound.format not in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "VOC", "CAF", "FLAC", "OGG", "MP3"):
            _check_log(self.sound)

    def blocks(self) -> Iterator[np.ndarray]:
        """The samples, (n, channels) of int16 or int32."""
        kind = "float64" if self.floats else "int16" if self.narrow else "int32"
        total, digest = 0, hashlib.md5(usedforsecurity=False)
        try:
            while True:
                with self._listening():
                    block = self.sound.read(_BLOCK, kind, always_2d=True)
                if not len(block):
                    break
                total += len(block)
                if self._md5:
                    digest.update(flac.packed(block, self._md5[1]))
                yield _from_floats(block) if self.floats else block
        except soundfile.SoundFileError as error:
            raise AudioError(f"cannot be decoded ({_reason(error)})") from None
        if not self.lossy and total != self.sound.frames:
            raise AudioError(f"holds {total:,} samples, but its header says {self.sound.frames:,}")
        if self._md5 and digest.digest() != self._md5[0]:
            raise AudioError("is damaged: its samples have another checksum (MD5) than its header says")


def _reason(error: Exception) -> str:
    return getattr(error, "error_string", str(error)).strip().rstrip(".")


def _check_log(sound: soundfile.SoundFile) -> None:
    """Of formats that are rarely seen, libsndfile's log of the header tells what is missing."""
    log = sound.extra_info
    sizes = [int(size) for size in re.findall(r"\b(?:Frames|Cols)\s*:\s*(\d+)", log)]
    other = [size for size, real in re.findall(r"(\d+) \(?should be (\d+)", log) if size != real]
    if other or "truncated" in log or (sizes and max(sizes) not in (sound.frames, sound.frames * sound.channels)):
        raise AudioError("is cut off, or followed by something else: its header says another number of samples")


def _from_floats(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] with 24 bits, the resolution of a 32-bit float near full scale."""
    if not np.isfinite(samples).all():
        raise AudioError(f"has {int((~np.isfinite(samples)).sum()):,} samples that are not finite (NaN or infinite)")
    peak = np.abs(samples).max(initial=0.0)
    if peak > 1:
        raise AudioError(f"has samples up to {peak:.3g}, beyond the full scale of 1")
    return np.minimum(np.rint(samples * 2**23), 2**23 - 1).astype(np.int32) << 8
