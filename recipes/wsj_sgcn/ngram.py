"""Estimates an n-gram language model, as an ARPA file, from the transcripts of a corpus or from other text.

    python recipes/wsj_sgcn/ngram.py --run runs/an4 --data data/an4 --out an4.arpa
    python recipes/wsj_sgcn/ngram.py --run runs/an4 --text more.txt --order 6 --level label --out letters.arpa

The text is brought to the form that the run's tokenizer gives transcripts. A model over labels, characters or word
pieces, can write words that it has never seen; one over words cannot. For gigabytes of text, use KenLM's lmplz.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import argparse
import sys
from pathlib import Path

from seqssgd.data.text import read_lines
from seqssgd.errors import UserError, run_cli
from seqssgd.runs import layout
from seqssgd.speech.finished import load_for_run
from seqssgd.speech.ngram import SEPARATOR, estimate
from seqssgd.speech.tokens import load_tokenizer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="run whose tokenizer is to be used")
    parser.add_argument("--data", type=Path, metavar="DIR", help="prepared speech, whose transcripts are read")
    parser.add_argument("--split", default="train", help="train, valid, test, or the name of a set (default train)")
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="UTF-8 text, one sentence per line")
    parser.add_argument("--order", type=int, default=3, help="words of the longest n-grams (default 3)")
    parser.add_argument("--level", choices=("word", "label"), default="word", help="what the model is over")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="ARPA file to write")
    args = parser.parse_args(argv)
    if args.data is None and not args.text:
        raise UserError("there is no text to read; give --data, --text, or both")
    if args.order < 1:
        raise UserError(f"--order {args.order}: it must be at least 1")
    tokenizer = load_tokenizer(args.run / layout.TOKENIZER)
    texts = [] if args.data is None else load_for_run(args.run, args.data, args.split).texts
    texts = [*texts, *(line for file in args.text for line in read_lines(file))]
    lines = [line for text in texts if (line := tokenizer.normalize(text))]
    if args.level == "word":
        model = estimate((line.split() for line in lines), args.order)
    else:
        names = [SEPARATOR if label == " " else label for label in tokenizer.labels]
        encoded = tokenizer.encode_all(lines, (f"line {number}" for number in range(1, len(lines) + 1)))
        sentences = ([names[label] for label in labels.tolist()] for labels in encoded)
        model = estimate(sentences, args.order, names[1:])
    try:
        model.write_arpa(args.out)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written ({error.strerror})") from None
    print(f"{args.out}: {len(model.vocabulary):,} {args.level}s, order {args.order}, from {len(lines):,} sentences")


if __name__ == "__main__":
    sys.exit(run_cli(main))
