"""Where the noise in a step's gradient comes from: the minibatch, or the weight noise, to first order or beyond.

Let a minibatch have B examples, and a step draw one perturbation n. Around its mean, the gradient at w varies by D/B
from minibatch to minibatch; at w ± n by (D + M)/B. Averaged over all data, the gradient at w + n still varies with n:
by N₁ in the part that changes sign with n (Hn, to first order), by N₂ in the part that does not. A step's variance is

    without noise            D/B
    with one-sided noise     (D + M)/B + N₁ + N₂
    by halves                (D + M)/B + N₂
    by the pair              D_p/B + N₂                 for two passes

with D_p ≤ D + M, as the mean of an example's two gradients varies less than each. All parts are measured without bias
from two independent half-minibatches under the same n: what both share is of n, what they do not is of the data.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sharpness import WeightNoise
from .spectrum import Estimate, mean

SIMPLEST = 0.1  # what one-sided noise may cost more than halves before it is worth to halve minibatches


@dataclass(frozen=True)
class VarianceSplit:
    """The parts of a gradient's variance: traces of covariances, summed over all weights.

    Attributes:
        level: of the noise.
        batch: examples B of a minibatch of the training.
        data: D, of one example at w.
        noisy_data: D + M, of one example at w ± n.
        pair_data: D_p, of the mean of one example's gradients at w + n and w - n.
        first: N₁.
        second: N₂.
        pairs: of half-minibatches that these are from.
    """

    level: float
    batch: int
    data: Estimate
    noisy_data: Estimate
    pair_data: Estimate
    first: Estimate
    second: Estimate
    pairs: int | None = None

    def of_step(self, batch: int | None = None) -> dict[str, float]:
        """The variance of a step's gradient by method, for minibatches of ``batch`` examples."""
        size = batch or self.batch
        noise, rest = max(self.first.value, 0.0), max(self.second.value, 0.0)
        return {
            "none": self.data.value / size,
            "one-sided": self.noisy_data.value / size + noise + rest,
            "halves": self.noisy_data.value / size + rest,
            "pair": self.pair_data.value / size + rest,
        }

    @property
    def pays(self) -> tuple[float, float]:
        """The minibatch sizes between which the pair, for twice the passes, has less than half of the variance of
        one-sided noise: from 0 if every small one will do, to infinity if every large one; both infinite if none.

        2 (D_p/B + N₂) < (D + M)/B + N₁ + N₂.
        """
        gain = max(self.first.value, 0.0) - max(self.second.value, 0.0)
        price = 2 * self.pair_data.value - self.noisy_data.value
        if price <= 0:
            return 0.0, price / gain if gain < 0 else math.inf
        return price / gain if gain > 0 else math.inf, math.inf

    @property
    def break_even(self) -> float:
        """The minibatch size above which the pair pays, as in :attr:`pays`; infinite if there is none, as where it
        pays for small ones alone; 0 if every minibatch is large enough."""
        low, high = self.pays
        return low if math.isinf(high) else math.inf

    def pays_in_words(self) -> str:
        """:attr:`pays` in two digits: ``"never"``, ``"1,600"`` for from there on, or ``"below 90"``."""
        low, high = (max(float(f"{size:.2g}"), 1) for size in self.pays)
        if math.isinf(high):
            return "never" if math.isinf(low) else f"{low:,.0f}"
        return f"below {high:,.0f}"

    @property
    def decided(self) -> bool:
        """Whether the 95 % intervals of N₁ and of N₁ - N₂ leave 0 out, so that there is a first order to remove."""
        gain = self.first.value - self.second.value
        half = math.hypot(self.first.high - self.first.low, self.second.high - self.second.low) / 2
        return self.first.low > 0 and abs(gain) > half

    @classmethod
    def restored(cls, known: Mapping[str, Any], pairs: int | None = None) -> "VarianceSplit":
        """What a landscape.json has of one; ``pairs`` for those that do not say how many they are from."""

        def estimate(key: str) -> Estimate:
            return Estimate(*(math.nan if value is None else value for value in known[key]))

        steps, batch, rest = known["of_step"], known["batch"], max(known["second"][0], 0.0)
        noisy, pair = (Estimate(batch * (steps[method] - rest), math.nan, math.nan) for method in ("halves", "pair"))
        return cls(known["level"], batch, estimate("data"), noisy, pair, estimate("first"), estimate("second"), pairs)

    def recommendation(self) -> tuple[str, str]:
        """``"one-sided"``, ``"halves"`` or ``"pair"``, whichever has the least variance for equal passes; and why."""
        found = self.of_step()
        excess = found["one-sided"] / found["halves"] - 1
        known = "" if self.decided else f"not decided by {self.pairs or 'the'} pairs, whose N₁ or N₁ - N₂ may be 0; "
        shares = (
            f"{known}at {self.batch} examples one-sided noise makes the variance "
            f"{found['one-sided'] / found['none']:.2f} times that of plain steps, "
            f"halves {found['halves'] / found['none']:.2f}, the pair "
            f"{found['pair'] / found['none']:.2f} for two passes"
        )
        if 2 * found["pair"] < min(found["one-sided"], found["halves"]):
            return "pair", f"{shares}: it is worth its second pass"
        if excess <= SIMPLEST:
            return "one-sided", f"{shares}: its first-order noise is drowned by that of the minibatch"
        if self.pays[0] < self.batch < self.pays[1]:
            return "halves", f"{shares}: halves remove the first-order noise at no pass; the pair where they cannot"
        return "halves", f"{shares}: halves remove the first-order noise at no pass; the pair does not pay at that size"

    def __str__(self) -> str:
        method, why = self.recommendation()
        edge = self.pays_in_words()
        below = f"{edge} examples" if edge.startswith("below") else f"from {edge} examples on"
        above = "at no minibatch size" if edge == "never" else below
        return f"noise level {self.level:g}: take {method}: {why}; the pair pays against one-sided noise {above}"


def variance_split(
    gradient: Callable[[Any], Tensor],
    halves: Iterable[tuple[Any, Any]],
    examples: int,
    noise: WeightNoise,
    level: float,
) -> VarianceSplit:
    """Measures the parts.

    Args:
        gradient: of the mean loss of a half-minibatch at the weights as they are: one vector.
        halves: pairs of half-minibatches, all drawn independently: one pair for each perturbation; six half passes.
        examples: in each half.
        noise: around which weights, and of what kind.
        level: of the noise.

    Raises:
        ValueError: fewer than four pairs.
    """
    data, noisy, pair, first, second = [], [], [], [], []
    before: tuple[Tensor, Tensor] | None = None
    for draw, both in enumerate(halves):
        clean = [gradient(half) for half in both]
        data.append(_spread(clean[0], clean[1], examples))
        with noise.moved(level, draw) as signs:
            plus, minus = [[gradient(half) for half in both] for _ in signs]
        noisy.append((_spread(plus[0], plus[1], examples) + _spread(minus[0], minus[1], examples)) / 2)
        even = (plus[0] + minus[0]) / 2, (plus[1] + minus[1]) / 2
        odd = (plus[0] - minus[0]) / 2, (plus[1] - minus[1]) / 2
        pair.append(_spread(*even, examples))
        first.append(_dot(*odd))  # of mean 0 by symmetry
        bent = even[0] - clean[0], even[1] - clean[1]  # varies with n as the even part does, and little with the data
        if before is not None:  # differences of two draws: the mean falls out
            second.append(_dot(bent[0] - before[0], bent[1] - before[1]) / 2)
            before = None
        else:
            before = bent
    if len(second) < 2:
        raise ValueError(f"{len(data)} pairs of half-minibatches are too few; give at least four")
    return VarianceSplit(
        level, 2 * examples, mean(data), mean(noisy), mean(pair), mean(first), mean(second), pairs=len(data)
    )


def _spread(one: Tensor, other: Tensor, examples: int) -> float:
    """The variance of one example, from the gradients of two independent sets of so many."""
    return examples * _dot(one - other, one - other) / 2


def _dot(one: Tensor, other: Tensor) -> float:
    return float(torch.dot(one.double(), other.double()))
