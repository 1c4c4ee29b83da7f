"""The settings of an image classifier and its training: of small images held on the device, and of encoded ones."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from ..networks import NetworkSettings
from ..training.config import OptimConfig, TrainingConfig
from ..training.unused import changed
from .networks import ENCODED_NETWORKS, NETWORKS


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

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise UserError(f"corpus.pad: {self.pad} is not a whole number >= 0")


@dataclass
class Config:
    """A classifier and its training.

    Attributes:
        model: the network; its name, and the settings that its class has.
        corpus: what is read, and what is done to training images.
        optim: the method and the optimizer.
        training: the loop. Every one of ``accumulate`` minibatches has batch-norm statistics of its own.
        batch_size: images in a minibatch, over all processes, each of which has batch-norm statistics of its own.
        bn_images: training images from which batch-norm statistics are taken anew, at the clean weights, for every
            validation; 0: those that training left are used.
        seed: of initial weights, order of images and augmentation.
    """

    model: NetworkSettings = NETWORKS.field()
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch_size: int = 128
    bn_images: int = 2000
    seed: int = 0

    def idle(self) -> Iterator[tuple[str, Any, str]]:
        """Settings that do nothing beside others; see :func:`seqssgd.training.unused.idle`."""
        for key, value in changed(self, "", ["bn_images"]):
            if not self.corpus.valid:
                yield key, value, "with corpus.valid 0, as there is no validation"


@dataclass
class EncodedCorpusConfig:
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
        if not 0 < self.smallest_area <= 1:
            raise UserError(f"corpus.smallest_area: {self.smallest_area} is not a number > 0 and <= 1")
        if self.ahead < 0:
            raise UserError(f"corpus.ahead: {self.ahead} is not a whole number >= 0")


@dataclass
class EncodedConfig(Config):
    """A classifier of images that are decoded while it trains: the settings of :class:`Config`, with other defaults.

    Attributes:
        corpus: how images are read, and what is done to training images.
    """

    model: NetworkSettings = ENCODED_NETWORKS.field()
    corpus: EncodedCorpusConfig = field(default_factory=EncodedCorpusConfig)
    batch_size: int = 256
    bn_images: int = 10_000

    def idle(self) -> Iterator[tuple[str, Any, str]]:
        """None: there are always images to validate on."""
        return iter(())
