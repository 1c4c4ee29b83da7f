"""Noise with the covariance of the examples' gradients, by random weights of their losses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .halves import Halves
from .noise import NoiseSource
from .passes import MultiPassOptimizer, Pass


class CovarianceNoise(MultiPassOptimizer):
    r"""Gives large minibatches the gradient noise of smaller ones (Wen, Luk, Gazeau, Zhang, Chan, Ba 2020):

    .. math:: w \leftarrow w - \eta\Bigl(g + \sqrt{\tfrac1{B_S}-\tfrac1{B_L}}\;\xi\Bigr),
        \qquad \mathrm{Cov}(\xi) = F = \frac1{B_L}\sum_i g_i g_i^\top \ \text{or}\ \mathrm{diag}(F)

    for minibatches of B_L examples with gradients g_i and mean g. The level is s = √(B_L/B_S - 1), the same for all
    groups: it emulates minibatches smaller by the factor 1+s². No per-example gradients are needed: weights of the
    examples' losses make the noise, so losses must be averaged by :meth:`Pass.mean`.

    - The full F: example i has the weight 1 + s·ε_i with ε ~ N(0, 1), as in Wu et al. 2020. One pass.
    - ``diagonal``: a pass with the weights s·ε_i gives noise of covariance s²F/B_L; random signs, one for every
      parameter, leave of that the diagonal exactly (the noise is then no Gaussian, as the paper's is); a second pass
      gives g.

    F is the empirical Fisher matrix (second moments of the gradients, with the labels of the data), not the gradients'
    covariance. With ``centred`` it is that, F - ggᵀ, the noise of SGD itself: the ε have their mean taken out, over the
    examples of one ``Pass.mean``. An example is what ``Pass.mean`` is given one loss for. Processes weigh their own
    examples, each with its own ε.

    Args:
        base: the optimizer that steps. Groups without a ``"noise"`` entry get ``noise``.
        noise: the level s.
        diagonal: diag(F) in place of F.
        centred: the covariance of the gradients in place of F.
        seed: of the noise.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Raises:
        ValueError: an impossible level, or groups with different ones.

    >>> import torch
    >>> model = torch.nn.Linear(4, 1)
    >>> optimizer = CovarianceNoise(torch.optim.SGD(model.parameters(), lr=0.05), noise=3.0)  # as of a tenth
    >>> for part in optimizer.passes():
    ...     losses = model(torch.ones(20, 4)).sub(1).square().squeeze(1)  # (20,)
    ...     part.mean(losses).backward()
    >>> optimizer.step()
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        noise: float,
        diagonal: bool = False,
        centred: bool = False,
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        super().__init__(base, model=model, bn_stats=bn_stats)
        for group in (base.defaults, *base.param_groups):  # the defaults are for groups that are added later
            group.setdefault(self.level_key, noise)
        self._check_groups()
        self.diagonal, self.centred = diagonal, centred
        self.gaussian, self.signs = NoiseSource("gaussian", seed=seed), NoiseSource("rademacher", seed=seed)
        self._run.weighed = 0  # losses that were weighed in all loops so far: the position in the stream of ε
        self._run.weighing = 0  # and in this one, which may yet be left half-way

    def _signs(self) -> Sequence[int]:
        return (0, 0) if self.diagonal else (0,)

    def _pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        return (1.0,) * passes

    def _weigher(self, index: int) -> Callable[[Tensor], Tensor] | None:
        if index > 0:
            return None
        self._run.weighing = self._run.weighed
        return self._weigh

    @torch.no_grad()
    def _weigh(self, losses: Tensor) -> Tensor:
        world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        epsilon = torch.empty_like(losses)
        self.gaussian.fill_([epsilon], self._run.weighing * world + rank)
        self._run.weighing += 1
        if self.centred and len(losses) < 2:
            raise ValueError("centred noise needs two examples or more in part.mean(losses): one has no covariance")
        if self.centred:
            epsilon.sub_(epsilon.mean())
        epsilon.mul_(self.param_groups[0][self.level_key])
        return epsilon if self.diagonal else epsilon.add_(1)

    def _perturb(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        if part.index > 0:
            torch._foreach_copy_(weights, saved)

    def _finish(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        if self._run.weighing == self._run.weighed:
            raise RuntimeError("covariance noise weighs the examples: call part.mean(losses).backward() in every pass")
        if part.last:
            self._run.weighed = self._run.weighing
        else:
            moved = [p for _, p in self._perturbed()]
            signs = self.signs.fill_(moved, self.draws)  # in place of the weights: nothing has to be stored
            for p, sign in zip(moved, signs, strict=True):
                if p.grad is not None:
                    p.grad.mul_(sign)

    def _check_groups(self) -> None:
        super()._check_groups()
        if len(levels := {group.get(self.level_key) for group in self.param_groups}) > 1:
            raise ValueError(f"covariance noise has one level for all parameter groups, not {sorted(levels, key=str)}")

    def _position(self) -> dict[str, Any]:
        return {**super()._position(), "seed": self.signs.seed, "weighed": self._run.weighed}

    def _go_to(self, position: Mapping[str, Any]) -> None:
        super()._go_to(position)
        self._run.weighed = position.get("weighed", 0)
        self.signs.seed = self.gaussian.seed = position.get("seed", self.signs.seed)
