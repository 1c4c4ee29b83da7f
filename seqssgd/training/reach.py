"""Schedules held against the length of a training: what would never begin in it, and what it does not reach."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..optim import LambdaNoise, WeightAverage
from ..optim.balance import Balance
from ..optim.groups import HIGHEST_LEVEL
from ..optim.schedules import phase_ends, phases, ramp
from .config import OptimConfig, TrainingConfig
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


def check_begins(optimizer: Any, schedulers: Sequence[tuple[Any, str]], epochs: int, steps: int) -> None:
    """The same for what was built, of whatever configuration; :func:`check_reach` names the settings.

    Raises:
        ValueError: noise, or an average of weights, that would never begin; a scheduler that would never be stepped.
    """
    lengths = {"epoch": epochs, "step": steps}
    for scheduler, unit in schedulers:
        if unit not in lengths:
            raise ValueError(f'a scheduler is stepped every "epoch" or every "step", not {unit!r}')
        length = lengths[unit]
        if isinstance(scheduler, LambdaNoise) and not any(map(scheduler.factor, range(length))):
            raise ValueError(
                f"LambdaNoise: its factor is 0 in all {length} {unit}s of this training, which would have no noise; "
                "begin it earlier, or train longer"
            )
    if isinstance(optimizer, WeightAverage) and optimizer.start >= steps:
        raise ValueError(
            f"start={optimizer.start} is not below {steps}, the steps of this training, so that no average would ever "
            "begin"
        )


def check_judged(task: Any, training: TrainingConfig) -> None:
    """Makes sure that it is known which model is the best, and that patience has something to judge by.

    Raises:
        UserError: the task has no metric for it, or does not say whether that is to be low or high.
    """
    if task.best is not None and (len(task.best) != 2 or task.best[1] not in ("min", "max")):
        raise UserError(f'the task\'s best is {task.best!r}; give the name of a metric and "min" or "max"')
    if training.patience is not None and task.best is None:
        raise UserError("training.patience: there is nothing to judge by, as the task's best is None; leave it out")


def check_reach(
    optim: OptimConfig, training: TrainingConfig, steps_per_epoch: int, max_steps: int | None = None
) -> list[str]:
    """Holds what begins late, or changes late, against the length of a training.

    Args:
        optim: a configuration.
        training: the same of the loop.
        steps_per_epoch: of the task.
        max_steps: at which this call ends; a later one may go on.

    Returns:
        warnings of what is not reached.

    Raises:
        UserError: noise, balanced levels or an average of weights that would never begin: the training would be of
            another method than asked. One whose learning rate does not come down is of the same, and warned of.
    """
    steps = training.epochs * steps_per_epoch
    limit = steps if max_steps is None else min(max_steps, steps)
    found = _of_rate(optim, training.epochs, steps) + _of_patience(training)
    if training.log_curvature and training.log_every > steps:
        found.append(
            f"training.log_curvature: there is no line of it in the {steps} steps of this training, as there is one "
            f"every training.log_every {training.log_every}; give at most {steps}"
        )
    if issubclass(find_method(optim.method).kind, WeightAverage) and optim.takes("average_start"):
        return found + _of_average(optim, steps, limit)
    if optim.takes("noise_schedule"):  # it has a level
        per = 1 if optim.noise_unit == "step" else steps_per_epoch
        unit, length = ("steps", steps) if optim.noise_unit == "step" else ("epochs", training.epochs)
        found += _of_noise(optim, unit, length, math.ceil(limit / per))
        found += _of_balance(optim, steps, limit, per)
    return found


def _of_patience(training: TrainingConfig) -> list[str]:
    """Of a patience that outlasts the training: the first of its evaluations is a new best."""
    patience, every, epochs = training.patience, training.evaluate_every, training.epochs
    if patience is None or (patience + 1) * every < epochs:
        return []
    most = (epochs - 1) // every - 1
    mend = f"give at most {most}, or train longer" if most > 0 else "evaluate more often, or train longer"
    return [f"training.patience: {patience} ends nothing early in the {epochs} epochs of this training; {mend}"]


def _of_rate(optim: OptimConfig, epochs: int, steps: int) -> list[str]:
    """What the learning rate does not come to: but for a warm-up by steps it changes from epoch to epoch alone."""
    schedule, constant, warmup = optim.lr_schedule, optim.lr_constant_epochs, optim.lr_warmup
    within, found = f"the {epochs} epochs of this training", []
    if schedule != "constant" and epochs == 1:
        found.append(f"optim.lr_schedule: {schedule} goes by epochs, and one epoch has one learning rate; train longer")
    elif schedule == "zaremba" and constant + 1 >= epochs and optim.lr_divisor > 1:
        mend = f"give at most {epochs - 2}, or train longer"
        found.append(f"optim.lr_constant_epochs: {constant} lowers no learning rate in {within}; {mend}")
    elif schedule == "steps" and not optim.lr_milestones:
        found.append("optim.lr_schedule: steps lowers no learning rate without optim.lr_milestones; give some")
    elif schedule == "steps" and (late := [step for step in optim.lr_milestones if step >= epochs]):
        are = f"{', '.join(map(str, late))} {'is' if len(late) == 1 else 'are'}"
        found.append(f"optim.lr_milestones: {are} not reached in {within}; give earlier ones, or train longer")
    elif schedule == "sgdr" and optim.lr_period > epochs:
        found.append(f"optim.lr_period: {optim.lr_period} does not end in {within}; give fewer, or train longer")
    elif schedule == "sgdr" and optim.lr_period == 1 and (optim.lr_multiplier == 1 or epochs == 2):
        found.append("optim.lr_period: 1 has one learning rate, as it goes by epochs; give 2 or more")
    elif schedule == "sgdr" and optim.lr_period == epochs and optim.lr_multiplier != OptimConfig.lr_multiplier:
        found.append(f"optim.lr_multiplier: {optim.lr_multiplier} does nothing, as {within} are the first period")
    if schedule in ("zaremba", "steps") and optim.lr_divisor == 1:
        found.append("optim.lr_divisor: 1 lowers no learning rate; give more, or optim.lr_schedule constant")
    by_step = optim.lr_warmup_unit == "step"
    length, unit = (steps, "steps") if by_step else (epochs, "epochs")
    if warmup == 1:
        mend = "give 2 or more" if by_step else "give 2 or more, or its steps with optim.lr_warmup_unit step"
        found.append(f"optim.lr_warmup: 1 lowers no learning rate; {mend}")
    elif warmup is not None and warmup >= length:
        what = f"rises to {length / warmup:.2g} of the learning rate in" if warmup > length else "takes all of"
        found.append(f"optim.lr_warmup: {warmup} {what} the {length} {unit} of this training; give fewer, or train "
                     "longer")  # fmt: skip
    return found


def _of_average(optim: OptimConfig, steps: int, limit: int) -> list[str]:
    key = f"optim.average_start: {optim.average_start}"
    if optim.average_start >= steps:
        raise UserError(f"{key} is not below {steps}, the steps of this training, so that no average would ever begin")
    late = f"{key} is not below --max-steps {limit}, so that there is no average before training goes on"
    return [late] if optim.average_start >= limit else []


def _of_balance(optim: OptimConfig, steps: int, limit: int, per: int) -> list[str]:
    if not (optim.takes("balance") and optim.balance):
        return []
    factor, first = optim._noise(), Balance().first
    noisy = (step for step in range(steps) if factor is None or factor(step // per))
    last = next(itertools.islice(noisy, first - 1, None), steps)  # that has the groups' levels
    key = f"optim.balance: levels are balanced after {first} steps with noise"
    if last + 1 >= steps:
        raise UserError(f"{key}, and this training of {steps} steps has no more of them; train longer, or leave it out")
    return [f"{key}, and there are no more up to --max-steps {limit}"] if last + 1 >= limit else []


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
