"""Noise that follows the curvature: smaller for weights whose change costs much, larger for the others."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .chunks import pieces
from .entry import Entry


class CurvatureShape:
    """The running mean h of the Hessian's diagonal, and the precision that noise follows.

    It is max(h, 0)/h̄ + δ, h̄ being the mean of max(h, 0) over the layer, so that the shape of the noise does not depend
    on the scale of the loss. Where nothing is known, or h̄ is 0, it is 1, and the noise is flat. No precision is kept:
    it is found anew, piece by piece, for each use.

    Args:
        decay: of the running mean.
        damping: δ.
    """

    def __init__(self, decay: float, damping: float):
        self.decay, self.damping = decay, damping
        self.means: dict[int, Tensor] = {}  # h, by the number of the weight
        self._sums: dict[int, Tensor] = {}  # Σ max(h, 0)

    def update(self, number: int, estimate: Tensor) -> None:
        """Takes one more estimate of a weight in. (That the mean starts from 0 is of no matter for a shape.)"""
        before = self.means.get(number)
        mean = torch.zeros_like(estimate) if before is None else before.to(estimate)
        self._set(number, mean.lerp_(estimate, 1 - self.decay))

    def load(self, means: Mapping[int, Tensor]) -> None:
        """Goes on from these running means."""
        self.means, self._sums = {}, {}
        for number, mean in means.items():
            self._set(number, mean.clone())

    def _set(self, number: int, mean: Tensor) -> None:
        self.means[number] = mean
        self._sums[number] = torch.stack([h.clamp(min=0).sum() for _, ((h,),) in pieces([mean])]).sum()

    def apply(self, entries: list[Entry], noise: list[Tensor]) -> None:
        """Divides the noise of ``entries``, all that there are, by the root of their precision."""
        sizes = self._sizes(entries)
        for entry, z in zip(entries, noise, strict=True):
            for precision, (part,) in self._precisions(entry, sizes[entry.layer], z):
                part.mul_(precision.rsqrt_())

    def over_variances(self, entries: list[Entry], products: Mapping[int, Tensor]) -> None:
        """Divides n∘g, of those of ``entries`` that it is known of, by E[n∘n], while they are moved by n.

        Args:
            entries: all that there are.
            products: n∘g, by the number of the weight.
        """
        sizes = self._sizes(entries)
        for entry in [entry for entry in entries if entry.number in products]:
            product, found = products[entry.number], []
            columns = entry.weight, entry.saved, product
            for precision, (p, w, ng) in self._precisions(entry, sizes[entry.layer], *columns):
                ng.mul_(precision)
                found.append(torch.stack([torch.linalg.vector_norm(p - w).square(), precision.reciprocal_().sum()]))
            squares, inverse = torch.stack(found).sum(0)  # E[n∘n] = s² / precision, where s² = ‖n‖² / Σ 1/precision
            product.div_((squares / inverse).clamp_min(torch.finfo(product.dtype).tiny))

    def precondition(self, entries: list[Entry]) -> None:
        """Divides the gradients of ``entries``, all that there are, by the precisions over what they are for h̄.

        Those of a layer of which not all is known stay as they are.
        """
        unknown = {entry.layer for entry in entries if entry.number not in self.means}
        entries = [entry for entry in entries if entry.layer not in unknown]
        sizes = self._sizes(entries)
        for entry in entries:
            if (gradient := entry.gradient) is not None:
                size = sizes[entry.layer]
                at_mean = torch.full_like(size, 1 + self.damping).masked_fill_(size.isinf(), 1.0)
                for precision, (g,) in self._precisions(entry, size, gradient):
                    g.div_(precision.div_(at_mean))

    def _sizes(self, entries: list[Entry]) -> dict[str, Tensor]:
        """h̄ by layer, as 0-dim tensors; infinity where nothing is known, or it is 0."""
        found = {}
        for layer in dict.fromkeys(entry.layer for entry in entries):
            mine = [entry for entry in entries if entry.layer == layer]
            found[layer] = mine[0].weight.new_full((), math.inf)
            if all(entry.number in self.means for entry in mine):
                total = torch.stack([self._sums[entry.number].to(found[layer]) for entry in mine]).sum()
                size = total / sum(entry.weight.numel() for entry in mine)
                found[layer] = torch.where(size > 0, size, found[layer])
        return found

    def _precisions(self, entry: Entry, size: Tensor, *columns: Tensor) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Piece by piece the precision of a weight, new, with the pieces of ``columns``."""
        h = self.means.get(entry.number)
        h = torch.zeros_like(entry.weight) if h is None else h.to(entry.weight)
        damping = torch.full_like(size, self.damping).masked_fill_(size.isinf(), 1.0)
        for _, ((mean,), *parts) in pieces([h], *([column] for column in columns)):
            yield mean.clamp(min=0).div_(size).add_(damping), tuple(part for (part,) in parts)
