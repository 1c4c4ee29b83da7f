"""Writes prepared folders: whole, of what fits into memory, or of Parquet files, the same way for all larger data.

A folder of sets holds, for each, ``SET.parquet`` or a folder ``SET/`` of shards; ``rejected.jsonl``, one line for
everything that was left out and why; and ``dataset.json`` with the counts. It appears complete or not at all: shards
are collected in ``.NAME.partial`` beside it, where a later call finds those that an interrupted one finished, but for
those that are older than their source.
"""

import argparse
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from time import time as clock
from typing import Any

from seqssgd.data.contents import as_text, checksum, seal
from seqssgd.data.prepared import FORMAT, is_same, read_sets, with_checksum
from seqssgd.data.shards import Form, Item, Rejected, Rejection, Shard, cut, merge, write_shards
from seqssgd.documents import parse_json
from seqssgd.errors import UserError
from seqssgd.files import atomic_path, naming
from seqssgd.kinds import misfit
from seqssgd.locks import alone
from seqssgd.notes import note, warn

SHOWN = 5  # items, or reasons, that a summary names


def add_arguments(parser: argparse.ArgumentParser, most_rejected: float = 0.01) -> None:
    """The options that every program has that prepares such a folder."""
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/mine")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that decode (default: 1)")
    parser.add_argument("--most-rejected", type=float, default=most_rejected, metavar="SHARE",
                        help=f"share of a set that may be left out (default: {most_rejected:g})")  # fmt: skip


def allowed_share(args: argparse.Namespace) -> float:
    """What ``--most-rejected`` says.

    Raises:
        UserError: it is no share.
    """
    if not 0 <= args.most_rejected <= 1:
        raise UserError(f"--most-rejected {args.most_rejected}: a share is a number from 0 to 1")
    return args.most_rejected


def source_paths(args: argparse.Namespace) -> list[Path]:
    """What ``args.source`` or ``args.hub`` names, as absolute paths; of a name on the hub there is nothing there."""
    given = getattr(args, "source", None) or getattr(args, "hub", None) or []
    return [Path(path).resolve() for path in (given if isinstance(given, list) else [given])]


def note_newer(out: str | Path, args: argparse.Namespace) -> None:
    """Says if a file of the source was written after ``out`` was prepared: names, texts and sizes are what tells
    whether a preparation is to be repeated, and another recording may have the same."""
    prepared = (Path(out) / "dataset.json").stat().st_mtime
    if (path := _written_after(prepared, source_paths(args), Path(out).resolve())) is not None:
        note(f"{path} was written after {out} was prepared, and has the size that it had; if it is another "
             f"file, remove {out} and prepare it again")  # fmt: skip


def _forget_older(out: Path, sources: Sequence[Path]) -> None:
    """Forgets what an interrupted call has made for ``out`` before a file of the source was written, and says so: it
    may be of another file of that name and size. The caller has the lock of the stage."""
    done = {path: path.stat().st_mtime for path in (_stage(out) / ".done").glob("*.json")}
    if not done or (written := _written_after(min(done.values()), sources, out)) is None:
        return
    old = [path for path, time in done.items() if time < _time(written)]
    warn(
        f"{written} was written after an interrupted call had begun {out}: {len(old):,} of the {len(done):,} files "
        "that it had finished are made again"
    )
    for path in old:
        path.unlink()


def _written_after(time: float, sources: Sequence[Path], out: Path) -> Path | None:
    """The last written file of the sources, within which ``out`` may lie, if that was after ``time``."""
    own = {out, _stage(out)}
    files = itertools.chain.from_iterable([source] if source.is_file() else source.rglob("*") for source in sources)
    last = max(((_time(path), path) for path in files if path.is_file() and own.isdisjoint(path.parents)),
               default=(0, None))  # fmt: skip
    return last[1] if last[0] > time else None


def _time(path: Path) -> float:
    """When a file was written, or put in the place of another. The time of its modification is what some program says,
    even one that is still to come; that of its last change is the system's own, but of its creation on Windows."""
    status = path.stat()
    if os.name != "nt":
        return status.st_ctime
    return max(status.st_ctime, status.st_mtime if status.st_mtime <= clock() else 0)


def _stage(out: Path) -> Path:
    return out.parent / f".{out.name}.partial"


def write_sets(
    out: str | Path,
    sets: Mapping[str, Sequence[Item]],
    form: Form,
    name: str,
    rejected: Sequence[Rejected] = (),
    expected: Mapping[str, int] | None = None,
    jobs: int = 1,
    info: Mapping[str, object] | None = None,
    most_rejected: float = 1.0,
    sources: Sequence[Path] = (),
) -> bool:
    """Makes, checks and writes the rows of every set.

    Args:
        out: the folder to write.
        sets: the rows to be by the name of their set, in their order.
        form: what they are.
        name: what messages call the data.
        rejected: what the program that made the lists has left out already.
        expected: numbers of rows; a set that ends with another number is refused.
        jobs: processes that make rows and write; the files do not depend on it.
        info: more entries of ``dataset.json``, and a part of what tells one preparation from another.
        most_rejected: the largest share of a set that may be left out.
        sources: absolute paths of files and folders that the rows are made of; what an interrupted call has made before
            one of them was written is made again.

    Returns:
        Whether anything was written; ``False`` if ``out`` already is this data.

    Raises:
        UserError: ``out`` is something else; a set has no usable row, or another number than expected, or too many
            that are left out (the message says where the reasons are).
    """
    out = Path(out).resolve()
    info = {"format": FORMAT, "name": name, **(info or {})}
    bad = [name for name in sets if not name or name.startswith(".") or set(name) & set("/\\\0")]
    if bad:
        raise UserError(f"{bad[0]!r} cannot be the name of a set, which becomes the name of a file")
    sets, repeated = _without_repeated_ids(sets, form)
    rejected = [*rejected, *repeated]
    shards = cut(sets, form)
    plan = [info, [asdict(item) for item in rejected], [shard.fingerprint for shard in shards]]
    fingerprint = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    if is_same(out, read_sets(out, form.kind), fingerprint, form.kind):
        return False
    stage = _stage(out)
    try:
        for folder in (stage / ".done", *(stage / name for name in sets)):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None
    busy = f"another process is writing {stage}; wait for it, or choose another folder"
    with alone(stage / ".lock", busy), naming(out):
        _forget_older(out, sources)
        results = write_shards(stage, shards, jobs)
        rejected += [Rejected(**item) for result in results for item in result["rejected"]]
        _write_report(stage, rejected)
        counts = {name: _count(name, form, results, rejected) for name in sets}
        _check_counts(counts, form, expected or {}, most_rejected, name, rejected, stage / "rejected.jsonl")
        _finish(stage, shards, info | {"sets": counts, **_contents(sets, results), "fingerprint": fingerprint})
        os.replace(stage, out)  # replaces an empty folder, never a full one
    return True


def write_folder(out: Path, info: Mapping[str, Any], fill: Callable[[Path], None]) -> None:
    """Makes the prepared folder ``out``, which is absent or empty; it is built beside ``out`` and renamed.

    Args:
        out: an absolute path.
        info: entries of ``dataset.json``, ``fingerprint`` among them; the checksums are added.
        fill: writes the files into the folder it is given.

    Raises:
        UserError: it cannot be written, or another process has written it meanwhile.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another folder") from None
    try:
        with naming(out):
            fill(temporary)
        checksums = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
        text = json.dumps(with_checksum({"format": FORMAT, **info, "sha256": checksums}), indent=2)
        (temporary / "dataset.json").write_text(text + "\n", encoding="utf-8")
        for path in temporary.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o777 & ~mask)  # mkdtemp makes folders private; data are ordinary files
        try:
            os.replace(temporary, out)  # replaces an empty folder, never a full one
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise UserError(f"{out}: another process has written it meanwhile; run the same command again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def rejections(folder: str | Path) -> str:
    """How much was left out of a prepared folder and why, as lines of a summary: all of it, or how much for each reason
    where it is more than a few lines; the whole list is in the file that is named.
    """
    report = Path(folder) / "rejected.jsonl"
    try:
        lines = report.read_bytes().split(b"\n")
        rejected = [_rejection(line, number) for number, line in enumerate(lines, 1) if line]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{report} is damaged ({reason}); remove {folder} and prepare it again") from None
    rows = [f"  {len(rejected):,} rejected" + (f", listed in {report}:" if rejected else "")]
    if len(rejected) <= SHOWN:
        return "\n".join([*rows, *(f"    {item}" for item in rejected)])
    groups = by_reason(rejected)
    rows += [f"    {count:,} × {reason}; the first: {first.name}" for reason, count, first in groups[:SHOWN]]
    if len(groups) > SHOWN:
        rows.append(f"    … and {len(groups) - SHOWN:,} other reasons")
    return "\n".join(rows)


def _rejection(line: bytes, number: int) -> Rejected:
    """What a line of rejected.jsonl says; a ``ValueError`` names the line if that is nothing of use."""
    try:
        row = parse_json(line)
        wrong = misfit(Rejection, row)
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise ValueError(f"line {number:,}: {wrong}")
    return Rejected(row["set"], row["id"], row["path"], row["reason"])


def by_reason(rejected: Iterable[Rejected]) -> list[tuple[str, int, Rejected]]:
    """The reasons, those that differ in a number or a name alone taken together; how often each was given, the most
    frequent first; and the first item of each."""
    groups: dict[str, list[Rejected]] = {}
    for item in rejected:
        groups.setdefault(re.sub(r"\d[\d,.]*|'[^']*'|\(.*\)|, \S*[/\\]\S*", "…", item.reason), []).append(item)
    found = [(items[0].reason, len(items), items[0]) for items in groups.values()]
    return sorted(found, key=lambda group: -group[1])


def why(rejected: Sequence[Rejected], report: Path | None = None) -> str:
    """How much was rejected, the first reason, and how much for each reason if that is much, for a message."""
    if not rejected:
        return "nothing was rejected"
    text = f"{len(rejected):,} rejected{f', listed in {report}' if report else ''}, the first: {rejected[0]}"
    if len(rejected) > SHOWN:
        text += "; by reason: " + ", ".join(f"{count:,} × {reason}" for reason, count, _ in by_reason(rejected)[:3])
    return text


def _without_repeated_ids(
    sets: Mapping[str, Sequence[Item]], form: Form
) -> tuple[dict[str, list[Item]], list[Rejected]]:
    """The rows whose id is new in their set, and the others."""
    kept, rejected = {}, []
    for name, items in sets.items():
        first: dict[str, Item] = {}
        for item in items:
            if item.id in first:
                reason = f"has the id of an earlier {form.unit}, {first[item.id].path}"
                rejected.append(Rejected(name, item.id, item.path, reason))
            else:
                first[item.id] = item
        kept[name] = list(first.values())
    return kept, rejected


def _count(name: str, form: Form, results: list[dict], rejected: list[Rejected]) -> dict:
    mine = [result for result in results if result["set"] == name]
    counts: dict = {}
    for result in mine:
        merge(counts, result["counts"])
    return {
        f"{form.unit}s": sum(result["rows"] for result in mine),
        "rejected": sum(item.set == name for item in rejected),
        **form.total(name, counts),
        "files": {file: result["bytes"] for file, result in _files(name, mine).items()},
    }


def _files(name: str, results: list[dict]) -> dict[str, dict]:
    """The results of a set's shards by the names that their files are going to have."""
    return {result["file"] if len(results) > 1 else f"{name}.parquet": result for result in results}


def _contents(sets: Iterable[str], results: list[dict]) -> dict[str, dict]:
    """The checksums of all files, and the fingerprints of the items of all sets."""
    of = {name: [result for result in results if result["set"] == name] for name in sets}
    sums = {name: sum(result["counts"].get("content", 0) for result in mine) for name, mine in of.items()}
    files = {file: result["sha256"] for name, mine in of.items() for file, result in _files(name, mine).items()}
    return {"content": {name: as_text(total) for name, total in sums.items()}, "sha256": files}


def _write_report(stage: Path, rejected: list[Rejected]) -> None:
    with atomic_path(stage / "rejected.jsonl") as path:
        lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in rejected)
        path.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")  # names that are not UTF-8


def _check_counts(
    counts: dict[str, dict],
    form: Form,
    expected: Mapping[str, int],
    most_rejected: float,
    name: str,
    rejected: Sequence[Rejected],
    report: Path,
) -> None:
    rows = {set_name: count[f"{form.unit}s"] for set_name, count in counts.items()}
    wrong = [f"{set_name} has {rows[set_name]:,} {form.unit}s, expected {number:,}"
             for set_name, number in expected.items() if rows[set_name] != number]  # fmt: skip
    empty = [f"{set_name} has no usable {form.unit}" for set_name, number in rows.items() if not number]
    if empty or wrong:
        mend = "" if empty else "; --partial prepares what there is"
        raise UserError(f"{name}: {'; '.join(empty or wrong)}; {why(rejected, report)}{mend}")
    for set_name, count in counts.items():
        share = count["rejected"] / (count["rejected"] + rows[set_name])
        if share > most_rejected:
            raise UserError(
                f"{name}: {100 * share:.3g} % of {set_name} cannot be used, where {100 * most_rejected:g} % may be "
                f"left out; {why(rejected, report)}; mend them, or allow a larger share (most_rejected)"
            )


def _finish(stage: Path, shards: list[Shard], info: dict) -> None:
    """Leaves in ``stage`` what belongs to the prepared folder, under its final name, ``dataset.json`` last."""
    wanted = {"rejected.jsonl", *(file for count in info["sets"].values() for file in count["files"])}
    for shard in shards:
        if shard.file not in wanted:
            os.replace(stage / shard.file, stage / f"{shard.set}.parquet")
    shutil.rmtree(stage / ".done")
    for path in sorted(stage.rglob("*"), reverse=True):  # files of earlier calls with other sets, and empty folders
        if path.is_dir():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.relative_to(stage).as_posix() not in wanted:
            path.unlink()
    with atomic_path(stage / "dataset.json") as path:
        text = json.dumps(with_checksum(info), indent=2, ensure_ascii=False) + "\n"
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    seal(stage, [file for count in info["sets"].values() for file in count["files"]])
