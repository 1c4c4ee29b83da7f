"""How often an image classifier is right."""

import math
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.encoded_images import EncodedImages, RandomPieces
from ..data.images import AugmentedBatches, ImageSet, Normalization
from ..errors import UserError
from ..optim.batchnorm import recalibrate_bn


class Accuracy(NamedTuple):
    """``accuracy`` in percent, mean ``loss`` (cross-entropy), and how many of ``images`` were ``correct``."""

    accuracy: float
    loss: float
    correct: int
    images: int


@torch.no_grad()
def score(
    model: nn.Module, data: ImageSet | EncodedImages, normalization: Normalization, batch_size: int = 200
) -> Accuracy:
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
    return Accuracy(100 * right / count, mean if math.isfinite(mean) else math.inf, right, count)


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


def _describe(found: Accuracy) -> str:
    """Accuracy with its counts, and loss."""
    return f"accuracy {found.accuracy:.2f} % ({found.correct:,} of {found.images:,}), loss {found.loss:.4f}"
