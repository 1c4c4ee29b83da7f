"""Makes rows of recordings or images and writes them as Parquet files, in parallel; an interrupted call loses one file
per job."""

import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from seqssgd.data.contents import checksum
from seqssgd.data.items import printable, reason_of
from seqssgd.data.prepared import FORMAT
from seqssgd.data.progress import ProgressBar
from seqssgd.documents import parse_json
from seqssgd.errors import UserError, ignore_warnings
from seqssgd.files import atomic_path
from seqssgd.kinds import misfit
from seqssgd.notes import note

SHARD = 1000  # rows
ROW_GROUP = 100  # rows held in memory at a time


class Item(Protocol):
    """One row to be, which goes to another process by pickle. ``id`` and ``path`` name it in reports."""

    @property
    def id(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def identity(self) -> list:
        """Plain values that tell in a rerun whether it is still the same."""
        ...

    def row(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The row, and what is counted of it (see :func:`merge`); whatever it raises is the reason to leave it out."""
        ...


@dataclass(frozen=True)
class Form:
    """What the rows of one kind of data are.

    Attributes:
        kind: what messages call a prepared folder of them.
        unit: what they call a row.
        schema: of the files.
        error: what :meth:`Item.row` raises whose message alone is the reason to leave a row out; of others the class is
            named, too.
        total: (name of a set, its counts) -> its entries of ``dataset.json``; a ``UserError`` if it cannot be used.
    """

    kind: str
    unit: str
    schema: pa.Schema
    error: type[Exception]
    total: Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Rejected:
    """Something that was left out: a row, or a file, and the reason."""

    set: str
    id: str
    path: str
    reason: str

    @property
    def name(self) -> str:
        """What it is, without the reason."""
        return printable(" ".join(filter(None, (self.set, self.id, f"({self.path})"))))

    def __str__(self) -> str:
        return f"{self.name} {printable(self.reason)}"


class Rejection(TypedDict):
    """The same as a line of rejected.jsonl."""

    set: str
    id: str
    path: str
    reason: str


@dataclass(frozen=True)
class Shard:
    """Up to ``SHARD`` rows of a set: one file, and one unit of what is resumed and done in parallel."""

    set: str
    number: int
    items: tuple[Item, ...]
    form: Form

    @property
    def file(self) -> str:
        return f"{self.set}/{self.number:05d}.parquet"

    @property
    def done(self) -> str:
        return f".done/{self.set}-{self.number:05d}.json"

    @property
    def fingerprint(self) -> str:
        rows = [item.identity for item in self.items]
        return hashlib.sha256(json.dumps([FORMAT, self.file, rows]).encode()).hexdigest()


class Done(TypedDict):
    """What is written of a shard that is finished."""

    set: str
    file: str
    fingerprint: str
    rejected: list
    rows: int
    counts: dict
    bytes: int
    sha256: str


def cut(sets: Mapping[str, Sequence[Item]], form: Form) -> list[Shard]:
    """The shards of all sets, in order."""
    return [
        Shard(name, number, tuple(items[first : first + SHARD]), form)
        for name, items in sets.items()
        for number, first in enumerate(range(0, len(items), SHARD))
    ]


def merge(counts: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``counts`` with ``more`` added: numbers are summed, dictionaries merged likewise, of texts the first is kept."""
    for key, value in more.items():
        if isinstance(value, Mapping):
            merge(counts.setdefault(key, {}), value)
        elif isinstance(value, str):
            counts.setdefault(key, value)
        else:
            counts[key] = counts.get(key, 0) + value
    return counts


def write_shards(stage: Path, shards: Sequence[Shard], jobs: int) -> list[dict]:
    """The results of all shards, in their order; those that an earlier call finished are taken from it."""
    if jobs < 1:
        raise UserError(f"jobs={jobs}: there must be at least 1")
    if jobs > (cores := os.cpu_count() or 1):
        note(f"{jobs:,} jobs are more than the {cores} cores of this machine; {cores} are taken")
        jobs = cores
    results = {i: result for i, shard in enumerate(shards) if (result := _finished(stage, shard))}
    todo = {i: shard for i, shard in enumerate(shards) if i not in results}
    total, unit = sum(len(shard.items) for shard in shards), f"{shards[0].form.unit}s" if shards else ""
    with ProgressBar(total, sum(len(shards[i].items) for i in results), unit) as progress:
        if jobs == 1 or len(todo) < 2:
            for i, shard in todo.items():
                results[i] = _write_shard(stage, shard, progress.advance)
        else:
            # spawned, because forking a process that has threads (pyarrow's) can hang
            context = multiprocessing.get_context("spawn")
            workers = min(jobs, len(todo))
            with ProcessPoolExecutor(workers, context, _begin) as pool:
                futures = {pool.submit(_write_shard, stage, shard): i for i, shard in todo.items()}
                try:
                    for future in as_completed(futures):
                        results[futures[future]] = future.result()
                        progress.advance(len(shards[futures[future]].items))
                except BrokenProcessPool:
                    raise UserError("a process was killed, perhaps for want of memory; run the same command again with "
                                    "fewer --jobs: what is finished is kept") from None  # fmt: skip
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
    return [results[i] for i in range(len(shards))]


def _begin() -> None:
    """What a worker does first: Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_warnings()


def _finished(stage: Path, shard: Shard) -> dict | None:
    """The result of a shard that is there and whole; one with rejected rows is tried again."""
    try:
        result = parse_json((stage / shard.done).read_bytes())
        size = (stage / shard.file).stat().st_size
    except (OSError, ValueError):
        return None
    whole = misfit(Done, result) is None and size == result["bytes"]
    return result if whole and result["fingerprint"] == shard.fingerprint and not result["rejected"] else None


def _write_shard(stage: Path, shard: Shard, advance: Callable[[int], None] = lambda count: None) -> dict:
    """Writes one Parquet file and, after it, the result that says it is finished."""
    result: dict = {"set": shard.set, "file": shard.file, "fingerprint": shard.fingerprint, "rejected": [], "rows": 0,
                    "counts": {}}  # fmt: skip
    schema = shard.form.schema
    with atomic_path(stage / shard.file) as path:
        with pq.ParquetWriter(path, schema, compression="none") as writer:  # FLAC and JPEG do not get smaller
            for first in range(0, len(shard.items), ROW_GROUP):
                rows: list[dict] = []
                for item in shard.items[first : first + ROW_GROUP]:
                    try:
                        row, counts = item.row()
                        pa.Table.from_pylist([row], schema)  # what cannot be written is found here, row by row
                    except Exception as error:
                        reason = reason_of(error, f"{item.id} ({item.path})", shard.form.error)
                        result["rejected"].append(asdict(Rejected(shard.set, item.id, item.path, reason)))
                    else:
                        rows.append(row)
                        result["rows"] += 1
                        merge(result["counts"], counts)
                    advance(1)
                writer.write_table(pa.Table.from_pylist(rows, schema))
    result["bytes"] = (stage / shard.file).stat().st_size
    result["sha256"] = checksum(stage / shard.file)
    with atomic_path(stage / shard.done) as path:
        path.write_text(json.dumps(result), encoding="utf-8")
    return result
