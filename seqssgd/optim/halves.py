"""Both signs for the price of one: each of two passes works on its half of the minibatch."""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from .nesting import map_arrays, slice_examples

Reduction = Literal["mean", "sum"]


class Halves:
    """Hands each of two passes its half of the minibatch and knows how much it counts.

    Args:
        reduction: what the loss of a pass is: ``"mean"``, over its examples or over what ``count=`` says, so that the
            halves count by their numbers of these; ``"sum"``, so that they count alike and are added.
    """

    def __init__(self, reduction: Reduction = "mean") -> None:
        self.reduction = reduction
        self.first: int | Tensor = 0  # items in the first half
        self.total: int | Tensor = 0  # and in the minibatch
        self.counted: bool | None = None  # whether items are what count= says, not examples
        self.seen = [0, 0]  # examples in the minibatches that each pass was shown

    def split(self, index: int, batch: tuple, dim: int | None, count: Tensor | None) -> tuple:
        """The half of ``batch`` for the pass of ``index``; see :meth:`Pass.take`."""
        if count is not None and self.reduction == "sum":
            raise ValueError('count= is for a loss that is a mean over the items; reduction="sum" says it is a sum')
        if count is not None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                "count= is for one process: in several, the halves of each have counts of their own. Divide the sum of "
                'the losses by the items of all processes, and say reduction="sum"'
            )
        if self.counted is not None and self.counted != (count is not None):
            raise ValueError("give count= in every take() of a step, or in none")
        self.counted = count is not None
        if count is not None and not (count := torch.as_tensor(count)).ndim:
            raise ValueError("count= needs an entry for each example, such as their lengths or a mask of their tokens")
        size = _size(batch if count is None else (*batch, count), dim)
        if size < 2:
            raise ValueError("a minibatch that is shared out needs at least 2 examples and got 1; drop the last batch")
        half = size // 2
        start, stop = (0, half) if index == 0 else (half, size)
        self.seen[index] += size
        if index == 0 and count is None:
            self.first, self.total = self.first + half, self.total + size
        elif index == 0 and count is not None:
            items = count.detach().movedim(dim or 0, 0)
            precise = torch.float32 if items.device.type == "mps" else torch.float64
            self.first = self.first + items[:half].sum(dtype=precise)
            self.total = self.total + items.sum(dtype=precise)
        if dim is None:
            return slice_examples(batch, start, stop)

        def narrow(array: Any) -> Any:
            return array[(slice(None),) * (dim % array.ndim) + (slice(start, stop),)]

        return tuple(map_arrays(narrow, part) for part in batch)

    def weights(self) -> tuple[Any, Any]:
        """How much each half counts. Called after each pass, so it also checks that the pass took its half."""
        seen = self.seen if self.seen[1] else [self.seen[0]] * 2
        if seen[0] == 0:
            raise RuntimeError("every pass works on its half of the minibatch: call part.take(inputs, targets) in it")
        if seen[0] != seen[1]:
            raise RuntimeError(
                f"the passes took halves of different minibatches ({seen[0]} and {seen[1]} examples); "
                "call take() on the same data in both"
            )
        if self.reduction == "sum":
            return 1.0, 1.0
        first = self.first / self.total
        if isinstance(first, Tensor):  # a half without a single item counts for next to nothing, with no waiting for it
            return first, (1 - first).clamp_min(1e-12)
        return first, 1 - first


def _size(batch: tuple, dim: int | None) -> int:
    """The number of examples."""
    sizes = set()

    def note(array: Any) -> Any:
        if not -array.ndim <= dim < array.ndim:
            raise ValueError(f"take(dim={dim}): a tensor of shape {tuple(array.shape)} has no such dimension")
        sizes.add(array.shape[dim])
        return array

    for part in batch:
        if dim is not None:
            map_arrays(note, part)
        elif hasattr(part, "__len__") and not hasattr(part, "keys") and not isinstance(part, (str, bytes)):
            sizes.add(len(part))
        else:
            raise TypeError(f"take(dim=None) needs sequences with an entry for each example, not {type(part).__name__}")
    if len(sizes) != 1:
        raise ValueError(
            f"take() needs tensors of one size along dim={dim} and got sizes {sorted(sizes)}; "
            "pass dim= for the dimension that counts examples, and call take() once per dimension"
        )
    return sizes.pop()
