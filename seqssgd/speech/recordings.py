"""Single recordings of any length, read, resampled, recognised and decoded a piece at a time.

What a transcript depends on as a whole, the normalisation of the features over the recording, needs all of them before
the network sees the first: they wait in a temporary file. What stays in memory is a chunk with its context, and the
best label of every output frame, or the hypotheses of beam search that may still become the best.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.speech import scaled
from ..errors import UserError, require
from .beam_stream import BeamStream
from .chunks import logits_in_chunks
from .decode import BeamSearch, best_path
from .tokens import LabelTokenizer

if TYPE_CHECKING:
    from ..data.audio import AudioStream
    from .recognizer import Recognizer

LONG = 600  # seconds of a recording whose progress is shown


class Wave:
    """An open recording as one waveform at the rate of a model.

    Attributes:
        rate: of the waveform.
        own_rate: of the recording.
        note: what is to be said about the file, or None.
        seconds: of the recording, as its header says; None if that is not known.
        samples: read so far.
    """

    def __init__(self, stream: "AudioStream", rate: int) -> None:
        self.rate, self.own_rate, self.note = rate, stream.rate, stream.note
        self.seconds = None if stream.frames is None else stream.frames / stream.rate
        self.samples = 0
        self._stream = stream

    def parts(self) -> Iterator[Tensor]:
        """The samples (n,) in [-1, 1], float32, in order; can be read once.

        Raises:
            AudioError: the recording is damaged, or holds no samples.
        """
        from ..data.recording import AudioError, mixed, resampled

        blocks = (mixed(block) for block in self._stream.blocks())
        for block in resampled(blocks, self._stream.rate, self.rate):
            self.samples += len(block)
            yield scaled(block[:, 0])
        if not self.samples:
            raise AudioError("holds no samples")


@contextlib.contextmanager
def open_wave(path: str | Path, rate: int, mix: bool = False) -> Iterator[Wave]:
    """An audio file as one waveform.

    Args:
        path: any file that soundfile reads, or NIST SPHERE.
        rate: samples per second that are wanted.
        mix: whether the channels of a recording with several are averaged.

    Raises:
        UserError: the file cannot be used, be that found when it is opened or while it is read; the message begins
            with its name.
    """
    audio = require("seqssgd.data.audio")
    try:
        with audio.open_audio(path) as stream:
            if stream.channels > 1 and not mix:
                raise audio.AudioError(f"has {stream.channels} channels where one is meant; mix (--mix) averages them")
            yield Wave(stream, rate)
    except audio.AudioError as error:
        raise UserError(f"{path}: {error}") from None


def recognise(
    model: "Recognizer",
    tokenizer: LabelTokenizer,
    path: str | Path,
    mix: bool = False,
    chunk_seconds: float = 30.0,
    search: BeamSearch | None = None,
    opened: Callable[[Wave], None] = lambda wave: None,
) -> tuple[str, float]:
    """What is said in an audio file of any length.

    Args:
        model: in evaluation mode.
        tokenizer: that of the model.
        path: any file that soundfile reads, or NIST SPHERE.
        mix: whether the channels of a recording with several are averaged.
        chunk_seconds: audio recognised at a time.
        search: decodes; None: greedily.
        opened: called with the recording before it is read.

    Returns:
        the text, and the length of the recording in seconds.

    Raises:
        UserError: the file cannot be used; the message begins with its name.
    """
    per_frame = model.network.subsampling * model.features.hop
    with open_wave(path, model.features.rate, mix) as wave, _Shown(path, wave) as shown:
        opened(wave)
        parts = shown.reading(wave.parts())
        text = transcribed(
            model, tokenizer, parts, chunk_seconds, search, lambda frames: shown.chunk(frames * per_frame)
        )
        return text, wave.samples / wave.rate


def transcribed(
    model: "Recognizer",
    tokenizer: LabelTokenizer,
    parts: Iterable[Tensor],
    chunk_seconds: float = 30.0,
    search: BeamSearch | None = None,
    done: Callable[[int], None] = lambda frames: None,
) -> str:
    """What is said in one recording that comes in parts (n,); ``done`` is told of the output frames of every chunk."""
    best, stream = [torch.zeros(0, dtype=torch.int)], None if search is None else BeamStream(search)
    for logits in logits_of(model, parts, chunk_seconds):
        if stream is None:
            best.append(logits.argmax(-1).int())
        else:
            stream.add(logits)
        done(len(logits))
    if stream is not None:
        return stream.finish().text
    path = torch.cat(best)
    return tokenizer.decode(best_path(path[None], torch.tensor([len(path)]))[0])


@torch.no_grad()
def logits_of(model: "Recognizer", parts: Iterable[Tensor], chunk_seconds: float = 30.0) -> Iterator[Tensor]:
    """The logits (T', V) of one recording, chunk by chunk, as if they had been computed at once, on the CPU.

    Args:
        model: in evaluation mode.
        parts: the samples (n,) at the model's rate, in order, cut anywhere.
        chunk_seconds: audio computed at a time; bounds the memory, unless the network sees a recording as a whole.
    """
    front, device = model.features, model.features.povey.device
    chunk = max(1, int(chunk_seconds * front.rate) // front.hop)  # in frames
    with _Features(front.output_size) as features:
        for piece in _pieces(parts, front.window, front.hop, chunk):
            piece = piece.to(device)
            features.append(front.log_mel(piece[None], torch.tensor([len(piece)], device=device))[0][0].cpu())
        if not len(features):
            return
        shift, scale = front.statistics(len(features), features.sums, features.squares)

        def network(first: int, end: int) -> Tensor:
            part = (features.read(first, end).to(device) - shift) * scale
            return model(part[None], torch.tensor([len(part)], device=device))[0][0]

        around = model.receptive_field()
        if around is None:  # a frame may depend on all others
            chunk, around = len(features), (0, 0)
        yield from logits_in_chunks(network, len(features), chunk, *around, model.network.subsampling)


def read_wave(path: str | Path, rate: int, mix: bool = False) -> tuple[Tensor, int]:
    """Samples (N,) of an audio file in [-1, 1] at the given rate, and the rate that it has itself.

    Args:
        path: any file that soundfile reads, or NIST SPHERE.
        rate: samples per second that are wanted.
        mix: whether the channels of a recording with several are averaged.

    Raises:
        UserError: the file cannot be used; the message begins with its name.
    """
    with open_wave(path, rate, mix) as wave:
        return torch.cat(list(wave.parts())), wave.own_rate


@torch.no_grad()
def recording_logits(model: "Recognizer", wave: Tensor, chunk_seconds: float = 30.0) -> Tensor:
    """Logits (T', V), on the CPU, of one recording of any length, as if it had been computed at once.

    Args:
        model: in evaluation mode.
        wave: samples (N,) at the model's rate.
        chunk_seconds: audio computed at a time; bounds the memory.
    """
    return torch.cat([torch.zeros(0, model.vocab_size), *logits_of(model, [wave], chunk_seconds)])


def transcribe(model: "Recognizer", tokenizer: LabelTokenizer, wave: Tensor, chunk_seconds: float = 30.0) -> str:
    """What is said in one recording, greedily decoded; the arguments are as in :func:`recording_logits`.

    :func:`recognise` reads a file that is too long for the memory.
    """
    return transcribed(model, tokenizer, [wave], chunk_seconds)


def _pieces(parts: Iterable[Tensor], window: int, hop: int, chunk: int) -> Iterator[Tensor]:
    """The samples of ``chunk`` frames at a time, in the end of fewer; frames that follow share some of them."""
    waiting, count, wanted = [], 0, (chunk - 1) * hop + window
    for part in parts:
        waiting.append(part)
        count += len(part)
        while count >= wanted:
            samples = torch.cat(waiting)
            yield samples[:wanted]
            waiting = [samples[chunk * hop :].clone()]
            count = len(waiting[0])
    if count >= window:
        samples = torch.cat(waiting)
        yield samples[: (count - window) // hop * hop + window]


class _Features:
    """Features (T, F) in a temporary file, with their sums and the sums of their squares."""

    def __init__(self, size: int) -> None:
        self._size, self._count = size, 0
        self.sums, self.squares = torch.zeros(2, size, dtype=torch.float64)

    def __enter__(self) -> "_Features":
        self._file = tempfile.TemporaryFile()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, features: Tensor) -> None:
        self._file.seek(0, os.SEEK_END)
        self._file.write(features.contiguous().numpy().tobytes())
        self._count += len(features)
        features = features.double()
        self.sums += features.sum(0)
        self.squares += features.square().sum(0)

    def read(self, first: int, end: int) -> Tensor:
        row = 4 * self._size
        self._file.seek(first * row)
        data = bytearray(self._file.read((min(end, self._count) - first) * row))
        return torch.frombuffer(data, dtype=torch.float32).view(-1, self._size)


class _Shown:
    """The progress of a long recording, on standard error: how much of it is read, then how much is recognised."""

    def __init__(self, path: str | Path, wave: Wave) -> None:
        self._path, self._wave, self._bar = path, wave, None
        self._recognised = 0

    def __enter__(self) -> "_Shown":
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def reading(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The parts of the recording."""
        from ..data.progress import ProgressBar

        rate, given = self._wave.rate, 0
        total = self._wave.seconds
        if total is None or total >= LONG:
            self._bar = ProgressBar(round(total or 0), unit=f"s of {self._path} read", err=True)
        for part in parts:
            yield part
            if self._bar is not None:
                self._bar.advance((given + len(part)) // rate - given // rate)
            given += len(part)
        self._close()
        if given >= LONG * rate:
            self._bar = ProgressBar(given // rate, unit=f"s of {self._path} recognised", err=True)

    def chunk(self, samples: int) -> None:
        """So many more samples are recognised."""
        rate, before = self._wave.rate, self._recognised
        self._recognised += samples
        if self._bar is not None:
            self._bar.advance(self._recognised // rate - before // rate)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None
