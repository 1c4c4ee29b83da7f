"""DropConnect: multiplicative noise whose gradient passes through the same mask."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .entry import Entry
from .gradients import Gradients
from .limits import Range
from .noise import norm_of
from .passes import Pass
from .processes import world_size
from .random_noise import RandomNoise


class DropConnect(RandomNoise):
    r"""Drops each weight with probability q for a step (Wan et al. 2013; on recurrent weights Merity et al. 2018):

    .. math:: g = \frac{m}{1-q} \odot \nabla L\Bigl(\frac{m}{1-q}\odot w\Bigr), \qquad m \sim \mathrm{Bernoulli}(1-q)

    The level is q, below 1. In terms of other noise, n has √(q/(1-q)) times the norm of the weights. Two choices: one
    mask serves the whole minibatch, as with Merity et al., where Wan et al. draw one for every example; and the kept
    weights are divided by 1-q in training, so that the clean weights are right for evaluation.

    Args:
        base: the optimizer that steps, over groups with a ``"noise"`` entry: ``noise_groups(model, noise=0.5,
            only={"recurrent"})``.
        seed: of the masks. Ranks with the same seed draw the same masks.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Raises:
        ValueError: no group with a ``"noise"`` entry; a level that is no probability below 1.
    """

    levels = Range(ge=0, lt=1)

    def __init__(self, base: Optimizer, *, seed: int = 0, model: nn.Module | None = None, bn_stats: BNStats = "both"):
        super().__init__(
            base, distribution="uniform", granularity="absolute", seed=seed, model=model, bn_stats=bn_stats
        )

    @property
    def level_unit(self) -> str:
        return "probabilities of dropping a weight"

    def noise_norm(self, group: dict[str, Any], weights: list[Tensor]) -> float | None:
        """√(q/(1-q)) ‖w‖, the root of the mean square; None for a level that is no probability below 1."""
        q = float(group.get(self.level_key, 0.0))
        return math.sqrt(q / (1 - q)) * norm_of(weights) if q < 1 else None

    def pass_signs(self) -> Sequence[int]:
        return (+1,)

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        self._fill_with_masks(entries)
        torch._foreach_mul_([entry.weight for entry in entries], [entry.saved for entry in entries])

    def carry_over(self, earlier: Gradients) -> Gradients | None:
        if world_size() == 1:
            return None
        kept = {id(entry.parameter): 1 - entry.level for entry in self.entries()}  # the mask is that of loops before
        return [(p, gradient * kept.get(id(p), 1.0)) for p, gradient in earlier]

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        self._fill_with_masks(entries)  # anew: the weights are on their way back, and no mask had to be stored
        for entry in entries:
            gradient, mask = entry.gradient, entry.weight
            if gradient is not None:
                gradient.mul_(mask)
                if entry.earlier is not None:  # what somebody has added by hand where the mask is 0
                    alien = entry.earlier / (1 - entry.level)
                    gradient.add_(alien.masked_fill_(mask != 0, 0))

    def _fill_with_masks(self, entries: list[Entry]) -> None:
        """Replaces the weights by m/(1-q)."""
        uniform = self.source.fill_([entry.parameter for entry in entries], self.draw_number(0))
        for entry, z in zip(entries, uniform, strict=True):
            z.ge_(2 * entry.level - 1).div_(1 - entry.level)  # z is uniform on [-1, 1]

    def check_group(self, group: dict[str, Any], index: int) -> None:
        super().check_group(group, index)
        if group.get(self.level_key, 0.0) not in self.levels:
            raise ValueError(
                f"the noise level of parameter group {index} is the probability of dropping a weight: "
                f"it must be below 1, not {group[self.level_key]!r}"
            )
