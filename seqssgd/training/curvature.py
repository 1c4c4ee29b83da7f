"""Rows of curvature in the log, from what the passes of S-SGD's pair give away."""

import math
from typing import Any

import torch

from ..errors import UserError
from ..optim import SymmetricNoise
from ..optim.noise import NORMS
from .progress import Progress


def begin_recording(optimizer: Any) -> None:
    """Tells ``optimizer`` to record what its passes tell of the curvature.

    Raises:
        UserError: it has no pair on one minibatch.
    """
    if not isinstance(optimizer, SymmetricNoise):
        raise UserError("training.log_curvature: only optim.method ssgd has a pair of gradients; leave it out")
    try:
        optimizer.record_curvature()
    except ValueError as error:
        raise UserError(f"training.log_curvature: {error}") from None


class CurvatureLog:
    """Averages, between two lines of the log, what every step tells of the curvature.

    Args:
        optimizer: the training's.
        progress: where the sums are kept, so that a resumed run logs the same.
        scaler: of the gradients.
        wanted: whether there is anything to log.

    Raises:
        UserError: the optimizer has no pair on one minibatch.
    """

    def __init__(self, optimizer: Any, progress: Progress, scaler: torch.amp.GradScaler, wanted: bool | None):
        self.optimizer, self.progress, self.scaler, self.wanted = optimizer, progress, scaler, wanted
        if wanted:
            begin_recording(optimizer)

    def note(self) -> None:
        """Takes in the step whose passes are done; nothing where they had no noise, or were not finite."""
        if not self.wanted:
            return
        scale = self.scaler.get_scale()
        layers = {name: [float(v) / scale for v in layer] for name, layer in self.optimizer.curvature().items()}
        levels = {float(group.get("noise", 0)) for group in self.optimizer.param_groups} - {0.0}
        level = max(levels, default=0.0)
        along = sum(layer[0] for layer in layers.values())
        if not layers or not level or not math.isfinite(along):
            return
        found = {"sharpness": along / 2}
        # which is that of ‖n‖ = level · ‖w‖ with one level; balanced layers have levels of their own
        if len(levels) == 1 and not self.optimizer.balance and self.optimizer.source.granularity in NORMS:
            found["relative_trace"] = along / level**2
        found |= {f"trace/{name}": layer[1] for name, layer in layers.items() if math.isfinite(layer[1])}
        for name, value in found.items():
            sums = self.progress.curvature.setdefault(name, [0.0, 0])
            sums[:] = sums[0] + value, sums[1] + 1

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """The means since the last call, of the data of all processes: of the whole, and by layer."""
        found = {name: total / count for name, (total, count) in self.progress.curvature.items()}
        self.progress.curvature.clear()
        by_layer = {name: value for name, value in found.items() if name.startswith("trace/")}
        return {name: value for name, value in found.items() if name not in by_layer}, by_layer
