"""Training speed of the image recipe, against bare PyTorch loops of the same model.

    python benchmarks/images.py [--models resnet20] [--steps 30] [--rounds 5] [--threads 2]

The bare loop is what one would write by hand: minibatches that were augmented and normalised before and lie in memory
as floats, forward, loss, backward, step. The recipe's loop cuts, mirrors and normalises its images too, which it holds
as bytes, checks for non-finite values, counts, logs and can resume. The usual pipeline is the bare loop behind a
DataLoader that pads, crops and mirrors one PIL image after another, without workers and with two. All train on the same
images, random ones of 32×32 in minibatches of 128, in turns, and the ratios are taken turn by turn. Models and images
of the bare loop are in torch's default memory layout, those of all others have the channels last.

Time on one machine with 2 cores: about 5 minutes.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from timing import Figures, asked, benchmark, in_turns, ratio
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from seqssgd.data.images import ImageDataset, load_images, write_image_dataset
from seqssgd.images.config import Config, CorpusConfig
from seqssgd.images.networks import NETWORKS, build_classifier
from seqssgd.images.task import ImageTask
from seqssgd.training import OptimConfig, RunDirectory, TrainingConfig, build_optimizer, fit

BATCH, CLASSES, PAD = 128, 10, 4
LAYOUT = torch.channels_last
OPTIM = OptimConfig(lr=0.1, momentum=0.9, weight_decay=1e-4)


def random_images(folder: Path, count: int) -> ImageDataset:
    """A prepared folder of so many training images, noise of all colours."""
    draw, sets = np.random.default_rng(0), {}
    for split, number in (("train", count), ("test", CLASSES)):
        images = draw.integers(256, size=(number, 3, 32, 32), dtype=np.uint8)
        sets[split] = (images, np.arange(number) % CLASSES)
    write_image_dataset(folder, sets, "noise", [str(label) for label in range(CLASSES)])
    return load_images(folder)


class TimedTask(ImageTask):
    """Notes when every minibatch is asked for."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        self.times: list[float] = []
        return asked(super().batches(epoch, start), self.times)


def build_task(name: str, dataset: ImageDataset, training: TrainingConfig) -> TimedTask:
    """The recipe's task with a new model."""
    torch.manual_seed(0)
    config = Config(NETWORKS.settings(name), CorpusConfig(pad=PAD), OPTIM, training, BATCH)
    return TimedTask(build_classifier(NETWORKS.settings(name), CLASSES), dataset, config, torch.device("cpu"))


def recipe_rate(name: str, dataset: ImageDataset, precision: str, folder: Path) -> float:
    """Images per second in the recipe's own loop, an epoch."""
    training = TrainingConfig(precision=precision)
    task = build_task(name, dataset, training)
    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stdout(io.StringIO()):
        fit(task, build_optimizer(task.model, OPTIM), [], training, RunDirectory(out, {}))
    return rate(task.times)


def bare_rate(name: str, batches: Iterable[tuple[Tensor, Tensor]], layout: torch.memory_format) -> float:
    """Images per second of a loop without anything around it."""
    torch.manual_seed(0)
    model = build_classifier(NETWORKS.settings(name), CLASSES).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=OPTIM.lr, momentum=OPTIM.momentum, weight_decay=1e-4)
    times: list[float] = []
    model.train()
    for images, labels in asked(batches, times):
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return rate(times)


class PilImages(Dataset):
    """The images one at a time, as the usual pipeline augments them."""

    def __init__(self, dataset: ImageDataset):
        images, labels = dataset.split("train")
        self.images, self.labels = images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist()
        self.mean, self.std = (torch.tensor(dataset.info[key]).view(3, 1, 1) for key in ("mean", "std"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = ImageOps.expand(Image.fromarray(self.images[index]), PAD)
        left, top = torch.randint(2 * PAD + 1, (2,)).tolist()
        image = image.crop((left, top, left + 32, top + 32))
        if torch.rand(()) < 0.5:
            image = ImageOps.mirror(image)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        return values.sub_(self.mean).div_(self.std), self.labels[index]


def pil_rate(name: str, data: PilImages, workers: int) -> float:
    """Images per second of the bare loop behind the usual pipeline."""
    loader = DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return bare_rate(name, ((images.contiguous(memory_format=LAYOUT), labels) for images, labels in loader), LAYOUT)


def input_rate(task: TimedTask) -> float:
    """Images per second of the recipe's minibatches alone, an epoch."""
    for _ in task.batches(0):
        pass
    return rate(task.times)


def rate(times: list[float]) -> float:
    """From when the second minibatch was asked for, as the first is the warm-up, until the one after the last was."""
    return BATCH * (len(times) - 2) / (times[-1] - times[1])


def measure(name: str, args: argparse.Namespace, folder: Path) -> Figures:
    dataset = random_images(folder / name, (args.steps + 1) * BATCH)
    task, pil = build_task(name, dataset, TrainingConfig()), PilImages(dataset)
    last = list(task.batches(0))
    first = [(images.contiguous(), labels) for images, labels in last]
    rates = in_turns(
        {
            "bare": lambda: bare_rate(name, first, torch.contiguous_format),
            "last": lambda: bare_rate(name, last, LAYOUT),
            "recipe": lambda: recipe_rate(name, dataset, "fp32", folder),
            "bf16": lambda: recipe_rate(name, dataset, "bf16", folder),
            "input": lambda: input_rate(task),
            "pil": lambda: pil_rate(name, pil, 0),
            "workers": lambda: pil_rate(name, pil, 2),
        },
        args.rounds,
    )
    return {
        "images per second, bare loop": statistics.median(rates["bare"]),
        "images per second, recipe": statistics.median(rates["recipe"]),
        "recipe / bare loop": ratio(rates["recipe"], rates["bare"]),
        "recipe / bare loop with channels last": ratio(rates["recipe"], rates["last"]),
        "recipe / DataLoader of PIL images": ratio(rates["recipe"], rates["pil"]),
        "recipe / DataLoader of PIL images, 2 workers": ratio(rates["recipe"], rates["workers"]),
        "input pipeline, percent of a step": ratio([100 * rate for rate in rates["recipe"]], rates["input"]),
        "channels last / default layout, both bare loops": ratio(rates["last"], rates["bare"]),
        "bf16 autocast / fp32, both the recipe": ratio(rates["bf16"], rates["recipe"]),
    }


if __name__ == "__main__":
    about = {name: f"minibatches of {BATCH} images of 32×32, {CLASSES} classes" for name in NETWORKS.known}
    benchmark(__doc__.splitlines()[0], about, measure, default=["resnet20"], steps=30)
