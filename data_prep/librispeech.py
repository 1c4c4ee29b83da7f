"""Prepares LibriSpeech (Panayotov et al. 2015), or any corpus in its form, from the unpacked archives.

    python data_prep/librispeech.py --source /corpora/LibriSpeech --out data/librispeech --jobs 8
    python data_prep/librispeech.py --source /corpora --sets train-clean-100 dev-clean test-clean --out data/ls100

A set is a folder such as train-clean-100, with SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt and the FLAC files beside it.
Sets of LibriSpeech itself must be complete; FLAC files are kept as they are.
"""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

from seqssgd.data.audio import read_file
from seqssgd.data.items import NOWHERE
from seqssgd.data.lines import split_lines
from seqssgd.data.preparing import add_arguments, why
from seqssgd.data.shards import Rejected
from seqssgd.data.speech_rows import Utterance
from seqssgd.data.speech_writer import prepare
from seqssgd.data.transcripts import clean
from seqssgd.errors import UserError, run_cli

SIZES = {"train-clean-100": 28_539, "train-clean-360": 104_014, "train-other-500": 148_688, "dev-clean": 2_703,
         "dev-other": 2_864, "test-clean": 2_620, "test-other": 2_939}  # fmt: skip
SET = re.compile(r"(train|dev|test)-(clean|other).*")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare LibriSpeech from its unpacked archives.")
    parser.add_argument("--source", type=Path, nargs="+", required=True, metavar="DIR",
                        help="folders with the sets, or with LibriSpeech/ that holds them")  # fmt: skip
    add_arguments(parser)
    parser.add_argument("--sets", nargs="+", metavar="SET", help="folders to prepare (default: all that are there)")
    parser.add_argument("--partial", action="store_true", help="prepare what there is, although sets are incomplete")
    args = parser.parse_args(argv)
    folders = find_sets(args.source)
    if args.sets is not None:
        absent = [name for name in args.sets if name not in folders]
        if absent:
            raise UserError(
                f"no folder {' or '.join(absent)} in {_list(args.source)}, only {_list(folders) or 'others'}"
            )
        folders = {name: folders[name] for name in args.sets}
    if not folders:
        raise UserError(f"{_list(args.source)}: no folder named like train-clean-100 with transcripts in it; unpack "
                        "the archives, and give the folder LibriSpeech")  # fmt: skip
    sets: dict[str, list[Utterance]] = {}
    rejected: list[Rejected] = []
    for name, folder in folders.items():
        sets[name], left_out = read_set(name, folder)
        rejected += left_out
    expected = {} if args.partial else {name: SIZES[name] for name in sets if name in SIZES}
    wrong = [f"{name} has {len(sets[name]):,} utterances, expected {number:,}"
             for name, number in expected.items() if len(sets[name]) != number]  # fmt: skip
    if wrong:
        raise UserError(f"LibriSpeech: {'; '.join(wrong)}; {why(rejected)}; --partial prepares what there is")
    prepare(args, sets, "LibriSpeech", rejected=rejected, expected=expected)


def find_sets(sources: list[Path]) -> dict[str, Path]:
    """The folders of the sets by name: the sources themselves, in them, or in a folder in them."""
    found: dict[str, Path] = {}
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source} is not a folder; give the folder where LibriSpeech was unpacked")
        source = source.resolve()
        for folder in [source, *sorted(source.glob("*/")), *sorted(source.glob("*/*/"))]:
            if not SET.fullmatch(folder.name) or not any(folder.glob("*/*/*.trans.txt")):
                continue
            if found.setdefault(folder.name, folder) != folder:
                raise UserError(f"{folder.name} is there twice: {found[folder.name]} and {folder}; give one of them")
    return found


def read_set(name: str, folder: Path) -> tuple[list[Utterance], list[Rejected]]:
    """The utterances of a set in the order of chapters and ids, and what is wrong with others."""
    utterances, rejected = [], []
    for path, subfolders, files in os.walk(folder):
        subfolders.sort()
        audio = {file.removesuffix(".flac"): file for file in sorted(files) if file.endswith(".flac")}
        where = Path(path).relative_to(folder.parent)
        named = set()
        for listing in sorted(file for file in files if file.endswith(".trans.txt")):
            content = (Path(path) / listing).read_bytes().decode(errors="replace")
            for number, line in enumerate(split_lines(content), 1):
                key, _, text = line.strip().partition(" ")
                text = clean(text)
                source = str(where / audio.get(key, f"{key}.flac"))
                wrong = sorted(set(text) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZ' "))
                named.add(key)
                if not key:
                    continue
                if key not in audio:
                    rejected.append(
                        Rejected(name, key, source, f"has no audio, but a transcript in {listing}:{number}")
                    )
                elif not (Path(path) / audio[key]).exists():
                    rejected.append(Rejected(name, key, source, NOWHERE))
                elif wrong:
                    reason = f"has unknown characters in its transcript: {', '.join(map(ascii, wrong))}"
                    rejected.append(Rejected(name, key, source, reason))
                else:
                    file = Path(path) / audio[key]
                    speaker = key.partition("-")[0]
                    utterances.append(
                        Utterance(key, text, speaker, source, file.stat().st_size, partial(read_file, file))
                    )
        rejected += [Rejected(name, key, str(where / file), "has no transcript beside it")
                     for key, file in audio.items() if key not in named]  # fmt: skip
    return utterances, rejected


def _list(names) -> str:
    return ", ".join(map(str, names))


if __name__ == "__main__":
    sys.exit(run_cli(main))
