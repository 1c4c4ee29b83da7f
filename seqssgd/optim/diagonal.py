"""The diagonal of the Hessian, weight by weight, from what the passes of a step leave in the gradients."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor


class PassProducts:
    """Gathers Σ n∘g of the passes of a step, each weighted as its gradient is: one buffer of the weights' size.

    For n with independent elements of variance σ², E[n∘g(w+n)] = σ² diag H up to the fourth order of n (Price 1958).
    Of a pair, ½(n∘g₊ − n∘g₋) has the same mean without the spread that n∘g(w) brings. No gradient is stored: after the
    first pass there is A = n∘g₊, after the second the gradients hold S = r g₊ + g₋, r the ratio of the passes' weights,
    and n∘g₊ and −n∘g₋ have the weighted sum 2w₀A − w₁n∘S.

    What happens to a gradient between the loop and the step, as unscaling it or clipping its norm, is to happen to
    the product too: it is scaled as the norm of the gradient was.
    """

    def __init__(self) -> None:
        self._first: dict[int, Tensor] = {}  # of the loop under way, by the parameter's number
        self._sums: dict[int, Tensor] = {}
        self._marks: dict[int, tuple[Tensor, int, Tensor]] = {}  # the gradient, how often written to, its norm

    def settle(self, params: list[Tensor]) -> None:
        """Before a loop, and before the step: scales the sums of earlier loops as their gradients were since."""
        for i, (gradient, version, norm) in list(self._marks.items()):
            now = params[i].grad if i < len(params) else None
            if now is None or now is not gradient:  # cleared
                del self._marks[i], self._sums[i]
            elif now._version != version:
                size = torch.linalg.vector_norm(now)
                ratio = torch.where(norm > 0, size / norm, torch.ones_like(norm))
                self._sums[i] = torch.where(size > 0, self._sums[i] * ratio, 0.0)  # cleared in place after an overflow
                self._marks[i] = gradient, now._version, size

    def take(
        self,
        index: int,
        weights: tuple[float | Tensor, ...],
        moved: list[Tensor],
        saved: list[Tensor],
        params: list[Tensor],
        scales: list[Tensor] | None,
        earlier: Mapping[int, Tensor],
    ) -> None:
        """After a pass, while the weights are still moved and ``.grad`` holds the sum of the passes so far.

        Args:
            index: of the pass.
            weights: how much each pass counts, one or two.
            moved, saved: the weights where they are, and their copies.
            params: the parameters themselves.
            scales: what to multiply the sum with, once it is whole: one for each weight, or None.
            earlier: by the ids of parameters, what else is in their gradients.
        """
        last = index == len(weights) - 1
        for i, (there, w, p) in enumerate(zip(moved, saved, params, strict=True)):
            if p.grad is None:
                continue
            product = (there - w).mul_(p.grad if id(p) not in earlier else p.grad - earlier[id(p)])
            if not last:
                self._first[i] = product
                continue
            if len(weights) == 2:
                product.mul_(weights[index])
            if len(weights) == 2 and i in self._first:
                product.add_(self._first.pop(i).mul_(2 * weights[0]))
            if scales is not None:
                product.mul_(scales[i])
            self._sums[i] = product if i not in self._sums else self._sums[i].add_(product)

    def note(self, params: list[Tensor]) -> None:
        """After a loop: what the gradients are now."""
        for i in self._sums:
            gradient = params[i].grad
            if gradient is not None:
                self._marks[i] = gradient, gradient._version, torch.linalg.vector_norm(gradient)

    def drop(self) -> None:
        """Forgets a loop that was left half-way."""
        self._first.clear()

    def pop(self, params: list[Tensor]) -> dict[int, Tensor]:
        """For the step: the sums, by the parameters' numbers, the mean over all data-parallel processes."""
        self.settle(params)
        sums, self._sums, self._marks = self._sums, {}, {}
        self.drop()
        if dist.is_available() and dist.is_initialized() and (world := dist.get_world_size()) > 1:
            for total in sums.values():  # a pass that was not synchronised has left those of this process's data
                dist.all_reduce(total)
                total.div_(world)
        return sums
