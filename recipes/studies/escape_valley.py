"""A toy valley, the right one of the Styblinski-Tang function f(x) = (x⁴ - 16x² + 5x)/2, with noise that is put in."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seqssgd.landscape.escape import Passages, WeightNoise, first_passage
from seqssgd.landscape.escape_theory import kramers_rate, mean_first_passage, xie_rate

# Roots of f'(x) = 2x³ - 16x + 5/2: left minimum, saddle, right minimum.
LEFT, SADDLE, MINIMUM = sorted(float(root.real) for root in np.roots([2, 0, -16, 2.5]))
OUTSIDE = 4.0  # where the exact passage time reflects: f is 17.6 times the barrier above the minimum


def height(x: float) -> float:
    return (x**4 - 16 * x**2 + 5 * x) / 2


def curvature(x: float) -> float:
    return 6 * x**2 - 16


BARRIER = height(SADDLE) - height(MINIMUM)
# Half of the barrier's height is on either side of this point: where the noise of "minibatch" changes.
HALF = float(
    next(
        root.real
        for root in np.roots([0.5, 0, -8, 2.5, -(height(MINIMUM) + BARRIER / 2)])
        if SADDLE < root.real < MINIMUM
    )
)


@dataclass(frozen=True)
class Valley:
    """Particles that start at the minimum of f_k(x) = f(√k·x) and are followed until x < ``end``/√k.

    Attributes:
        noise: added in every step, of diffusion D: ``none``; ``white``: D = ``strength``; ``minibatch``: what Xie et
            al. assume, D = ``strength``·|H|, of the minimum on the lower half of the way up and of the saddle beyond,
            so that ``strength`` is η/2B.
        sharpness: k; the barrier does not depend on it, and both second derivatives are k times those of f.
        method, level, distribution: of the weight noise, see :class:`WeightNoise`. The level is σ, the size of every
            component of n, in units of 1/√k; with ``relative`` it is c in ‖n‖ = c·‖w‖, as in seqssgd.optim.
        dimensions: d; the sum of f over d coordinates that a random rotation mixes, and the time until the first of
            them is out.
        step: η·k.
        time: at most so much of it, times 1/k.
        every: steps between looks at where the particles are.
    """

    noise: str = "none"
    strength: float = 0.0
    sharpness: float = 1.0
    method: str = "none"
    level: float = 0.0
    distribution: str = "rademacher"
    relative: bool = False
    dimensions: int = 1
    end: float = -2.0
    step: float = 0.002
    time: float = 50.0
    every: int = 1
    particles: int = 1000
    seed: int = 0

    @property
    def levels(self) -> list[float]:
        return [-self.end / math.sqrt(self.sharpness)]

    @property
    def unit(self) -> float:
        """Time that a step lasts."""
        return self.step / self.sharpness

    def passages(self) -> Passages:
        generator = torch.Generator().manual_seed(self.seed)
        root, rotation = math.sqrt(self.sharpness), None
        if self.dimensions > 1:
            shape = (self.dimensions, self.dimensions)
            rotation = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64))[0]
        level = self.level if self.relative else self.level / root
        noise = WeightNoise(
            self.method, [level], distribution=self.distribution, absolute=not self.relative, seed=self.seed
        )

        def coordinates(weights: list[Tensor]) -> Tensor:
            return weights[0] if rotation is None else weights[0] @ rotation

        def gradient(weights: list[Tensor], batch: None) -> list[Tensor]:
            x = root * coordinates(weights)
            slope = root * ((2 * x * x - 16) * x + 2.5)
            return [slope if rotation is None else slope @ rotation.T]

        def step(weights: list[Tensor]) -> list[Tensor]:
            new = weights[0] - self.unit * noise.gradient(gradient, weights)[0]
            if self.noise != "none":
                drawn = torch.randn(new.shape, generator=generator, dtype=torch.float64)
                if self.noise == "minibatch":
                    drawn *= torch.where(weights[0] * root > HALF, *(h**0.5 for h in self._noisy_curvatures()))
                new.add_(drawn, alpha=(2 * self.unit * self.strength) ** 0.5)
            return [new]

        start = torch.full((self.particles, self.dimensions), MINIMUM / root, dtype=torch.float64)
        start = start if rotation is None else start @ rotation.T
        steps = round(self.time / self.step / self.every) * self.every
        return first_passage([start], step, lambda w: -coordinates(w).amin(1), self.levels, steps, self.every)

    def _noisy_curvatures(self) -> tuple[float, float]:
        """|H| of the minimum and of the saddle."""
        return self.sharpness * curvature(MINIMUM), -self.sharpness * curvature(SADDLE)

    def predicted(self) -> dict[str, float]:
        """Mean times by ``formula`` (Kramers', or Xie et al.'s) and by ``exact`` integration of the diffusion."""
        k, smoothing = self.sharpness, 3 * self.level**2 if self.method == "pair" else 0.0
        if self.noise == "none" or self.relative or self.dimensions > 1 or self.method not in ("none", "pair"):
            return {}

        def strength(x: float) -> float:  # in the coordinate √k·(-x), and time·k
            low, high = self._noisy_curvatures()
            return self.strength * (1 if self.noise == "white" else low if -x > HALF else high)

        def drift(x: float) -> float:  # the pair with n = ±σ descends f + 3σ²x²
            return 2 * (-x) ** 3 - 16 * (-x) + 2.5 + 2 * smoothing * (-x)

        found = {"exact": mean_first_passage(-MINIMUM, -self.end, -OUTSIDE, drift, strength) / k}
        if self.method == "none":
            if self.noise == "white":
                rate = kramers_rate(BARRIER, curvature(MINIMUM) * k, curvature(SADDLE) * k, self.strength)
            else:
                rate = xie_rate(BARRIER, curvature(MINIMUM) * k, curvature(SADDLE) * k, 2 * self.strength)
            found["formula"] = 1 / rate
        return found


def threshold(relative: bool) -> float:
    """The level of the pair from which its smoothed valley has no minimum left; ±n, one dimension.

    The pair's mean gradient is that of x³ - px + q = 0 with p = 8 - 3σ², q = 5/4 for noise of one size σ, which is c
    times the distance of the minimum from 0; with n = ±c·x it is p = 8/(1 + 3c²), q = (5/4)/(1 + 3c²). The two upper
    roots are one where 4p³ = 27q².
    """
    if relative:
        return math.sqrt((4 * 8**3 / (27 * 1.25**2) - 1) / 3)
    return math.sqrt((8 - (27 * 1.25**2 / 4) ** (1 / 3)) / 3)
