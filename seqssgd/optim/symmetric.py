"""S-SGD: symmetric weight noise."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .batchnorm import BNStats
from .halves import Halves, Reduction
from .noise import Distribution, Granularity
from .pair import LayerCurvature, PairDots
from .part import Pass
from .random_noise import RandomNoise
from .sharding import is_sharded

Signs = Literal["batch", "halves", "steps", "ranks", "pairs"]
BY_RANK = ("ranks", "pairs")
SIGNS: tuple[Signs, ...] = get_args(Signs)


class SymmetricNoise(RandomNoise):
    r"""Steps on the mean of the gradients at w+n and at w-n (Sung, Choi, Park, Choi, Shin 2020, Eq. 3):

    .. math:: w \leftarrow w - \eta\,\tfrac12\bigl(\nabla L(w+n) + \nabla L(w-n)\bigr), \qquad \|n\|_2 = c\,\|w\|_2

    with a new n in every step and any ``torch.optim`` optimizer in place of plain SGD. To second order the loss that
    is descended is L(w) + ½ E[nᵀHn]; the noise's first-order term cancels exactly.

    Args:
        base: the optimizer that steps, over groups whose ``"noise"`` entry is the level c (:func:`noise_groups`).
        signs: where the gradients at w+n and at w-n come from. ``"batch"``: the same minibatch, two passes, as in the
            paper. ``"halves"``: a half of the minibatch each, for the price of one pass (use ``part.take``).
            ``"steps"``: two successive minibatches, one pass each, the second with the first's n reversed.
            ``"ranks"``: one pass in each data-parallel process, +n in the even and -n in the odd ones, whose mean is
            what DDP makes of their gradients. ``"pairs"``: the same, where processes 2k and 2k+1 are given the same
            minibatch: the paper's Fig. 1, the step of ``"batch"`` in the time of one pass.
        reduction: what the loss is, for ``"halves"``: ``"mean"`` over the examples of a pass (or over what
            ``part.take(..., count=)`` says: tokens, frames); ``"sum"`` over them, also a sum that is divided by a
            number of the whole minibatch. The gradient is that of the same loss of the whole minibatch.
        distribution: of the elements of n: ``"rademacher"`` (all of one size, with random signs), ``"gaussian"``,
            ``"uniform"``.
        granularity: what the size of n is measured by. ‖n‖ = c‖w‖ exactly over each ``"layer"`` (an LSTM layer's input
            and recurrent kernels together), each ``"tensor"`` or each ``"filter"`` (slice along dimension 0); or each
            element is drawn with c times the norm of its filter (``"filter_std"``) or with c itself (``"absolute"``).
        seed: of the noise; optimizers and processes with the same seed draw the same.
        model, bn_stats: see :class:`MultiPassOptimizer`.

    Which ``signs``: ``"batch"`` where noise, not the minibatch, makes the gradient's variance (large minibatches, late
    in training), and to reproduce the paper; ``"halves"`` where passes are what a training costs; ``"steps"`` where
    minibatches cannot be split; ``"ranks"`` with DDP; ``"pairs"`` for the paper's step with DDP, where minibatches
    are too small to be shared out among all processes.

    Raises:
        ValueError: an unknown choice, no group with a ``"noise"`` entry, an impossible level; ``"ranks"`` or
            ``"pairs"`` without an even number of processes, or with sharded weights (FSDP2), which all processes put
            together.

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

    With a closure, for loops that insist on one:

    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = loss_fn(model(inputs), targets)
    ...     loss.backward()
    ...     return loss
    >>> optimizer = SymmetricNoise(torch.optim.Adam(noise_groups(model, noise=0.3), lr=1e-3))
    >>> optimizer.step(closure).shape
    torch.Size([])
    """

    signs: Signs
    reduction: Reduction

    def __init__(
        self,
        base: Optimizer,
        *more: Any,
        signs: Signs = "batch",
        reduction: Reduction = "mean",
        distribution: Distribution = "rademacher",
        granularity: Granularity = "layer",
        seed: int = 0,
        model: nn.Module | None = None,
        bn_stats: BNStats = "both",
    ):
        _check_alone(type(self).__name__, base, more)
        if signs not in SIGNS:
            raise ValueError(f"signs={signs!r} is not one of {', '.join(SIGNS)}")
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if signs in BY_RANK and processes % 2:
            raise ValueError(f'signs="{signs}" needs an even number of data-parallel processes; there are {processes}')
        if reduction not in get_args(Reduction):
            raise ValueError(f'reduction must be "mean" or "sum", not {reduction!r}')
        self.signs, self.reduction, self.processes_per_minibatch = signs, reduction, 2 if signs == "pairs" else 1
        super().__init__(
            base, distribution=distribution, granularity=granularity, seed=seed, model=model, bn_stats=bn_stats
        )

    def _signs(self) -> Sequence[int]:
        if self.signs == "steps":
            return (-1,) if self.draws % 2 else (+1,)
        if self.signs in BY_RANK:
            return (-1,) if dist.get_rank() % 2 else (+1,)
        return (+1, -1)

    def _share(self) -> Halves | None:
        return Halves(self.reduction) if self.signs == "halves" else None

    def record_curvature(self, record: bool = True) -> None:
        """From now on, whether :meth:`curvature` has something to tell: two dot products a pass, and no memory.

        Raises:
            ValueError: the two gradients are not of one minibatch (then their difference is that of the data too, and
                drowns the curvature), sharded weights, or a granularity by filters, with noise of several sizes in a
                layer.
        """
        if record and self.signs != "batch":
            raise ValueError(f'curvature needs both signs on one minibatch: signs="batch", not "{self.signs}"')
        if record and self.source.granularity.startswith("filter"):
            raise ValueError(
                f'curvature needs noise of one size in a layer, not granularity="{self.source.granularity}"'
            )
        if record and any(is_sharded(p) for _, p in self._perturbed()):
            raise ValueError("curvature of sharded weights is not recorded; use DDP")
        self._run.pair = PairDots() if record else None

    def curvature(self) -> dict[str, LayerCurvature]:
        """What the last step's two gradients say of the curvature, by layer; see :meth:`record_curvature`.

        Empty before the first pair of passes, and where nothing is recorded. Layers are those that had noise in that
        step. Over several loops of one step the figures add up: with losses divided by the number of loops they are
        those of the mean loss. With gradients that were scaled (a ``GradScaler``) they are scaled alike; with DDP each
        process has the estimate of its own data.
        """
        return {} if self._run.pair is None else self._run.pair.by_layer()

    def _finish(self, part: Pass, weights: list[Tensor], saved: list[Tensor]) -> None:
        run = self._run
        if run.pair is None:
            return
        params = [p for _, p in self._perturbed()]
        if part.index > 0:
            run.pair.finish(weights, saved, params, run.earlier, run.continues and bool(run.earlier))
            return
        named = self._layers()
        layers = [name.split(".", 1)[1] for name in named]
        if len(set(layers)) < len(set(named)):  # groups of two models
            layers = named
        run.pair.start(layers, weights, saved, params, run.earlier)

    def _reads_gradients(self) -> bool:
        return self._run.pair is not None

    def _draw(self, index: int) -> int:
        return self.draws // 2 if self.signs == "steps" else self.draws

    def _check_groups(self) -> None:
        super()._check_groups()
        if self.signs in BY_RANK and any(is_sharded(p) for _, p in self._perturbed()):
            raise ValueError(f'signs="{self.signs}" with sharded weights: each process needs whole weights; use DDP')


def _check_alone(name: str, base: Any, more: Sequence[Any]) -> None:
    """Refuses what else people give in place of one optimizer."""
    if isinstance(base, type):
        raise TypeError(
            f"{name} wraps a torch.optim optimizer, not its class: {name}({base.__name__}(groups, lr=...), ...)"
        )
    if more and all(isinstance(other, Optimizer) for other in more):
        names = ", ".join(f"{type(optimizer).__name__}(...)" for optimizer in (base, *more))
        raise TypeError(f"{name} takes one optimizer; put several in Together: {name}(Together({names}), ...)")
    if more:
        raise TypeError(f"{name} takes one optimizer and settings by name (signs=..., seed=...), not {more[0]!r} too")
