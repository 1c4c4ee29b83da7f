"""Image classifiers: those of the recipe by name, read back from a run directory, and how often they are right."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqssgd.data.images import ImageDataset, ImageSet, Normalization
from seqssgd.errors import UserError
from seqssgd.models.resnet import cifar_resnet
from seqssgd.models.vgg import VGG, VGGNet
from seqssgd.models.wide_resnet import WideResNet
from seqssgd.optim.batchnorm import recalibrate_bn
from seqssgd.runs import find_checkpoint, read_section
from seqssgd.training import checkpoint as checkpoints

KIND = "an image classifier"

# Every network for 32×32 images: number of classes -> network.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(cifar_resnet, 20),
    "resnet56": partial(cifar_resnet, 56),
    "wrn28_2": partial(WideResNet, 28, 2),
    "wrn28_4": partial(WideResNet, 28, 4),
    **{name: partial(VGGNet, **settings) for name, settings in VGG.items()},
}


def build_classifier(name: str, num_classes: int) -> nn.Module:
    """One of ``MODELS``, its weights with the channels last in memory as its images have them.

    Raises:
        UserError: there is none of that name.
    """
    if name not in MODELS:
        raise UserError(f"model.name: {name!r} is not one of {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes).to(memory_format=torch.channels_last)


def load_classifier(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model (on the CPU, in evaluation mode) of a run of ``recipes/cifar_cnn/train.py``.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.find_checkpoint`.

    Raises:
        UserError: not a run of an image classifier, no such checkpoint, a damaged one, or one of another model.
    """
    settings, data = (read_section(run, section, KIND) for section in ("model", "data"))
    if set(settings) != {"name"} or not isinstance(data.get("classes"), int):
        raise UserError(f"{Path(run) / 'config.yaml'} describes no image classifier; give a --run of {KIND}")
    path = find_checkpoint(run, checkpoint)
    model = build_classifier(settings["name"], data["classes"])
    checkpoints.load_model(model, checkpoints.load(path), path)
    return model.eval()


def describe_images(dataset: ImageDataset) -> dict[str, object]:
    """What a run's configuration says of the images that it was trained on."""
    return {
        "name": dataset.info["name"],
        "classes": len(dataset.classes),
        "fingerprint": dataset.info["fingerprint"],
    }


def check_same_images(run: str | Path, dataset: ImageDataset) -> None:
    """Makes sure that a run was trained on ``dataset``.

    Raises:
        UserError: it was trained on other images, or is not a run.
    """
    trained_on = read_section(run, "data", KIND)
    if trained_on.get("fingerprint") != dataset.info["fingerprint"]:
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
def score(model: nn.Module, data: ImageSet, normalization: Normalization, batch_size: int = 200) -> Score:
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
    correct = torch.zeros((), dtype=torch.int64, device=data.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=data.labels.device)
    for images, labels in zip(data.images.split(batch_size), data.labels.split(batch_size), strict=True):
        logits = model(normalization(images)).float()
        correct += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits, labels, reduction="sum").double()
    count = len(data.labels)
    mean = loss.item() / count
    return Score(100 * correct.item() / count, mean if math.isfinite(mean) else math.inf, correct.item(), count)


def recalibrate(
    model: nn.Module, data: ImageSet, normalization: Normalization, images: int, batch_size: int = 200
) -> None:
    """Takes the batch-norm statistics of a classifier anew, from its first ``images`` training images as they are.

    Raises:
        UserError: there are no images.
    """

    def batches() -> Iterator[Tensor]:
        for part in data.images[:images].tensor_split(max(1, min(images, len(data.images)) // batch_size)):
            yield normalization(part)

    if not len(data.images[:images]):
        raise UserError("there are no images to take batch-norm statistics from")
    recalibrate_bn(model, batches())
