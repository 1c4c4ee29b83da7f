"""Prepared images that stay encoded on disk, and minibatches of pieces of them, which are decoded by several threads.

A prepared folder is what ``data_prep/imagenet.py`` wrote. The package datasets keeps a copy of every set, which it can
map into memory, in its cache (see its HF_HOME).
"""

import copy
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seqssgd.data.contents import check_set
from seqssgd.data.images import Normalization, ShuffledBatches
from seqssgd.data.pictures import ImageError, decode_rgb
from seqssgd.data.prefetching import prefetch
from seqssgd.data.prepared import read_sets
from seqssgd.errors import UserError, require

if TYPE_CHECKING:
    import datasets

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels, as published weights expect them
ENLARGED = 256 / 224  # the shorter side of an image as a multiple of the central square that is cut out
TRIES = 10  # of random_box
Box = tuple[float, float, float, float]  # left, top, right, bottom


def central_box(width: int, height: int) -> Box:
    """The central square: what is left of an image whose shorter side becomes 256 pixels when 224 are cut out."""
    side = min(width, height) / ENLARGED
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def random_box(width: int, height: int, draws: Tensor, smallest_area: float = 0.08) -> Box:
    """A random piece of an image with an aspect ratio between 3/4 and 4/3.

    Args:
        width, height: of the image.
        draws: uniform in [0, 1), (``TRIES``, 4): area, ratio, left and top of each try, the first that fits is taken;
            the largest central piece if none does.
        smallest_area: of the piece, as a share of the image.

    Source: Szegedy et al. 2015, section 6; the tries are those of torchvision's RandomResizedCrop.
    """
    for area, ratio, left, top in draws.tolist():
        area = width * height * (smallest_area + area * (1 - smallest_area))
        ratio = math.exp(math.log(4 / 3) * (2 * ratio - 1))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(left * (width - wide + 1)), int(top * (height - high + 1))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


class EncodedImages:
    """The images of a set, each decoded when it is asked for; made by :meth:`EncodedDataset.split`.

    Attributes:
        labels: (N,) of int64, on the CPU.
        device: where minibatches go.
    """

    def __init__(self, name: str, table: "datasets.Dataset", size: int, workers: int) -> None:
        labels = table.select_columns("label").with_format("arrow")[:]["label"]
        self.name, self.labels = name, torch.from_numpy(labels.to_numpy().copy())
        self.device = torch.device("cpu")
        self._images, self._size = table.select_columns("image"), size
        self._pool = ThreadPoolExecutor(min(workers, os.cpu_count() or 1), "decoder")

    def to(self, device: torch.device | str) -> "EncodedImages":
        """The same, with minibatches on a device."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def pieces(self, rows: Sequence[int], draws: Sequence[Tensor] | None = None, smallest_area: float = 0.08) -> Tensor:
        """A piece of each image, (B, 3, size, size) of uint8, on the CPU.

        Args:
            rows: the images.
            draws: for each what :func:`random_box` needs; None: the central squares.
            smallest_area: of random pieces.

        Raises:
            UserError: an image cannot be decoded.
        """
        contents = [cell["bytes"] for cell in self._images[list(rows)]["image"]]
        return torch.stack(list(self._pool.map(self._piece, rows, contents, draws or [None] * len(rows),
                                               [smallest_area] * len(rows))))  # fmt: skip

    def _piece(self, row: int, content: bytes, draws: Tensor | None, smallest_area: float) -> Tensor:
        import numpy as np
        from PIL import Image

        try:
            image = decode_rgb(content)
        except ImageError as error:
            raise UserError(f"{self.name}, row {row} {error}; prepare the images again") from None
        box = central_box(*image.size) if draws is None else random_box(*image.size, draws, smallest_area)
        piece = image.resize((self._size, self._size), Image.Resampling.BILINEAR, box)
        return torch.from_numpy(np.array(piece)).permute(2, 0, 1)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The central squares and labels of the images in order, ``batch_size`` or more at a time."""
        rows = torch.arange(len(self.labels))
        parts = rows.tensor_split(max(1, len(rows) // batch_size))
        for part, images in zip(parts, prefetch(parts, lambda part: self.pieces(part.tolist())), strict=True):
            yield images.to(self.device), self.labels[part].to(self.device)


class EncodedDataset:
    """Prepared images: ``info`` (the contents of ``dataset.json``) and the sets."""

    def __init__(self, folder: Path, info: dict) -> None:
        self.folder, self.info = folder, info

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return self.info["classes"]

    @property
    def content(self) -> dict[str, str]:
        """What differs between sets whose images differ, by name; none of those that an earlier version prepared."""
        return self.info.get("content", {})

    def split(self, name: str, size: int = 224, workers: int = 1) -> EncodedImages:
        """``"train"`` or ``"valid"``, whose minibatches are squares of ``size`` pixels decoded by ``workers`` threads,
        at most as many as the machine has cores.

        Raises:
            UserError: the files cannot be read, or have changed.
        """
        from seqssgd.data.hub import open_parquet

        check_set(self.folder, name, self.info)
        files = [self.folder / file for file in sorted(self.info["sets"][name]["files"])]
        title = str(self.folder / name)
        return EncodedImages(title, open_parquet(title, files, "images").cast(_features()), size, workers)


def load_encoded(folder: str | Path) -> EncodedDataset:
    """Opens a folder that ``data_prep/imagenet.py`` wrote.

    Raises:
        UserError: no such folder, or one that was not prepared, or a file is missing or has changed.
    """
    kind = require("seqssgd.data.image_rows").KIND
    folder = Path(folder)
    info = read_sets(folder, kind)
    if info is None or not {"train", "valid"} <= set(info["sets"]) or "classes" not in info:
        what = "does not exist" if not folder.exists() else "holds no prepared images"
        raise UserError(f"{folder} {what}; write it with: python data_prep/imagenet.py --source DIR --out {folder}")
    return EncodedDataset(folder, info)


def _features() -> "datasets.Features":
    import datasets

    return datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})


class RandomPieces(ShuffledBatches):
    """Minibatches of random pieces, half of them mirrored: order and pieces are a pure function of seed and epoch.

    Args:
        data: the training set.
        normalization: on the device of the minibatches.
        batch_size: images in a minibatch, over all processes.
        smallest_area: of a piece, as a share of its image.
        flip: whether half of the pieces are mirrored.
        ahead: minibatches that are decoded ahead of time.
        seed, rank, world_size: as in :class:`ShuffledBatches`.

    Raises:
        UserError: an impossible area, or as in :class:`ShuffledBatches`.
    """

    def __init__(
        self,
        data: EncodedImages,
        normalization: Normalization,
        batch_size: int,
        smallest_area: float = 0.08,
        flip: bool = True,
        ahead: int = 2,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(data.labels), batch_size, seed, rank, world_size)
        if not 0 < smallest_area <= 1:
            raise UserError(f"smallest_area: {smallest_area} is not a number > 0 and <= 1")
        if ahead < 0:
            raise UserError(f"ahead: {ahead} is not a whole number >= 0")
        self.data, self.normalization = data, normalization
        self.smallest_area, self.flip, self.ahead = smallest_area, flip, ahead

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, size, size) of float32 and labels (B,), from minibatch ``start`` on."""
        order = torch.randperm(self.count, generator=self.generator("images", epoch))

        def load(index: int) -> tuple[Tensor, Tensor]:
            at, generator = self.share(index), self.generator("pieces", epoch, index)
            mine = slice(at.start - index * self.batch_size, at.stop - index * self.batch_size)
            draws = torch.rand(self.batch_size, TRIES, 4, generator=generator)[mine]
            flips = torch.rand(self.batch_size, generator=generator)[mine] < (0.5 if self.flip else 0)
            images = self.data.pieces(order[at].tolist(), list(draws), self.smallest_area)
            return torch.where(flips.view(-1, 1, 1, 1), images.flip(3), images), self.data.labels[order[at]]

        device = self.data.device
        for images, labels in prefetch(range(start, len(self)), load, self.ahead):
            yield self.normalization(images.to(device, non_blocking=True)), labels.to(device, non_blocking=True)
