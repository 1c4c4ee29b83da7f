"""Noise that follows the curvature: smaller for weights whose change costs much, larger for the others."""

from collections.abc import Sequence

import torch
from torch import Tensor


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

    def precisions(
        self, means: Sequence[Tensor | None], params: Sequence[Tensor], layers: Sequence[str]
    ) -> list[Tensor]:
        """(max(h, 0) + δ) over the mean of max(h, 0) in the layer, for each parameter; ones where h is not known."""
        found: list[Tensor] = [torch.ones_like(p) for p in params]
        for layer in dict.fromkeys(layers):
            mine = [i for i, name in enumerate(layers) if name == layer]
            known = [h.to(params[i]).clamp(min=0) for i in mine if (h := means[i]) is not None]
            if len(known) == len(mine):
                size = torch.stack([h.sum() for h in known]).sum() / sum(h.numel() for h in known)
                for i, h in zip(mine, known, strict=True):
                    found[i] = torch.where(size > 0, h / torch.where(size > 0, size, 1.0) + self.damping, 1.0)
        return found

    def update(self, mean: Tensor | None, estimate: Tensor) -> Tensor:
        """The running mean with one more estimate in it. (That it starts from 0 is of no matter for a shape.)"""
        mean = torch.zeros_like(estimate) if mean is None else mean.to(estimate)
        return mean.mul_(self.decay).add_(estimate, alpha=1 - self.decay)
