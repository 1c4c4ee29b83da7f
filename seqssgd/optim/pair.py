"""What the two gradients of a pair tell of the curvature, layer by layer, at no pass."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .entry import Entry
from .part import Pass
from .products import NoiseTimesGradient
from .random_noise import RandomNoise
from .sharding import is_sharded


class LayerCurvature(NamedTuple):
    """Of a layer, in the last step: 0-dim tensors.

    Attributes:
        along: nᵀHn, up to the fourth order of n: n·(g₊ − g₋)/2 over the layer. Half of the sum over all layers is, to
            second order, how much noise raises the loss of the minibatch.
        trace: an estimate of tr H of the layer: nᵀHn over the mean square of n. Unbiased up to that order, and as
            widely spread as one random vector is; average it over steps.
    """

    along: Tensor
    trace: Tensor


class PairCurvature:
    """nᵀHn and ‖n‖² of every tensor, from the passes of a step: no more is kept than these numbers.

    Attributes:
        recording: whether it looks at the passes.
    """

    def __init__(self) -> None:
        self.recording = False
        self._products = NoiseTimesGradient(_total)
        self._squares: list[Tensor] = []  # ‖n‖², of the loop under way
        # Of the last step: the layers and sizes of the tensors, nᵀHn and ‖n‖² of each.
        self._found: tuple[list[tuple[str, int]], Tensor, Tensor] | None = None

    def record(self, recording: bool) -> None:
        """Begins, or stops and forgets."""
        self.recording, self._found = recording, None

    def take(self, part: Pass, entries: list[Entry], continues: bool) -> None:
        """After a pass, while the weights are still moved.

        Args:
            continues: whether the figures so far are those of an earlier loop of the same step.
        """
        if part.index == 0:
            self._squares = [_total((entry.weight - entry.saved).square()) for entry in entries]
        found = self._products.take(part, entries)
        if not part.last:
            return
        along = torch.stack([found.get(e.number, s.new_zeros(())) for e, s in zip(entries, self._squares, strict=True)])
        tensors = [(entry.layer, entry.weight.numel()) for entry in entries]
        if continues and self._found is not None and self._found[0] == tensors:
            along = along + self._found[1]
        self._found = tensors, along, torch.stack(self._squares)

    def by_layer(self) -> dict[str, LayerCurvature]:
        """The figures of the step, summed over the tensors of a layer; empty if there was no pair of passes."""
        if self._found is None:
            return {}
        tensors, alongs, squares = self._found
        layers, sizes = [layer for layer, _ in tensors], [size for _, size in tensors]
        short = {layer: layer.split(".", 1)[1] for layer in layers}
        found = {}
        for layer in short:
            mine = [i for i, name in enumerate(layers) if name == layer]
            along, square = alongs[mine].sum(), squares[mine].sum()
            name = short[layer] if len(set(short.values())) == len(short) else layer  # groups of two models
            found[name] = LayerCurvature(along, along * sum(sizes[i] for i in mine) / square)
        return found

    def __reduce__(self) -> Any:  # a copy of the optimizer records when it is told to
        return type(self), ()


class RecordsCurvature(RandomNoise):
    """Random noise with a pair of passes that tells the curvature of every layer."""

    _pair: PairCurvature

    def record_curvature(self, record: bool = True) -> None:
        """From now on, whether :meth:`curvature` has something to tell: two dot products a pass, and no memory.

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

        Empty before the first pair of passes, and where nothing is recorded. Layers are those that had noise in that
        step. Over several loops of one step the figures add up: with losses divided by the number of loops they are
        those of the mean loss. With gradients that were scaled (a ``GradScaler``) they are scaled alike; with DDP each
        process has the estimate of its own data.
        """
        return self._pair.by_layer() if self._pair.recording else {}

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        super().after_pass(part, entries)
        if self._pair.recording:
            self._pair.take(part, entries, self._run.continues and any(e.earlier is not None for e in entries))

    def _check_curvature(self) -> None:
        if self.source.granularity.startswith("filter"):
            raise ValueError(
                f'curvature needs noise of one size in a layer, not granularity="{self.source.granularity}"'
            )
        if any(is_sharded(entry.parameter) for entry in self.entries()):
            raise ValueError("curvature of sharded weights is not recorded; use DDP")


def _total(products: Tensor) -> Tensor:
    return products.sum(dtype=torch.float64)
