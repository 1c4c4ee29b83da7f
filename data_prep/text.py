"""Prepares any text for a language model: your own files, or a data set of the Hugging Face hub.

    python data_prep/text.py --train train.txt --valid valid.txt --test test.txt --out data/mine
    python data_prep/text.py --train book.txt --level sentencepiece --vocab-size 5000 --out data/book
    python data_prep/text.py --hub Salesforce/wikitext --hub-config wikitext-2-v1 --out data/wikitext2

Files are UTF-8 with one sentence per line. Without --valid or --test, that part is cut from the end of the training
text. At word level words are what whitespace separates; punctuation is not split off.
"""

import argparse
import sys
from pathlib import Path

from seqssgd.data import hub
from seqssgd.data.lines import split_lines
from seqssgd.data.text import SPLITS, load_text, read_lines, summary, write_text_dataset
from seqssgd.data.tokenizers import TOKENIZERS
from seqssgd.errors import UserError, run_cli
from seqssgd.notes import warn

ENOUGH = 1000  # words from which a text is cut that has too few lines


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.hub:
        texts, name = read_hub(args.hub, args.hub_config, args.text_column or "text"), args.hub
    else:
        for option, given in (("--hub-config", args.hub_config), ("--text-column", args.text_column)):
            if given is not None:
                raise UserError(f"{option} {given}: it is of data sets of the hub; leave it out, or give --hub")
        files = {"train": args.train, "valid": args.valid, "test": args.test}
        for split in filter(files.get, SPLITS[1:]):
            if files[split].exists() and args.train.exists() and files[split].samefile(args.train):
                warn(f"--{split} {files[split]} is the training text, whose figures say nothing of another; "
                     "give another, or leave it out, and it is cut from the end")  # fmt: skip
        texts = {split: read_lines(path) for split, path in files.items() if path}
        name = str(args.train)
    if "train" not in texts:
        raise UserError(f"{name} has no training split")
    splits = cut_tail(texts, {"valid": args.valid_fraction, "test": args.test_fraction}, name)
    written = write_text_dataset(args.out, splits, args.name or name, args.level, args.vocab_size, args.lowercase)
    if not written:
        print(f"{args.out} is already prepared from this text with these settings; nothing to do")
    print(summary(load_text(args.out)))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Prepare any text for language models.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--train", type=Path, help="training text, UTF-8, one sentence per line")
    source.add_argument("--hub", metavar="NAME", help="Hugging Face data set: its name on the hub, or a local path")
    parser.add_argument("--valid", type=Path, help="validation text (default: cut from the training text)")
    parser.add_argument("--test", type=Path, help="test text (default: cut from the training text)")
    parser.add_argument("--valid-fraction", type=float, default=0.05, help="of the lines, if there is no --valid")
    parser.add_argument("--test-fraction", type=float, default=0.05, help="of the lines, if there is no --test")
    parser.add_argument("--hub-config", metavar="NAME", help="configuration of the hub data set")
    parser.add_argument(
        "--text-column", metavar="NAME", help="column of the hub data set with the text (default: text)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write, for example data/mine")
    parser.add_argument("--name", help="what to call the text in messages (default: its source)")
    parser.add_argument("--level", choices=tuple(TOKENIZERS), default="word", help="kind of token")
    parser.add_argument(
        "--vocab-size", type=int, metavar="N",
        help="number of different tokens, <eos> and <unk> included (default for words and characters: all of the "
        "training text, or, if validation or test hold others, those seen at least twice)",
    )  # fmt: skip
    parser.add_argument("--lowercase", action="store_true", help="lowercase the text, also when scoring with the model")
    return parser


def cut_tail(texts: dict[str, list[str]], fractions: dict[str, float], name: str) -> dict[str, list[str]]:
    """All three splits: a missing one becomes that fraction of the training lines, from their end, in order."""
    missing = {split: fractions[split] for split in SPLITS if split not in texts}
    if not missing:
        return texts
    for split, fraction in missing.items():
        if not 0 < fraction < 1:
            raise UserError(f"--{split}-fraction {fraction}: it must lie between 0 and 1")
    if (together := sum(fractions[split] for split in missing)) >= 1:
        what = " and ".join(f"--{split}-fraction" for split in missing)
        raise UserError(f"{what} are {together:g} together, which leaves nothing to train on")
    lines = [line for line in texts["train"] if line.strip()]  # a fraction of the text, not of blank lines
    sizes = {split: max(1, round(fraction * len(lines))) for split, fraction in missing.items()}
    start = len(lines) - sum(sizes.values())
    if start < 1 and len(words := " ".join(lines).split()) >= ENOUGH:  # a book on one line
        cuts = [round(len(words) * (1 - sum(fractions[split] for split in list(missing)[i:])))
                for i in range(len(missing) + 1)]  # fmt: skip
        parts = {split: [" ".join(words[a:b])] for split, a, b in zip(missing, cuts[:-1], cuts[1:], strict=True)}
        what = " and ".join(missing)
        print(f"note: {name} has too few lines ({len(lines)}) to cut {what} from; they are cut from its words")
        return texts | {"train": [" ".join(words[: cuts[0]])]} | parts
    if start < 1:
        raise UserError(f"{name} has too few lines ({len(lines)}) to cut {' and '.join(missing)} from; give more text")
    texts = texts | {"train": lines[:start]}
    for split, size in sizes.items():
        texts[split] = lines[start : start + size]
        start += size
    return texts


def read_hub(name: str, config: str | None, column: str) -> dict[str, list[str]]:
    """The lines of a data set's training, validation and test splits, as far as it has them."""
    loaded = hub.load_hub(name, config)
    texts = {}
    for split, names in hub.SPLITS.items():
        present = [candidate for candidate in names if candidate in loaded]
        if not present:
            continue
        table = loaded[present[0]]
        if column not in table.column_names:
            raise UserError(f"--hub {name} has no column {column!r}; --text-column can be {_list(table.column_names)}")
        texts[split] = [line for text in table[column] if text is not None for line in split_lines(str(text))]
    if "train" not in texts:
        raise UserError(f"--hub {name} has no training split; it has {_list(loaded)}")
    return texts


def _list(names) -> str:
    return ", ".join(sorted(map(str, names)))


if __name__ == "__main__":
    sys.exit(run_cli(main))
