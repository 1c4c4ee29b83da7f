"""A finished run of an image classifier: its model, its data."""

from pathlib import Path

import torch
from torch import nn

from ..data.encoded_images import EncodedDataset, load_encoded
from ..data.images import ImageDataset, load_images
from ..errors import UserError
from ..runs import checkpoints, layout
from ..runs.checkpoints import check_files, find_checkpoint
from ..runs.recipes import CLASSIFIER, read_recipe, read_section
from ..runs.settings import restored, restored_section
from .config import EncodedConfig
from .networks import build_classifier
from .task import ClassificationTask, ImageNetTask, ImageTask

KIND = CLASSIFIER


def load_classifier(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model (on the CPU, in evaluation mode) of a run, whatever its network.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of an image classifier, no such checkpoint, a damaged one, or one of another model.
    """
    recipe, config = read_recipe(run, KIND, settled=False)
    data = read_section(run, "data", KIND)
    if not isinstance(data.get("classes"), int):
        raise UserError(f"{Path(run) / layout.CONFIG} describes no image classifier (no data.classes)")
    path = find_checkpoint(run, checkpoint)
    try:
        model = build_classifier(restored_section(config["model"], recipe.config_class, "model"), data["classes"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{Path(run) / layout.CONFIG} describes no image classifier ({error})") from None
    state = checkpoints.load_evaluated(path)
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
            f"({trained_on.get('name')}); give the folder of that"
        )


def open_task(run: str | Path, folder: str | Path, device: torch.device | str = "cpu") -> ClassificationTask:
    """The training task of a run, with its best model, over the images that it was trained on.

    Args:
        run: the run directory.
        folder: the prepared images.
        device: for model and batches.

    Raises:
        UserError: as :func:`load_classifier` and :func:`check_same_images`.
    """
    model = load_classifier(run).to(device)
    recipe, config = read_recipe(run, KIND)
    settings = restored(config, recipe.config_class)
    if isinstance(settings, EncodedConfig):
        encoded = load_encoded(folder)
        check_same_images(run, encoded)
        return ImageNetTask(model, encoded, settings, torch.device(device))
    dataset = load_images(folder)
    check_same_images(run, dataset)
    return ImageTask(model, dataset, settings, torch.device(device))


def load_model(run: str | Path, checkpoint: str | Path = "best") -> nn.Module:
    """The model of a run alone; see :func:`load_classifier`."""
    return load_classifier(run, checkpoint)
