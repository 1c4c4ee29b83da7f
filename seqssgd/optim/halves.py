"""Both signs for the price of one: each of two passes works on its half of the minibatch."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from .chunks import widest
from .nesting import check_parts, map_arrays, slice_examples
from .processes import extremes, world_size

Reduction = Literal["mean", "sum"]
Share = tuple[int | Tensor, int | Tensor]  # the items in the first half, and in the minibatch


class Halves:
    """Hands each of two passes its half of the minibatch and knows how much it counts.

    Args:
        reduction: what the loss of a pass is: ``"mean"``, over its examples or over what ``count=`` says, so that the
            halves count by their numbers of these; ``"sum"``, so that they count alike and are added. None: the method
            weighs its passes itself.
    """

    def __init__(self, reduction: Reduction | None = "mean") -> None:
        self.reduction = reduction
        self.running = 0  # the pass that takes, and that ends when weights() is called
        self.sizes: tuple[list[int], list[int]] = [], []  # of the minibatches that each pass was shown
        self.shares: list[Share] = []  # of those that the first pass was shown
        self.count: Tensor | None = None  # the last one in this pass
        self.counted: bool | None = None  # whether items are what count= says, not examples

    def begin(self, index: int) -> None:
        """The pass of ``index`` begins."""
        self.running, self.count = index, None

    def split(self, index: int, batch: tuple, dim: int | None, count: Tensor | None) -> tuple:
        """The half of ``batch`` for the pass of ``index``; see :meth:`Pass.take`, its errors too."""
        given, count = count, self._counts(count, dim)
        size = _size(batch if count is None else (*batch, count), dim)
        if dim is not None:
            check_parts(batch, size, dim)
        if size < 2:
            raise ValueError("a minibatch that is shared out needs at least 2 examples and got 1; drop the last batch")
        half = size // 2
        start, stop = (0, half) if index == 0 else (half, size)
        if index == 0:
            share = (half, size) if count is None else _items(count, half, dim or 0)
            if self.reduction == "mean" and self.shares and not (count is not None and given is self.count):
                _check_share(share, self.shares[0], count is not None)
            self.shares.append(share)
            self.count = given
        self.sizes[index].append(size)
        if dim is None:
            return slice_examples(batch, start, stop)

        def narrow(array: Any) -> Any:
            return array[(slice(None),) * (dim % array.ndim) + (slice(start, stop),)]

        def strings(names: Any) -> Any:
            return names[start:stop] if len(names) == size else names

        return tuple(map_arrays(narrow, part, strings) for part in batch)

    def _counts(self, given: Tensor | None, dim: int | None) -> Tensor | None:
        """What was ``given`` as ``count=`` of a ``take()``, which may be a list; checked."""
        if given is not None and self.reduction == "sum":
            raise ValueError('count= is for a loss that is a mean over the items; reduction="sum" says it is a sum')
        if given is not None and world_size() > 1:
            raise ValueError(
                "count= is for one process: in several, the halves of each have counts of their own. Divide the sum of "
                'the losses by the items of all processes, and say reduction="sum"'
            )
        if self.counted is not None and self.counted != (given is not None):
            raise ValueError("give count= in every take() of a step, or in none")
        self.counted = given is not None
        if given is None:
            return None
        count = torch.as_tensor(given)
        if not count.ndim:
            raise ValueError("count= needs an entry for each example, such as their lengths or a mask of their tokens")
        if dim is not None and not -count.ndim <= dim < count.ndim:
            raise ValueError(
                f"take(dim={dim}): count= of shape {tuple(count.shape)} has no such dimension; it has the examples "
                f"where the minibatch has them: lengths[{'None, ' * max(dim, 0)}:], or a mask of its shape"
            )
        return count

    def weights(self) -> tuple[Any, Any]:
        """How much each half counts in the mean. Called after each pass.

        Raises:
            RuntimeError: the pass did not take its half, or the passes took halves of different minibatches.
        """
        first, second = self.sizes
        if not self.sizes[self.running]:
            raise RuntimeError(
                f"every pass works on its half of the minibatch, and pass {self.running} did not take it: call "
                "part.take(inputs, targets) in each"
            )
        if self.running == 1 and sorted(first) != sorted(second):
            raise RuntimeError(
                f"the passes took halves of different minibatches ({_sum(first)} and {_sum(second)} examples); "
                "call take() on the same data in both"
            )
        if self.reduction != "mean":
            return 1.0, 1.0
        items: Any = sum(share[0] for share in self.shares)
        total: Any = sum(share[1] for share in self.shares)
        if not isinstance(total, Tensor):
            return items / total, 1 - items / total
        # Counts stay on the device: nothing waits for them. In a minibatch without any item neither half counts;
        # a half without one counts for next to nothing, not for 0, as gradients are divided by the last weight.
        none = total == 0
        share = torch.where(none, 0, items / torch.where(none, 1, total))
        return share, torch.where(none, 0, 1 - share).clamp_min(1e-12)

    def check_processes(self, device: torch.device) -> None:
        """Checks, after the first pass, that its half is one share of the minibatch in all data-parallel processes.

        What they exchange is summed over their passes already, each weighted as its own process has it: of unlike
        shares every process would make another gradient, and their weights would drift apart.

        Args:
            device: of the weights.

        Raises:
            RuntimeError: the shares differ; in all processes.
        """
        if self.reduction != "mean" or world_size() == 1:
            return
        least, most = extremes(self.weights()[0], device)
        if least != most:
            raise RuntimeError(
                "the first halves of the processes' minibatches are different shares of them (from "
                f"{least:.4g} to {most:.4g}), so that no weight of the passes suits all processes: give each an even "
                'number of examples, or sum the losses and say reduction="sum"'
            )


def _sum(sizes: list[int]) -> str:
    return " + ".join(map(str, sizes)) or "no"


def _items(count: Tensor, half: int, dim: int) -> Share:
    """What ``count`` has in the first half and in all, without waiting for it."""
    items = count.detach().movedim(dim, 0)
    precise = widest(items.device)
    if items.device.type == "cpu" and not ((items >= 0) & items.isfinite()).all():
        raise ValueError("count= has entries that are negative, infinite or no number")
    return items[:half].sum(dtype=precise), items.sum(dtype=precise)


def _check_share(share: Share, first: Share, counted: bool) -> None:
    """One weight of a pass serves all of its minibatches only if their halves are the same share of them."""
    if all(not isinstance(n, Tensor) or n.device.type == "cpu" for n in (*share, *first)):
        (a, of_a), (b, of_b) = ((float(items), float(total)) for items, total in (share, first))
        if math.isclose(a * of_b, b * of_a, rel_tol=1e-9):
            return
        said = f"{a:g} of {of_a:g} and {b:g} of {of_b:g}"
    else:
        said = "counts on the device are not compared"
    items = "items" if counted else "examples"
    raise ValueError(
        f"the first halves of the minibatches in this pass hold different shares of the {items} "
        f"({said}), so that no weight of the pass suits all. Put a loop over passes() "
        'around each minibatch, or sum the losses, divide by what all minibatches hold, and say reduction="sum"'
    )


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
            "pass dim= for the dimension that counts examples, and call take() once per dimension; of lists with an "
            "entry for each example, take(*lists, dim=None)"
        )
    return sizes.pop()
