"""Power cuts: what a disk may hold at any instant, by what was synced, and whether training goes on from there.

Files and folders are followed through every fsync, rename and deletion of a training. A file's contents are certain
since its last fsync, a folder's names since the folder's. At each of these calls the power may fail: what was certain
is there; what was not is there, or is not, or in part, by chance.
"""

import os
import random
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .kills import LONGEST, Kills
from .processes import child
from .trainings import Training, result_of

TRIED = 50  # cuts of one training, of the some hundred that there may be


class Disk:
    """What is certain of the files below ``root``; ``event`` is called before every call that changes it.

    All that is there in the beginning is certain.
    """

    def __init__(self, root: Path, event: Callable[["Disk"], None]) -> None:
        self.root, self.event = root, event
        self.names: dict[int, dict[str, int]] = {}  # by the inode of a folder, as of its last fsync
        self.contents: dict[int, bytes] = {}  # by the inode of a file, as of its last fsync
        for path in (root, *root.rglob("*")):
            self._certain(path, path.stat())
        self.real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        for name in self.real:
            setattr(os, name, self._watched(name))

    def release(self) -> None:
        """Follows no more calls."""
        for name, real in self.real.items():
            setattr(os, name, real)

    def _watched(self, name: str) -> Callable:
        def call(*args, **kwargs):
            self.event(self)
            result = self.real[name](*args, **kwargs)
            if name == "fsync":
                self._certain(Path(os.readlink(f"/proc/self/fd/{args[0]}")), os.fstat(args[0]))
            return result

        return call

    def _certain(self, path: Path, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        elif stat.S_ISREG(status.st_mode):
            self.contents[status.st_ino] = Path(path).read_bytes()

    def image(self, out: Path, chance: random.Random, strict: bool) -> None:
        """Writes into ``out`` what the disk may hold; with ``strict`` only what is certain."""
        now = {path.stat().st_ino: path for path in (self.root, *self.root.rglob("*")) if path.exists()}
        self._write(self.root.stat().st_ino, self.root, out, now, chance, strict)

    def _write(
        self, inode: int, folder: Path | None, out: Path, now: dict, chance: random.Random, strict: bool
    ) -> None:
        self.real["mkdir"](out)
        names = self.names.get(inode, {})
        if not strict and chance.random() < 0.5:
            names = {entry.name: entry.inode() for entry in os.scandir(folder)}
        for name, own in names.items():
            path = now.get(own)
            if path is not None and path.is_dir():
                self._write(own, path, out / name, now, chance, strict)
                continue
            content, current = self.contents.get(own, b""), b"" if path is None else path.read_bytes()
            if not strict and path is not None and content != current:
                least = len(os.path.commonprefix([content, current]))  # what only grew, or was cut, keeps its beginning
                content = chance.choice([content, current, current[: chance.randint(least, len(current))]])
            (out / name).write_bytes(content)


class PowerCuts(Kills):
    """One trial: a training, what the disk may hold at each of its calls, and what the training becomes from there."""

    name = "power cuts"

    def trial(self, chance: random.Random) -> dict:
        training = self.trainings.any(chance)
        while training.name.startswith("imagenet"):  # whose checkpoints are too large to be kept by the hundred
            training = self.trainings.any(chance)
        expected, _ = self.reference(training)
        count: dict = {"trials": 1, "cuts": 0, "of": Counter()}
        images, status = self.images(training, self.folder / "disk", chance.random())
        if status != 0:
            return count | self.failure(training, f"status {status}")
        for image in chance.sample(images, min(TRIED, len(images))):
            disk = image
            if chance.random() < 0.2:  # the power fails once more
                again, status = self.images(training, image, chance.random(), chance.randint(1, 40))
                disk = again[0] if status == 9 else image
                count["cuts"] += status == 9
            count["cuts"] += 1
            count["of"][training.name] += 1
            status = self.goes_on(training, disk / "run")
            if status != 0 or result_of(disk / "run") != expected:
                return count | self.failure(training, f"{image.name}: status {status}")
        return count

    def goes_on(self, training: Training, out: Path) -> int | None:
        """The exit status of a training with what is there."""
        self.log.unlink(missing_ok=True)
        with child(lambda: training.run(out), self.log) as process:
            return process.wait(LONGEST)

    def images(self, training: Training, disk: Path, seed: float, only: int | None = None) -> tuple[list[Path], int]:
        """Trains on a disk; what it may hold at each event, or at that number ``only``, where the training then ends;
        and the exit status, which is 9 there."""
        images = self.folder / ("cut again" if only else "cut")
        shutil.rmtree(images, ignore_errors=True)
        if only is None:
            shutil.rmtree(disk, ignore_errors=True)
            disk.mkdir()

        def work() -> int:
            number = 0

            def event(state: Disk) -> None:
                nonlocal number
                number += 1
                if only in (None, number):
                    for how in ("strict", "by chance"):
                        state.image(images / f"call {number}, {how}", random.Random(f"{seed} {number}"), how[0] == "s")
                if number == only:
                    os._exit(9)

            images.mkdir()
            Disk(disk, event)
            return training.run(disk / "run")

        with child(work, self.log) as process:
            status = process.wait(LONGEST)
        return sorted(images.iterdir()), status
