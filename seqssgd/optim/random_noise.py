"""What the methods share that take gradients at random perturbations of the weights."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .groups import HIGHEST_LEVEL
from .noise import NORMS, Distribution, Granularity, NoiseSource, are_too_coarse
from .passes import MultiPassOptimizer, Pass


class RandomNoise(MultiPassOptimizer):
    """Moves the weights by perturbations from a private stream.

    A method says in :meth:`_signs` where the passes of a step are: at w itself (0, which comes first of all), at w
    plus a new perturbation (+1), or at the reflection about w of the pass before (-1).

    Args:
        base: the optimizer that steps, over groups whose ``"noise"`` entry is the level (:func:`noise_groups`).
        distribution: of the elements: ``"rademacher"`` (± the same magnitude), ``"gaussian"``, ``"uniform"``.
        granularity: what the size of n is measured by: ``"tensor"``, ``"layer"``, ``"filter"`` (exact norms),
            ``"filter_std"``, ``"absolute"``; see :class:`NoiseSource`.
        seed: of the noise. Ranks with the same seed draw the same noise, and so do two optimizers.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Raises:
        ValueError: an unknown choice, no group with a ``"noise"`` entry, an impossible level.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        distribution: Distribution,
        granularity: Granularity,
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        super().__init__(base, model=model, bn_stats=bn_stats)
        if not any(self.level_key in group for group in base.param_groups):
            raise ValueError("no parameter group has a noise level; build them with noise_groups(model, noise=...)")
        self.source = NoiseSource(distribution, granularity, seed)

    def noise_norm(self, group: dict[str, Any], weights: list[Tensor]) -> float | None:
        """‖n‖ over some weights of a parameter group, at the group's level and the weights' values of the moment.

        Where the norm is not fixed it is the root of its mean square; None where there is none.
        """
        return self.source.norm(weights, float(group.get(self.level_key, 0.0)))

    def _perturb(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        if part.sign > 0 or (part.sign < 0 and part.index == 0):
            self._warn_of_twins()
            self._add_noise(weights, saved, self._draw(part.index))
        if part.sign < 0:
            torch._foreach_lerp_(weights, saved, 2.0)  # the reflection 2w - (w+n) = w - n

    def _add_noise(self, weights: list[Tensor], saved: list[Tensor], draw: int) -> None:
        """Sets the weights to w + n, n being perturbation ``draw`` of the stream."""
        perturbed, layers = self._perturbed(), self._layers()
        params, levels = [p for _, p in perturbed], [float(group[self.level_key]) for group, _ in perturbed]
        self.source.add_(params, saved, levels, layers, draw, self._shapes(params, layers))
        if self.source.granularity in NORMS and min(levels) < self._run.checked / 2:  # seldom, as it waits
            self._run.checked = 0.0 if are_too_coarse(params, saved, levels) else min(levels)

    def _check_groups(self) -> None:
        super()._check_groups()
        source = getattr(self, "source", None)  # not yet, in the first check
        if source is None or source.granularity not in NORMS:
            return
        by_hand = [group for group in self.param_groups if f"initial_{self.level_key}" not in group]  # by no schedule
        if any(group.get(self.level_key, 0.0) > HIGHEST_LEVEL for group in by_hand):
            warnings.warn(
                f'a noise level (the entry "{self.level_key}" of a parameter group) is above {HIGHEST_LEVEL:g} '
                "times the norm of the weights; if it was meant as percent, divide it by 100",
                stacklevel=2,
            )

    def _layers(self) -> list[str]:
        """The layer of each weight that is moved."""
        moved = {id(p) for _, p in self._perturbed()}
        return [
            f"{number}.{name}"  # groups of two models may name different layers alike
            for number, group in enumerate(self.param_groups)
            for name, p in zip(group.get("layers") or range(len(group["params"])), group["params"], strict=True)
            if id(p) in moved
        ]

    def _shapes(self, params: list[Tensor], layers: list[str]) -> list[Tensor] | None:
        """What makes the noise of some weights larger than that of others, before it is scaled to its size."""
        return None

    def _warn_of_twins(self) -> None:
        self._run.watch.seed = self.source.seed
        if self._run.watch.draws_as_another():
            warnings.warn(
                f"two optimizers with noise of the same seed ({self.source.seed}) train networks with a common loss, "
                "so that they draw the same numbers; give one of them another seed=",
                stacklevel=2,
            )

    def _draw(self, index: int) -> int:
        """Which perturbation of the stream is added in pass ``index`` of this step."""
        signs = list(self._signs())
        return self.draws * signs.count(+1) + signs[:index].count(+1)

    def _position(self) -> dict[str, Any]:
        return {**super()._position(), "seed": self.source.seed}

    def _go_to(self, position: Mapping[str, Any]) -> None:
        super()._go_to(position)
        self.source.seed = position.get("seed", self.source.seed)
