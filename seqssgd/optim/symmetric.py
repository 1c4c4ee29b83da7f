"""S-SGD: symmetric weight noise. Slow and plain, it is in ``reference.py``."""

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from .balance import Balance
from .batchnorm import BNStats
from .halves import Halves, Reduction
from .limits import check_settings
from .noise import Distribution, Granularity
from .pair import MeasuresCurvature, PairCurvature
from .sharding import is_sharded
from .signs import BY_RANK, Signs, check_processes, signs_of


class SymmetricNoise(MeasuresCurvature):
    r"""Steps on the mean of the gradients at w+n and at w-n (Sung, Choi, Park, Choi, Shin 2020, Eq. 3):

    .. math:: w \leftarrow w - \eta\,\tfrac12\bigl(\nabla L(w+n) + \nabla L(w-n)\bigr), \qquad \|n\|_2 = c\,\|w\|_2

    with a new n in every step and any ``torch.optim`` optimizer in place of plain SGD. To second order the loss that
    is descended is L(w) + ½ E[nᵀHn]; the noise's first-order term cancels exactly. As plain code:
    :mod:`seqssgd.optim.reference`.

    Args:
        base: the optimizer that steps, over groups whose ``"noise"`` entry is the level c (:func:`noise_groups`).
        signs: where the gradients at w+n and at w-n come from. ``"batch"``: the same minibatch, two passes, as in the
            paper. ``"halves"``: a half of the minibatch each, for the price of one pass (use ``part.take``). In several
            processes, and if losses are means, the first half must be the same share of the minibatch in each of them,
            as it is with even numbers of examples.
            ``"steps"``: two successive minibatches, one pass each, the second with the first's n reversed.
            ``"ranks"``: one pass in each data-parallel process, +n in the even and -n in the odd ones, whose mean is
            what DDP makes of their gradients. ``"pairs"``: the same, where processes 2k and 2k+1 are given the same
            minibatch: the paper's Fig. 1, the step of ``"batch"`` in the time of one pass.
        reduction: what the loss is, for ``"halves"``: ``"mean"`` over the examples of a pass (or over what
            ``part.take(..., count=)`` says: tokens, frames); ``"sum"`` over them, also a sum that is divided by a
            number of the whole minibatch. The gradient is that of the same loss of the whole minibatch.
        distribution: of the elements of n: ``"rademacher"`` (all of one size, with random signs), ``"gaussian"``,
            ``"uniform"`` (symmetric about 0).
        granularity: what the size of n is measured by. ‖n‖ = c‖w‖ exactly over each ``"layer"`` (an LSTM layer's input
            and recurrent kernels together), each ``"tensor"`` or each ``"filter"`` (slice along dimension 0); or each
            element is drawn with c times the norm of its filter (``"filter_std"``) or with c itself (``"absolute"``).
        balance: whether every layer has a level of its own, at which its noise raises the loss by as much as that of
            any other, as the pair measures it; ‖n‖ over the whole network is as the levels of the groups say
            (:class:`~seqssgd.optim.balance.Balance`). For ``signs`` ``"batch"`` and ``"pairs"``, and for noise of one
            size in a layer or a tensor.
        seed: of the noise; optimizers and processes with the same seed draw the same. Data-parallel processes must have
            one seed where curvature is measured (``balance``, :meth:`record_curvature`): else the first loop over
            passes is an error.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Which ``signs``: ``"batch"`` where noise, not the minibatch, makes the gradient's variance (large minibatches, late
    in training), and to reproduce the paper; ``"halves"`` where passes are what a training costs; ``"steps"`` where
    minibatches cannot be split; ``"ranks"`` with DDP; ``"pairs"`` for the paper's step with DDP, where minibatches
    are too small to be shared out among all processes.

    Raises:
        ValueError: an unknown choice, no group with a ``"noise"`` entry, an impossible level; ``"ranks"`` or
            ``"pairs"`` without an even number of processes; these or ``balance`` with sharded weights (FSDP2), which
            all processes put together.

    With SGD:

    >>> import torch
    >>> from seqssgd.optim import SymmetricNoise, noise_groups
    >>> model, loss_fn = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    >>> inputs, targets = torch.ones(8, 4), torch.ones(8, 1)
    >>> optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.05))
    >>> for _ in range(100):
    ...     for _ in optimizer.passes():
    ...         loss_fn(model(inputs), targets).backward()
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> bool(loss_fn(model(inputs), targets) < 0.2)
    True

    With Adam, at the price of one pass:

    >>> optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.3), lr=1e-3), signs="halves")
    >>> for part in optimizer.passes():
    ...     x, y = part.take(inputs, targets)
    ...     loss_fn(model(x), y).backward()
    ...     part, len(x)
    (Pass(index=0, sign=+1, last=False), 4)
    (Pass(index=1, sign=-1, last=True), 4)
    >>> optimizer.step()
    """

    signs: Signs
    reduction: Reduction

    def __init__(
        self,
        base: Optimizer,
        *,
        signs: Signs = "batch",
        reduction: Reduction = "mean",
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        balance: bool = False,
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        check_settings(SymmetricNoise, signs=signs, reduction=reduction, balance=balance)
        check_processes(signs)
        if balance and (signs not in ("batch", "pairs") or granularity not in ("layer", "tensor")):
            raise ValueError(
                'balance=True needs both signs on one minibatch (signs="batch" or "pairs") and noise of one size in a '
                f'layer or a tensor, not signs="{signs}" with granularity="{granularity}"'
            )
        self.signs, self.reduction, self._pair = signs, reduction, PairCurvature(own=signs == "pairs")
        self.balance, self._balance = balance, Balance() if balance else None
        self.processes_per_minibatch = 2 if signs == "pairs" else 1
        super().__init__(
            base, distribution=distribution, granularity=granularity, seed=seed, model=model, bn_stats=bn_stats
        )

    def pass_signs(self) -> Sequence[int]:
        return signs_of(self.signs, self.draws)

    def draw_number(self, index: int) -> int:
        return self.draws // 2 if self.signs == "steps" else self.draws

    def share(self) -> Halves | None:
        return Halves(self.reduction) if self.signs == "halves" else None

    def check_groups(self) -> None:
        super().check_groups()
        if (self.signs in BY_RANK or self.balance) and any(is_sharded(entry.parameter) for entry in self.entries()):
            what = "balance=True" if self.balance else f'signs="{self.signs}"'
            raise ValueError(f"{what} with sharded weights: each process needs whole weights; use DDP")

    def _check_curvature(self) -> None:
        super()._check_curvature()
        if self.signs not in ("batch", "pairs"):
            raise ValueError(
                f'curvature needs both signs on one minibatch: signs="batch" or "pairs", not "{self.signs}"'
            )
