"""Checkpoints: everything that the next step depends on, in one file that is never half-written."""

import errno
import random
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..files import atomic_path

# What the machine says, in place of what a damaged file leads to.
_NOT_THE_FILE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Writes ``state`` (tensors and plain values, nested) so that ``path`` is at every instant absent or whole."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(dict(state), file)
        except RuntimeError as error:  # on a full disk torch says "unexpected pos", and hides what the disk said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def save_step(folder: Path, state: Mapping[str, Any], step: int, keep: int) -> None:
    """Writes ``folder/step-00000200.pt`` and deletes all others of its kind but the ``keep`` - 1 before it.

    Those of later steps go too: they are what a resumed run found damaged. If none that is kept has finite weights, the
    last one that has them stays as well: a run that diverges must not take with it what was good.
    """
    path = folder / f"step-{step:08d}.pt"
    save(path, state)
    earlier = [other for other in _steps(folder) if other < path]
    kept = {path, *earlier[: keep - 1]}
    if not is_finite(state.get("model", {}).values()):
        kept.add(next(filter(_has_finite_weights, earlier), path))
    for other in set(_steps(folder)) - kept:
        other.unlink()


def is_finite(tensors: Iterable[Any]) -> bool:
    """Whether all numbers in the floating-point tensors among ``tensors`` are finite."""
    checks = [t.detach().isfinite().all() for t in tensors if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return not checks or bool(torch.stack([check.cpu() for check in checks]).all())


def load(path: Path) -> dict[str, Any]:
    """Reads one checkpoint onto the CPU.

    Raises:
        UserError: the file is missing, damaged, or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            damaged = archive.testzip()  # torch.load itself does not look at the checksums
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except Exception as error:  # torch raises almost anything on a damaged file: EOFError, KeyError, UnpicklingError, …
        if isinstance(error, OSError) and error.errno in _NOT_THE_FILE:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path}: damaged checkpoint, or none ({type(error).__name__}: {reason}); use another one"
        ) from error


def load_newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its path; None if there is none. A damaged newer one is reported and passed over.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    paths = _steps(folder)
    for path in paths:
        try:
            return path, load(path)
        except UserError as error:
            print(f"warning: {error}; going back to the one before", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: all {len(paths)} checkpoints are damaged; start again with another --out")
    return None


def load_model(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads the weights of a checkpoint (its ``"model"`` entry) that came from ``path``.

    Raises:
        UserError: they are the weights of another model, or there are none.
    """
    if "model" not in state:
        raise UserError(f"{path}: no checkpoint of a run (no entry 'model'); use one from a folder checkpoints/")
    try:
        model.load_state_dict(state["model"])
    except (TypeError, RuntimeError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = lines[1] if len(lines) > 1 else lines[0]
        raise UserError(f"{path}: weights of another model ({reason}); build the model it was made with") from error


def rng_state() -> dict[str, Any]:
    """The states of all global random generators, as tensors and plain values."""
    numpy_state: Any = np.random.get_state()
    name, keys, *rest = numpy_state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Sets all global random generators to what :func:`rng_state` gave."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Makes sure that reading an archive takes no more memory than the file has bytes: torch compresses nothing."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its contents are compressed, as those of no checkpoint are")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it claims to hold more than it has bytes")


def _has_finite_weights(path: Path) -> bool:
    try:
        return is_finite(load(path)["model"].values())
    except (UserError, KeyError, AttributeError):
        return False


def _steps(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
