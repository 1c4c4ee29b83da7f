"""Image classifiers: those of the recipes by name, their training as a task, how often they are right, and reading them
back from a run directory."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqssgd.data.encoded_images import EncodedDataset, EncodedImages, RandomPieces
from seqssgd.data.images import AugmentedBatches, ImageDataset, ImageSet, Normalization
from seqssgd.errors import UserError
from seqssgd.models.resnet import cifar_resnet, resnet18, resnet50
from seqssgd.models.vgg import VGG, VGGNet
from seqssgd.models.wide_resnet import WideResNet
from seqssgd.optim import Pass
from seqssgd.optim.batchnorm import RunningStatistics, recalibrate_bn
from seqssgd.runs import checkpoints, layout
from seqssgd.runs.checkpoints import check_files, find_checkpoint
from seqssgd.runs.settings import CLASSIFIER, read_section
from seqssgd.training import distributed
from seqssgd.training.config import OptimConfig, TrainingConfig

KIND = CLASSIFIER

# Every network for 32×32 images: number of classes -> network.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
    "wrn28_2": partial(WideResNet, 28, 2),
    "wrn28_4": partial(WideResNet, 28, 4),
    **{name: partial(VGGNet, **settings) for name, settings in VGG.items()},
}
# Those for ImageNet.
IMAGENET_MODELS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}


def build_classifier(name: str, num_classes: int) -> nn.Module:
    """One of ``MODELS`` or ``IMAGENET_MODELS``, its weights with the channels last in memory as its images have them.

    Raises:
        UserError: there is none of that name.
    """
    models = MODELS | IMAGENET_MODELS
    if name not in models:
        raise UserError(f"model.name: {name!r} is not one of {', '.join(models)}")
    model = models[name](num_classes=num_classes)
    return model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch forgot to declare it


def load_classifier(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model (on the CPU, in evaluation mode) of a run of the recipes ``cifar_cnn`` and ``imagenet_resnet``.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of an image classifier, no such checkpoint, a damaged one, or one of another model.
    """
    settings, data = (read_section(run, section, KIND) for section in ("model", "data"))
    if set(settings) != {"name"} or not isinstance(data.get("classes"), int):
        raise UserError(f"{Path(run) / layout.CONFIG} describes no image classifier; give a --run of {KIND}")
    path = find_checkpoint(run, checkpoint)
    model = build_classifier(settings["name"], data["classes"])
    state = checkpoints.load(path)
    check_files(run, state, path)
    checkpoints.load_model(model, state, path)
    return model.eval()


def describe_images(dataset: ImageDataset | EncodedDataset) -> dict[str, object]:
    """What a run's configuration says of the images that it was trained on."""
    return {
        "name": dataset.info["name"],
        "classes": len(dataset.classes),
        "fingerprint": dataset.info["fingerprint"],  # of CIFAR's content; of the others' names and sizes
        **({"content": dataset.content} if isinstance(dataset, EncodedDataset) and dataset.content else {}),
    }


def check_same_images(run: str | Path, dataset: ImageDataset | EncodedDataset) -> None:
    """Makes sure that a run was trained on ``dataset``.

    Raises:
        UserError: it was trained on other images, or is not a run.
    """
    trained_on = read_section(run, "data", KIND)
    then, now = trained_on, describe_images(dataset)
    known = "content" in then and "content" in now
    if then.get("fingerprint") != now["fingerprint"] or (known and then["content"] != now["content"]):
        raise UserError(
            f"{dataset.folder} ({dataset.info['name']}) is not the data that {run} was trained on "
            f"({trained_on.get('name')}); give that --data"
        )


class Score(NamedTuple):
    """``accuracy`` in percent, mean ``loss`` (cross-entropy), and how many of ``images`` were ``correct``."""

    accuracy: float
    loss: float
    correct: int
    images: int


@torch.no_grad()
def score(
    model: nn.Module, data: ImageSet | EncodedImages, normalization: Normalization, batch_size: int = 200
) -> Score:
    """How often the most likely class is the right one.

    Args:
        model: in evaluation mode, on the device of the images.
        data: the images.
        normalization: as in training.
        batch_size: images at a time; of no matter for the result.

    Raises:
        UserError: there are no images.
    """
    if not len(data.labels):
        raise UserError("there are no images to score a classifier on")
    correct: Tensor | int = 0
    loss: Tensor | float = 0.0
    for images, labels in data.batches(batch_size):
        logits = model(normalization(images)).float()
        correct = correct + (logits.argmax(1) == labels).sum()
        loss = loss + F.cross_entropy(logits, labels, reduction="sum").double()
    count, right, mean = len(data.labels), int(correct), float(loss) / len(data.labels)
    return Score(100 * right / count, mean if math.isfinite(mean) else math.inf, right, count)


def recalibrate(model: nn.Module, minibatches: AugmentedBatches | RandomPieces, images: int) -> int:
    """Takes the batch-norm statistics of a classifier anew, with its weights as they are, from minibatches like those
    it was trained on: the first ones of epoch 0.

    Augmented as in training, so that noise is all that the statistics are freed of. Those of images as they are fit
    the weights less well.

    Args:
        model: the classifier.
        minibatches: of training images.
        images: how many to take, rounded up to whole minibatches and at most an epoch.

    Returns:
        How many were taken.

    Raises:
        UserError: ``images`` is below 1.
    """
    if images < 1:
        raise UserError("there are no images to take batch-norm statistics from")
    share = minibatches.batch_size // minibatches.world_size
    count = min(math.ceil(images / share), len(minibatches))
    recalibrate_bn(model, (images for images, _ in islice(minibatches.epoch(0), count)))
    return count * share


# ---- training --------------------------------------------------------------------------------------------------------


class ClassificationTask:
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
        if optim.halves and batch_size < 2 * distributed.world_size():
            raise UserError(f"batch_size: {batch_size} cannot be halved in every process, as optim asks for")
        if bn_images < 0:
            raise UserError(f"bn_images: {bn_images} is not a whole number >= 0")
        self.model, self.train, self.valid, self.minibatches = model, train, valid, minibatches
        self.normalization, self.bn_images = minibatches.normalization, bn_images
        self.steps_per_epoch = len(minibatches) // training.accumulate
        if not self.steps_per_epoch:
            raise UserError(
                f"training.accumulate: {training.accumulate} minibatches of {batch_size} are more than "
                f"the {len(train.labels):,} training images"
            )
        self.best = ("valid_accuracy", "max") if judged else None

    def start_epoch(self, epoch: int) -> None:
        """Nothing is carried from minibatch to minibatch."""

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

    def state_dict(self) -> dict[str, Any]:
        """Nothing is carried from step to step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is carried from step to step."""


def evaluate_run(
    path: Path,
    data: ImageSet | EncodedImages,
    model: nn.Module,
    minibatches: AugmentedBatches | RandomPieces,
    bn_images: int,
    title: str,
) -> dict[str, Any]:
    """Scores a trained classifier and prints it, with batch-norm statistics that are taken anew and raw.

    Args:
        path: the checkpoint that the model is from.
        data: the images to score it on.
        model: in evaluation mode; it keeps the new statistics.
        minibatches: of training images, as the run had them.
        bn_images: how many images of these the statistics are taken from.
        title: of ``data``.

    Returns:
        The figures, for :func:`seqssgd.report.record`.
    """
    raw = score(model, data, minibatches.normalization)
    number = recalibrate(model, minibatches, bn_images)
    clean = score(model, data, minibatches.normalization)
    print(f"{path}, {title}: {_describe(clean)}, batch norm recalibrated on {number:,} training images")
    print(f"  raw, with the running statistics of training: {_describe(raw)}")
    return {**clean._asdict(), "raw": raw._asdict(), "bn_images": number, "checkpoint": path.name}


def _describe(found: Score) -> str:
    """Accuracy with its counts, and loss."""
    return f"accuracy {found.accuracy:.2f} % ({found.correct:,} of {found.images:,}), loss {found.loss:.4f}"
