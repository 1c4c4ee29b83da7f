"""What the methods share that take gradients at random perturbations of the weights."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .entry import Entry
from .groups import HIGHEST_LEVEL
from .noise import NORMS, Distribution, Granularity, NoiseSource
from .passes import MultiPassOptimizer, Pass
from .precision import PrecisionCheck


class RandomNoise(MultiPassOptimizer):
    """Moves the weights by perturbations from a private stream.

    A method says in :meth:`pass_signs` where the passes of a step are: at w itself (0, which comes first of all), at w
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
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        self._precision = PrecisionCheck()
        super().__init__(base, model=model, bn_stats=bn_stats)
        if not any(self.level_key in group for group in base.param_groups):
            raise ValueError("no parameter group has a noise level; build them with noise_groups(model, noise=...)")
        self.source = NoiseSource(distribution, granularity, seed)

    @property
    def level_unit(self) -> str | None:
        if self.source.granularity in NORMS:
            return "fractions of the norm of the weights"
        return "the size of n" if self.source.granularity == "absolute" else "fractions of the norm of a filter"

    def noise_norm(self, group: dict[str, Any], weights: list[Tensor]) -> float | None:
        """‖n‖ over some weights of a parameter group, at the group's level and the weights' values of the moment.

        Where the norm is not fixed it is the root of its mean square; None where there is none.
        """
        return self.source.norm(weights, float(group.get(self.level_key, 0.0)))

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        """To w + n where the sign is +1, and to the reflection of that about w where it is -1."""
        if part.sign > 0 or (part.sign < 0 and part.index == 0):
            self._warn_of_twins()
            self.add_noise(entries, self.draw_number(part.index))
        if part.sign < 0:
            weights, saved = [entry.weight for entry in entries], [entry.saved for entry in entries]
            torch._foreach_lerp_(weights, saved, 2.0)  # 2w - (w+n) = w - n

    def add_noise(self, entries: list[Entry], draw: int) -> None:
        """Sets the weights to w + n, n being perturbation ``draw`` of the stream."""
        params, saved = [entry.parameter for entry in entries], [entry.saved for entry in entries]
        levels, layers = self.levels_of(entries), [entry.layer for entry in entries]
        self.source.add_(params, saved, levels, layers, draw, self.shaper(entries))
        if self.source.granularity in NORMS and not isinstance(levels[0], Tensor):
            self._precision.check(params, saved, levels)

    def levels_of(self, entries: list[Entry]) -> list[Any]:
        """The level of each weight; a number, or all are tensors of no dimensions."""
        return [entry.level for entry in entries]

    def shaper(self, entries: list[Entry]) -> Callable[[list[Tensor]], None] | None:
        """What changes the noise of ``entries``, in place, before it is scaled to its size; None: nothing does."""
        return None

    def draw_number(self, index: int) -> int:
        """Which perturbation of the stream is added in pass ``index`` of this step."""
        signs = list(self.pass_signs())
        return self.draws * signs.count(+1) + signs[:index].count(+1)

    def check_groups(self) -> None:
        super().check_groups()
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

    def _warn_of_twins(self) -> None:
        self._run.watch.seed = self.source.seed
        if self._run.watch.draws_as_another():
            warnings.warn(
                f"two optimizers with noise of the same seed ({self.source.seed}) train networks with a common loss, "
                "so that they draw the same numbers; give one of them another seed=",
                stacklevel=2,
            )

    def position(self) -> dict[str, Any]:
        return {**super().position(), "seed": self.source.seed}

    def go_to(self, position: Mapping[str, Any]) -> None:
        super().go_to(position)
        self.source.seed = position.get("seed", self.source.seed)
