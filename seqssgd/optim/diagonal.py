"""The diagonal of the Hessian, weight by weight, from what the passes of a step leave in the gradients."""

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor

from .ascent import require_dense
from .entry import Entry
from .part import Pass
from .processes import mean_, world_size
from .products import NoiseTimesGradient, OwnNoiseTimesGradient
from .random_noise import RandomNoise
from .sharding import is_sharded

AverageOver = Literal["weight", "row", "layer"]


def check_weights(weights: Iterable[Tensor], method: str) -> None:
    """Refuses weights whose diagonal would not be estimated well.

    Raises:
        ValueError: one is sharded, or of less than float32.
    """
    for w in weights:
        if is_sharded(w):
            raise ValueError(f"{method} with sharded weights has not been tried; use DDP")
        if w.is_floating_point() and torch.finfo(w.dtype).eps > 1e-6:
            raise ValueError(
                f"{method} needs weights of float32 or more, not {w.dtype}: its running mean of the curvature moves by "
                "less than that holds. Compute in autocast"
            )


class _Mark(NamedTuple):
    """What a gradient was after a loop: its norm, and its largest element."""

    norm: Tensor
    largest: Tensor

    def ratio(self, now: Self) -> Tensor:
        """By what the gradient was scaled since; 1 if it was changed otherwise, 0 if it was cleared in place."""
        ratio = now.norm / self.norm
        expected = ratio * self.largest
        scaled = (now.largest - expected).abs() <= 1e-3 * expected.abs()
        known = self.norm.isfinite() & (self.norm > 0) & (scaled | (now.norm == 0))
        return torch.where(known, ratio, (now.norm > 0).to(ratio)).masked_fill(now.norm == self.norm, 1.0)


class DiagonalEstimate:
    """An estimate of the diagonal from all loops of a step: one buffer of the weights' size, two in a further loop.

    What scales a gradient between the loop and the step, as unscaling it or clipping its norm, is to scale the estimate
    too: by the ratio of the norms. That is measured, as the version of a tensor does not tell: a ``GradScaler``
    unscales gradients and leaves it as it was. Whatever else is done to a gradient, as adding weight decay or clipping
    its elements, leaves the estimate alone. The largest element tells the two apart: in a gradient that was scaled it
    has changed as the norm has.

    Args:
        own: whether each process has one sign of the pair (``signs="pairs"``).
    """

    def __init__(self, own: bool = False) -> None:
        self.own = own
        self.products = OwnNoiseTimesGradient() if own else NoiseTimesGradient()
        self._sums: dict[int, Tensor] = {}  # over the loops so far, by the number of the weight
        self._marks: dict[int, _Mark] = {}  # of the gradients after the last loop

    def clear(self) -> None:
        """The gradients of earlier loops were cleared."""
        self._sums, self._marks = {}, {}

    def settle(self, entries: list[Entry]) -> None:
        """Before a further loop, and before the step: scales the sums of earlier loops as their gradients were since,
        in place or not. Where gradients were not finite, and made so, elements of the sums that are not count as 0.
        """
        gradients = {entry.number: entry.parameter.grad for entry in entries}
        for number, mark in list(self._marks.items()):
            gradient = gradients.get(number)
            if gradient is None:  # cleared
                del self._marks[number], self._sums[number]
                continue
            size = torch.linalg.vector_norm(gradient)
            if size.device.type == "cpu" and size == mark.norm:  # elsewhere it would have to be waited for
                continue
            self._marks[number] = now = _Mark(size, gradient.max())
            self._sums[number] = (self._sums[number] * mark.ratio(now)).nan_to_num_(0.0, 0.0, 0.0)

    def add(self, sums: dict[int, Tensor]) -> None:
        """After a loop's last pass: what it adds to the estimates, by the numbers of the weights."""
        for number, found in sums.items():
            before = self._sums.get(number)
            self._sums[number] = found if before is None else before.add_(found)

    def note(self, entries: list[Entry]) -> None:
        """After a loop: what the gradients are now."""
        for entry in entries:
            gradient = entry.parameter.grad
            if entry.number in self._sums and gradient is not None and gradient.numel():
                self._marks[entry.number] = _Mark(torch.linalg.vector_norm(gradient), gradient.max())

    def pop(self, entries: list[Entry]) -> dict[int, Tensor]:
        """For the step: the sums, by the numbers of the weights, the mean over all data-parallel processes."""
        self.settle(entries)
        sums = self._sums
        self.clear()
        if world_size() == 1:
            return sums
        # The sums are those of this process's data; of a weight that it did not use there is none. Which weights have a
        # gradient is the same in all processes, so that all of them reduce the same tensors.
        used = [entry for entry in entries if entry.parameter.grad is not None]
        found = {e.number: sums[e.number] if e.number in sums else torch.zeros_like(e.weight) for e in used}
        return {number: mean_(total) for number, total in found.items()}

    def __reduce__(self) -> Any:  # a copy of the optimizer has no gradients yet
        return type(self), (self.own,)


class EstimatesDiagonal(RandomNoise):
    """Random noise whose passes estimate the diagonal; :attr:`diagonal` has the estimate when the step begins."""

    diagonal: DiagonalEstimate
    average_over: AverageOver

    def over_variances(self, entries: list[Entry], products: list[Tensor]) -> None:
        """Divides the Σ n∘g of weights by E[n∘n] in place; called while they are moved by n."""
        raise NotImplementedError

    def before_loop(self, entries: list[Entry]) -> None:
        super().before_loop(entries)
        self.source.check_processes(entries[0].weight.device)
        if self._run.continues:
            self.diagonal.settle(entries)
        else:
            self.diagonal.clear()

    def perturb(self, part: Pass, entries: list[Entry]) -> None:
        super().perturb(part, entries)
        self.diagonal.products.start(entries)

    def after_pass(self, part: Pass, entries: list[Entry]) -> None:
        super().after_pass(part, entries)
        require_dense([entry.gradient for entry in entries], type(self).__name__)
        found = self.diagonal.products.take(part, entries)
        if part.last:
            with_gradient = [entry for entry in entries if entry.number in found]
            self.over_variances(with_gradient, [found[entry.number] for entry in with_gradient])
            self.diagonal.add(found)

    def after_loop(self, entries: list[Entry]) -> None:
        super().after_loop(entries)
        self.diagonal.note(entries)

    def estimates(self, entries: list[Entry]) -> dict[int, Tensor]:
        """ĥ by the numbers of the weights, for the step; then it is gone. Averaged as :attr:`average_over` says."""
        found = self.diagonal.pop(entries)
        if self.average_over == "row":
            for estimate in found.values():
                if estimate.ndim > 1:
                    estimate.copy_(estimate.mean(tuple(range(1, estimate.ndim)), keepdim=True).expand_as(estimate))
        elif self.average_over == "layer":
            layers: dict[str, list[Tensor]] = {}
            for entry in entries:
                if entry.number in found:
                    layers.setdefault(entry.layer, []).append(found[entry.number])
            for layer in layers.values():
                mean = torch.stack([estimate.sum() for estimate in layer]).sum() / sum(e.numel() for e in layer)
                for estimate in layer:
                    estimate.copy_(mean.expand_as(estimate))
        return found
