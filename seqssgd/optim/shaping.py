"""Noise that follows the curvature: smaller for weights whose change costs much, larger for the others."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .chunks import pieces
from .entry import Entry


class CurvatureShape:
    """The running mean h of the Hessian's diagonal, and the precision max(h, 0) + δ that noise follows.

    δ is ``damping`` times the mean of max(h, 0) over the layer, so that the shape of the noise does not depend on the
    scale of the loss; where nothing is known, the noise is flat.

    Args:
        decay: of the running mean.
        damping: δ over the mean.
    """

    def __init__(self, decay: float, damping: float):
        self.decay, self.damping = decay, damping
        self.means: dict[int, Tensor] = {}  # h, by the number of the weight
        self._sums: dict[int, Tensor] = {}  # Σ max(h, 0)

    def precisions(self, entries: list[Entry]) -> list[Tensor]:
        """(max(h, 0) + δ) over the mean of max(h, 0) in the layer, for each weight; ones where h is not known."""
        known = {i: _precision(h, size, self.damping) for i, h, size in self._known(entries)}
        return [known[i] if i in known else torch.ones_like(entry.weight) for i, entry in enumerate(entries)]

    def precondition(self, entries: list[Entry]) -> None:
        """Divides the gradients by the precisions, these over what they are for the mean of max(h, 0)."""
        for i, h, size in self._known(entries):
            if (gradient := entries[i].gradient) is not None:
                mean = torch.where(size > 0, 1 + self.damping, 1.0)
                gradient.div_(_precision(h, size, self.damping).div_(mean))

    def _known(self, entries: list[Entry]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The places of weights in layers whose h is known, with h, and the mean of max(h, 0) over the layer."""
        for layer in dict.fromkeys(entry.layer for entry in entries):
            mine = [i for i, entry in enumerate(entries) if entry.layer == layer]
            known = [self.means.get(entries[i].number) for i in mine]
            means = [h.to(entries[i].weight) for i, h in zip(mine, known, strict=True) if h is not None]
            if len(means) == len(mine):
                sums = torch.stack([self._sum(entries[i].number, h) for i, h in zip(mine, means, strict=True)])
                size = sums.sum() / sum(h.numel() for h in means)
                for i, h in zip(mine, means, strict=True):
                    yield i, h, size

    def _sum(self, number: int, h: Tensor) -> Tensor:
        """Σ max(h, 0) of a weight; found once for each h."""
        if number not in self._sums:
            self._sums[number] = h.clamp(min=0).sum()
        return self._sums[number]

    def update(self, number: int, estimate: Tensor) -> None:
        """Takes one more estimate of a weight in. (That the mean starts from 0 is of no matter for a shape.)"""
        before = self.means.get(number)
        mean = torch.zeros_like(estimate) if before is None else before.to(estimate)
        self.means[number] = mean.mul_(self.decay).add_(estimate, alpha=1 - self.decay)
        self._sums.pop(number, None)

    def load(self, means: Mapping[int, Tensor]) -> None:
        """Goes on from other running means."""
        self.means = {number: mean.clone() for number, mean in means.items()}
        self._sums.clear()


def _precision(h: Tensor, size: Tensor, damping: float) -> Tensor:
    """max(h, 0)/size + δ; 1 where ``size``, the mean of max(h, 0) over the layer, is 0."""
    size, damped = torch.where(size > 0, size, math.inf), torch.where(size > 0, damping, 1.0)
    precision = torch.empty_like(h)
    for _, ((mean,), (out,)) in pieces([h], [precision]):
        torch.clamp(mean, min=0, out=out).div_(size).add_(damped)
    return precision
