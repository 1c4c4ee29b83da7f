"""Samples at another rate, by FFmpeg's resampler (PyAV), a block at a time."""

from collections.abc import Iterable, Iterator

import numpy as np

from seqssgd.data.sphere import AudioError

SLOWEST, FASTEST = 1_000, 1_000_000  # Hz; beyond them a header is damaged, and the filter takes any memory


def resampled(blocks: Iterable[np.ndarray], own: int, rate: int) -> Iterator[np.ndarray]:
    """Blocks (n, 1) of samples at another rate, by FFmpeg's resampler (PyAV), however they are cut.

    A recording that is too short for the resampler's filter, which then gives nothing, is followed by zeros.
    """
    if own == rate:
        yield from blocks
        return
    if not SLOWEST <= own <= FASTEST:
        raise AudioError(f"cannot be resampled: its header says {own:,} Hz, where sound has {SLOWEST:,} to {FASTEST:,}")
    import av

    resampler, kind, count, given = None, "s16", 0, 0
    head = []
    for block in blocks:
        if resampler is None:
            kind = "s16" if block.dtype == np.int16 else "s32"
            resampler = av.AudioResampler(kind, "mono", rate)
        for part in _through(resampler, block, own, kind):
            given += len(part)
            yield part
        count += len(block)
        head = [*head, block] if count < own // 4 else []
    if resampler is None:
        return
    wanted = -(-count * rate // own)
    last = list(_flushed(resampler, kind))
    if count and not given and not any(map(len, last)):
        zeros = np.zeros((own, 1), head[0].dtype)
        resampler = av.AudioResampler(kind, "mono", rate)
        last = [*_through(resampler, np.concatenate([*head, zeros]), own, kind), *_flushed(resampler, kind)]
        last = [np.concatenate(last)[:wanted]]
    yield from last


def _through(resampler, block: np.ndarray, own: int, kind: str) -> Iterator[np.ndarray]:
    import av

    if not len(block):
        return
    try:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block.T), kind, "mono")
        frame.rate = own
        yield from (_column(part, kind) for part in resampler.resample(frame))
    except (av.FFmpegError, OverflowError, ValueError) as error:
        raise AudioError(f"cannot be resampled from {own:,} Hz ({error})") from None


def _flushed(resampler, kind: str) -> Iterator[np.ndarray]:
    return (_column(part, kind) for part in resampler.resample(None))


def _column(frame, kind: str) -> np.ndarray:
    samples = frame.to_ndarray()[0][:, None]
    return samples if kind == "s16" else samples & ~0xFF
