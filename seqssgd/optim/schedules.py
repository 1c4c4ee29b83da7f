"""Schedules of the learning rate and of the noise level.

Each is a plain function of time, in epochs or steps as its scheduler is stepped, that gives a factor for the initial
value: for learning rates with ``torch.optim.lr_scheduler.LambdaLR``, for noise levels with :class:`LambdaNoise`.
"""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from torch.optim import Optimizer

Schedule = Callable[[int], float]


class LambdaNoise:
    """Sets every group's noise level to its initial level times a factor, as ``LambdaLR`` does for learning rates.

    The initial level and the number of :meth:`step` calls are kept in the groups, so that a checkpoint of the optimizer
    alone brings back the schedule too, whether it is loaded before this is made or after. A second schedule for an
    optimizer that had one goes on from its time too; ``load_state_dict({"time": 0})`` begins anew.

    Args:
        optimizer: its groups' ``"noise"`` entries, as they are now, are the initial levels (``"rho"`` of SAM).
        factor: a function of the number of :meth:`step` calls so far.

    Raises:
        TypeError: ``optimizer`` has no parameter groups, or ``factor`` cannot be called.
        ValueError: no group has a level; the factor is no finite number >= 0.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([{"params": [weight], "noise": 0.8}], lr=0.1)
    >>> noise = LambdaNoise(optimizer, phases("75-25S"))
    >>> optimizer.param_groups[0]["noise"]
    0.0
    >>> for epoch in range(75):
    ...     noise.step()
    >>> optimizer.param_groups[0]["noise"]
    0.8
    """

    def __init__(self, optimizer: Optimizer, factor: Schedule):
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"LambdaNoise takes an optimizer, whose groups have the levels, not {type(optimizer)}")
        if not callable(factor):
            raise TypeError(f"the factor must be a function of time, such as phases({factor!r}), not {factor!r}")
        self.optimizer, self.factor = optimizer, factor
        self.key = getattr(optimizer, "level_key", "noise")
        if not any(self.key in group for group in optimizer.param_groups):
            raise ValueError(
                f'no group of the optimizer has a "{self.key}" entry, a level to schedule; make its groups with '
                "noise_groups(model, noise=...)"
            )
        self._set(next((group[entry] for group in optimizer.param_groups if (entry := f"{self.key}_time") in group), 0))

    @property
    def time(self) -> int:
        """How often :meth:`step` was called."""
        return self.optimizer.param_groups[0][f"{self.key}_time"]

    def step(self) -> None:
        """One more epoch (or step) is done."""
        self._set(self.time + 1)

    def _set(self, time: int) -> None:
        factor = self.factor(time)
        if not isinstance(factor, Real) or not 0 <= factor < math.inf:
            raise ValueError(f"the factor of the noise level at time {time} is {factor!r}, not a finite number >= 0")
        for group in self.optimizer.param_groups:  # the initial level stays in the group, as LambdaLR's "initial_lr"
            group[self.key] = group.setdefault(f"initial_{self.key}", group.get(self.key, 0.0)) * factor
            group[f"{self.key}_time"] = time

    def get_last_level(self) -> list[float]:
        """The level of each group."""
        return [group[self.key] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The time; the levels follow from it."""
        return {"time": self.time}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the time of ``state`` and sets the levels that belong there."""
        self._set(state["time"])


def phases(text: str) -> Schedule:
    """Noise off and on by phases, written as in Table 1 of Sung et al. 2020.

    Args:
        text: lengths joined by hyphens, ``S`` after those with noise: ``"75-25S-25S"`` is 75 without noise, then 50
            with it. After the last phase its setting stays.

    Raises:
        ValueError: ``text`` is not of that form.

    >>> factor = phases("75-25S")
    >>> factor(74), factor(75), factor(1000)
    (0.0, 1.0, 1.0)
    """
    ends = phase_ends(text)
    levels = [1.0 if phase.endswith("S") else 0.0 for phase in text.strip().split("-")]

    def factor(time: int) -> float:
        return next((level for end, level in zip(ends, levels, strict=True) if time < end), levels[-1])

    return factor


def phase_ends(text: str) -> list[int]:
    """The time at which each phase of :func:`phases` ends.

    Raises:
        ValueError: ``text`` is not of that form.

    >>> phase_ends("75-25S-25S")
    [75, 100, 125]
    """
    if not isinstance(text, str) or not re.fullmatch(r"\d+S?(-\d+S?)*", text.strip()):
        raise ValueError(f"phases {text!r}: write lengths joined by hyphens, with S for noise, such as 75-25S-25S")
    return list(itertools.accumulate(int(phase.rstrip("S")) for phase in text.strip().split("-")))


def ramp(start: int, length: int) -> Schedule:
    """0 until ``start``, then linearly up to 1 over ``length`` (0: at once).

    Raises:
        ValueError: ``start`` or ``length`` is negative.

    >>> [ramp(2, 4)(t) for t in range(8)]
    [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if start < 0 or length < 0:
        raise ValueError(f"ramp(start={start}, length={length}): both must be >= 0")
    return lambda time: float(time >= start) if length == 0 else min(max((time - start) / length, 0.0), 1.0)


def zaremba_decay(constant_epochs: int, divisor: float) -> Schedule:
    """Constant, then divided by ``divisor`` after every epoch (Zaremba, Sutskever, Vinyals 2014).

    As in the authors' program the first smaller rate is that of epoch ``constant_epochs`` + 2, counted from one (the
    large model: 14 epochs named, 15 at the full rate). TensorFlow's version starts one epoch earlier.

    Raises:
        ValueError: ``constant_epochs`` is negative, or ``divisor`` below 1.

    >>> [zaremba_decay(4, 2)(epoch) for epoch in (0, 4, 5, 6)]
    [1.0, 1.0, 0.5, 0.25]
    """
    if constant_epochs < 0 or not divisor >= 1:
        raise ValueError(f"zaremba_decay({constant_epochs}, {divisor}): epochs must be >= 0 and the divisor >= 1")
    return lambda epoch: float(divisor) ** -max(epoch - constant_epochs, 0)


def steps(milestones: Sequence[int], divisor: float = 10) -> Schedule:
    """Divided by ``divisor`` at each milestone: ``steps([75, 125])`` is the CIFAR schedule of Sung et al. 2020.

    Raises:
        ValueError: ``divisor`` is below 1.

    >>> [steps([75, 125])(epoch) for epoch in (74, 75, 125)]
    [1.0, 0.1, 0.01]
    """
    if not divisor >= 1:
        raise ValueError(f"steps(divisor={divisor}): it must be >= 1")
    return lambda time: float(divisor) ** -sum(time >= milestone for milestone in milestones)


def sgdr(first_period: int, multiplier: int = 2) -> Schedule:
    """Cosine decay to 0 with warm restarts, each period ``multiplier`` times as long (Loshchilov & Hutter 2017, Eq. 5).

    Raises:
        ValueError: ``first_period`` or ``multiplier`` is below 1.

    >>> [round(sgdr(10)(time), 3) for time in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 1.0, 0.5, 1.0]
    """
    if first_period < 1 or multiplier < 1:
        raise ValueError(f"sgdr({first_period}, {multiplier}): both must be >= 1")

    def factor(time: int) -> float:
        period = first_period
        while time >= period:
            time, period = time - period, period * multiplier
        return (1 + math.cos(math.pi * time / period)) / 2

    return factor


def cosine(length: int) -> Schedule:
    """Half a cosine from 1 at time 0 to 0 at ``length``, and 0 after it.

    Raises:
        ValueError: ``length`` is below 1.

    >>> [round(cosine(4)(time), 3) for time in (0, 2, 4, 5)]
    [1.0, 0.5, 0.0, 0.0]
    """
    if length < 1:
        raise ValueError(f"cosine({length}): the length must be >= 1")
    return lambda time: (1 + math.cos(math.pi * min(time, length) / length)) / 2


def warmup(length: int, then: Schedule) -> Schedule:
    """``then``, over its first ``length`` epochs or steps multiplied by 1/length, 2/length, … 1.

    After Goyal et al. 2017, section 2.2, who raise the rate at every step. A length of 1 changes nothing.

    Raises:
        ValueError: ``length`` is below 1.

    >>> [warmup(4, steps([6]))(epoch) for epoch in (0, 1, 3, 4, 6)]
    [0.25, 0.5, 1.0, 1.0, 0.1]
    """
    if length < 1:
        raise ValueError(f"warmup({length}): the length must be >= 1")
    return lambda time: min((time + 1) / length, 1.0) * then(time)
