"""The training of an image classifier: its data, its loss, its evaluation."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import processes
from ..data.encoded_images import MEAN, STD, EncodedDataset, EncodedImages, RandomPieces
from ..data.images import AugmentedBatches, ImageDataset, ImageSet, Normalization
from ..errors import UserError
from ..optim import Pass
from ..optim.batchnorm import RunningStatistics
from ..training import Task, distributed
from ..training.config import OptimConfig, TrainingConfig
from .config import Config, EncodedConfig
from .networks import check_network
from .scoring import recalibrate, score


class ClassificationTask(Task):
    """Training on augmented images; a :class:`seqssgd.training.task.Task`.

    Args:
        model: takes normalised images (B, 3, H, W) and gives logits.
        train: the training images.
        valid: the images to validate on; there may be none.
        minibatches: of augmented training images, normalised.
        bn_images: how many of them batch-norm statistics are taken from for every validation; 0: those that training
            left are used.
        judged: whether the best model is that with the highest accuracy in validation; if not, it is the last.
        optim, training: the settings of the run.

    Raises:
        UserError: settings that do not fit each other or the data.
    """

    def __init__(
        self,
        model: nn.Module,
        train: ImageSet | EncodedImages,
        valid: ImageSet | EncodedImages,
        minibatches: AugmentedBatches | RandomPieces,
        bn_images: int,
        judged: bool,
        optim: OptimConfig,
        training: TrainingConfig,
    ) -> None:
        batch_size = minibatches.batch_size
        if optim.halves and batch_size < 2 * processes.world_size():
            raise UserError(f"batch_size: {batch_size} cannot be halved in every process, as optim asks for")
        if bn_images < 0:
            raise UserError(f"bn_images: {bn_images} is not a whole number >= 0")
        self.model, self.train, self.valid, self.minibatches = model, train, valid, minibatches
        self.normalization, self.bn_images = minibatches.normalization, bn_images
        training.check_accumulate(len(minibatches))
        self.steps_per_epoch = len(minibatches) // training.accumulate
        self.best = ("valid_accuracy", "max") if judged else None

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images (B, 3, H, W) and labels (B,)."""
        return self.minibatches.epoch(epoch, start)

    def loss(self, batch: tuple[Tensor, Tensor], part: Pass) -> tuple[Tensor, int]:
        """Cross-entropy, averaged over the images."""
        images, labels = part.take(*batch)
        return part.mean(F.cross_entropy(self.model(images).float(), labels, reduction="none")), len(labels)

    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy in percent on the validation images; nothing if there are none."""
        if not len(self.valid.labels):
            return {}
        with RunningStatistics(self.model).kept():
            if self.bn_images:
                recalibrate(self.model, self.minibatches, self.bn_images)
            found = score(self.model, self.valid, self.normalization)
        return {"valid_loss": found.loss, "valid_accuracy": found.accuracy}


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
        height, width = train.images.shape[2:]
        check_network(config.model, model, (height, width), len(dataset.classes))
        super().__init__(model, train, valid, minibatches, config.bn_images, judged, config.optim, config.training)


class ImageNetTask(ClassificationTask):
    """Classification of images that are decoded while the network trains."""

    def __init__(self, model: nn.Module, dataset: EncodedDataset, config: EncodedConfig, device: torch.device):
        corpus = config.corpus
        if config.training.patience is not None:
            raise UserError(
                "training.patience: there is nothing to judge by, as validation images are what is reported"
            )
        check_network(config.model, model, (corpus.size, corpus.size), len(dataset.classes))
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
