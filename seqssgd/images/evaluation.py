"""Accuracy of a finished run on test, validation or training images.

It is given twice: with batch-norm statistics that are taken anew at the clean weights, from minibatches as in training;
and raw, with the running statistics of training, into which the activations at perturbed weights went. Of encoded
images, such as ImageNet's, it is that of the central square.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from ..data.encoded_images import MEAN, STD, EncodedImages, RandomPieces, load_encoded
from ..data.images import AugmentedBatches, ImageSet, Normalization, load_images
from ..devices import choose_device
from ..errors import UserError
from ..runs.checkpoints import find_checkpoint
from ..runs.reading import data_folder, record
from ..runs.recipes import read_recipe
from .config import EncodedConfig
from .finished import KIND, check_same_images, load_classifier
from .scoring import evaluate_run


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options beside those of every evaluation."""
    parser.add_argument("--split", choices=("train", "valid", "test"),
                        help="which images (default test, or valid where there are no others)")  # fmt: skip
    parser.add_argument("--bn-images", type=int, default=10_000, metavar="N",
                        help="training images that batch-norm statistics are taken from (default 10,000)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=8, metavar="N",
                        help="threads that decode images which are encoded (default 8)")  # fmt: skip


def evaluate(args: argparse.Namespace) -> None:
    """Evaluates the run that ``args.run`` names, and prints what it finds."""
    args.data = data_folder(args.run, args.data)
    for option in ("bn_images", "workers"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(args, option)}: it must be at least 1")
    recipe, config = read_recipe(args.run, KIND, settled=False)
    device = choose_device(args.device)
    path = find_checkpoint(args.run, args.checkpoint, own=args.save)
    encoded = issubclass(recipe.config_class, EncodedConfig)
    split = _split(args.split, ("valid", "train") if encoded else ("test", "valid", "train"))
    data, minibatches = _encoded(args, config, split, device) if encoded else _small(args, config, split, device)
    model = load_classifier(args.run, path).to(device)
    figures = evaluate_run(path, data, model, minibatches, args.bn_images, split)
    if args.save:
        record(args.run, split, figures)


def _split(given: str | None, known: Sequence[str]) -> str:
    if given not in (None, *known):
        raise UserError(f"--split {given}: these images have {', '.join(known)}")
    return given or known[0]


def _small(
    args: argparse.Namespace, config: dict[str, Any], split: str, device: torch.device
) -> tuple[ImageSet, AugmentedBatches]:
    dataset = load_images(args.data)
    check_same_images(args.run, dataset)
    corpus = config["corpus"]
    train, valid = (part.to(device) for part in dataset.split("train").hold_out(corpus["valid"]))
    data = dataset.split("test") if split == "test" else {"train": train, "valid": valid}[split]
    if not len(data.labels):
        raise UserError(f"--split {split}: {args.run} held out no images (corpus.valid: 0); give test or train")
    normalization = Normalization(dataset.info["mean"], dataset.info["std"], device)
    minibatches = AugmentedBatches(
        train, normalization, config["batch_size"], corpus["pad"], corpus["flip"], config["seed"]
    )
    return data.to(device), minibatches


def _encoded(
    args: argparse.Namespace, config: dict[str, Any], split: str, device: torch.device
) -> tuple[EncodedImages, RandomPieces]:
    dataset = load_encoded(args.data)
    check_same_images(args.run, dataset)
    corpus = config["corpus"]
    data, train = (dataset.split(name, corpus["size"], args.workers).to(device) for name in (split, "train"))
    minibatches = RandomPieces(
        train,
        Normalization(MEAN, STD, device),
        config["batch_size"],
        corpus["smallest_area"],
        corpus["flip"],
        seed=config["seed"],
    )
    return data, minibatches
