"""A level for every layer, so that the noise of each costs the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .chunks import widest
from .entry import Entry

FLOOR = 0.01  # of the mean price: what a layer is taken to pay at least


class Balance:
    """Levels at which every layer's noise raises the loss alike, while the norm of all noise together stays.

    To second order noise of level e in layer l raises the loss by ½e²K_l, with the price K_l = ‖w‖² nᵀHn/‖n‖², which a
    pair measures in every step. With running means of these prices, and with c_l the level of the layer's group, the
    levels are

        e_l = s/√max(K_l, 0.01 K̄),  s such that Σ(e_l‖w_l‖)² = Σ(c_l‖w_l‖)²,

    K̄ being the mean of max(K, 0) over the layers. So ‖n‖ over the whole network is what the levels of the groups say,
    their ratios are the measured prices', and no layer has more than ten times the level of one with the mean price.
    A layer has the level of its group in its first steps with noise, while its mean is of too few, and does not count
    among those whose norm stays; nor are levels balanced if no layer has a price above 0. A layer whose weights are all
    0 has no noise, and the price 0. With a ``GradScaler`` prices are those of the scaled loss: their ratios are the
    same, and steps at a larger scale count for more. The means are in ``state_dict()["perturbation"]``.
    ``torch.distributed.checkpoint`` drops them, so that after loading from there they begin anew. In data-parallel
    training they are those of all processes.

    Args:
        decay: of the running means.
        first: steps of a layer without balance; default: 1/(1-decay).
    """

    def __init__(self, decay: float = 0.99, first: int | None = None):
        self.decay, self.first = decay, round(1 / (1 - decay)) if first is None else first
        self.prices: dict[str, Tensor] = {}  # K by layer, 0-dim: means that start from 0
        self.counts: dict[str, int] = {}  # of steps that they are of
        self._latest: dict[str, Tensor] = {}  # of the step under way

    def note(self, entries: list[Entry], totals: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """After a pair of passes: ``totals`` has nᵀHn and ‖n‖² by layer, over the loops of the step so far."""
        squares = _squares(entries)
        self._latest = {
            layer: torch.where(n > 0, squares[layer] * along / n, 0.0) for layer, (along, n) in totals.items()
        }

    def update(self) -> None:
        """When a step is made on these passes. Prices that are not finite do not count."""
        latest, self._latest = self._latest, {}
        if not latest:
            return
        finite = torch.stack([price.isfinite() for price in latest.values()]).all()
        for layer, price in latest.items():
            before = self.prices.get(layer, torch.zeros_like(price)).to(price.device)
            self.prices[layer] = torch.where(finite, before.lerp(price, 1 - self.decay), before)
            self.counts[layer] = self.counts.get(layer, 0) + 1

    def levels(self, entries: list[Entry]) -> list[Any]:
        """e of each weight; tensors of no dimensions, or the groups' levels as they are."""
        level = {entry.layer: entry.level for entry in entries}
        known = [layer for layer in level if self.counts.get(layer, 0) >= self.first]
        if not known:
            return [entry.level for entry in entries]
        squares = _squares(entries)
        device = squares[known[0]].device
        prices = torch.stack([self.prices[layer].to(device) for layer in known]).clamp(min=0)
        if len({self.counts[layer] for layer in known}) > 1:  # else ratios alone matter
            prices /= prices.new_tensor([1 - self.decay ** self.counts[layer] for layer in known])
        w = torch.stack([squares[layer].to(device) for layer in known])
        c = torch.tensor([level[layer] for layer in known], dtype=w.dtype, device=device)
        squared = 1 / prices.clamp(min=FLOOR * prices.mean())
        squared = torch.where(prices.sum() > 0, squared * (c.square() * w).sum() / (squared * w).sum(), c.square())
        found = {layer: w.new_tensor(level[layer]) for layer in level if layer not in known}
        found |= zip(known, squared.sqrt().unbind(), strict=True)
        return [found[entry.layer].to(entry.weight.device) for entry in entries]

    def state(self) -> dict[str, Any]:
        """What :meth:`load` takes."""
        return {"counts": dict(self.counts), "prices": dict(self.prices)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state` was; from nothing, begins anew."""
        self.prices = {layer: price.clone() for layer, price in state.get("prices", {}).items()}
        together = dict.fromkeys(self.prices, state.get("steps", 0))  # as an earlier version counted
        self.counts = dict(state.get("counts", together))


def _squares(entries: list[Entry]) -> dict[str, Tensor]:
    """‖w‖² of each layer."""
    found: dict[str, Tensor] = {}
    norms = torch._foreach_norm([entry.saved for entry in entries])
    for entry, norm in zip(entries, norms, strict=True):
        square = norm.to(widest(norm.device)).square()
        found[entry.layer] = found[entry.layer] + square.to(found[entry.layer]) if entry.layer in found else square
    return found
