"""How large a method's perturbation is, in the one measure that serves all methods."""

import math
from typing import Any

from ..optim import MSAM, SAM, describe
from ..optim.noise import norm_of


def relative_noise(optimizer: Any) -> float | None:
    """The root mean square of a perturbation over that of the weights it moves, all of them together: ‖n‖/‖w‖.

    It is the level c of S-SGD, and what the settings of other methods come to, σ of NSO or ρ of SAM, at the weights of
    the moment. 0 without noise; None where the method's perturbation has no size that is known beforehand.
    """
    key = getattr(optimizer, "level_key", "noise")
    noisy = [group for group in optimizer.param_groups if group.get(key)]
    weights = [p for group in noisy for p in group["params"] if p.requires_grad]
    if not weights or not (size := norm_of(weights)):
        return 0.0
    if isinstance(optimizer, (SAM, MSAM)):  # whose perturbation has the norm ρ over all weights together
        levels = {float(group[key]) for group in noisy}
        return None if getattr(optimizer, "adaptive", False) or len(levels) > 1 else levels.pop() / size
    norms = [layer.norm for layer in describe(optimizer).layers if layer.trained]
    known = [norm for norm in norms if norm is not None]
    return math.hypot(*known) / size if len(known) == len(norms) else None
