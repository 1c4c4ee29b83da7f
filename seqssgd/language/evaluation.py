"""Perplexity of a finished run on the training, validation or test text of the data that it was trained on.

The whole split is read in order at batch 1, as Zaremba et al. (2014) test: no token is left out, and the state is
carried from end to end. (Validation during training reads batch_size columns in parallel and leaves out the tail.)
"""

import argparse

from ..data.text import SPLITS, TextDataset, load_text
from ..devices import choose_device
from ..runs.checkpoints import find_checkpoint
from ..runs.reading import data_folder, record
from .finished import check_same_data, load_language_model
from .scoring import describe, perplexity


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options beside those of every evaluation."""
    parser.add_argument("--split", choices=SPLITS, default="test", help="which text to read (default test)")


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates the run that ``args.run`` names, and prints what it finds."""
    args.data = data_folder(args.run, args.data)
    data = load_text(args.data)
    check_same_data(args.run, data)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint, own=args.save)
    model, tokenizer = load_language_model(args.run, path)
    stream = TextDataset(data.folder, data.info, tokenizer).split(args.split)  # in the tokens that the model learned
    score = perplexity(model, stream, device)
    print(f"{path}, {args.split}: {describe(score, stream, tokenizer)}")
    if args.save:
        record(args.run, args.split, {**score._asdict(), "checkpoint": path.name})
