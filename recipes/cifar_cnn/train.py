"""Trains image classifiers on CIFAR-10 and CIFAR-100, with or without symmetric weight noise.

    python data_prep/cifar.py --source cifar-10-python.tar.gz --out data/cifar10
    python recipes/cifar_cnn/train.py --config recipes/cifar_cnn/resnet20_cpu.yaml --data data/cifar10 --out runs/c10
    python recipes/cifar_cnn/evaluate.py --run runs/c10 --data data/cifar10 --split test

The README beside this file has times, results and settings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from seqssgd import training
from seqssgd.data.images import AugmentedBatches, ImageDataset, Normalization, load_images
from seqssgd.errors import UserError
from seqssgd.optim import Pass
from seqssgd.optim.batchnorm import RunningStatistics
from seqssgd.training import OptimConfig, TrainingConfig, distributed
from seqssgd.vision import build_classifier, describe_images, recalibrate, score


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


class ImageTask:
    """Classification of images that are held on the device and augmented there."""

    def __init__(self, model: nn.Module, dataset: ImageDataset, config: Config, device: torch.device):
        world, optim = distributed.world_size(), config.optim
        if optim.halves and config.batch_size < 2 * world:
            raise UserError(f"batch_size: {config.batch_size} cannot be halved in every process, as optim asks for")
        if config.bn_images < 0:
            raise UserError(f"bn_images: {config.bn_images} is not a whole number >= 0")
        if config.training.patience is not None and not config.corpus.valid:
            raise UserError("training.patience: there is nothing to judge by; hold out images with corpus.valid")
        self.model, self.bn_images = model, config.bn_images
        try:
            self.train, self.valid = (part.to(device) for part in dataset.split("train").hold_out(config.corpus.valid))
        except UserError as error:
            raise UserError(f"corpus.valid: {error}") from None
        self.normalization = Normalization(dataset.info["mean"], dataset.info["std"], device)
        self.minibatches = AugmentedBatches(
            self.train,
            self.normalization,
            config.batch_size,
            config.corpus.pad,
            config.corpus.flip,
            config.seed,
            distributed.rank(),
            world,
        )
        self.steps_per_epoch = len(self.minibatches) // config.training.accumulate
        if not self.steps_per_epoch:
            raise UserError(
                f"training.accumulate: {config.training.accumulate} minibatches of {config.batch_size} are more than "
                f"the {len(self.train.labels):,} training images"
            )
        self.best = ("valid_accuracy", "max") if config.corpus.valid else None

    def start_epoch(self, epoch: int) -> None:
        """Nothing is carried from minibatch to minibatch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images (B, 3, H, W) and labels (B,)."""
        return self.minibatches.epoch(epoch, start)

    def loss(self, batch: tuple[Tensor, Tensor], part: Pass) -> tuple[Tensor, int]:
        """Cross-entropy, averaged over the images."""
        images, labels = part.take(*batch)
        return part.mean(cross_entropy(self.model(images).float(), labels, reduction="none")), len(labels)

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy in percent on the images that were held out; nothing if none were."""
        if not len(self.valid.labels):
            return {}
        with RunningStatistics(self.model).kept():
            if self.bn_images:
                recalibrate(self.model, self.train, self.normalization, self.bn_images)
            found = score(self.model, self.valid, self.normalization)
        return {"valid_loss": found.loss, "valid_accuracy": found.accuracy}

    def state_dict(self) -> dict[str, Any]:
        """Nothing is carried from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is carried from step to step."""


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
        print(f"{dataset.info['name']}: {counts}; {config.model.name}, {parameters:,} parameters", flush=True)

    return training.train(command, task, {"data": describe_images(dataset)}, begin)


if __name__ == "__main__":
    training.run_program(main)
