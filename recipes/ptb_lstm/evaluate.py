"""Perplexity of a trained language model on the validation or test text of the data that it was trained on.

    python recipes/ptb_lstm/evaluate.py --run runs/ptb --data data/ptb --split test

The whole split is read in order at batch 1, as Zaremba et al. (2014) test: no token is left out, and the state is
carried from end to end. (Validation during training reads batch_size columns in parallel and leaves out the tail.)
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import argparse
import sys

from seqssgd.cli import data_argument, run_arguments
from seqssgd.data.text import SPLITS, TextDataset, load_text
from seqssgd.devices import choose_device
from seqssgd.errors import run_cli
from seqssgd.lm import check_same_data, describe, load_language_model, perplexity
from seqssgd.report import record
from seqssgd.runs.checkpoints import find_checkpoint
from seqssgd.runs.reading import data_folder


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    run_arguments(parser)
    data_argument(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="which text to read (default test)")
    parser.add_argument("--save", action="store_true", help="keep the figure in the run directory, for seqssgd compare")
    args = parser.parse_args(argv)
    args.data = data_folder(args.run, args.data)
    data = load_text(args.data)
    check_same_data(args.run, data)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint)
    model, tokenizer = load_language_model(args.run, path)
    stream = TextDataset(data.folder, data.info, tokenizer).split(args.split)  # in the tokens that the model learned
    score = perplexity(model, stream, device)
    print(f"{path}, {args.split}: {describe(score, stream, tokenizer)}")
    if args.save:
        record(args.run, args.split, {**score._asdict(), "checkpoint": path.name})


if __name__ == "__main__":
    sys.exit(run_cli(main))
