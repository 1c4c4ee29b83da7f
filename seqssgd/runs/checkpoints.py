"""Checkpoints: everything that the next step depends on, in one file that is never half-written."""

import errno
import hashlib
import itertools
import json
import random
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import atomic_path
from ..notes import note, warn
from . import layout, release
from .settings import read_config

# What the machine says, in place of what a damaged file leads to.
_NOT_THE_FILE = {errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE}
_AVERAGED = "module."  # what torch's AveragedModel calls its copy of the model
# Sections of the configuration that a model does not depend on once it is trained.
_OF_TRAINING = ("optim", "training", "seed")


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

    Those of later steps go too: they are what a resumed run found damaged.
    """
    save(folder / layout.step_name(step), state)
    delete_earlier(folder, state, step, keep)
    for number, other in layout.step_files(folder).items():
        if number > step:
            other.unlink()


def delete_earlier(folder: Path, state: Mapping[str, Any], step: int, keep: int) -> None:
    """Deletes the checkpoints before that of ``step``, whose contents are ``state``, but for the last ``keep`` - 1.

    If none that is kept has finite weights, the last one that has them stays as well: a run that diverges must not take
    with it what was good.
    """
    earlier = [other for number, other in layout.step_files(folder).items() if number < step]
    kept = {*earlier[: keep - 1]}
    if not is_finite(state.get("model", {}).values()):
        kept.update(itertools.islice(filter(_has_finite_weights, earlier), 1))
    for other in set(earlier) - kept:
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
    if path.suffix == Path(layout.WEIGHTS).suffix:
        return release.load(path)
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
    paths = list(layout.step_files(folder).values())
    for path in paths:
        try:
            return path, load(path)
        except UserError as error:
            warn(f"{error}; going back to the one before")
    if paths:
        raise UserError(f"{folder}: all {len(paths)} checkpoints are damaged; start again in another directory")
    return None


def load_model(model: nn.Module, state: Mapping[str, Any], path: Path) -> None:
    """Loads the weights of a checkpoint (its ``"model"`` entry) that came from ``path``.

    Raises:
        UserError: they are the weights of another model, or there are none.
    """
    if "model" not in state:
        raise UserError(
            f"{path}: no checkpoint of a run (no entry 'model'); use one from a folder {layout.CHECKPOINTS}/"
        )
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


def set_rng_state(state: Mapping[str, Any], only_changed: bool = False) -> bool:
    """Sets all global random generators to what :func:`rng_state` gave; whether CUDA's was set.

    ``only_changed``: those of torch that are in that state already are left alone.
    """

    def due(name: str, now: Callable[[], Tensor]) -> bool:
        return not (only_changed and torch.equal(state[name], now()))

    if due("torch", torch.get_rng_state):
        torch.set_rng_state(state["torch"])
    cuda: Tensor | None = state["cuda"] if torch.cuda.is_available() else None
    set_cuda = cuda is not None and due("cuda", torch.cuda.get_rng_state)
    if cuda is not None and set_cuda:
        torch.cuda.set_rng_state(cuda)
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    return set_cuda


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


# ---- of finished runs ------------------------------------------------------------------------------------------------


def find_checkpoint(run: str | Path, checkpoint: str | Path = "best", own: bool = False) -> Path:
    """The file of a run's checkpoint.

    Args:
        run: the run directory.
        checkpoint: ``"best"`` on validation (of an exported run the one that it has), ``"last"``, the name of one of
            the run's checkpoints such as ``step-00001000.pt``, or the path of a file. Of a run that has no best one
            yet it is the last, which is noted.
        own: whether a file that lies outside of the run is refused: what is found with it is kept as the run's own.

    Raises:
        UserError: there is no such checkpoint, or it is not the run's own.
    """
    folder = Path(run) / layout.CHECKPOINTS
    if checkpoint not in ("best", "last"):
        for path in (folder / checkpoint, Path(checkpoint)):
            if path.is_file():
                if own and (whose := _foreign(run, path)):
                    raise UserError(f"{path}: {whose}; to keep its figures or to export it, give its own run")
                return path
        raise UserError(f"{checkpoint} is not a file; give best, last, or the name or path of a checkpoint of {run}")
    best = folder / layout.BEST
    exported = Path(run) / layout.WEIGHTS
    for path in (best, exported) if checkpoint == "best" else ():
        if path.is_file():
            return path
    last = next(iter(layout.step_files(folder).values()), None)
    if last is None:
        wanted = f"{layout.BEST} or " if checkpoint == "best" else ""
        raise UserError(f"{folder} holds no {wanted}step-*.pt; train first")
    if checkpoint == "best":
        note(f"{run} has no best checkpoint (it is gone, or no validation gave a number); taking the last, {last.name}")
    return last


def load_evaluated(path: Path) -> dict[str, Any]:
    """Reads one checkpoint as :func:`load` does, with the weights that training evaluated as its ``"model"``: the
    average, where the method makes one, and not the weights that training goes on from.

    Raises:
        UserError: see :func:`load`.
    """
    state = load(path)
    averaged = state.pop("averaged", None)
    if averaged is None:
        averaged = _average(state)
    return state if averaged is None else {**state, "model": averaged}


def _average(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The averaged weights in the optimizer's state: checkpoints of earlier versions have them there alone. None before
    the average begins."""
    found: Any = state
    for key in ("optimizer", "perturbation", "average"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not found.get("n_averaged"):
        return None
    return {key.removeprefix(_AVERAGED): value for key, value in found.items() if key.startswith(_AVERAGED)}


def _foreign(run: str | Path, checkpoint: Path) -> str | None:
    """Whose a checkpoint is that lies outside of a run; None if it lies within."""
    folder = checkpoint.parent.resolve()
    if folder == (Path(run) / layout.CHECKPOINTS).resolve():
        return None
    exported = checkpoint.name == layout.WEIGHTS
    if exported and folder == Path(run).resolve():
        return None
    other = checkpoint.parent if exported else checkpoint.parent.parent
    known = (exported or folder.name == layout.CHECKPOINTS) and (other / layout.CONFIG).is_file()
    return f"a checkpoint of {other}, not of {run}" if known else f"not a checkpoint of {run}"


def checksums(run: str | Path) -> dict[str, str]:
    """Checksums of what a model depends on beside its weights: the tokenizer's files, and the settings in config.yaml
    but for those of the training."""
    config = {key: value for key, value in read_config(run).items() if key not in _OF_TRAINING}
    found = {layout.CONFIG: hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()}
    for path in sorted((Path(run) / layout.TOKENIZER).glob("[!.]*")):
        found[f"{layout.TOKENIZER}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_files(run: str | Path, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Makes sure that the files of a run are those that the model in a checkpoint was trained with.

    Checkpoints that an earlier version wrote do not say. One that lies outside of the run is noted.

    Raises:
        UserError: one of them has changed, or is missing.
    """
    if whose := _foreign(run, checkpoint):
        note(f"{checkpoint}: {whose}")
    known = state.get("files")
    if not isinstance(known, Mapping):
        return
    own = checksums(run)
    for name in {**known, **own}:
        if known.get(name) != own.get(name):
            how = "is not the one" if name in own else "is missing, one of the files"
            raise UserError(
                f"{Path(run) / name} {how} that {checkpoint} was trained with; put the run's own back, or give a --run "
                "and a --checkpoint that belong together"
            )
