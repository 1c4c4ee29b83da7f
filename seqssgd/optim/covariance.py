"""Noise with the covariance of the examples' gradients, by random weights of their losses."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .entry import Entry
from .halves import Halves
from .limits import check_settings
from .noise import NoiseSource
from .passes import MultiPassOptimizer, Pass
from .processes import rank, world_size


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
        ValueError: an impossible level, or groups with different ones. In the loop, with ``centred``: fewer than two
            losses in :meth:`Pass.mean`.
        RuntimeError: in the loop, the losses of a pass did not go through :meth:`Pass.mean`.

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
        self._set_usual_level(noise)
        check_settings(CovarianceNoise, diagonal=diagonal, centred=centred)
        self.diagonal, self.centred = diagonal, centred
        self.sign_source = NoiseSource("rademacher", seed=seed)
        self.example_weights = ExampleWeights(seed, centred)

    @property
    def level_unit(self) -> str:
        return "factors on the spread of the examples' gradients"

    def pass_signs(self) -> Sequence[int]:
        return (0, 0) if self.diagonal else (0,)

    def pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        return (1.0,) * passes

    def weigher(self, index: int) -> Callable[[Tensor], Tensor] | None:
        if index > 0:
            return None
        self.example_weights.start()
        return self._weigh

    @torch.no_grad()
    def _weigh(self, losses: Tensor) -> Tensor:
        epsilon = self.example_weights.draw(losses).mul_(self.param_groups[0][self.level_key])
        return epsilon if self.diagonal else epsilon.add_(1)

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        if part.index > 0:  # after_pass has left signs in their place
            torch._foreach_copy_([entry.weight for entry in entries], [entry.saved for entry in entries])

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        if not self.example_weights.drawn:
            raise RuntimeError("covariance noise weighs the examples: call part.mean(losses).backward() in every pass")
        if part.last:
            self.example_weights.keep()
            return
        signs = self.sign_source.fill_([entry.parameter for entry in entries], self.draws)  # nothing has to be stored
        for entry, sign in zip(entries, signs, strict=True):
            if (gradient := entry.gradient) is not None:
                gradient.mul_(sign)

    def check_groups(self) -> None:
        super().check_groups()
        if len(levels := {group.get(self.level_key) for group in self.param_groups}) > 1:
            raise ValueError(f"covariance noise has one level for all parameter groups, not {sorted(levels, key=str)}")

    def position(self) -> dict[str, Any]:
        return {**super().position(), "seed": self.sign_source.seed, "weighed": self.example_weights.position}

    def go_to(self, position: Mapping[str, Any]) -> None:
        super().go_to(position)
        self.example_weights.position = position.get("weighed", 0)
        self.sign_source.seed = self.example_weights.source.seed = position.get("seed", self.sign_source.seed)


class ExampleWeights:
    """The ε of the examples, from a stream of their own. What a loop that is left half-way has drawn is drawn again.

    Attributes:
        position: how many minibatches' losses were weighed in all loops so far.
    """

    def __init__(self, seed: int, centred: bool):
        self.source, self.centred = NoiseSource("gaussian", seed=seed), centred
        self.position = self._next = 0

    def start(self) -> None:
        """A loop over passes begins."""
        self._next = self.position

    @property
    def drawn(self) -> bool:
        """Whether any were drawn in this loop."""
        return self._next != self.position

    def draw(self, losses: Tensor) -> Tensor:
        """One ε for each of ``losses``, shape (B,); each process has its own."""
        epsilon = torch.empty_like(losses)
        self.source.fill_([epsilon], self._next * world_size() + rank())
        self._next += 1
        if self.centred and len(losses) < 2:
            raise ValueError("centred noise needs two examples or more in part.mean(losses): one has no covariance")
        return epsilon.sub_(epsilon.mean()) if self.centred else epsilon

    def keep(self) -> None:
        """The loop is complete."""
        self.position = self._next
