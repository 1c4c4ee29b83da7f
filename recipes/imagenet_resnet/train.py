"""Trains ResNets on ImageNet, or on any images by class, with or without symmetric weight noise.

    python data_prep/imagenet.py --source /corpora/imagenet --out data/imagenet --jobs 8
    python recipes/imagenet_resnet/train.py --config recipes/imagenet_resnet/resnet50.yaml --data data/imagenet \\
        --out runs/r50
    python recipes/imagenet_resnet/evaluate.py --run runs/r50 --data data/imagenet

The README beside this file has settings and what they cost.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from seqssgd import training
from seqssgd.data.encoded_images import MEAN, STD, EncodedDataset, RandomPieces, load_encoded
from seqssgd.data.images import Normalization
from seqssgd.errors import UserError
from seqssgd.training import OptimConfig, TrainingConfig, distributed
from seqssgd.vision import ClassificationTask, build_classifier, describe_images


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        name: one of those in :mod:`seqssgd.models`.
    """

    name: Literal["resnet18", "resnet50"] = "resnet50"


@dataclass
class CorpusConfig:
    """How images are read, and what is done to training images.

    Attributes:
        size: pixels of a side of the squares that the network sees.
        smallest_area: of the random piece of a training image, as a share of the image.
        flip: whether half of the pieces are mirrored.
        workers: threads that decode, at most as many as the machine has cores.
        ahead: minibatches that are decoded ahead of time.
    """

    size: int = 224
    smallest_area: float = 0.08
    flip: bool = True
    workers: int = 8
    ahead: int = 2

    def __post_init__(self) -> None:
        for key in ("size", "workers"):
            if getattr(self, key) < 1:
                raise UserError(f"corpus.{key}: {getattr(self, key)} is not a whole number >= 1")


@dataclass
class Config:
    """A classifier and its training.

    Attributes:
        model: the network.
        corpus: how images are read, and what is done to training images.
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
    batch_size: int = 256
    bn_images: int = 10_000
    seed: int = 0


class ImageNetTask(ClassificationTask):
    """Classification of images that are decoded while the network trains."""

    def __init__(self, model: nn.Module, dataset: EncodedDataset, config: Config, device: torch.device):
        corpus = config.corpus
        if config.training.patience is not None:
            raise UserError(
                "training.patience: there is nothing to judge by, as validation images are what is reported"
            )
        train, valid = (dataset.split(name, corpus.size, corpus.workers).to(device) for name in ("train", "valid"))
        minibatches = RandomPieces(
            train,
            Normalization(MEAN, STD, device),
            config.batch_size,
            corpus.smallest_area,
            corpus.flip,
            corpus.ahead,
            config.seed,
            *distributed.data_share(config.optim),
        )
        super().__init__(model, train, valid, minibatches, config.bn_images, False, config.optim, config.training)


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_encoded(command.data)
    device = training.setup(config.training, config.seed)
    model = build_classifier(config.model.name, len(dataset.classes)).to(device)
    task = ImageNetTask(model, dataset, config, device)

    def begin(_: object) -> None:
        parameters = sum(p.numel() for p in model.parameters())
        counts = f"{len(task.train.labels):,} training and {len(task.valid.labels):,} validation images"
        training.say(f"{dataset.info['name']}: {counts}; {config.model.name}, {parameters:,} parameters")

    return training.train(command, task, {"data": describe_images(dataset)}, begin)


if __name__ == "__main__":
    training.run_program(main)
