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
        self.first: Tensor | None = None  # n·g₊
        self.along: Tensor | None = None
        self.squares: Tensor | None = None

    def take(
        self,
        index: int,
        weights: Sequence[Tensor],
        saved: Sequence[Tensor],
        params: Sequence[Tensor],
        earlier: Mapping[int, Tensor],
    ) -> None:
        """Called after each pass, while ``weights`` are still moved and ``.grad`` holds the sum of the passes.

        Args:
            earlier: by the ids of parameters, what else is in their gradients.
        """
        dots, squares = [], []
        for moved, w, p in zip(weights, saved, params, strict=True):
            n = moved - w
            dots.append(n.new_zeros(()) if p.grad is None else (n * p.grad).sum(dtype=torch.float64))
            if id(p) in earlier:
                dots[-1] = dots[-1] - (n * earlier[id(p)]).sum(dtype=torch.float64)
            squares.append(n.square().sum(dtype=torch.float64))
        found = torch.stack([dot.double() for dot in dots])
        if index == 0:
            self.first, self.along, self.squares = found, None, torch.stack(squares)
        elif self.first is not None:
            self.along = self.first + found / 2  # n·g₊ + (−n)·(g₊ + g₋)/2

    def by_layer(self, layers: Sequence[str], sizes: Sequence[int]) -> dict[str, LayerCurvature]:
        """The two passes' figures, summed over the tensors of a layer; empty if there was no pair of passes."""
        if self.along is None or self.squares is None:
            return {}
        found = {}
        for layer in dict.fromkeys(layers):
            mine = [i for i, name in enumerate(layers) if name == layer]
            along, square = self.along[mine].sum(), self.squares[mine].sum()
            size = sum(sizes[i] for i in mine)
            found[layer] = LayerCurvature(along, along * size / square)
        return found
