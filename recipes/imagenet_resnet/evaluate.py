"""Accuracy of a trained ImageNet classifier on the validation images: the central 224 pixels of 256.

    python recipes/imagenet_resnet/evaluate.py --run runs/r50 --data data/imagenet

It is given twice: with batch-norm statistics that are taken anew at the clean weights, from minibatches as in training;
and raw, with the running statistics of training, into which the activations at perturbed weights went.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import argparse
import sys

from seqssgd.cli import data_argument, run_arguments
from seqssgd.data.encoded_images import MEAN, STD, RandomPieces, load_encoded
from seqssgd.data.images import Normalization
from seqssgd.devices import choose_device
from seqssgd.errors import UserError, run_cli
from seqssgd.report import record
from seqssgd.runs.checkpoints import find_checkpoint
from seqssgd.runs.reading import data_folder
from seqssgd.runs.settings import read_config, read_section
from seqssgd.vision import KIND, check_same_images, evaluate_run, load_classifier


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    run_arguments(parser, "recipes/imagenet_resnet")
    data_argument(parser)
    parser.add_argument("--split", choices=("train", "valid"), default="valid", help="which images (default valid)")
    parser.add_argument("--bn-images", type=int, default=10_000, metavar="N",
                        help="training images that batch-norm statistics are taken from (default 10,000)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="threads that decode (default 8)")
    parser.add_argument(
        "--save", action="store_true", help="keep the figures in the run directory, for seqssgd compare"
    )
    args = parser.parse_args(argv)
    args.data = data_folder(args.run, args.data)
    for option in ("bn_images", "workers"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: it must be at least 1")
    dataset = load_encoded(args.data)
    check_same_images(args.run, dataset)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint)
    model = load_classifier(args.run, path).to(device)
    config, corpus = read_config(args.run), read_section(args.run, "corpus", KIND)
    data, train = (dataset.split(name, corpus["size"], args.workers).to(device) for name in (args.split, "train"))
    normalization = Normalization(MEAN, STD, device)
    minibatches = RandomPieces(
        train, normalization, config["batch_size"], corpus["smallest_area"], corpus["flip"], seed=config["seed"]
    )
    figures = evaluate_run(path, data, model, minibatches, args.bn_images, args.split)
    if args.save:
        record(args.run, args.split, figures)


if __name__ == "__main__":
    sys.exit(run_cli(main))
