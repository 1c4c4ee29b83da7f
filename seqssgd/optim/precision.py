"""Whether the numbers that hold the weights are fine enough for the noise."""

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .sharding import is_sharded


class PrecisionCheck:
    """Warns, once, where low precision takes much of a perturbation of norm level·‖w‖ away.

    That is: its norm is off by more than 5 %, or more than a fifth of the numbers stay where they are.
    """

    def __init__(self) -> None:
        self._fine_at = math.inf  # the smallest level that was looked at

    def check(self, weights: Sequence[Tensor], saved: Sequence[Tensor], levels: Sequence[float]) -> None:
        """Looks, seldom, as it waits for the device: at half the level that was looked at before.

        Args:
            weights: moved by a perturbation.
            saved: copies of them unmoved.
            levels: one for each weight.
        """
        if min(levels) < self._fine_at / 2:
            self._fine_at = 0.0 if _are_too_coarse(weights, saved, levels) else min(levels)


def _are_too_coarse(weights: Sequence[Tensor], saved: Sequence[Tensor], levels: Sequence[float]) -> bool:
    wanted = found = still = 0.0  # ‖n‖² as asked for, ‖n‖² as it is, the numbers that stay
    count, dtypes = 0, set()
    for p, w, level in zip(weights, saved, levels, strict=True):
        if torch.finfo(p.dtype).eps > 1e-6 and not is_sharded(p):  # of a shard, the norm is not that of the layer
            n = p.float() - w.float()
            wanted += level**2 * float(w.float().square().sum())
            found += float(n.square().sum())
            still += float((n == 0).sum())
            count += n.numel()
            dtypes.add(str(p.dtype).removeprefix("torch."))
    if not wanted > 0:
        return False
    norm, share = math.sqrt(found / wanted), still / count
    coarse = abs(norm - 1) > 0.05 or share > 0.2
    if coarse:
        warnings.warn(
            f"at a noise level of {min(levels):g}, {share:.0%} of the {' and '.join(sorted(dtypes))} weights stay "
            f"where they are, and the perturbation has {norm:.0%} of its norm, as it is rounded to what they can hold. "
            "Keep the weights in float32 and compute in autocast, or raise the level",
            stacklevel=2,
        )
    return coarse
