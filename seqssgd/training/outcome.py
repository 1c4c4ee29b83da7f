"""What a run came to: the contents of its result.json, what is said of it, and the exit status."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import notes, processes
from ..runs import checkpoints
from .progress import Progress
from .task import Task


def result(progress: Progress, task: Task, last_step: int, max_nonfinite: int) -> dict[str, Any]:
    """What there is to say of a run, but for its times.

    Args:
        progress: where it is.
        task: that it was trained on, with its model.
        last_step: that of the last epoch.
        max_nonfinite: steps skipped in a row that end it.
    """
    p = progress
    return {
        "final": p.final,
        "best": p.best,
        "best_by": dict([task.best] if task.best else []),
        "steps": p.step,
        "epochs": p.epoch,
        "passes": p.passes,
        "nonfinite": p.nonfinite,
        "stopped_early": p.stopped_early,
        "diverged": _diverged(p, task, last_step, max_nonfinite),
        "parameters": sum(parameter.numel() for parameter in task.model.parameters()),
        "units": p.units * processes.world_size(),
    }


def _diverged(p: Progress, task: Task, last_step: int, max_nonfinite: int) -> str | None:
    """What is wrong with a run that could not go on, or with the model of one that has made all its steps; None if
    nothing is."""
    if p.nonfinite_in_row >= max_nonfinite:
        return f"loss or gradients not finite for {p.nonfinite_in_row} steps in a row, up to step {p.step}"
    if p.step < last_step and not p.stopped_early:
        return None
    if task.best and not p.best:
        return f"{task.best[0]} was never finite, so that there is no best model"
    return None if checkpoints.is_finite(task.model.parameters()) else "its weights are not finite"


def how_it_ended(result: Mapping[str, Any], last_step: int) -> str:
    """How a run ended, and at which step."""
    how, more = "finished", ""
    if result["stopped_early"]:
        how = "finished early: no better for training.patience evaluations"
    elif result["diverged"]:
        how = "ended"
    elif result["steps"] < last_step:
        how, more = "stopped by max_steps", f" of {last_step}, and goes on with a higher limit or none"
    return f"{how} at step {result['steps']}{more}"


def exit_code(result: Mapping[str, Any], path: Path) -> int:
    """The exit status of the run in ``path`` at its end: 2, with a message, if it has no model to use."""
    if not (reason := result.get("diverged")):
        return 0
    if processes.is_main():
        notes.complain(f"{path}: training diverged ({reason}); lower the learning rate or the noise, set "
                       "training.clip, or train in fp32, in another directory")  # fmt: skip
    return 2
