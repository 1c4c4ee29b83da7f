"""Prepared image sets, and the minibatches that are made of them on the device that trains.

A prepared folder has ``train.npz`` and ``test.npz``, each with ``images`` (N, 3, H, W) of uint8 and ``labels`` (N,) of
int64, and ``dataset.json`` with the names of the classes, counts, and mean and standard deviation of each channel.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from seqssgd.data import prepared
from seqssgd.errors import UserError, require

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "test")
KIND = "set of small images"  # of data


class ImageSet(NamedTuple):
    """``images`` (N, 3, H, W) of uint8 and their ``labels`` (N,) of int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def hold_out(self, count: int) -> tuple["ImageSet", "ImageSet"]:
        """The images without ``count`` of them, and these: a random choice that is the same in every run.

        Raises:
            UserError: there are no more than ``count`` images.
        """
        if not 0 <= count < len(self.labels):
            raise UserError(f"{count:,} of {len(self.labels):,} images cannot be held out")
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(0))
        parts = order[count:].sort()[0], order[:count].sort()[0]
        rest, held = (ImageSet(self.images[part], self.labels[part]) for part in parts)
        return rest, held

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The images and their labels in order, ``batch_size`` or more at a time."""
        parts = max(1, len(self.labels) // batch_size)
        return zip(self.images.tensor_split(parts), self.labels.tensor_split(parts), strict=True)


class ImageDataset:
    """Prepared images: ``info`` (the contents of ``dataset.json``) and the sets."""

    def __init__(self, folder: Path, info: dict) -> None:
        self.folder, self.info = folder, info

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return self.info["classes"]

    def split(self, name: str) -> ImageSet:
        """``"train"`` or ``"test"``.

        Raises:
            UserError: the set is missing, or its file is not the one that was prepared, or holds something else.
        """
        prepared.check_files(self.folder, self.info, [f"{name}.npz"])
        path = self.folder / f"{name}.npz"
        try:
            return _read(path, len(self.classes))
        except Exception as error:  # numpy and zipfile each raise their own
            if isinstance(error, (OSError, MemoryError)):
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{path} holds no images with labels ({reason}); prepare them again") from None

    def __str__(self) -> str:
        rows = [f"{self.folder}: {self.info['name']}, {len(self.classes)} classes"]
        for name, count in self.info["splits"].items():
            height, width = count["size"]
            rows.append(f"  {name:<6}{count['images']:>9,} images of {height} × {width}")
        for key, title in (("mean", "mean"), ("std", "standard deviation")):
            rows.append(f"  {title} of the channels: {', '.join(f'{value:.4f}' for value in self.info[key])}")
        return "\n".join(rows)


def _read(path: Path, classes: int) -> ImageSet:
    import numpy as np

    with zipfile.ZipFile(path) as archive:  # which takes no more memory than the file has bytes
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("its arrays are compressed, as those of no prepared set are")
    with np.load(path, allow_pickle=False) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    if images.dtype != np.uint8 or images.ndim != 4 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError("its arrays are of other types or shapes")
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"a label is none of {classes} classes")
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def load_images(folder: str | Path) -> ImageDataset:
    """Opens a folder that ``data_prep/cifar.py`` wrote.

    Raises:
        UserError: no such folder, or one that was not prepared.
    """
    folder = Path(folder)
    info = prepared.read_info(folder, KIND)
    if info is None:
        what = "does not exist" if not folder.exists() else "holds no prepared images (it has no dataset.json)"
        raise UserError(f"{folder} {what}; write it with: python data_prep/cifar.py --source CIFAR --out {folder}")
    return ImageDataset(folder, info)


def write_image_dataset(
    out: str | Path, sets: Mapping[str, tuple["np.ndarray", "np.ndarray"]], name: str, classes: Sequence[str]
) -> bool:
    """Prepares images: writes the sets and what is known about them into the folder ``out``, complete or not at all.

    Args:
        out: the folder to write; it may exist if it is empty.
        sets: images (N, 3, H, W) of uint8 and labels (N,) of ``"train"`` and ``"test"``.
        name: what the images are called in messages.
        classes: the names of the classes, in the order of their labels.

    Returns:
        Whether anything was written; ``False`` if ``out`` already holds these images.

    Raises:
        UserError: ``out`` holds something else or cannot be written.
    """
    import numpy as np

    out = Path(out).resolve()
    sets = {split: (np.ascontiguousarray(images), labels.astype(np.int64)) for split, (images, labels) in sets.items()}
    digest = hashlib.sha256(json.dumps([prepared.FORMAT, list(classes)]).encode())
    for split in SPLITS:
        for array in sets[split]:
            digest.update(f"{split} {array.dtype} {array.shape}".encode())
            digest.update(array.data)
    if prepared.is_prepared(out, digest.hexdigest(), KIND):
        return False
    mean, std = _channel_statistics(sets["train"][0])
    counts = {split: {"images": len(labels), "size": images.shape[2:]} for split, (images, labels) in sets.items()}
    info = {"name": name, "classes": list(classes), "splits": counts, "mean": mean, "std": std}

    def fill(folder: Path) -> None:
        for split, (images, labels) in sets.items():
            np.savez(folder / f"{split}.npz", images=images, labels=labels)

    require("seqssgd.data.preparing").write_folder(out, info | {"fingerprint": digest.hexdigest()}, fill)
    return True


def _channel_statistics(images: "np.ndarray") -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over all pixels, for values from 0 to 1."""
    import numpy as np

    values = np.arange(256) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        means.append(float(share @ values))
        stds.append(float(np.sqrt(share @ np.square(values - means[-1]))))
    return means, stds


# ---- minibatches -----------------------------------------------------------------------------------------------------


class Normalization:
    """Turns images of uint8 into floats whose channels have mean 0 and standard deviation 1 over the training set.

    Args:
        mean: of each channel, for values from 0 to 1.
        std: standard deviations likewise.
        device: of the images.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        self.mean, self.std = (255 * torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) of uint8 to float32, with the channels last in memory, as convolutions are fastest."""
        floats = images.to(torch.float32, memory_format=torch.channels_last)
        return floats.sub_(self.mean).div_(self.std)

    def fill(self) -> Tensor:
        """The mean colour (C,) of uint8: what comes nearest to 0."""
        return self.mean.flatten().round().to(torch.uint8)


def crop_and_flip(images: Tensor, pad: int, tops: Tensor, lefts: Tensor, flips: Tensor, fill: Tensor) -> Tensor:
    """Cuts a piece of the old size out of every padded image and mirrors some, left to right.

    Args:
        images: (B, C, H, W).
        pad: pixels added on each side.
        tops: first row of each piece (B,), from 0 to 2·pad.
        lefts: first column of each piece (B,), from 0 to 2·pad.
        flips: which images are mirrored (B,), of bool.
        fill: colour (C,) of the added pixels.

    Source: He et al. 2016, section 4.2.
    """
    count, channels, height, width = images.shape
    padded = fill.view(1, -1, 1, 1).repeat(count, 1, height + 2 * pad, width + 2 * pad)
    padded[:, :, pad : pad + height, pad : pad + width] = images
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: (B, C, top, left, H, W)
    pieces = windows[torch.arange(count, device=images.device), :, tops, lefts]
    return torch.where(flips.view(-1, 1, 1, 1), pieces.flip(3), pieces)


class ShuffledBatches:
    """Minibatches of images in an order of their own in every epoch, a pure function of seed and epoch.

    What is left after the last whole minibatch is left out, another rest in every epoch.

    Args:
        count: the number of images.
        batch_size: images in a minibatch, over all processes.
        seed: of order and augmentation.
        rank, world_size: each process gets its share of every minibatch.

    Raises:
        UserError: the batch size is below 1, does not divide among the processes, or is larger than the set.
    """

    def __init__(self, count: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size: {batch_size} images do not divide among {world_size} processes")
        if batch_size > count:
            raise UserError(f"batch_size: {batch_size} is more than the {count:,} training images")
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return self.count // self.batch_size

    def generator(self, purpose: str, *numbers: int) -> torch.Generator:
        """A generator that is seeded with the seed, the purpose and the numbers alone."""
        digest = hashlib.sha256(" ".join(map(str, (purpose, self.seed, *numbers))).encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7]))

    def share(self, index: int) -> slice:
        """Where in an epoch's order this process's share of minibatch ``index`` is."""
        share = self.batch_size // self.world_size
        first = index * self.batch_size + self.rank * share
        return slice(first, first + share)


class AugmentedBatches(ShuffledBatches):
    """Minibatches whose crops and flips, too, are a pure function of seed and epoch, on every device.

    Args:
        data: the training set, on the device that trains.
        normalization: applied after cropping.
        batch_size: images in a minibatch, over all processes.
        pad: pixels added on each side before the random crop; 0: no crop.
        flip: whether half of the images are mirrored.
        seed, rank, world_size: as in :class:`ShuffledBatches`.

    Raises:
        UserError: a negative ``pad``, or as in :class:`ShuffledBatches`.
    """

    def __init__(
        self,
        data: ImageSet,
        normalization: Normalization,
        batch_size: int,
        pad: int = 4,
        flip: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(data.labels), batch_size, seed, rank, world_size)
        if pad < 0:
            raise UserError(f"pad: {pad} is not a whole number >= 0")
        self.data, self.normalization, self.fill = data, normalization, normalization.fill()
        self.pad, self.flip = pad, flip

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, H, W) of float32 and labels (B,), from minibatch ``start`` on."""
        generator = self.generator("images", epoch)
        device = self.data.labels.device
        order = torch.randperm(self.count, generator=generator).to(device)
        tops, lefts = torch.randint(2 * self.pad + 1, (2, self.count), generator=generator).to(device)
        flips = (torch.rand(self.count, generator=generator) < (0.5 if self.flip else 0)).to(device)
        for index in range(start, len(self)):
            at = self.share(index)
            images = crop_and_flip(self.data.images[order[at]], self.pad, tops[at], lefts[at], flips[at], self.fill)
            yield self.normalization(images), self.data.labels[order[at]]
