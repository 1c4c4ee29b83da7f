"""What the two gradients of a pair tell of the curvature, layer by layer, at no pass."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .balance import Balance
from .chunks import pieces, widest
from .entry import Entry
from .noise import norm_of
from .part import Pass
from .processes import mean_
from .products import NoiseTimesGradient, OwnNoiseTimesGradient, difference
from .random_noise import RandomNoise
from .sharding import is_sharded


class LayerCurvature(NamedTuple):
    """Of a layer, in the last step: 0-dim tensors.

    Attributes:
        along: nᵀHn, up to the fourth order of n: n·(g₊ − g₋)/2 over the layer. Half of the sum over all layers is, to
            second order, how much noise raises the loss of the minibatch.
        trace: an estimate of tr H of the layer: the sum over its tensors, of which each may have noise of another size,
            of n·(Hn) over the mean square of n there. Unbiased up to that order, and as widely spread as one random
            vector is; average it over steps. NaN where a tensor had no noise, as its weights are all 0.
    """

    along: Tensor
    trace: Tensor


class PairCurvature:
    """nᵀHn and ‖n‖² of every tensor, from the passes of a step: no more is kept than these numbers.

    Args:
        own: whether each process has one sign of the pair (``signs="pairs"``).

    Attributes:
        recording: whether there is somebody who wants to be told.
    """

    def __init__(self, own: bool = False) -> None:
        self.recording, self.own = False, own
        self.products = OwnNoiseTimesGradient(_total) if own else NoiseTimesGradient(_total)
        self._squares: list[Tensor] = []  # ‖n‖², of the loop under way
        # Of the last step: the layers and sizes of the tensors, nᵀHn and ‖n‖² of each.
        self._found: tuple[list[tuple[str, int]], Tensor, Tensor] | None = None

    def record(self, recording: bool) -> None:
        """Begins, or stops and forgets."""
        self.recording = recording
        self.forget()

    def forget(self) -> None:
        """There was a step without a pair since."""
        self._found = None

    def take(self, part: Pass, entries: list[Entry], continues: bool) -> None:
        """After a pass, while the weights are still moved. In data-parallel training each process has only its own
        data's g₊, so that the figures are the mean over all processes: one reduction of a number a tensor.

        Args:
            continues: whether the figures so far are those of an earlier loop of the same step.
        """
        if part.index == 0:
            self._squares = [_squared_distance(entry) for entry in entries]
        found = self.products.take(part, entries)
        if not part.last:
            return
        zipped = zip(entries, self._squares, strict=True)
        along = mean_(torch.stack([found.get(entry.number, square.new_zeros(())) for entry, square in zipped]))
        tensors = [(entry.layer, entry.weight.numel()) for entry in entries]
        if continues and self._found is not None and self._found[0] == tensors:
            along = along + self._found[1]
        self._found = tensors, along, torch.stack(self._squares)

    def totals(self) -> dict[str, tuple[Tensor, Tensor]]:
        """nᵀHn and ‖n‖² of each layer, over all loops of the step so far."""
        if self._found is None:
            return {}
        tensors, alongs, squares = self._found
        return {layer: (alongs[mine].sum(), squares[mine].sum()) for layer, mine in _layers(tensors).items()}

    def by_layer(self) -> dict[str, LayerCurvature]:
        """The figures of the step; empty if there was no pair of passes."""
        if self._found is None:
            return {}
        tensors, alongs, squares = self._found
        sizes = squares.new_tensor([size for _, size in tensors])
        traces = torch.where(sizes > 0, alongs * sizes / squares, 0.0)  # of each tensor
        layers = _layers(tensors)
        short = {layer: layer.split(".", 1)[1] for layer in layers}
        names = short if len(set(short.values())) == len(short) else dict(zip(short, short, strict=True))  # two models
        return {names[layer]: LayerCurvature(alongs[mine].sum(), traces[mine].sum()) for layer, mine in layers.items()}

    def __reduce__(self) -> Any:  # a copy of the optimizer records when it is told to
        return type(self), (self.own,)


class MeasuresCurvature(RandomNoise):
    """Random noise with a pair of passes that tells the curvature of every layer: for the log, and for balance."""

    _pair: PairCurvature
    _balance: Balance | None  # None: a layer has the level of its group

    def record_curvature(self, record: bool = True) -> None:
        """From now on, whether :meth:`curvature` has something to tell: two dot products a pass, and no memory.

        In data-parallel training all processes must call it, on rank 0 for the log too: their figures are averaged, and
        one that is alone waits for the others for ever. Their noise must be of one seed.

        Raises:
            ValueError: the two gradients are not of one minibatch (then their difference is that of the data too, and
                drowns the curvature), sharded weights, or a granularity by filters, with noise of several sizes in a
                layer.
        """
        if record:
            self._check_curvature()
        self._pair.record(record)

    def curvature(self) -> dict[str, LayerCurvature]:
        """What the last step's two gradients say of the curvature, by layer; see :meth:`record_curvature`.

        Empty before the first pair of passes, after a step without noise, and where nothing is recorded. Layers are
        those that had noise in that step. Over several loops of one step the figures add up: with losses divided by the
        number of loops they are those of the mean loss. With gradients that were scaled (a ``GradScaler``) they are
        scaled alike. With DDP they are those of the data of all processes.
        """
        return self._pair.by_layer() if self._pair.recording else {}

    def levels_of(self, entries: list[Entry]) -> list[Any]:
        return super().levels_of(entries) if self._balance is None else self._balance.levels(entries)

    @torch.no_grad()
    def noise_norm(self, group: dict[str, Any], weights: list[Tensor]) -> float | None:
        if self._balance is None:
            return super().noise_norm(group, weights)
        entries = self.entries()
        level = {id(entry.parameter): e for entry, e in zip(entries, self._balance.levels(entries), strict=True)}
        return math.sqrt(sum((float(level.get(id(p), 0.0)) * norm_of([p])) ** 2 for p in weights))

    def before_loop(self, entries: list[Entry]) -> None:
        super().before_loop(entries)
        if self._uses_pair:
            self.source.check_processes(entries[0].weight.device)

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        super().perturb(part, entries)
        if self._uses_pair:
            self._pair.products.start(entries)

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        super().after_pass(part, entries)
        if self._uses_pair:
            continues = self._run.continues and any(entry.earlier is not None for entry in entries)
            self._pair.take(part, entries, continues)
        if self._balance is not None and part.last:
            self._balance.note(entries, self._pair.totals())

    def before_step(self) -> None:
        super().before_step()
        if not self.entries():
            self._pair.forget()
        if self._balance is not None:
            self._balance.update()

    def position(self) -> dict[str, Any]:
        own = {} if self._balance is None else {"balance": self._balance.state()}
        return {**super().position(), **own}

    def go_to(self, position: Mapping[str, Any]) -> None:
        super().go_to(position)
        if self._balance is not None:
            self._balance.load(position.get("balance", {}))

    @property
    def _uses_pair(self) -> bool:
        return self._pair.recording or self._balance is not None

    def _check_curvature(self) -> None:
        if self.source.granularity.startswith("filter"):
            raise ValueError(
                f'curvature needs noise of one size in a layer, not granularity="{self.source.granularity}"'
            )
        if any(is_sharded(entry.parameter) for entry in self.entries()):
            raise ValueError("curvature of sharded weights is not recorded; use DDP")


def _layers(tensors: list[tuple[str, int]]) -> dict[str, list[int]]:
    """The places of each layer's tensors, which are given as layers and sizes."""
    return {layer: [i for i, (name, _) in enumerate(tensors) if name == layer] for layer, _ in tensors}


def _squared_distance(entry: Entry) -> Tensor:
    columns = [entry.weight], [entry.saved]
    return torch.stack([_total(difference(p, w).square_()) for _, ((p,), (w,)) in pieces(*columns)]).sum()


def _total(products: Tensor) -> Tensor:
    return products.sum(dtype=widest(products.device))
