"""What a checkpoint of a run holds: taken from the loop, and given back to it after it was looked at.

A checkpoint whose file is whole may still hold what no run wrote. All of it is compared with what this run has before
training goes on.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import processes
from ..errors import UserError
from ..runs import checkpoints
from .progress import Progress

if TYPE_CHECKING:
    from .loop import _Loop

# What each process counts for itself.
OWN = ("losses", "epoch_losses", "units", "curvature")
# The tensors of torch's optimizers that have the shape of their parameter.
_LIKE_PARAMETERS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")


def take(loop: "_Loop") -> dict[str, Any] | None:
    """The state of a run, in the main process; None in the others, which must all call it."""
    progress = asdict(loop.progress)
    counted = {key: progress[key] for key in OWN}
    own = {"task": loop.task.state_dict(), "rng": checkpoints.rng_state(), "progress": counted}
    of_processes = processes.gather(own)
    if not processes.is_main():
        return None
    evaluated = loop.evaluated()  # its tensors are the optimizer's own, which a file has once
    averaged = {} if evaluated is loop.model else {"averaged": evaluated.state_dict()}
    return {
        "progress": progress,
        "model": loop.model.state_dict(),
        **averaged,
        "optimizer": loop.optimizer.state_dict(),
        "schedulers": [scheduler.state_dict() for scheduler, _ in loop.schedulers],
        "scaler": loop.scaler.state_dict(),
        "processes": of_processes,
        "metrics_length": loop.run.metrics_length(),
        "files": loop.run.checksums(),
    }


def give_back(loop: "_Loop", state: Mapping[str, Any], path: Path) -> None:
    """Takes ``loop`` to where it was when :func:`take` gave ``state``, which was read from ``path``.

    Raises:
        UserError: it is of another version, model, optimizer or number of processes, or holds what no run of this kind
            has.
    """
    try:
        _check_version(state, path)
        _check_processes(state, path)
        checkpoints.load_model(loop.model, state, path)
        _check_groups(loop, state, path)
        _give_back(loop, state)
    except UserError:
        raise
    except Exception as error:  # contents of a wrong kind make torch, and the task, raise almost anything
        raise UserError(
            f"{path}: its contents are damaged ({_reason(error)}); delete it, to go back to the checkpoint before it, "
            "or choose another directory"
        ) from error


def _check_version(state: Mapping[str, Any], path: Path) -> None:
    """Makes sure that a checkpoint has what this version writes, and nothing that only a later one does."""
    entries = ("progress", "model", "optimizer", "schedulers", "scaler", "processes", "metrics_length")
    missing = [f"no {name!r}" for name in entries if name not in state]
    saved = state.get("progress")
    known = {field.name for field in fields(Progress)}
    later = [repr(name) for name in saved if name not in known] if isinstance(saved, Mapping) else []
    if missing or later:
        raise UserError(
            f"{path}: a checkpoint of another version of seqssgd ({', '.join((missing + later)[:3])}); resume with the "
            "version that wrote it, or choose another directory"
        )


def _check_groups(loop: "_Loop", state: Mapping[str, Any], path: Path) -> None:
    """Makes sure that the optimizer has as many groups and parameters, and the run as many schedulers, as before."""
    own = [len(group["params"]) for group in loop.optimizer.param_groups]
    its = [len(_of_kind(group["params"], list, "optimizer.param_groups"))
           for group in _of_kind(state["optimizer"]["param_groups"], list, "optimizer.param_groups")]  # fmt: skip
    schedulers = len(_of_kind(state["schedulers"], list, "schedulers"))
    for kind, then, now in (("groups of parameters", its, own), ("schedulers", schedulers, len(loop.schedulers))):
        if then != now:
            raise UserError(
                f"{path}: of an optimizer with other {kind} ({then}, now {now}); resume with the version and the model "
                "that it was made with, or choose another directory"
            )


def _check_processes(state: Mapping[str, Any], path: Path) -> None:
    count = len(_of_kind(state["processes"], list, "processes"))
    if count != processes.world_size():
        raise UserError(f"{path}: made by {count} processes; resume with as many")


def _give_back(loop: "_Loop", state: Mapping[str, Any]) -> None:
    own = _of_kind(state["processes"][processes.rank()], dict, "processes")
    _compare(checkpoints.rng_state(), own["rng"], "rng")
    groups = [{key: value for key, value in group.items() if key != "params"} for group in loop.optimizer.param_groups]
    own_state = dict(loop.optimizer.state_dict().get("perturbation", {}))
    own_state.pop("unit", None)  # of the levels; earlier versions did not save it
    _compare(own_state, state["optimizer"].get("perturbation", own_state), "optimizer.perturbation")
    loop.optimizer.load_state_dict(state["optimizer"])
    for number, (old, group) in enumerate(zip(groups, loop.optimizer.param_groups, strict=True)):
        _compare(old, group, f"optimizer.param_groups.{number}")
        for parameter in group["params"]:
            _check_shapes(parameter, loop.optimizer.state.get(parameter, {}))
    for number, ((scheduler, _), saved) in enumerate(zip(loop.schedulers, state["schedulers"], strict=True)):
        _compare(scheduler.state_dict(), saved, f"schedulers.{number}")
        scheduler.load_state_dict(saved)
    _compare(loop.scaler.state_dict(), state["scaler"], "scaler")
    loop.scaler.load_state_dict(state["scaler"])
    loop.progress = loop.curvature.progress = _progress(state["progress"], own.get("progress", {}), loop)
    loop.metrics_length = _whole(state["metrics_length"], "metrics_length")
    loop.task.load_state_dict(own["task"])
    checkpoints.set_rng_state(own["rng"])


def _progress(saved: Any, own: Any, loop: "_Loop") -> Progress:
    """Where the run is; what belongs to this process alone is ``own``, which checkpoints of old do not have."""
    saved, own = _of_kind(saved, dict, "progress"), _of_kind(own, dict, "progress")
    if "patience_best" not in saved and loop.task.best is not None:  # of an earlier version
        saved = {**saved, "patience_best": saved["best"].get(loop.task.best[0])}
    progress = Progress(**{**saved, **{key: own[key] for key in OWN if key in own}})
    for field in fields(Progress):
        _compare(getattr(Progress(), field.name), getattr(progress, field.name), f"progress.{field.name}")
    for name, metrics in (("final", progress.final), ("best", progress.best)):
        _compare(dict.fromkeys(metrics, math.inf), metrics, f"progress.{name}")
    _compare(0.0, progress.patience_best or 0.0, "progress.patience_best")
    for name in ("step", "epoch", "position", "nonfinite", "nonfinite_in_row", "worse_in_row"):
        _whole(getattr(progress, name), f"progress.{name}")
    length = loop.task.steps_per_epoch
    if progress.position > length or progress.step != progress.epoch * length + progress.position:
        raise ValueError(f"step {progress.step} is not {progress.epoch} epochs of {length} and {progress.position}")
    return progress


def _check_shapes(parameter: torch.Tensor, saved: Mapping[str, Any]) -> None:
    for name in _LIKE_PARAMETERS:
        value = saved.get(name)
        if value is not None and (not isinstance(value, torch.Tensor) or value.shape != parameter.shape):
            raise ValueError(f"{name} of the optimizer is not of the shape of its parameter")


def _compare(usual: Any, value: Any, name: str) -> None:
    """Makes sure that ``value`` is of the kind of ``usual``, all that is in it included: finite numbers, but for those
    that are infinite in ``usual``, whole tensors of one shape.

    Raises:
        ValueError: it is not.
    """
    if usual is None and name.startswith("optimizer.param_groups."):  # torch's switches, such as foreach
        if not (value is None or isinstance(value, bool)):
            raise ValueError(f"{name} is {_shown(value)}")
        return
    if usual is None or (value is None and name.startswith("rng.")):  # a random generator without a number in reserve
        return
    if isinstance(usual, torch.Tensor):
        same = isinstance(value, torch.Tensor) and value.shape == usual.shape and value.dtype == usual.dtype
    elif isinstance(usual, bool) or isinstance(value, bool):
        same = isinstance(usual, bool) and isinstance(value, bool)
    elif isinstance(usual, (int, float)):
        number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        same = isinstance(number, (int, float)) and (math.isfinite(number) or usual == math.inf)
        if isinstance(number, (int, float)) and name.startswith(("optimizer.", "schedulers.")):  # rates, levels, counts
            same = same and (number >= 0 or usual < 0) and (isinstance(number, float) or number < 2**53)
        if name in ("optimizer.perturbation.draws", "optimizer.perturbation.seed"):  # what noise is drawn from
            same = same and isinstance(number, int)
    elif isinstance(usual, Mapping):
        same = isinstance(value, Mapping) and all(key in value for key in usual)
        if isinstance(value, Mapping) and same:
            for key in usual:
                _compare(usual[key], value[key], f"{name}.{key}")
    elif isinstance(usual, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(usual)
        if isinstance(value, (list, tuple)) and same:
            for index, entry in enumerate(value):
                _compare(usual[index], entry, f"{name}.{index}")
    else:
        same = isinstance(value, type(usual))
    if not same:
        raise ValueError(f"{name} is {_shown(value)}")


def _of_kind(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {_shown(value)}")
    return value


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, (torch.Tensor, Mapping, list, tuple)) else repr(value)[:40]


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0][:200]
    return f"no {text} in it" if isinstance(error, KeyError) else text or type(error).__name__
