"""What a loop over passes is handed, one after the other, and what hands it."""

from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from torch import Tensor

from .halves import Halves


class Pass:
    """One forward-backward pass of a step.

    Attributes:
        index: 0, 1, … within the step. Models that carry a state from minibatch to minibatch keep one per index.
        sign: +1 at w+n, -1 at w-n, 0 at the weights themselves.
        last: true in the last pass of the step: the one in which data-parallel gradients are synchronised
            (``with contextlib.nullcontext() if part.last else model.no_sync(): …``, around forward *and* backward).
        share: how the minibatch is divided among the passes; None: each gets all of it.
        importance: once the pass is done, how much each pass of the step counts in its gradient.
        cost: in passes over a whole minibatch: 0.5 if it works on a half, 2 if two processes work on the same.
    """

    def __init__(
        self,
        index: int,
        sign: int,
        last: bool,
        share: Halves | None = None,
        weigh: Callable[[Tensor], Tensor] | None = None,
    ):
        self.index, self.sign, self.last, self.share, self._weigh = index, sign, last, share, weigh
        self.importance: tuple[Any, ...] = ()
        self.cost: float = 1 if share is None else 0.5
        if share is not None:
            share.begin(index)

    def __repr__(self) -> str:
        return f"Pass(index={self.index}, sign={self.sign:+d}, last={self.last})"

    def take(self, *batch: Any, dim: int | None = 0, count: Tensor | None = None) -> Any:
        """The part of a minibatch that this pass works on: all of it, or its half where the passes share it out.

        Args:
            batch: tensors or NumPy arrays, or any nesting of them in tuples, lists, mappings (``BatchEncoding`` too)
                and dataclasses, of one size along ``dim``. Strings, as many as there are examples, are halved too.
                Other plain values, and tensors without dimensions, are handed through.
            dim: the dimension that counts examples: 0, or 1 for time-major data. None: each argument is a sequence with
                an entry for each example.
            count: what the loss is the mean over, where that is not the examples: for every example the number of its
                tokens or frames, or a mask of the tokens that count, split as the batch is. So the halves count by
                their items, and the gradient is that of the mean over all items of the minibatch, 0 if there are none.
                (In data-parallel training sum the losses, divide by the items of all processes, and say
                ``reduction="sum"``.)

        Returns:
            the same structure; for a single argument the argument itself, not a tuple.

        Raises:
            TypeError: where the passes share the minibatch out, what cannot be split, or not in one way only: a list
                that may be several parts of a minibatch or its examples one by one.
            ValueError: sizes that differ; fewer than two examples; on the CPU, counts that are negative or not finite;
                several minibatches in one pass, of mean losses, whose halves are different shares of them (each
                needs a loop over passes of its own).

        A mean over the tokens of padded sentences:

        >>> import torch
        >>> from seqssgd.optim import SymmetricNoise, noise_groups
        >>> model = torch.nn.Linear(3, 3)
        >>> optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, 0.1), lr=0.1), signs="halves")
        >>> words, lengths = torch.ones(4, 5, 3), torch.tensor([5, 2, 3, 1])
        >>> for part in optimizer.passes():
        ...     x, n = part.take(words, lengths, count=lengths)
        ...     mask = torch.arange(5) < n[:, None]
        ...     model(x)[mask].square().mean().backward()
        >>> optimizer.step()
        """
        parts = batch if self.share is None else self.share.split(self.index, batch, dim, count)
        return parts[0] if len(parts) == 1 else parts

    def mean(self, losses: Tensor) -> Tensor:
        """The mean of the examples' losses, shape (B,): what to call ``backward()`` on.

        Where the method weighs examples, the gradient is that of the weighted mean, and the value is the plain one.

        Raises:
            RuntimeError: the losses have been said to be sums (``reduction="sum"``).
        """
        if self.share is not None and self.share.reduction == "sum":
            raise RuntimeError('part.mean() gives a mean, and reduction="sum" says that the losses are sums')
        mean = losses.mean()
        if self._weigh is None:
            return mean
        weighted = (losses * self._weigh(losses)).mean()
        return weighted + (mean - weighted).detach()


class PassLoop(Iterator[Pass]):
    """The passes of a step, one after the other. torch.compile does not look into it, where it compiles the loop."""

    def __init__(self, generator: Generator[Pass, None, None]):
        self._generator = generator

    @torch._disable_dynamo
    def __next__(self) -> Pass:
        try:
            return next(self._generator)
        except BaseException:  # an interrupt may have come just after the weights were moved
            self._generator.close()
            raise

    def close(self) -> None:
        """Ends the loop if it was left half-way: the weights are what they were. Needed where it has a name."""
        self._generator.close()
