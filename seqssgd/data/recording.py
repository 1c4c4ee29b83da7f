"""A recording in memory: its samples, one of its channels or their mean, another rate, the bytes of a lossless FLAC."""

import io
from typing import NamedTuple

import numpy as np
import soundfile

from seqssgd.data.resampling import resampled
from seqssgd.data.sphere import AudioError


class _Fields(NamedTuple):
    samples: np.ndarray
    rate: int
    flac: bytes | None = None


class Recording(_Fields):
    """Decoded audio.

    Attributes:
        samples: (N, channels), int16, or int32 whose upper bits are used.
        rate: in Hz.
        flac: the file itself, if that already is a FLAC.
        note: what is to be said about the file it was in, or None.
    """

    note: str | None = None

    def changed(self, samples: np.ndarray, rate: int | None = None) -> "Recording":
        """The recording with other samples."""
        return noted(Recording(samples, self.rate if rate is None else rate), self.note)


def noted(recording: Recording, note: str | None) -> Recording:
    """The recording, with a note."""
    recording.note = note
    return recording


def flac_of(recording: Recording) -> tuple[bytes, float]:
    """The FLAC of a recording that is fit for training, and its duration in seconds.

    Raises:
        AudioError: no samples, more than one channel, or more bits a sample than FLAC keeps.
    """
    samples, rate, kept = recording
    if not len(samples):
        raise AudioError("holds no samples")
    if samples.shape[1] != 1:
        raise AudioError(f"has {samples.shape[1]} channels where one is meant")
    return kept or encode_flac(samples[:, 0], rate), len(samples) / rate


def encode_flac(samples: np.ndarray, rate: int) -> bytes:
    """(N,) int16 samples, or int32 ones whose lowest 8 bits are 0, as a FLAC file of 16 or 24 bits."""
    if samples.dtype == np.int32 and (samples & 0xFF).any():
        raise AudioError("has more bits a sample than the 24 that FLAC keeps")
    buffer = io.BytesIO()
    subtype = "PCM_16" if samples.dtype == np.int16 else "PCM_24"
    try:
        soundfile.write(buffer, samples, rate, format="FLAC", subtype=subtype)
    except (soundfile.LibsndfileError, ValueError) as error:
        raise AudioError(f"cannot be kept as FLAC at {rate:,} Hz ({error})") from None
    return buffer.getvalue()


def take_channel(recording: Recording, number: int) -> Recording:
    """Channel ``number`` (from 1) of a recording with several; one with a single channel as it is."""
    count = recording.samples.shape[1]
    if count == 1:
        return recording
    if not 1 <= number <= count:
        raise AudioError(f"has {count} channels, and no channel {number}")
    return recording.changed(recording.samples[:, number - 1 : number])


def mixed(samples: np.ndarray) -> np.ndarray:
    """The mean of all channels of samples (n, channels) as one, (n, 1)."""
    if samples.shape[1] == 1:
        return samples
    return np.rint(samples.mean(1, keepdims=True, dtype=np.float64)).astype(samples.dtype)


def resample(recording: Recording, rate: int) -> Recording:
    """A recording of one channel at another sample rate; others as they are."""
    if recording.rate == rate or recording.samples.shape[1] != 1 or not len(recording.samples):
        return recording
    parts = list(resampled([recording.samples], recording.rate, rate))
    return recording.changed(np.concatenate(parts), rate)
