"""Trains image classifiers on CIFAR-10 and CIFAR-100, with or without symmetric weight noise.

    python data_prep/cifar.py --source cifar-10-python.tar.gz --out data/cifar10
    python recipes/cifar_cnn/train.py --config recipes/cifar_cnn/resnet20_cpu.yaml --data data/cifar10 --out runs/c10
    python recipes/cifar_cnn/evaluate.py --run runs/c10 --data data/cifar10 --split test

The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from seqssgd import training
from seqssgd.data.images import AugmentedBatches, ImageDataset, Normalization, load_images
from seqssgd.errors import UserError
from seqssgd.training import OptimConfig, TrainingConfig, distributed
from seqssgd.vision import ClassificationTask, build_classifier, describe_images


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        name: one of those in :mod:`seqssgd.models`.
    """

    name: Literal["resnet20", "resnet56", "wrn28_2", "wrn28_4", "vgg6", "vgg16"] = "resnet20"


@dataclass
class CorpusConfig:
    """What is read, and what is done to training images.

    Attributes:
        valid: training images held out for validation, the same in every run; 0: none, and the last model is the best.
        pad: pixels added on each side before a random crop.
        flip: whether half of the images are mirrored.
    """

    valid: int = 0
    pad: int = 4
    flip: bool = True


@dataclass
class Config:
    """A classifier and its training.

    Attributes:
        model: the network.
        corpus: what is read, and what is done to training images.
        optim: the method and the optimizer.
        training: the loop. Every one of ``accumulate`` minibatches has batch-norm statistics of its own.
        batch_size: images in a minibatch, over all processes, each of which has batch-norm statistics of its own.
        bn_images: training images from which batch-norm statistics are taken anew, at the clean weights, for every
            validation; 0: those that training left are used.
        seed: of initial weights, order of images and augmentation.
    """

    model: ModelConfig
    corpus: CorpusConfig
    optim: OptimConfig
    training: TrainingConfig
    batch_size: int = 128
    bn_images: int = 2000
    seed: int = 0


class ImageTask(ClassificationTask):
    """Classification of images that are held on the device and augmented there."""

    def __init__(self, model: nn.Module, dataset: ImageDataset, config: Config, device: torch.device):
        corpus = config.corpus
        if config.training.patience is not None and not corpus.valid:
            raise UserError("training.patience: there is nothing to judge by; hold out images with corpus.valid")
        try:
            train, valid = (part.to(device) for part in dataset.split("train").hold_out(corpus.valid))
        except UserError as error:
            raise UserError(f"corpus.valid: {error}") from None
        normalization = Normalization(dataset.info["mean"], dataset.info["std"], device)
        place = distributed.data_share(config.optim)
        minibatches = AugmentedBatches(
            train, normalization, config.batch_size, corpus.pad, corpus.flip, config.seed, *place
        )
        judged = corpus.valid > 0
        super().__init__(model, train, valid, minibatches, config.bn_images, judged, config.optim, config.training)


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_images(command.data)
    device = training.setup(config.training, config.seed)
    model = build_classifier(config.model.name, len(dataset.classes)).to(device)
    task = ImageTask(model, dataset, config, device)

    def begin(_: object) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        counts = f"{len(task.train.labels):,} training and {len(task.valid.labels):,} validation images"
        training.say(f"{dataset.info['name']}: {counts}; {config.model.name}, {parameters:,} parameters")

    return training.train(command, task, {"data": describe_images(dataset)}, begin)


if __name__ == "__main__":
    training.run_program(main)
