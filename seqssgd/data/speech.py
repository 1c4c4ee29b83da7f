"""Prepared speech, read: one set of a corpus, opened, checked as a whole, and decoded an utterance at a time.

A set is ``SET.parquet`` or a folder ``SET/`` of such files, with the columns ``id``, ``audio`` (its ``bytes`` are the
file of one recording) and ``text``, as the programs in ``data_prep/`` write it. What these have written is known to be
whole; Parquet files from elsewhere are decoded once, from the first to the last recording, before they are used.
The package datasets keeps a copy of every set, which it can map into memory, in its cache (see its HF_HOME).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seqssgd.data.contents import as_text, check_set, of_samples
from seqssgd.errors import UserError, require

if TYPE_CHECKING:  # the packages of the extra are imported where they are needed, by _packages()
    import datasets
    import numpy as np

    from seqssgd.data.recording import Recording

PREPARE = "write it with: python data_prep/an4.py --source AN4 --out {0}, or another program in data_prep/"


class SpeechSet:
    """The utterances of a set; made by :func:`load_speech`.

    Attributes:
        name: of the set, with its folder.
        rate: samples per second of the waveforms.
        source_rates: the rates that the recordings have themselves.
        ids: one per utterance, none twice.
        texts: the transcripts.
        speakers: of the utterances; None where the set does not name them all.
        samples: how long every waveform is.
        caches: whether decoded recordings are kept in memory.
        content: differs between sets whose recordings differ; None where an earlier version prepared them.
    """

    def __init__(
        self,
        name: str,
        table: "datasets.Dataset",
        rate: int,
        rates: Sequence[int],
        counts: Sequence[int],
        cache_gigabytes: float,
        content: str | None = None,
    ) -> None:
        self.content = content
        self.name, self.rate, self.source_rates, self._rates = name, rate, sorted(set(rates)), rates
        self.ids, self.texts = list(table["id"]), list(table["text"])
        speakers = list(table["speaker"]) if "speaker" in table.column_names else [None]
        nobody = any(speaker is None or speaker != speaker or not str(speaker).strip() for speaker in speakers)
        self.speakers: list[str] | None = None if nobody else [str(speaker) for speaker in speakers]
        self.samples = [-(-count * rate // own) for count, own in zip(counts, rates, strict=True)]
        self.caches = 2 * sum(self.samples) <= cache_gigabytes * 1e9
        self._audio = table.select_columns("audio")
        self._cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def hours(self) -> float:
        """Of all waveforms together."""
        return sum(self.samples) / self.rate / 3600

    @cached_property
    def fingerprint(self) -> str:
        """Differs between sets whose ids, transcripts, durations or order differ."""
        return hashlib.sha256(json.dumps([self.rate, self.ids, self.texts, self.samples]).encode()).hexdigest()

    def description(self) -> dict[str, Any]:
        """What a run's configuration says of a set that it was trained on."""
        known = {"fingerprint": self.fingerprint, "rates": self.source_rates}
        return known if self.content is None else {**known, "content": self.content}

    def is_that_of(self, description: Mapping[str, Any]) -> bool:
        """Whether a set that was described so is this one, as far as both are known."""
        then, now = description.get("content"), self.content
        return description.get("fingerprint") == self.fingerprint and (then is None or now is None or then == now)

    def __str__(self) -> str:
        others = [f"{rate:,}" for rate in self.source_rates if rate != self.rate]
        resampled = f", resampled from {' and '.join(others)} Hz" if others else ""
        return f"{self.name}: {len(self):,} utterances, {self.hours:.2f} hours at {self.rate:,} Hz{resampled}"

    def waveform(self, index: int) -> Tensor:
        """Samples (N,) in [-1, 1] of utterance ``index``, float32.

        Raises:
            UserError: the recording cannot be decoded, or has changed since the set was opened.
        """
        samples = self._cache.get(index)
        if samples is None:
            from seqssgd.data.items import reason_of

            _, audio = _packages()
            try:
                recording = audio.resample(_decode(self._audio[index]["audio"]), self.rate)
                samples = self._fitted(recording.samples[:, 0], index)
            except Exception as error:
                reason = reason_of(error, self.ids[index], audio.AudioError)
                raise UserError(f"{self.name}: {self.ids[index]} {reason}; prepare the corpus again") from None
            if self.caches:
                self._cache[index] = samples
        return scaled(samples)

    def _fitted(self, samples: "np.ndarray", index: int) -> "np.ndarray":
        """As many samples as there should be; a few more or less at the end are a resampler's."""
        import numpy as np

        missing = self.samples[index] - len(samples)
        if abs(missing) > (32 if self._rates[index] != self.rate else 0):
            _, audio = _packages()
            raise audio.AudioError(f"holds {len(samples):,} samples where {self.samples[index]:,} were prepared")
        return np.pad(samples, (0, missing)) if missing > 0 else np.ascontiguousarray(samples[: self.samples[index]])


def load_speech(folder: str | Path, name: str, rate: int = 16_000, cache_gigabytes: float = 1.0) -> SpeechSet:
    """Opens a set of prepared speech.

    Args:
        folder: the prepared corpus.
        name: of the set.
        rate: samples per second that the waveforms are to have; recordings with another rate are resampled.
        cache_gigabytes: a set that takes no more than this, decoded, stays in memory once it has been read.

    Raises:
        UserError: there is no such set; it is damaged or no speech; some of its utterances cannot be used (one message
            with their number, the first of them, and why); or the package datasets is missing.
    """
    folder = Path(folder)
    info, files = _find(folder, name)
    title = str(folder / name)
    content = None if info is None else check_set(folder, name, info)
    table = _open(title, files)
    ids, texts = list(table["id"]), list(table["text"])
    problems = []
    seen = set()
    for number, (key, text) in enumerate(zip(ids, texts, strict=True), 1):
        if not isinstance(key, str) or not key:
            problems.append(f"row {number} has no id")
        elif key in seen:
            problems.append(f"{key} is the id of two utterances")
        elif not isinstance(text, str) or not text.strip():
            problems.append(f"{key} has an empty transcript")
        seen.add(key)
    if info is not None and "duration" in table.column_names:
        own = info["sets"][name]["sample_rate"]
        if own < 1:
            raise UserError(f"{folder / 'dataset.json'}: sample_rate: {own} is no rate; prepare the corpus again")
        rates = [own] * len(table)
        counts = [round(duration * own) for duration, own in zip(table["duration"], rates, strict=True)]
    else:
        rates, counts, wrong, found = _decode_all(title, table, ids)
        problems += wrong
        content = found if content is None else content
    if problems:
        more = f"; and {len(problems) - 5:,} more" if len(problems) > 5 else ""
        raise UserError(
            f"{title}: {len(problems):,} of {len(table):,} utterances cannot be used: {'; '.join(problems[:5])}{more}"
        )
    return SpeechSet(title, table, rate, rates, counts, cache_gigabytes, content)


def scaled(samples: "np.ndarray") -> Tensor:
    """Whole-numbered samples as float32 in [-1, 1]."""
    return torch.from_numpy(samples).float().mul_(2.0 ** (1 - 8 * samples.itemsize))


def set_names(folder: str | Path) -> list[str]:
    """The sets in a folder of prepared speech."""
    folder = Path(folder)
    files = {path.stem for path in folder.glob("*.parquet")}
    return sorted(files | {path.parent.name for path in folder.glob("*/*.parquet") if path.parent.name[0] != "."})


def _find(folder: Path, name: str) -> tuple[dict | None, list[Path]]:
    """``dataset.json``, if the set is vouched for by one, and the files of the set."""
    _packages()
    from seqssgd.data.speech_writer import read_info

    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {PREPARE.format(folder)}")
    info = read_info(folder)
    if info is not None and name in info["sets"]:
        return info, [folder / file for file in sorted(info["sets"][name]["files"])]
    single = folder / f"{name}.parquet"
    files = [single] if single.is_file() else sorted((folder / name).glob("*.parquet")) if name else []
    if not files:
        names = set_names(folder)
        if not names:
            raise UserError(f"{folder} is not prepared speech (it has no Parquet files); {PREPARE.format(folder)}")
        raise UserError(f"{folder} has no set {name!r}; it has {', '.join(names)}")
    return None, files


def _open(title: str, files: Sequence[Path]) -> "datasets.Dataset":
    """The files as one memory-mapped ``datasets.Dataset`` whose audio is left as it is."""
    datasets, _ = _packages()
    from seqssgd.data.hub import open_parquet

    table = open_parquet(title, files, "utterances")
    absent = [column for column in ("id", "audio", "text") if column not in table.column_names]
    if absent:
        has = ", ".join(table.column_names)
        raise UserError(
            f"{title} has no column {' and no column '.join(absent)} (it has {has}), so it is no prepared speech; "
            "data_prep/hub_asr.py makes that of any data set with audio and transcripts"
        )
    try:
        return table.cast_column("audio", datasets.Audio(decode=False))
    except (TypeError, ValueError, KeyError, NotImplementedError):  # pyarrow's errors are ValueErrors
        kind = table.features["audio"]
        raise UserError(f"{title}: the column audio holds no recordings, but {kind}; prepare it again") from None


def _decode_all(title: str, table: "datasets.Dataset", ids: Sequence) -> tuple[list[int], list[int], list[str], str]:
    """The sample rates and lengths of all recordings, what is wrong with them, and a fingerprint of their content."""
    from seqssgd.data.items import reason_of
    from seqssgd.data.progress import ProgressBar

    _, audio = _packages()
    rates, counts, problems, content = [], [], [], 0
    with ProgressBar(len(table), unit=f"recordings of {title} checked") as progress:
        rows: Any = table.select_columns("audio")
        for row in rows:
            try:
                recording = _decode(row["audio"])
                rates.append(recording.rate)
                counts.append(len(recording.samples))
                content += of_samples(str(ids[progress.done]), recording.samples)
            except Exception as error:
                key = str(ids[progress.done])
                problems.append(f"{key} {reason_of(error, key, audio.AudioError)}")
            progress.advance()
    return rates, counts, problems, as_text(content)


def _decode(cell: dict | None) -> "Recording":
    """The recording in a cell of the column ``audio``: one channel, not empty."""
    _, audio = _packages()
    data = (cell or {}).get("bytes")
    if data is None:
        raise audio.AudioError("has no audio")
    recording = audio.decode(data)
    if recording.samples.shape[1] != 1:
        raise audio.AudioError(f"has {recording.samples.shape[1]} channels where one is meant")
    if not len(recording.samples):
        raise audio.AudioError("holds no samples")
    return recording


def _packages() -> tuple[ModuleType, ModuleType]:
    """The package datasets and the module that decodes, or one error that says what to install."""
    require("seqssgd.data.speech_writer")  # imports what else the extra brings
    return require("datasets"), require("seqssgd.data.audio")
