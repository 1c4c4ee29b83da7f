"""Small made-up images in folders named after their classes, as ImageNet comes, and a network of their size."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from programs import load

CLASSES = [f"n{number:02d}" for number in range(8)]


def picture(label: int, seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Noise around a colour of its class; ``size`` is width and height."""
    colour = [60 + 120 * (label >> bit & 1) for bit in range(3)]
    noise = np.random.default_rng(100 * label + seed).integers(-50, 50, (size[1], size[0], 3))
    return Image.fromarray((np.array(colour) + noise).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_tree(folder: Path, train: int = 6, valid: int = 2) -> Path:
    """``train/CLASS/NUMBER.JPEG`` and ``val/CLASS/NUMBER.JPEG``, so many of each class, in several sizes."""
    for name, count, first in (("train", train, 0), ("val", valid, 50)):
        for label, title in enumerate(CLASSES):
            (folder / name / title).mkdir(parents=True)
            for number in range(first, first + count):
                size = (40, 32) if number % 2 else (36, 48)
                (folder / name / title / f"{number}.JPEG").write_bytes(encoded(picture(label, number, size)))
    return folder


def prepared_tree(folder: Path) -> Path:
    """The images of :func:`write_tree`, in ``folder/tree``, prepared in ``folder/out``."""
    load("data_prep/imagenet.py").main(["--source", str(write_tree(folder / "tree")), "--out", str(folder / "out")])
    return folder / "out"


def small_network(num_classes: int) -> torch.nn.Module:
    layers = [torch.nn.Conv2d(3, 8, 5, 3, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, num_classes)
    )
