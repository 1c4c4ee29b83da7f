"""Sharpness-aware minimization: the one peer whose perturbation depends on the gradient."""

from collections.abc import Sequence
from typing import Annotated

from torch import nn
from torch.optim import Optimizer

from .ascent import move_along, require_dense
from .batchnorm import BNStats
from .entry import Entry
from .halves import Halves
from .limits import Range, check_settings
from .passes import MultiPassOptimizer, Pass
from .sharding import is_sharded, local


class SAM(MultiPassOptimizer):
    r"""Sharpness-aware minimization (Foret et al. 2021, Eq. 2 and 3), with ``adaptive`` ASAM (Kwon et al. 2021):

    .. math:: w \leftarrow w - \eta_{lr}\nabla L(w+e), \qquad e = \rho\,\frac{T^2 g}{\|T g\|_2}, \quad g = \nabla L(w)

    with T = 1 (SAM) or T = abs(w) + η element by element (ASAM). A step costs two passes: the first takes g, at w, the
    second the gradient that is stepped on. The norm is taken over all parameters together.

    What the papers leave open: the pass loop outside, micro-batches inside gives the e of their mean gradient; the
    other way round each micro-batch has its own. In data-parallel training that synchronises in the last pass alone,
    each process has the e of its own data, as the SAM paper recommends. ASAM scales every parameter by T, where the
    authors' program leaves biases unscaled.

    Args:
        base: the optimizer that steps. Its groups' ``"rho"`` entries, where there are any, go before ``rho``; a group
            with 0 is not perturbed and does not count in the norm.
        rho: ρ, the norm of e; for ASAM the papers' values are about ten times as large.
        adaptive: ASAM.
        eta: η of ASAM, which is added to the size of each weight.
        model, bn_stats: see :class:`MultiPassOptimizer`; ``"first"`` keeps the statistics of the clean weights.

    Raises:
        ValueError: ``rho`` is negative or not finite, ``eta`` is not a positive number.
        RuntimeError: in the loop, the first pass left no gradient.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = SAM(torch.optim.SGD([weight], lr=0.1), rho=0.5)
    >>> for part in optimizer.passes():
    ...     [round(x, 4) for x in weight.tolist()]
    ...     (weight**2).sum().backward()
    [3.0, 4.0]
    [3.3, 4.4]
    >>> optimizer.step()
    """

    level_key = "rho"

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Annotated[float, Range(ge=0)] = 0.05,
        adaptive: bool = False,
        eta: Annotated[float, Range(gt=0)] = 0.01,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        check_settings(SAM, eta=eta, adaptive=adaptive)
        super().__init__(base, model=model, bn_stats=bn_stats)
        self._set_usual_level(rho)
        self.adaptive, self.eta = adaptive, eta

    def pass_signs(self) -> Sequence[int]:
        return (0, +1)

    def pass_weights(self, passes: int, share: Halves | None) -> Sequence[float]:
        return (0.0, 1.0)

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        if part.index == 0:
            return
        moved = [(entry, p, p.grad) for entry in entries if (p := entry.parameter).grad is not None]
        if not moved:
            raise RuntimeError("SAM found no gradient after its first pass; call backward() in every pass")
        require_dense([g for _, _, g in moved], "SAM")
        norm = nn.utils.get_total_norm([g * (p.abs() + self.eta) if self.adaptive else g for _, p, g in moved])
        directions = [(entry, local(g)) for entry, _, g in moved]
        if self.adaptive:
            directions = [(entry, g * (entry.weight.abs() + self.eta).square()) for entry, g in directions]
        move_along(directions, norm.full_tensor() if is_sharded(norm) else norm, +1)
