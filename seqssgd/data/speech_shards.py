"""Decodes utterances and writes them as Parquet files, in parallel; an interrupted call loses one shard per job."""

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from seqssgd.data.audio import AudioError, Recording, flac_of
from seqssgd.data.progress import Progress
from seqssgd.errors import UserError
from seqssgd.files import atomic_path

FORMAT = 1  # of the prepared folder; a later, incompatible one gets another number
SHARD = 1000  # utterances
ROW_GROUP = 100  # utterances held in memory at a time

_FEATURES = {name: {"dtype": kind, "_type": "Value"} for name, kind in
             {"id": "string", "text": "string", "speaker": "string", "duration": "float64"}.items()}  # fmt: skip
SCHEMA = pa.schema(
    {"id": pa.string(), "audio": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "text": pa.string(),
     "speaker": pa.string(), "duration": pa.float64()},
    # Hugging Face datasets takes the column for audio, and leaves the decoding to soundfile
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES | {
        "audio": {"decode": False, "_type": "Audio"}}}})},
)  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """One row to be: ``read`` gives the recording (or raises ``AudioError``) and goes to another process by pickle.

    ``path`` says where the audio is from, and with ``size`` (bytes) whether it is still the same one in a rerun.
    """

    id: str
    text: str
    speaker: str
    path: str
    size: int
    read: Callable[[], Recording] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Rejected:
    """Something that was left out: an utterance, or a file, and the reason."""

    set: str
    id: str
    path: str
    reason: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.set, self.id, f"({self.path})", self.reason)))


@dataclass(frozen=True)
class Shard:
    """Up to ``SHARD`` utterances of a set: one file, and one unit of what is resumed and done in parallel."""

    set: str
    number: int
    utterances: tuple[Utterance, ...]

    @property
    def file(self) -> str:
        return f"{self.set}/{self.number:05d}.parquet"

    @property
    def done(self) -> str:
        return f".done/{self.set}-{self.number:05d}.json"

    @property
    def fingerprint(self) -> str:
        rows = [[u.id, u.text, u.speaker, u.path, u.size] for u in self.utterances]
        return hashlib.sha256(json.dumps([FORMAT, self.file, rows]).encode()).hexdigest()


def cut(sets: Mapping[str, Sequence[Utterance]]) -> list[Shard]:
    """The shards of all sets, in order."""
    return [
        Shard(name, number, tuple(utterances[first : first + SHARD]))
        for name, utterances in sets.items()
        for number, first in enumerate(range(0, len(utterances), SHARD))
    ]


def write_shards(stage: Path, shards: Sequence[Shard], jobs: int) -> list[dict]:
    """The results of all shards, in their order; those that an earlier call finished are taken from it."""
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: there must be at least 1")
    results = {i: result for i, shard in enumerate(shards) if (result := _finished(stage, shard))}
    todo = {i: shard for i, shard in enumerate(shards) if i not in results}
    total = sum(len(shard.utterances) for shard in shards)
    with Progress(total, sum(len(shards[i].utterances) for i in results)) as progress:
        if jobs == 1 or len(todo) < 2:
            for i, shard in todo.items():
                results[i] = _write_shard(stage, shard, progress.advance)
        else:
            # spawned, because forking a process that has threads (pyarrow's) can hang
            context = multiprocessing.get_context("spawn")
            workers = min(jobs, len(todo))
            with ProcessPoolExecutor(workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
                futures = {pool.submit(_write_shard, stage, shard): i for i, shard in todo.items()}
                try:
                    for future in as_completed(futures):
                        results[futures[future]] = future.result()
                        progress.advance(len(shards[futures[future]].utterances))
                except BrokenProcessPool:
                    raise UserError("a process was killed, perhaps for want of memory; run the same command again with "
                                    "fewer --jobs: what is finished is kept") from None  # fmt: skip
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
    return [results[i] for i in range(len(shards))]


def _finished(stage: Path, shard: Shard) -> dict | None:
    """The result of a shard that is there and whole; one with rejected utterances is tried again."""
    try:
        result = json.loads((stage / shard.done).read_bytes())
        whole = (stage / shard.file).stat().st_size == result["bytes"]
        if whole and result["fingerprint"] == shard.fingerprint and not result["rejected"]:
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _write_shard(stage: Path, shard: Shard, advance: Callable[[int], None] = lambda count: None) -> dict:
    """Writes one Parquet file and, after it, the result that says it is finished."""
    result: dict = {"set": shard.set, "file": shard.file, "fingerprint": shard.fingerprint, "rejected": [],
                    "utterances": 0, "words": 0, "seconds": 0.0, "speakers": [], "rates": {}}  # fmt: skip
    speakers: set[str] = set()
    with atomic_path(stage / shard.file) as path:
        with pq.ParquetWriter(path, SCHEMA, compression="none") as writer:  # FLAC does not get smaller
            for first in range(0, len(shard.utterances), ROW_GROUP):
                rows: list[dict] = []
                for utterance in shard.utterances[first : first + ROW_GROUP]:
                    try:
                        row, rate = _row(utterance)
                    except AudioError as error:
                        result["rejected"].append(asdict(Rejected(shard.set, utterance.id, utterance.path, str(error))))
                    else:
                        rows.append(row)
                        speakers.add(utterance.speaker)
                        result["utterances"] += 1
                        result["words"] += len(row["text"].split())
                        result["seconds"] += row["duration"]
                        result["rates"].setdefault(str(rate), utterance.id)
                    advance(1)
                writer.write_table(pa.Table.from_pylist(rows, SCHEMA))
    result |= {"bytes": (stage / shard.file).stat().st_size, "speakers": sorted(speakers)}
    with atomic_path(stage / shard.done) as path:
        path.write_text(json.dumps(result))
    return result


def _row(utterance: Utterance) -> tuple[dict, int]:
    """The row of an utterance and its sample rate, or an ``AudioError`` with the reason to leave it out."""
    text = " ".join(utterance.text.split())
    if not text:
        raise AudioError("has an empty transcript")
    wrong = sorted({character for character in text if not character.isprintable() or character == "\ufffd"})
    if wrong:
        raise AudioError(f"has characters in its transcript that are no text: {', '.join(map(ascii, wrong))}")
    recording = utterance.read()
    flac, duration = flac_of(recording)
    row = {"id": utterance.id, "audio": {"bytes": flac, "path": utterance.path}, "text": text,
           "speaker": utterance.speaker, "duration": duration}  # fmt: skip
    return row, recording.rate
