"""Averages of the weights: flat minima without any perturbation."""

from collections.abc import Mapping
from typing import Annotated, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .limits import Range, check_settings
from .peers import SinglePass


class WeightAverage(SinglePass):
    """The base optimizer, and beside it an average of its weights that evaluation uses: EMA or SWA.

    The average is made by ``torch.optim.swa_utils.AveragedModel``. Its buffers are those of the trained model: for
    batch norm, :func:`~seqssgd.optim.recalibrate_bn` finds the statistics that belong to the averaged weights.

    Args:
        base: the optimizer that steps.
        model: the module that it trains.
        decay: of an exponential moving average, 0 < decay < 1; None: the plain mean of the weights after every step
            (SWA, Izmailov et al. 2018, who average once an epoch).
        start: steps before the average begins; until then the trained model itself is :attr:`averaged`.

    Raises:
        ValueError: a decay or start out of range.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> optimizer = WeightAverage(torch.optim.SGD(model.parameters(), lr=1.0), model, decay=None)
    >>> for value in (1.0, 3.0):
    ...     _ = model.weight.data.fill_(value)
    ...     optimizer.step()
    >>> optimizer.averaged.weight.item()
    2.0
    """

    model: nn.Module

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        *,
        decay: Annotated[float | None, Range(gt=0, lt=1)] = 0.999,
        start: Annotated[int, Range(ge=0)] = 0,
    ):
        check_settings(WeightAverage, decay=decay, start=start)
        super().__init__(base, model=model)
        self.start, self._count = start, _Count()
        self._average = AveragedModel(model, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay))

    @property
    def averaged(self) -> nn.Module:
        """The model with the averaged weights, to evaluate."""
        return self._average.module if self.steps > self.start else self.model

    def after_step(self) -> None:
        self._count.steps += 1
        if self.steps > self.start:
            self._average.update_parameters(self.model)

    @property
    def steps(self) -> int:
        """How many steps have been taken."""
        return self._count.steps

    def position(self) -> dict[str, Any]:
        return {**super().position(), "steps": self.steps, "average": self._average.state_dict()}

    def go_to(self, position: Mapping[str, Any]) -> None:
        super().go_to(position)
        self._count.steps = position.get("steps", 0)
        if "average" in position:
            self._average.load_state_dict(position["average"])
        else:  # the state of a bare base optimizer: the average begins anew
            self._average.n_averaged.zero_()


class _Count:
    """How many steps have been taken; an object of its own, which proxies of the optimizer share."""

    steps = 0
