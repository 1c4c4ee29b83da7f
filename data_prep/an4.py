"""Prepares CMU's Census database AN4 (1991): 948 training and 130 test utterances of spelt and spoken words.

    python data_prep/an4.py --source an4_raw.bigendian.tar.gz --out data/an4

The source is an4_raw.bigendian.tar.gz, an4_sphere.tar.gz, or a folder where either was unpacked. The byte order of
raw audio is found in the audio itself, because the README of the big-endian archive says little endian. The validation
set is all utterances of some of the training speakers, so no voice is in two sets.
"""

import argparse
import codecs
import hashlib
import lzma
import re
import sys
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from seqssgd.data.archives import unpacked
from seqssgd.data.audio import decode, read_pcm
from seqssgd.data.items import NOWHERE
from seqssgd.data.lines import split_lines
from seqssgd.data.preparing import add_arguments, why
from seqssgd.data.shards import Rejected
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import prepare
from seqssgd.errors import UserError, run_cli

UTTERANCES = {"train": 948, "test": 130}
TEST_WORDS = 773
RATE = 16_000
LISTS = {"train": "an4_train.transcription", "test": "an4_test.transcription"}
FOLDERS = {"train": "an4_clstk", "test": "an4test_clstk"}
LARGEST, ALL = 10_000_000, 1_000_000_000  # bytes of one file and of all; ten times what the corpus has
Files = dict[PurePosixPath, bytes]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare the speech corpus AN4.")
    parser.add_argument("--source", type=Path, required=True, help="an4_*.tar.gz, or a folder with etc/ and wav/")
    add_arguments(parser)
    parser.add_argument(
        "--valid-speakers", type=int, default=8, metavar="N", help="training speakers to validate on (default: 8 of 74)"
    )
    parser.add_argument("--partial", action="store_true", help="accept other numbers of utterances and words")
    args = parser.parse_args(argv)
    files, rejected = read_folder(args.source) if args.source.is_dir() else read_archive(args.source)
    order = byte_order([data for path, data in files.items() if path.suffix == ".raw"])
    sets = {}
    for name in LISTS:
        sets[name], left_out = utterances(name, files, order, args.source)
        rejected += left_out
    if not args.partial:
        check(sets, rejected, args.source)
    sets = split(sets, args.valid_speakers)
    expected = {} if args.partial else {name: len(rows) for name, rows in sets.items()}
    prepare(args, sets, "AN4", rejected=rejected, expected=expected)


def read_folder(source: Path) -> tuple[Files, list[Rejected]]:
    """The lists and recordings below the folder that holds etc/ and wav/."""
    roots = sorted(path.parent.parent for path in source.rglob(LISTS["train"]))
    if not roots:
        raise _missing(source)
    paths = [path for folder in ("etc", "wav") for path in sorted((roots[0] / folder).rglob("*"))]
    names = {path: PurePosixPath(path.relative_to(roots[0]).as_posix()) for path in paths}
    wanted = {path: name for path, name in names.items() if _is_wanted(name)}
    rejected = [Rejected("", "", str(name), NOWHERE) for path, name in wanted.items() if not path.exists()]
    return {name: path.read_bytes() for path, name in wanted.items() if path.is_file()}, rejected


def read_archive(source: Path) -> tuple[Files, list[Rejected]]:
    """The lists and recordings in a tar archive, read into memory; nothing is unpacked to disk.

    Members that unpacking would put elsewhere, or that are no ordinary files, are rejected.
    """
    files: Files = {}
    rejected = []
    total = 0
    try:
        with unpacked(source) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    rejected.append(Rejected("", "", member.name, "leads out of the archive, and was not read"))
                    continue
                name = next((PurePosixPath(*path.parts[i:]) for i in range(len(path.parts))
                             if path.parts[i] in ("etc", "wav")), None)  # fmt: skip
                if name is None or member.isdir() or not _is_wanted(name):
                    continue
                if not member.isfile() or member.size > LARGEST:
                    reason = f"is too large ({member.size:,} bytes)" if member.isfile() else "is no ordinary file"
                    rejected.append(Rejected("", "", member.name, f"{reason}, and was not read"))
                    continue
                total += member.size
                if total > ALL:
                    raise UserError(f"{source} holds more than {ALL:,} bytes, far more than AN4; give the true archive")
                files[name] = archive.extractfile(member).read()
    except FileNotFoundError:
        raise _missing(source) from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise UserError(
            f"{source} is neither a folder nor a complete tar archive ({error}); download it again"
        ) from None
    return files, rejected


def byte_order(recordings: list[bytes]) -> str:
    """``"<i2"`` or ``">i2"``: speech is smooth, and read in the wrong order it is nearly white noise.

    Neighbouring samples of speech differ little; the mean square of their difference over that of the samples is far
    below 2, its value for white noise. The order that makes more recordings the smoother ones is taken.
    """
    votes = {"<i2": 0, ">i2": 0}
    for data in recordings[:: max(1, len(recordings) // 100)]:
        roughness = {}
        for order in votes:
            samples = np.frombuffer(data[: len(data) // 2 * 2], order).astype(np.float64)
            roughness[order] = np.square(np.diff(samples)).sum() / max(np.square(samples).sum(), 1.0)
        votes[min(roughness, key=roughness.get)] += roughness["<i2"] != roughness[">i2"]
    best, worst = sorted(votes, key=votes.get, reverse=True)
    if recordings and votes[best] <= 2 * votes[worst]:
        raise UserError(
            f"the byte order of the raw audio is not clear: {votes['<i2']} recordings look little and {votes['>i2']} "
            "big endian; give the archive as CMU ships it"
        )
    return best


def utterances(name: str, files: Files, order: str, source: Path) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a set in the order of its list, and what is wrong with the others."""
    listing = PurePosixPath("etc") / LISTS[name]
    if listing not in files:
        raise _missing(source)
    recordings = {path.stem: path for path in files if FOLDERS[name] in path.parts and path.suffix in (".raw", ".sph")}
    rows, rejected, named = [], [], set()
    for number, line in enumerate(split_lines(files[listing].removeprefix(codecs.BOM_UTF8).decode("latin-1")), 1):
        where = f"{listing}:{number}"
        match = re.fullmatch(r"(.*)\(([^()\s]+)\)\s*", line)
        if match is None:
            if line.strip():
                rejected.append(Rejected(name, "", where, f"is no line of a transcript: {line[:60]!r}"))
            continue
        text, stem = re.sub(r"</?s>", " ", match[1]).strip(), match[2]
        path = recordings.get(stem)
        named.add(stem)
        wrong = sorted(set(text) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' "))
        if path is None:
            rejected.append(Rejected(name, stem, where, f"has no recording in wav/{FOLDERS[name]}"))
        elif wrong:
            rejected.append(Rejected(name, stem, where, f"has unknown characters in its transcript: {''.join(wrong)}"))
        else:
            data = files[path]
            read = partial(decode, data) if path.suffix == ".sph" else partial(read_pcm, data, RATE, order)
            rows.append(Utterance(stem, text, path.parent.name, str(path), len(data), read))
    rejected += [Rejected(name, stem, str(path), f"has no transcript in {listing}")
                 for stem, path in recordings.items() if stem not in named]  # fmt: skip
    return rows, rejected


def check(sets: dict[str, list[Utterance]], rejected: list[Rejected], source: Path) -> None:
    """Raises a ``UserError`` that says everything in which the lists differ from CMU's."""
    wrong = [f"{LISTS[name]} has {len(sets[name]):,} usable utterances, expected {number:,}"
             for name, number in UTTERANCES.items() if len(sets[name]) != number]  # fmt: skip
    words = sum(len(row.text.split()) for row in sets["test"])
    if words != TEST_WORDS:
        wrong.append(f"{LISTS['test']} has {words:,} words, expected {TEST_WORDS:,}")
    if wrong:
        mend = "take CMU's archive unchanged, or give --partial to prepare what there is"
        raise UserError(f"{source} is not the usual AN4: {'; '.join(wrong)}; {why(rejected)}; {mend}")


def split(sets: dict[str, list[Utterance]], count: int) -> dict[str, list[Utterance]]:
    """train, valid and test, where valid is all utterances of about ``count`` training speakers.

    The speakers are those whose names have the smallest hash, women (f…) and men (m…) in the proportion of all. Names
    that differ in a digit only, such as mdcs and mdcs2, may be one person and stay together.
    """
    people: dict[str, dict[str, set[str]]] = {}
    for row in sets["train"]:
        person = row.speaker.rstrip("0123456789")
        people.setdefault(row.speaker[:1], {}).setdefault(person, set()).add(row.speaker)
    speakers = sum(len(names) for group in people.values() for names in group.values())
    if not 1 <= count < speakers:
        raise UserError(f"--valid-speakers {count}: it must be from 1 to {speakers - 1}, one less than there are")
    chosen: set[str] = set()
    for group in people.values():
        share = round(count * sum(map(len, group.values())) / speakers)
        chosen.update(*list(_ranked(group))[:share])
    train = [row for row in sets["train"] if row.speaker not in chosen]
    return {"train": train, "valid": [row for row in sets["train"] if row.speaker in chosen], "test": sets["test"]}


def _ranked(group: dict[str, set[str]]) -> Iterator[set[str]]:
    for person in sorted(group, key=lambda name: hashlib.sha256(name.encode()).digest()):
        yield group[person]


def _is_wanted(path: PurePosixPath) -> bool:
    return path.name in LISTS.values() or (path.parts[0] == "wav" and path.suffix in (".raw", ".sph"))


def _missing(source: Path) -> UserError:
    return UserError(f"{source} has no etc/{LISTS['train']}; give an4_raw.bigendian.tar.gz or an4_sphere.tar.gz from "
                     "CMU, or the folder where it was unpacked")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_cli(main))
