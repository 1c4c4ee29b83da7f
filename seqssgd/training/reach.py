"""Schedules held against the length of a training: what would never begin in it, and what it does not reach."""

import math
from collections.abc import Sequence

from ..errors import UserError
from ..optim import WeightAverage
from ..optim.groups import HIGHEST_LEVEL
from ..optim.schedules import phase_ends, phases, ramp
from .config import OptimConfig
from .methods import find_method


def highest(noise_schedule: str | None, noise_ramp: Sequence[int] | None, length: int) -> float:
    """The largest factor of the noise level at the times 0, 1, … ``length`` - 1; 0 if there is no noise in them.

    Raises:
        ValueError: no such phases, or no such ramp.
    """
    steps = phases(noise_schedule) if noise_schedule is not None else None
    rise = ramp(*noise_ramp) if noise_ramp is not None else None
    ends = [] if noise_schedule is None else phase_ends(noise_schedule)
    # a ramp does not fall, so that its product with a phase is the largest at the phase's end
    times = [time - 1 for time in (*ends, length) if 0 < time <= length]
    return max((math.prod(factor(time) for factor in (steps, rise) if factor) for time in times), default=0.0)


def check_reach(optim: OptimConfig, epochs: int, steps_per_epoch: int, max_steps: int | None = None) -> list[str]:
    """Holds what begins late against the length of a training.

    Args:
        optim: a configuration.
        epochs: of the training.
        steps_per_epoch: of the task.
        max_steps: at which this call ends; a later one may go on.

    Returns:
        warnings of what is not reached.

    Raises:
        UserError: noise, or an average of weights, that would never begin: the training would be another than asked.
    """
    steps = epochs * steps_per_epoch
    limit = steps if max_steps is None else min(max_steps, steps)
    if issubclass(find_method(optim.method).kind, WeightAverage) and optim.takes("average_start"):
        return _of_average(optim, steps, limit)
    if not optim.takes("noise_schedule"):  # no level
        return []
    if optim.noise_unit == "step":
        return _of_noise(optim, "steps", steps, limit)
    return _of_noise(optim, "epochs", epochs, math.ceil(limit / steps_per_epoch))


def _of_average(optim: OptimConfig, steps: int, limit: int) -> list[str]:
    key = f"optim.average_start: {optim.average_start}"
    if optim.average_start >= steps:
        raise UserError(f"{key} is not below {steps}, the steps of this training, so that no average would ever begin")
    late = f"{key} is not below --max-steps {limit}, so that there is no average before training goes on"
    return [late] if optim.average_start >= limit else []


def _of_noise(optim: OptimConfig, unit: str, length: int, limit: int) -> list[str]:
    phase, rise = optim.noise_schedule, optim.noise_ramp
    said = {"noise_schedule": phase, "noise_ramp": rise and list(rise)}
    given = {key: value for key, value in said.items() if value is not None}
    if not given:
        return []
    if not highest(phase, rise, length):
        alone = {"noise_schedule": highest(phase, None, length), "noise_ramp": highest(None, rise, length)}
        silent = {key: value for key, value in given.items() if not alone[key]} or given
        names = " with ".join(f"optim.{key}: {value}" for key, value in silent.items())
        raise UserError(
            f"{names} has no noise in the {length} {unit} of this training; begin it earlier, train longer, or give "
            "optim.method none"
        )
    found = []
    if phase is not None and (end := phase_ends(phase)[-1]) > length:
        found.append(f"optim.noise_schedule: {phase} has {end} {unit}, and those after {length} are not reached")
    # one to a level that is too high for any network is not meant to reach it: the noise finder's
    if rise is not None and optim.noise <= HIGHEST_LEVEL and (top := ramp(*rise)(length - 1)) < 1:
        found.append(
            f"optim.noise_ramp: {list(rise)} rises to {top:.2g} of the level in the {length} {unit} of training"
        )
    if not highest(phase, rise, limit):
        key, value = next(iter(given.items()))
        found.append(f"optim.{key}: {value} has no noise up to --max-steps; it begins when training goes on")
    return found
