"""What the two gradients of a pair tell of the curvature, at no pass."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


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


class PairDots:
    """Takes from each of two passes what is needed of it: n·g and ‖n‖², of every tensor. No n is stored."""

    def __init__(self) -> None:
        self._first: tuple[Tensor, Tensor, list[str], list[int]] | None = None  # n·g₊, ‖n‖², layers, sizes
        self._found: tuple[Tensor, Tensor, list[str], list[int]] | None = None  # of pairs: nᵀHn, and the same

    def start(
        self,
        layers: list[str],
        weights: Sequence[Tensor],
        saved: Sequence[Tensor],
        params: Sequence[Tensor],
        earlier: Mapping[int, Tensor],
    ) -> None:
        """Called after the first pass, while ``weights`` are still moved and ``.grad`` holds its gradient.

        Args:
            layers: the layer of each of them.
            earlier: by the ids of parameters, what else is in their gradients.
        """
        squares = [(moved - w).square().sum(dtype=torch.float64) for moved, w in zip(weights, saved, strict=True)]
        sizes = [p.numel() for p in params]
        self._first = _dots(weights, saved, params, earlier), torch.stack(squares), layers, sizes

    def finish(
        self,
        weights: Sequence[Tensor],
        saved: Sequence[Tensor],
        params: Sequence[Tensor],
        earlier: Mapping[int, Tensor],
        continues: bool,
    ) -> None:
        """Called after the second pass, when ``.grad`` holds the sum of both.

        Args:
            continues: whether the pair before was of the same step.
        """
        if self._first is None:
            return
        first, squares, layers, sizes = self._first
        along = first + _dots(weights, saved, params, earlier) / 2  # n·g₊ + (−n)·(g₊ + g₋)/2
        if continues and self._found is not None and self._found[2:] == (layers, sizes):
            along = along + self._found[0]
        self._first, self._found = None, (along, squares, layers, sizes)

    def by_layer(self) -> dict[str, LayerCurvature]:
        """The figures of the step, summed over the tensors of a layer; empty if there was no pair of passes."""
        if self._found is None:
            return {}
        alongs, squares, layers, sizes = self._found
        found = {}
        for layer in dict.fromkeys(layers):
            mine = [i for i, name in enumerate(layers) if name == layer]
            along, square = alongs[mine].sum(), squares[mine].sum()
            found[layer] = LayerCurvature(along, along * sum(sizes[i] for i in mine) / square)
        return found


def _dots(
    weights: Sequence[Tensor], saved: Sequence[Tensor], params: Sequence[Tensor], earlier: Mapping[int, Tensor]
) -> Tensor:
    """The product of each weight's perturbation with its gradient, less what is ``earlier`` in that."""
    dots = []
    for moved, w, p in zip(weights, saved, params, strict=True):
        n = moved - w
        dots.append(n.new_zeros(()) if p.grad is None else (n * p.grad).sum(dtype=torch.float64))
        if id(p) in earlier:
            dots[-1] = dots[-1] - (n * earlier[id(p)]).sum(dtype=torch.float64)
    return torch.stack([dot.double() for dot in dots])
