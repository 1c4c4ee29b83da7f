"""Noise that follows the curvature: smaller for weights whose change costs much, larger for the others."""

from collections.abc import Iterator

import torch
from torch import Tensor

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

    def precisions(self, entries: list[Entry]) -> list[Tensor]:
        """(max(h, 0) + δ) over the mean of max(h, 0) in the layer, for each weight; ones where h is not known."""
        known = {i: self._precision(h, size) for i, h, size in self._known(entries)}
        return [known[i] if i in known else torch.ones_like(entry.weight) for i, entry in enumerate(entries)]

    def precondition(self, entries: list[Entry]) -> None:
        """Divides the gradients by the precisions, these over what they are for the mean of max(h, 0)."""
        for i, h, size in self._known(entries):
            if (gradient := entries[i].gradient) is not None:
                flat = ~(size > 0)
                gradient.div_(self._precision(h, size).div_(1 + self.damping).masked_fill_(flat, 1.0))

    def _precision(self, h: Tensor, size: Tensor) -> Tensor:
        """In the place of ``h``; 1 where the layer's ``size`` of it is 0."""
        flat = ~(size > 0)
        return h.div_(torch.where(flat, 1.0, size)).add_(self.damping).masked_fill_(flat, 1.0)

    def _known(self, entries: list[Entry]) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The places of weights in layers whose h is known, with a new max(h, 0), and its mean over the layer."""
        for layer in dict.fromkeys(entry.layer for entry in entries):
            mine = [i for i, entry in enumerate(entries) if entry.layer == layer]
            means = [(entries[i], self.means.get(entries[i].number)) for i in mine]
            known = [h.to(entry.weight).clamp(min=0) for entry, h in means if h is not None]
            if len(known) == len(mine):
                size = torch.stack([h.sum() for h in known]).sum() / sum(h.numel() for h in known)
                for i, h in zip(mine, known, strict=True):
                    yield i, h, size

    def update(self, number: int, estimate: Tensor) -> None:
        """Takes one more estimate of a weight in. (That the mean starts from 0 is of no matter for a shape.)"""
        before = self.means.get(number)
        mean = torch.zeros_like(estimate) if before is None else before.to(estimate)
        self.means[number] = mean.mul_(self.decay).add_(estimate, alpha=1 - self.decay)
