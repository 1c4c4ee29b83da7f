"""Noise times gradient: what the one or two passes of a loop tell of the curvature, weight by weight."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .entry import Entry
from .part import Pass


class NoiseTimesGradient:
    """Σ n∘g over the passes of a loop, each pass weighted as its gradient is.

    For n with independent elements of variance σ², E[n∘g(w+n)] = σ² diag H up to the fourth order of n (Price 1958). Of
    a pair, ½(n∘g₊ − n∘g₋) has the same mean without the spread that n∘g(w) brings, and its sum is nᵀHn. No gradient is
    stored, nor n: after the first pass there is A = n∘g₊, after the second the gradients hold S = r g₊ + g₋, r the
    ratio of the passes' weights, and n∘g₊ and −n∘g₋ have the weighted sum 2w₀A − w₁n∘S.

    Args:
        reduce: what to keep of each n∘g, a linear function of it such as its sum; None: all.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        self._reduce = reduce
        self._first: dict[int, Tensor] = {}  # A, by the number of the weight

    def take(self, part: Pass, entries: list[Entry]) -> dict[int, Tensor]:
        """Takes what it needs after a pass, while the weights are still moved; gives the sums after the last.

        Returns:
            by ``entry.number``; weights without a gradient are missing. What is not of this loop in the gradients
            (``entry.earlier``) is left out.
        """
        first, self._first, found = self._first, {}, {}
        for entry in entries:
            if (gradient := entry.gradient) is None:
                continue
            product = entry.weight - entry.saved
            product.mul_(gradient if entry.earlier is None else gradient - entry.earlier)
            found[entry.number] = product if self._reduce is None else self._reduce(product)
        if not part.last:
            self._first = found
            return {}
        if len(part.importance) == 2:
            for number, product in found.items():
                product.mul_(part.importance[1])
                if number in first:
                    product.add_(first.pop(number).mul_(2 * part.importance[0]))
        return found

    def __reduce__(self) -> Any:  # in a copy of the optimizer no loop is under way
        return type(self), (self._reduce,)
