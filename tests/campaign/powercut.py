"""Power cuts: what a disk may hold at any instant, by what was synced, and whether training goes on from there.

Files and folders are followed through every fsync, rename and deletion of a training. A file's contents are certain
since its last fsync, a folder's names since the folder's. At a random one of these calls the power fails: what was
certain is there; what was not is there, or is not, or in part, by chance.
"""

import contextlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from .kills import LONGEST, Kills, last_line
from .processes import child
from .trainings import result_of


class Disk:
    """What is certain of the files below ``root``; ``cut`` is called at the event with that number."""

    def __init__(self, root: Path, event: int, cut: Callable[["Disk"], None]) -> None:
        self.root, self.left, self.cut = root, event, cut
        self.names: dict[int, dict[str, int]] = {}  # by the inode of a folder, as of its last fsync
        self.contents: dict[int, bytes] = {}  # by the inode of a file, as of its last fsync
        self.real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir")}
        for name in self.real:
            setattr(os, name, self.watched(name))

    def watched(self, name: str) -> Callable:
        def call(*args, **kwargs):
            self.happened()
            result = self.real[name](*args, **kwargs)
            if name == "fsync":
                self.synced(args[0])
            return result

        return call

    def happened(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.cut(self)

    def synced(self, handle: int) -> None:
        status, path = os.fstat(handle), os.readlink(f"/proc/self/fd/{handle}")
        if stat.S_ISDIR(status.st_mode):
            self.names[status.st_ino] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.contents[status.st_ino] = Path(path).read_bytes()

    def image(self, out: Path, chance: random.Random, strict: bool) -> None:
        """Writes into ``out`` what the disk may hold; with ``strict`` only what is certain."""
        now = {path.stat().st_ino: path for path in (self.root, *self.root.rglob("*")) if path.exists()}
        self._write(self.root.stat().st_ino, self.root, out, now, chance, strict)

    def _write(
        self, inode: int, folder: Path | None, out: Path, now: dict, chance: random.Random, strict: bool
    ) -> None:
        out.mkdir(exist_ok=True)
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
                content = chance.choice([content, current, current[: chance.randrange(len(current) + 1)]])
            (out / name).write_bytes(content)


class PowerCuts(Kills):
    """One trial: a training whose machine loses power at a random call, and is switched on again."""

    name = "power cuts"

    def trial(self, chance: random.Random) -> dict[str, int | str]:
        training = self.trainings.recipe(
            chance.choice(["ptb_lstm", "cifar_cnn"]), chance.choice(["none", "ssgd", "ema"])
        )
        expected, _ = self.reference(training)
        disk, after, log = self.folder / "disk", self.folder / "after", self.folder / "log"
        for folder in (disk, after):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        event, strict, seed = chance.randint(1, 120), chance.random() < 0.5, chance.random()

        def cut(state: Disk) -> None:
            for name, real in state.real.items():
                setattr(os, name, real)
            state.image(after, random.Random(seed), strict)
            os._exit(9)

        def work() -> int:
            Disk(disk, event, cut)
            return training.run(disk / "run")

        with child(work, log) as process:
            status = process.wait(LONGEST)
        count = {"trials": 1, "cuts": int(status == 9)}
        if status != 9:
            return count | ({} if status == 0 else {"failed": 1, "note": f"{training.name}: status {status}"})
        with child(lambda: training.run(after / "run"), log) as process:
            status = process.wait(LONGEST)
        with contextlib.suppress(OSError):
            if status == 0 and result_of(after / "run") == expected:
                return count
        how = "strict" if strict else "by chance"
        return count | {"failed": 1, "note": f"{training.name}, call {event}, {how}: {status}, {last_line(log)}"}
