"""Momentum-SAM: the look ahead along the momentum, which costs no pass."""

from collections.abc import Sequence
from typing import Annotated, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from .ascent import move_along, require_dense
from .batchnorm import BNStats
from .entry import Entry
from .groups import params_of
from .limits import Range
from .part import Pass
from .passes import MultiPassOptimizer
from .sharding import is_sharded

MOMENTA = ("momentum_buffer", "exp_avg")  # what the optimizers of torch.optim call it in their state


class MSAM(MultiPassOptimizer):
    r"""Momentum-SAM (Becker, Altrock, Risse 2024): one pass, at a point along the momentum v of the base optimizer:

    .. math:: w \leftarrow w - \eta\,\text{step}\Bigl(\nabla L\bigl(w - \rho\,v/\|v\|_2\bigr)\Bigr)

    SGD's momentum, or the first moment of Adam and its relatives; the norm is over all perturbed parameters together.
    Outside the loop over passes the weights are w, so that nothing has to be swapped before evaluation. The first step
    has no momentum yet and is the base optimizer's. With weight decay by L2 penalty the momentum contains it.

    Args:
        base: the optimizer that steps, with momentum. Its groups' ``"rho"`` entries, where there are any, go before
            ``rho``; a group with 0 is not perturbed and does not count in the norm.
        rho: ρ, how far to look.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Raises:
        ValueError: ``rho`` is negative or not finite, the base optimizer has no momentum (or, at the second step, none
            that is called as torch's optimizers call it), sharded weights (FSDP2), sparse gradients.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    >>> optimizer = MSAM(torch.optim.SGD([weight], lr=0.0, momentum=0.9), rho=0.5)
    >>> for step in range(2):
    ...     for _ in optimizer.passes():
    ...         [round(x, 4) for x in weight.tolist()]
    ...         (weight**2).sum().backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    [3.0, 4.0]
    [2.7, 3.6]
    """

    level_key = "rho"

    def __init__(
        self,
        base: Optimizer,
        *,
        rho: Annotated[float, Range(ge=0)],
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        super().__init__(base, model=model, bn_stats=bn_stats)
        self._set_usual_level(rho)

    def pass_signs(self) -> Sequence[int]:
        return (+1,) if any(self._momentum(entry) is not None for entry in self.entries()) else (0,)

    def _momentum(self, entry: Entry) -> Tensor | None:
        """v of a weight, None before its first step."""
        state = self.state.get(entry.parameter, {})
        found = next((state[key] for key in MOMENTA if state.get(key) is not None), None)
        if found is None and state:
            raise ValueError(
                f"MSAM looks along the momentum of the base optimizer, and the state of {type(self.base).__name__} has "
                f"none under the name {' or '.join(MOMENTA)} ({', '.join(map(str, state))}); take another optimizer"
            )
        return found

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        moved = [(entry, v) for entry in entries if (v := self._momentum(entry)) is not None]
        if not moved:
            return
        require_dense([v for _, v in moved], "MSAM")
        move_along(moved, nn.utils.get_total_norm([v for _, v in moved]), -1)

    def check_group(self, group: dict[str, Any], index: int) -> None:
        super().check_group(group, index)
        if not group.get(self.level_key):
            return
        if not (group.get("momentum", self.defaults.get("momentum")) or group.get("betas", self.defaults.get("betas"))):
            raise ValueError(
                f"MSAM looks along the momentum of the base optimizer, and parameter group {index} has none: "
                f"give {type(self.base).__name__} momentum=0.9, or take an optimizer that has some"
            )
        if any(map(is_sharded, params_of(group))):
            raise ValueError("MSAM with sharded weights has not been tried; use DDP")
