"""What the exact numbers of a run depend on beside its configuration."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from .. import processes
from ..documents import printable, read_json
from ..notes import warn
from . import layout

PROGRAMS = ("..", "../../recipes/*.py")  # of a checkout, seen from here: all that a training is made by
PACKAGES = ("torch", "numpy", "datasets", "jsonargparse", "sentencepiece", "seqssgd")


def environment(seed: int | None) -> dict[str, Any]:
    """What a run's exact numbers depend on beside its configuration: versions, commit, hardware, command."""
    source = Path(__file__).resolve().parent
    # a package installed somewhere inside another repository is not of that repository's commit
    tracked = _git(source, "ls-files", "--error-unmatch", "environment.py")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git(source, "rev-parse", "HEAD") if tracked else None,
        "modified": bool(tracked and _git(source, "status", "--porcelain", "--untracked-files=no", "--", *PROGRAMS)),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "processes": processes.world_size(),
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


class Record(TypedDict):
    """What environment.json holds, as far as anything reads it."""

    packages: NotRequired[dict[str, str]]
    command: NotRequired[list[str]]
    data: NotRequired[str | None]
    commit: NotRequired[str | None]
    cpu: NotRequired[str | None]


def read_environment(run: Path) -> dict[str, Any]:
    """The record of a run's environment; empty if there is none.

    Raises:
        UserError: it is damaged.
    """
    path, mend = run / layout.ENVIRONMENT, "put the run's own back, or delete it"
    return read_json(path, mend, Record) if path.is_file() else {}


def warn_of_changes(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Warns of what an environment differs from the one that the run began in."""
    keys = ("python", "packages", "commit", "cpu", "threads", "gpu", "processes")
    changed = [f"{key} {old.get(key)} -> {new[key]}" for key in keys if old.get(key) != new[key]]
    if changed:
        warn(f"not the environment this run began in: {printable('; '.join(changed))}")
