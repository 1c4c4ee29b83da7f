"""Prepares the Wall Street Journal corpora: WSJ0 (LDC93S6A or LDC93S6B) and WSJ1 (LDC94S13A or LDC94S13B).

    python data_prep/wsj.py --source /corpora/csr_1 /corpora/csr_2_comp --out data/wsj --jobs 8
    python data_prep/wsj.py --source /corpora/csr_1 --sets si84 eval92 --out data/wsj0

The sources are folders that hold, at any depth up to four, the disks (11-1.1 … 11-15.1 and 13-1.1 … 13-34.1, or with
underscores: 13_34.1), the disks themselves, or the merged layout (one folder with wsj0/ and wsj1/). Letters may be in
either case. Sets, their sizes and their transcripts are those of Kaldi's recipe; audio is the first channel (.wv1).
"""

import argparse
import codecs
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from seqssgd.data.audio import read_file
from seqssgd.data.items import NOWHERE
from seqssgd.data.lines import split_lines
from seqssgd.data.preparing import add_arguments, why
from seqssgd.data.shards import Rejected
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import prepare
from seqssgd.errors import UserError, run_cli
from seqssgd.speech.wsj import normalize_transcript

DISK = re.compile(r"(1[13])[-_.](\d{1,2})[-_.](\d)")
DEPTH = 4

_TRAIN0 = ("11_13_1", "wsj0/doc/indices/train/tr_s_wv1.ndx")
_TRAIN1 = ("13_34_1", "wsj1/doc/indices/si_tr_s.ndx")
SETS = {
    "si84": (7138, [_TRAIN0]),
    "si284": (37416, [_TRAIN0, _TRAIN1]),
    "dev93": (503, [("13_34_1", "wsj1/doc/indices/h1_p0.ndx")]),
    "eval92": (333, [("11_13_1", "wsj0/doc/indices/test/nvp/si_et_20.ndx")]),
    "eval93": (213, [("13_32_1", "wsj1/doc/indices/wsj1/eval/h1_p0.ndx")]),
    "eval92_5k": (330, [("11_13_1", "wsj0/doc/indices/test/nvp/si_et_05.ndx")]),
    "dev93_5k": (513, [("13_34_1", "wsj1/doc/indices/h2_p0.ndx")]),
    "eval93_5k": (215, [("13_32_1", "wsj1/doc/indices/wsj1/eval/h2_p0.ndx")]),
}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare the Wall Street Journal corpora WSJ0 and WSJ1.")
    parser.add_argument("--source", type=Path, nargs="+", required=True, metavar="DIR", help="folders with the disks")
    add_arguments(parser)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET",
                        help=f"what to prepare: {' '.join(SETS)} (default: all)")  # fmt: skip
    parser.add_argument("--partial", action="store_true", help="prepare what there is, although sets are incomplete")
    args = parser.parse_args(argv)
    corpus = Corpus(args.source)
    lists, rejected, missing = read_lists(corpus, args.sets)
    if missing and not args.partial:
        mend = "--sets prepares less of WSJ, --partial what there is"
        raise UserError(f"WSJ is not complete: {'; '.join(missing)}; {corpus.description()}; {mend}")
    transcripts = Transcripts(corpus)
    sets = {name: list(utterances(name, lists[name], corpus, transcripts, rejected)) for name in args.sets}
    expected = {} if args.partial else {name: SETS[name][0] for name in args.sets}
    wrong = [f"{name} has {len(sets[name]):,} utterances, expected {number:,}"
             for name, number in expected.items() if len(sets[name]) != number]  # fmt: skip
    if wrong:
        raise UserError(f"WSJ: {'; '.join(wrong)}; {why(rejected)}; --partial prepares what there is")
    sets = {name: rows for name, rows in sets.items() if rows}
    if not sets:
        raise UserError(f"WSJ: nothing can be prepared: {why(rejected)}; {corpus.description()}")
    prepare(args, sets, "WSJ", rejected=rejected, expected=expected, info={"scoring_filter": "wsj"})


class Entry(NamedTuple):
    """A line of an index: the disk, and the path on it."""

    disk: str
    path: str

    @property
    def id(self) -> str:
        return self.path.rpartition("/")[2].partition(".")[0].lower()


class Corpus:
    """Where the disks are. Names on them are found in upper and lower case."""

    def __init__(self, sources: list[Path]) -> None:
        self.sources = sources
        self.disks: dict[str, list[Path]] = {}
        self.merged: list[Path] = []
        self._names: dict[Path, dict[str, str]] = {}
        for source in sources:
            if not source.is_dir():
                raise UserError(f"{source} is not a folder; give the folders that hold the disks of WSJ")
            source = Path(os.path.abspath(source))  # a link may be named as the disk, and its target otherwise
            if source.name.lower() in ("wsj0", "wsj1"):
                self.merged.append(source.parent)
            else:
                self._scan(source, DEPTH)

    def _scan(self, folder: Path, depth: int) -> None:
        match = DISK.fullmatch(folder.name)
        if match:
            self.disks.setdefault("_".join(match.groups()), []).append(folder)
        elif {"wsj0", "wsj1"} & set(self.names(folder)):
            self.merged.append(folder)
        elif depth:
            for name in sorted(self.names(folder).values()):
                if (folder / name).is_dir():
                    self._scan(folder / name, depth - 1)

    def names(self, folder: Path) -> dict[str, str]:
        """The names in a folder by their :func:`plain` forms; none if there is no such folder."""
        if folder not in self._names:
            try:
                self._names[folder] = {plain(name): name for name in sorted(os.listdir(folder), reverse=True)}
            except (NotADirectoryError, FileNotFoundError):
                self._names[folder] = {}
        return self._names[folder]

    def roots(self, disk: str) -> list[Path]:
        return self.disks.get(disk, []) + self.merged

    def find(self, entry: Entry) -> Path | None:
        """The file of an entry, or ``None``."""
        for path in self.roots(entry.disk):
            for part in entry.path.split("/"):
                name = self.names(path).get(part.lower())
                if name is None:
                    break
                path = path / name
            else:
                return path
        return None

    def description(self) -> str:
        """What was looked for and what was found, for messages."""
        looked = "looked for folders named as the disks (11-1.1 or 11_1.1 and so on), or holding wsj0/ or wsj1/"
        disks = [_disk_name(disk) for disk in sorted(self.disks, key=lambda disk: [int(n) for n in disk.split("_")])]
        found = ", ".join(disks + [str(folder) for folder in self.merged]) or "none"
        return f"{looked}, in {', '.join(map(str, self.sources))} and found {found}"


def read_lists(corpus: Corpus, names: list[str]) -> tuple[dict[str, list[Entry]], list[Rejected], list[str]]:
    """The entries of each set in the order of their ids, with the known errors of the indices mended.

    Beside them, what cannot be used, and what is missing of the corpus as a whole: indices and disks.
    """
    lists: dict[str, list[Entry]] = {}
    rejected = []
    missing: dict[str, list[str]] = {}
    for name in names:
        lists[name] = []
        for disk, index in SETS[name][1]:
            path = corpus.find(Entry(disk, index))
            if path is None:
                rejected.append(
                    Rejected(name, "", index, f"is an index of the set, and not on disk {_disk_name(disk)}")
                )
                missing.setdefault(f"no {index} on disk {_disk_name(disk)}", []).append(name)
                continue
            for number, line in enumerate(split_lines(_text(path)), 1):
                match = re.fullmatch(r"(\d+_\d+_\d+):\s*/?(\S+)\s*", line)
                if match is not None:
                    entry = mend(Entry(*match.groups()), index)
                    lists[name] += [] if entry is None else [entry]
                elif line.strip() and not line.startswith(";"):
                    rejected.append(Rejected(name, "", f"{index}:{number}", f"is no entry of an index: {line[:60]!r}"))
        lists[name].sort(key=lambda entry: entry.id)
        for disk in sorted({entry.disk for entry in lists[name]}):
            if not corpus.roots(disk):
                missing.setdefault(f"no disk {_disk_name(disk)}", []).append(name)
    return lists, rejected, [f"{what} (for {', '.join(sets)})" for what, sets in missing.items()]


def mend(entry: Entry, index: str) -> Entry | None:
    """An entry as it should be; ``None`` for those that are not to be used."""
    disk, path = entry
    if disk == "11_2_1" and path.lower().startswith("wsj0/si_tr_s/401/"):
        return None  # no part of the 84 speakers' set
    if "/eval/" in index and disk == "13_32_1":
        disk = "13_33_1"  # the audio is on the next disk
    if not path.lower().endswith(".wv1"):
        path += ".wv1"  # the indices of 1992 leave it out
    return Entry(disk, path)


class Transcripts:
    """The transcripts in all .dot files; a file holds those whose ids have its first six letters."""

    def __init__(self, corpus: Corpus) -> None:
        self.files: dict[str, list[Path]] = {}
        self._read: dict[Path, dict[str, str]] = {}
        roots = [root for disks in corpus.disks.values() for root in disks] + corpus.merged
        for root in sorted(set(roots)):
            for name in ("wsj0", "wsj1"):
                if name in corpus.names(root):
                    self._scan(root / corpus.names(root)[name], set())

    def _scan(self, folder: Path, seen: set[Path]) -> None:
        if folder.resolve() in seen:  # a link back to a folder above
            return
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.is_dir():
                self._scan(Path(entry.path), seen | {folder.resolve()})
            elif plain(entry.name).endswith(".dot"):
                self.files.setdefault(plain(entry.name)[:6], []).append(Path(entry.path))

    def find(self, name: str, audio: Path) -> str | None:
        """The transcript of an id, from the file nearest to its audio; ``None`` if there is none."""
        files = self.files.get(name[:6], [])
        for path in sorted(files, key=lambda path: -len(os.path.commonprefix([str(path), str(audio)]))):
            if path not in self._read:
                found = re.findall(r"(?m)^(.*)\((\w{8})\)\s*$", _text(path))
                self._read[path] = {uttid.lower(): text for text, uttid in found}
            if name in self._read[path]:
                return self._read[path][name]
        return None


def utterances(
    name: str, entries: list[Entry], corpus: Corpus, transcripts: Transcripts, rejected: list[Rejected]
) -> Iterator[Utterance]:
    """The utterances of a set; what is wrong with others is added to ``rejected``."""
    for entry in entries:
        audio = corpus.find(entry)
        text = transcripts.find(entry.id, audio) if audio else None
        reason = None
        if audio is None:
            reason = f"has no audio: no such file on disk {_disk_name(entry.disk)}"
        elif not audio.exists():
            reason = NOWHERE
        elif text is None:
            reason = f"has no transcript: no {entry.id[:6]}00.dot with it"
        else:
            text = normalize_transcript(text)
            if wrong := sorted({character for character in text if not " " <= character <= "~"}):
                reason = f"has unknown characters in its transcript: {', '.join(map(ascii, wrong))}"
            elif not text:
                reason = "has an empty transcript"
        if reason:
            rejected.append(Rejected(name, entry.id, entry.path, reason))
        else:
            yield Utterance(entry.id, text, entry.id[:3], entry.path, audio.stat().st_size, partial(read_file, audio))


def plain(name: str) -> str:
    """A name on a disk as indices write it; some copies have it as on the medium: ``4K0C0301.WV1;1``."""
    return name.lower().removesuffix(";1")


def _text(path: Path) -> str:
    return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode("latin-1").replace("\r\n", "\n")


def _disk_name(disk: str) -> str:
    """``11_13_1``, as indices write it, as on the label: ``11-13.1``."""
    return "{}-{}.{}".format(*disk.split("_"))


if __name__ == "__main__":
    sys.exit(run_cli(main))
