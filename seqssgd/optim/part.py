"""What a loop over passes is handed, one after the other."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .halves import Halves


class Pass:
    """One forward-backward pass of a step.

    Attributes:
        index: 0, 1, … within the step. Models that carry a state from minibatch to minibatch keep one per index.
        sign: +1 at w+n, -1 at w-n, 0 at the weights themselves.
        last: true in the last pass of the step: the one in which data-parallel gradients are synchronised
            (``with contextlib.nullcontext() if part.last else model.no_sync(): …``, around forward *and* backward).
        cost: in passes over a whole minibatch: 0.5 if it works on a half.
    """

    def __init__(
        self,
        index: int,
        sign: int,
        last: bool,
        share: Halves | None = None,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ):
        self.index, self.sign, self.last, self._share, self._weigh = index, sign, last, share, weigh
        self.cost = 1 if share is None else 0.5

    def __repr__(self) -> str:
        return f"Pass(index={self.index}, sign={self.sign:+d}, last={self.last})"

    def take(self, *batch: Any, dim: int = 0) -> Any:
        """The part of a minibatch that this pass works on: all of it, or its half where the passes share it out.

        Args:
            batch: tensors, or any nesting of tensors in tuples, lists and mappings, of one size along ``dim``.
                What is not a tensor, or has no dimensions, is handed through.
            dim: the dimension that counts examples: 0, or 1 for time-major data.

        Returns:
            the same structure; for a single argument the argument itself, not a tuple.
        """
        parts = batch if self._share is None else self._share.split(self.index, batch, dim)
        return parts[0] if len(parts) == 1 else parts

    def mean(self, losses: Tensor) -> Tensor:
        """The mean of the examples' losses, shape (B,): what to call ``backward()`` on.

        Where the method weighs examples, the gradient is that of the weighted mean, and the value is the plain one.
        """
        mean = losses.mean()
        if self._weigh is None:
            return mean
        weighted = (losses * self._weigh(losses)).mean()
        return weighted + (mean - weighted).detach()
