"""How long particles stay in a valley: first passages of many at once, and escape rates with intervals."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from scipy.stats import chi2, norm
from torch import Tensor

from ..optim.limits import check_settings
from ..optim.noise import Distribution, NoiseSource

Weights = Sequence[Tensor]  # each (particles, …): the weights of as many copies of one model
Method = Literal["none", "one-sided", "pair", "halves"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Passages:
    """When each particle was first seen above each level.

    Attributes:
        levels: ascending.
        steps: (levels, particles), int64; the last step that was made where the particle was never seen above it.
        passed: (levels, particles), bool; False where the time is censored.
        diverged: particles that ended with a value that is no number, which counts as above every level.
    """

    levels: tuple[float, ...]
    steps: Tensor
    passed: Tensor
    diverged: int

    def rate(self, level: int, unit: float = 1.0, after: int = 0, until: int | None = None) -> "Rate":
        """The rate of passage of ``levels[level]``, each step lasting ``unit`` of time.

        Args:
            after, until: count only what happened between these two steps.
        """
        times, end = self.steps[level], self.steps.max() if until is None else until
        exposure = (times.clamp(max=end) - after).clamp(min=0).double()
        inside = self.passed[level] & (times > after) & (times <= end)
        escapes, spread = int(inside.sum()), None
        if escapes:
            spread = float((exposure / exposure.sum() - inside.double() / escapes).norm())
        return Rate(escapes, float(exposure.sum()) * unit, spread)

    def trend(self, level: int) -> float | None:
        """The rate after the median time in that before it: 1 if escape is a Poisson process, None if it is unknown.

        Above 1 where particles first have to spread from the very minimum, below 1 where those that stay have found a
        part of the valley that is harder to leave. A mean time is then no property of the minimum alone.
        """
        median = self.median(level)
        if not math.isfinite(median):
            return None
        early, late = self.rate(level, until=int(median)), self.rate(level, after=int(median))
        return late.value / early.value if late.exposure else None

    def median(self, level: int, unit: float = 1.0) -> float:
        """The time by which half of the particles had passed; infinite if fewer did."""
        times = self.steps[level].double().masked_fill(~self.passed[level], math.inf)
        return float(times.quantile(0.5, interpolation="higher")) * unit


def first_passage(
    start: Weights,
    step: Callable[[list[Tensor]], Weights],
    value: Callable[[list[Tensor]], Tensor],
    levels: Sequence[float],
    max_steps: int,
    every: int = 1,
) -> Passages:
    """Follows all particles until each has passed the highest level, at most ``max_steps`` steps.

    Args:
        start: their weights, each tensor (particles, …).
        step: makes one step of all particles that it is given; those that have passed every level are dropped.
        value: of each particle, shape (particles,): a loss, or a coordinate along the way out.
        levels: of that value.
        every: the value is looked at after every so many steps. A particle that went over a level and came back
            in between is not seen.

    Raises:
        ValueError: levels that do not ascend, no particles, a start that is above a level already, or ``max_steps``
            that is no multiple of ``every``.
    """
    state, count = list(start), len(start[0])
    if not levels or any(not low < high for low, high in zip(levels, levels[1:], strict=False)):
        raise ValueError(f"levels {list(levels)}: they must ascend")
    if every < 1 or max_steps < every or max_steps % every:
        raise ValueError(f"max_steps={max_steps} must be a multiple of every={every}")
    if count == 0:
        raise ValueError("no particles to follow")
    if not bool((value(state) <= levels[0]).all()):
        raise ValueError(f"particles start above the level {levels[0]:g}: nothing to pass")
    bounds = torch.tensor(levels, dtype=torch.float64).unsqueeze(1)
    steps = torch.full((len(levels), count), max_steps)
    passed = torch.zeros(len(levels), count, dtype=torch.bool)
    alive, diverged = torch.arange(count), 0
    for number in range(every, max_steps + 1, every):
        for _ in range(every):
            state = list(step(state))
        values = value(state).double()
        above = ~(values <= bounds)  # a value that is no number is above
        new = above & ~passed[:, alive]
        if not bool(new.any()):
            continue
        level, particle = new.nonzero(as_tuple=True)
        steps[level, alive[particle]], passed[level, alive[particle]] = number, True
        if bool(new[-1].any()):
            left = ~passed[-1, alive]
            diverged += int((~left & ~values.isfinite()).sum())
            alive, state = alive[left], [tensor[left] for tensor in state]
            if len(alive) == 0:
                break
    return Passages(tuple(levels), steps, passed, diverged)


@dataclass(frozen=True)
class Rate:
    """The rate of a Poisson process that was seen ``escapes`` times in a total time ``exposure`` at risk.

    Every particle adds to the exposure the time until it escaped, or until it was last seen (censored). The quotient is
    the maximum-likelihood estimate for exponential times (Epstein and Sobel 1953).

    Attributes:
        spread: the standard error of the logarithm of the mean time as the particles themselves show it, whatever the
            distribution of times: √Σ(t_i/Σt - d_i/Σd)² over their exposures t and escapes d (infinitesimal jackknife).
            None: unknown, 1/√escapes as for a Poisson process.
    """

    escapes: int
    exposure: float
    spread: float | None = None

    @property
    def value(self) -> float:
        """Escapes per unit of time."""
        return self.escapes / self.exposure

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Chi-square bounds of the rate; with no escape the lower one is 0. Conservative where times are censored."""
        tail = (1 - confidence) / 2
        low = chi2.ppf(tail, 2 * self.escapes) if self.escapes else 0.0
        return float(low) / (2 * self.exposure), float(chi2.isf(tail, 2 * self.escapes + 2)) / (2 * self.exposure)

    @property
    def time(self) -> float:
        """The mean time to an escape; infinite if there was none."""
        return self.exposure / self.escapes if self.escapes else math.inf

    def time_interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Bounds of the mean time, from those of the rate; the upper one is infinite if there was no escape."""
        low, high = self.interval(confidence)
        return 1 / high, 1 / low if low else math.inf


def time_ratio(one: Rate, other: Rate, confidence: float = 0.95) -> tuple[float, float, float]:
    """The mean time of ``one`` over that of ``other``, with an interval that needs no Poisson process, by the spreads.

    Raises:
        ValueError: one of them has no escape.
    """
    if not (one.escapes and other.escapes):
        raise ValueError("a ratio of mean times needs an escape in both")
    error = math.hypot(*(rate.escapes**-0.5 if rate.spread is None else rate.spread for rate in (one, other)))
    ratio, factor = one.time / other.time, math.exp(norm.isf((1 - confidence) / 2) * error)
    return ratio, ratio / factor, ratio * factor


class WeightNoise:
    """The gradient that a method with weight noise steps on, for many particles at once.

    Perturbations are those of :mod:`seqssgd.optim`, drawn by the same code: ‖n‖ = level·‖w‖ for each weight tensor of
    each particle, of its weights at this step. With ``absolute`` they are level·z instead, z of unit variance for
    ``rademacher`` and ``gaussian``: a size that does not follow the weights.

    Args:
        method: ``none``; ``one-sided``: the gradient at w+n (``OneSidedNoise``); ``pair``: the mean of those at w+n and
            w-n on one minibatch (``SymmetricNoise``, Eq. 3 of Sung et al. 2020); ``halves``: of those at w+n on the
            first half of the minibatch and at w-n on the other (``signs="halves"``).
        levels: one for each weight tensor; 0: not perturbed.

    Raises:
        ValueError: an unknown method or distribution.
    """

    def __init__(
        self,
        method: Method,
        levels: Sequence[float],
        *,
        distribution: Distribution = "rademacher",
        absolute: bool = False,
        seed: int = 0,
    ):
        check_settings(WeightNoise, method=method)
        self.method, self.levels, self.draws = method, list(levels), 0
        # a particle is a filter, a slice along dimension 0
        self.source = NoiseSource(distribution, "absolute" if absolute else "filter", seed)

    def gradient(
        self, of: Callable[[list[Tensor], Tensor | None], Weights], weights: Weights, batch: Tensor | None = None
    ) -> list[Tensor]:
        """The gradient for one step; every call draws a new perturbation.

        Args:
            of: gives the gradient at some weights on a minibatch.
            batch: (particles, examples, …): what ``of`` is to see; None where it needs none (not for ``halves``).
        """
        weights = list(weights)
        if self.method == "none":
            return list(of(weights, batch))
        chosen = [index for index, level in enumerate(self.levels) if level]
        moved = [weights[index].clone() for index in chosen]
        saved, levels = [weights[index] for index in chosen], [self.levels[index] for index in chosen]
        self.source.add_(moved, saved, levels, [str(index) for index in chosen], self.draws)
        self.draws += 1
        plus = _replaced(weights, chosen, moved)
        if self.method == "one-sided":
            return list(of(plus, batch))
        if self.method == "pair":
            first = second = batch
        elif batch is None:
            raise ValueError("halves of what? Give the batch")
        else:
            first, second = batch.chunk(2, dim=1)
        minus = _replaced(weights, chosen, [2 * w - w_plus for w, w_plus in zip(saved, moved, strict=True)])
        pairs = zip(of(plus, first), of(minus, second), strict=True)
        return [(a + b) / 2 for a, b in pairs]


def _replaced(weights: list[Tensor], indices: list[int], new: list[Tensor]) -> list[Tensor]:
    found = dict(zip(indices, new, strict=True))
    return [found.get(index, weight) for index, weight in enumerate(weights)]
