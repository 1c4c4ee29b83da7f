"""Noise times gradient: what the one or two passes of a loop tell of the curvature, weight by weight."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .chunks import pieces
from .entry import Entry
from .part import Pass


class NoiseTimesGradient:
    """Σ n∘g over the passes of a loop, each pass weighted as its gradient is.

    For n with independent elements of variance σ², E[n∘g(w+n)] = σ² diag H up to the fourth order of n (Price 1958). Of
    a pair, ½(n∘g₊ − n∘g₋) has the same mean without the spread that n∘g(w) brings, and its sum is nᵀHn. No gradient is
    stored, nor n: after the first pass there is A = n∘g₊, after the second the gradients hold S = r g₊ + g₋, r the
    ratio of the passes' weights, and n∘g₊ and −n∘g₋ have the weighted sum 2w₀A − w₁n∘S.

    Args:
        reduce: a sum over a tensor, called for n∘g piece by piece; no more than that is kept then. None: all.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        self._reduce = reduce
        self._first: dict[int, Tensor] = {}  # A, by the number of the weight

    def start(self, entries: list[Entry]) -> None:
        """Called when the weights have been moved for a pass."""

    def take(self, part: Pass, entries: list[Entry]) -> dict[int, Tensor]:
        """Takes what it needs after a pass, while the weights are still moved; gives the sums after the last.

        Returns:
            by ``entry.number``; weights without a gradient are missing. What is not of this loop in the gradients
            (``entry.earlier``) is left out.
        """
        pair = part.last and len(part.importance) == 2
        first = self._first if pair else {}  # an unfinished loop may have left some
        factors = (2 * part.importance[0], part.importance[1]) if pair else (1.0, 1.0)
        self._first, found = {}, {}
        for entry in entries:
            if (gradient := entry.gradient) is not None:
                if entry.earlier is not None:
                    gradient = gradient - entry.earlier
                found[entry.number] = self._add_product(first.get(entry.number), entry, gradient, factors)
        if not part.last:
            self._first, found = found, {}
        return found

    def _add_product(
        self, first: Tensor | None, entry: Entry, gradient: Tensor, factors: tuple[Any, Any] = (1.0, 1.0)
    ) -> Tensor:
        """``first`` and n∘g, n being where the weight is moved, times their factors, in the memory of ``first``."""
        columns = [entry.weight], [entry.saved], [gradient]
        if self._reduce is not None:
            sums = [self._reduce(difference(n, w).mul_(g)) for _, ((n,), (w,), (g,)) in pieces(*columns)]
            return _weighted_sum(first, torch.stack(sums).sum(), factors)
        found = torch.empty_like(entry.weight) if first is None else first
        for _, ((n,), (w,), (g,), (out,)) in pieces(*columns, [found]):
            product = torch.sub(n, w, out=out if first is None else None).mul_(g)
            _weighted_sum(None if first is None else out, product, factors)
        return found

    def __reduce__(self) -> Any:  # in a copy of the optimizer no loop is under way
        return type(self), (self._reduce,)


class OwnNoiseTimesGradient(NoiseTimesGradient):
    """The same of the one pass of a process, from its own gradients: those that it has before data-parallel training
    makes them the mean over all processes.

    Where half of the processes are at w+n and half at w-n, the mean over all of them is ½(n∘g₊ − n∘g₋).
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__(reduce)
        self._handles: list[Any] = []

    def start(self, entries: list[Entry]) -> None:
        self._stop()
        self._handles = [entry.parameter.register_hook(partial(self._add, entry)) for entry in entries]

    @torch.no_grad()
    def _add(self, entry: Entry, gradient: Tensor) -> None:
        """Called by autograd, before it adds ``gradient`` to ``.grad``."""
        before = self._first.get(entry.number)
        self._first[entry.number] = self._add_product(before, entry, gradient)

    def take(self, part: Pass, entries: list[Entry]) -> dict[int, Tensor]:
        found = self._first
        self._stop()
        return found

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._first = [], {}


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in at least float32: products of small differences may be nothing in float16."""
    return (a - b).to(torch.promote_types(a.dtype, torch.float32))


def _weighted_sum(first: Tensor | None, product: Tensor, factors: tuple[Any, Any]) -> Tensor:
    """In the place of ``first``, or of ``product`` where there is none."""
    _scale(product, factors[1])
    return product if first is None else _scale(first, factors[0]).add_(product)


def _scale(tensor: Tensor, factor: float | Tensor) -> Tensor:
    return tensor.mul_(factor) if isinstance(factor, Tensor) or factor != 1 else tensor
