"""Accuracy of a trained image classifier on test, validation or training images.

    python recipes/cifar_cnn/evaluate.py --run runs/c10 --data data/cifar10 --split test

It is given twice: with batch-norm statistics that are taken anew at the clean weights, from minibatches as in training;
and raw, with the running statistics of training, into which the activations at perturbed weights went.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import argparse
import sys

from seqssgd.cli import data_argument, run_arguments
from seqssgd.data.images import AugmentedBatches, Normalization, load_images
from seqssgd.devices import choose_device
from seqssgd.errors import UserError, run_cli
from seqssgd.report import record
from seqssgd.runs.checkpoints import find_checkpoint
from seqssgd.runs.reading import data_folder
from seqssgd.runs.settings import read_config, read_section
from seqssgd.vision import KIND, check_same_images, evaluate_run, load_classifier

SPLITS = ("train", "valid", "test")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    run_arguments(parser, "recipes/cifar_cnn")
    data_argument(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images (default test)")
    parser.add_argument("--bn-images", type=int, default=10_000, metavar="N",
                        help="training images that batch-norm statistics are taken from (default 10,000)")  # fmt: skip
    parser.add_argument(
        "--save", action="store_true", help="keep the figures in the run directory, for seqssgd compare"
    )
    args = parser.parse_args(argv)
    args.data = data_folder(args.run, args.data)
    if args.bn_images < 1:
        raise UserError(f"--bn-images {args.bn_images}: it must be at least 1")
    dataset = load_images(args.data)
    check_same_images(args.run, dataset)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint)
    model = load_classifier(args.run, path).to(device)
    config, corpus = read_config(args.run), read_section(args.run, "corpus", KIND)
    train, valid = (part.to(device) for part in dataset.split("train").hold_out(corpus["valid"]))
    data = dataset.split("test") if args.split == "test" else {"train": train, "valid": valid}[args.split]
    if not len(data.labels):
        raise UserError(f"--split {args.split}: {args.run} held out no images (corpus.valid: 0); give test or train")
    normalization = Normalization(dataset.info["mean"], dataset.info["std"], device)
    minibatches = AugmentedBatches(
        train, normalization, config["batch_size"], corpus["pad"], corpus["flip"], config["seed"]
    )
    figures = evaluate_run(path, data.to(device), model, minibatches, args.bn_images, args.split)
    if args.save:
        record(args.run, args.split, figures)


if __name__ == "__main__":
    sys.exit(run_cli(main))
