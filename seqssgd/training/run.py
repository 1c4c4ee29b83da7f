"""A run directory: everything that one training run leaves behind, and nothing of any other."""

import dataclasses
import errno
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import UserError
from ..files import atomic_path
from ..locks import note_no_locks, try_lock
from . import distributed

PACKAGES = ("torch", "numpy", "datasets", "jsonargparse", "sentencepiece", "seqssgd")


class RunDirectory:
    """Opens the directory of a run, new or begun earlier by the same configuration.

    It holds ``config.yaml`` (the resolved configuration), ``environment.json`` (of the first start), ``metrics.jsonl``
    (one row per line), TensorBoard events, ``checkpoints/`` and, when the run is finished, ``result.json``. Only the
    main process writes.

    Args:
        path: the directory. It is made if need be; if it exists it must be empty or a run of this configuration.
        config: all that the run's result depends on, as a dictionary or a dataclass, nested; the entry ``seed`` is
            repeated in environment.json.

    Raises:
        UserError: the directory belongs to another configuration or is no run at all, cannot be written to, or another
            process is training in it.
    """

    def __init__(self, path: str | os.PathLike, config: Any):
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._writer = self._lock = None
        self._metrics = self.path / "metrics.jsonl"
        self.config = plain(config if isinstance(config, Mapping) else dataclasses.asdict(config))
        if distributed.is_main():
            try:
                self._open()
            except OSError as error:
                raise UserError(f"{self.path}: cannot write there ({error.strerror}); choose another --out") from error

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        known = self.path / "config.yaml"
        if known.is_file():
            self._compare(known)
        elif any(not _is_leftover(entry) for entry in self.path.iterdir() if entry.name != ".lock"):
            raise UserError(f"{self.path}: not empty, and not a run (no config.yaml); choose another --out")
        if not os.access(self.path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._take_lock()
        for leftover in filter(_is_leftover, [*self.path.iterdir(), *self.checkpoints.glob(".*")]):
            leftover.unlink(missing_ok=True)
        if not known.is_file():  # first of all: from here on the directory is a run, wherever a kill may hit
            _write(known, yaml.safe_dump(self.config, sort_keys=False))
        self.checkpoints.mkdir(exist_ok=True)
        now, file = environment(self.config.get("seed")), self.path / "environment.json"
        if file.is_file():
            _warn_of_changes(json.loads(file.read_text(encoding="utf-8")), now)
        else:
            _write(file, json.dumps(now, indent=2))

    def _compare(self, known: Path) -> None:
        try:
            old = flatten(yaml.safe_load(known.read_text(encoding="utf-8")))
        except (yaml.YAMLError, ValueError, AttributeError) as error:
            raise UserError(f"{known}: not the configuration of a run; choose another --out") from error
        check_same(self.path, old, flatten(self.config))

    def _take_lock(self) -> None:
        """A lock that ends with this process, however it ends, and that worker processes do not inherit."""
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        answer = try_lock(self._lock)
        if answer == "none":
            note_no_locks(self.path)
        if answer == "held":
            raise UserError(f"{self.path}: another process is training there; wait for it or stop it")

    # ---- metrics ---------------------------------------------------------------------------------------------------

    def start_metrics(self, length: int, step: int) -> None:
        """Cuts metrics.jsonl to its first ``length`` bytes, as it was at ``step``, and goes on from there."""
        if not distributed.is_main():
            return
        with open(self._metrics, "ab") as file:
            if file.tell() < length:
                raise UserError(f"{self._metrics}: shorter than at the last checkpoint; choose another --out")
            file.truncate(length)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        # TensorBoard forgets all from ``step`` on, of which some belongs to a future that is now trained once more
        self._writer = SummaryWriter(self.path / "tensorboard", purge_step=step)
        for row in map(json.loads, self._metrics.read_text(encoding="utf-8").splitlines()):
            if row["step"] == step:
                self._show(row)

    def metrics_length(self) -> int:
        """The bytes that metrics.jsonl has now, all of them safely on disk, as are TensorBoard's events."""
        if self._writer is not None:
            self._writer.flush()
        with open(self._metrics, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()

    def write_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a row: ``kind``, ``step`` and named values. Infinite and undefined values become null."""
        if not distributed.is_main():
            return
        with open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(row)) + "\n")
        self._show(row)

    def _show(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:  # no TensorBoard is installed
            return
        for name, value in row.items():
            if name not in ("kind", "step") and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Writes out what TensorBoard still holds, and lets other processes in."""
        if self._writer is not None:
            self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
        self._writer = self._lock = None

    # ---- the result ------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any] | None:
        """What result.json holds; None if the run never finished."""
        file = self.path / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Writes result.json."""
        if distributed.is_main():
            _write(self.path / "result.json", json.dumps(_finite(result), indent=2))


def in_use(path: Path) -> bool:
    """Whether another process is training in a run directory; never true on a file system without locks."""
    try:
        with open(path / ".lock", "r+b") as file:
            return try_lock(file.fileno()) == "held"
    except OSError:  # there is none yet, or it is another user's
        return False


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compares the settings of a run, under dotted keys, with those that it is to have now.

    Raises:
        UserError: they differ.
    """
    # a setting that a later version has, left at null, is no difference
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        shown = ", ".join(f"{k} = {old.get(k, '(absent)')}, now {new.get(k, '(absent)')}" for k in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise UserError(
            f"{path}: a run of another configuration ({shown}{more}); "
            "choose another --out, or repeat the settings of the first start"
        )


def environment(seed: int | None) -> dict[str, Any]:
    """What a run's exact numbers depend on beside its configuration: versions, commit, hardware, command."""
    source = Path(__file__).resolve().parent
    # a package installed somewhere inside another repository is not of that repository's commit
    tracked = _git(source, "ls-files", "--error-unmatch", "run.py")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git(source, "rev-parse", "HEAD") if tracked else None,
        "modified": bool(tracked and _git(source, "status", "--porcelain", "--untracked-files=no", "--", "..")),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": distributed.world_size(),
        "seed": seed,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(folder), *arguments]
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # no git here, or no repository
        return None
    return output.strip()


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _warn_of_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    keys = ("python", "packages", "commit", "cpu", "threads", "gpu", "processes")
    changed = [f"{key} {old.get(key)} -> {new[key]}" for key in keys if old.get(key) != new[key]]
    if changed:
        print(f"warning: not the environment this run began in: {'; '.join(changed)}", file=sys.stderr)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")  # of atomic_path, in a process that was killed


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")


def plain(value: Any) -> Any:
    """``value`` as it comes back from YAML."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a nested configuration under dotted keys, such as ``optim.lr``."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
