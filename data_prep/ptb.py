"""Prepares the Penn Treebank text of Mikolov et al. (2010), the corpus of every word-level PTB result.

    python data_prep/ptb.py --source simple-examples.tgz --out data/ptb

The source is ``simple-examples.tgz``, or a folder that holds ptb.train.txt, ptb.valid.txt and ptb.test.txt somewhere
within. Numbers of tokens and words are checked, because many altered copies of these files are in circulation.
"""

import argparse
import os
import sys
from pathlib import Path

from seqssgd.data.archives import read_members
from seqssgd.data.text import load_text, read_lines, summary, write_text_dataset
from seqssgd.errors import UserError, run_cli

FILES = {split: f"ptb.{split}.txt" for split in ("train", "valid", "test")}
TOKENS = {"train": 929_589, "valid": 73_760, "test": 82_430}  # with one <eos> per line
WORDS = 10_000  # different ones in the training text, <unk> and <eos> included
LARGEST = 100_000_000  # bytes; twenty times the largest of the true files


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Prepare Mikolov's Penn Treebank text for language models.")
    parser.add_argument("--source", type=Path, required=True, help="folder with ptb.*.txt, or simple-examples.tgz")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/ptb")
    args = parser.parse_args(argv)
    splits = read_folder(args.source) if args.source.is_dir() else read_archive(args.source)
    check(splits, args.source)
    written = write_text_dataset(args.out, splits, name="Penn Treebank")
    if not written:
        print(f"{args.out} is already prepared from this text; nothing to do")
    print(summary(load_text(args.out)))


def read_folder(source: Path) -> dict[str, list[str]]:
    """The lines of each split from the first folder, ``source`` or one below it, that holds all three files."""
    found: set[str] = set()
    for folder, subfolders, names in os.walk(source):
        subfolders.sort()
        present = set(FILES.values()) & set(names)
        if len(present) == len(FILES):
            return {split: read_lines(Path(folder) / name) for split, name in FILES.items()}
        found |= present
    raise _missing(source, found)


def read_archive(source: Path) -> dict[str, list[str]]:
    """The lines of each split from a tar archive."""
    try:
        texts = read_members(source, FILES.values(), LARGEST)
    except FileNotFoundError:
        raise UserError(f"{source} does not exist; give a folder with ptb.*.txt, or simple-examples.tgz") from None
    if len(texts) < len(FILES):
        raise _missing(source, set(texts))
    return {split: read_lines(f"{source}:{name}", texts[name]) for split, name in FILES.items()}


def check(splits: dict[str, list[str]], source: Path) -> None:
    """Raises a ``UserError`` that says everything in which the text differs from Mikolov's."""
    wrong = []
    for split, lines in splits.items():
        count = sum(len(line.split()) + 1 for line in lines if line.strip())
        if count != TOKENS[split]:
            wrong.append(f"{FILES[split]} has {count:,} tokens with <eos>, expected {TOKENS[split]:,}")
    words = {split: {word for line in lines for word in line.split()} for split, lines in splits.items()}
    if len(words["train"]) + 1 != WORDS:
        wrong.append(f"{FILES['train']} has {len(words['train']) + 1:,} different words with <eos>, expected {WORDS:,}")
    for split in ("valid", "test"):
        new = words[split] - words["train"]
        if new:
            wrong.append(f"{FILES[split]} has {len(new):,} words that training lacks, such as {min(new)!r}, expected 0")
    if wrong:
        mend = "take the files from Mikolov's simple-examples.tgz (data/), unchanged"
        raise UserError(f"{source} is not the usual Penn Treebank text: {'; '.join(wrong)}; {mend}")


def _missing(source: Path, found: set[str]) -> UserError:
    missing = [name for name in FILES.values() if name not in found] or ["all three files in one folder"]
    return UserError(f"{source}: {', '.join(missing)} not found; give Mikolov's files or simple-examples.tgz")


if __name__ == "__main__":
    sys.exit(run_cli(main))
