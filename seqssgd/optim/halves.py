"""Both signs for the price of one: each of two passes works on its half of the minibatch."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Halves:
    """Hands each of two passes its half of the minibatch and remembers the sizes."""

    def __init__(self) -> None:
        self.first = 0  # examples in the first half
        self.seen = [0, 0]  # examples in the minibatches that each pass was shown

    def split(self, index: int, batch: tuple, dim: int) -> tuple:
        sizes = {tensor.shape[dim] for tensor in _tensors(batch) if tensor.ndim}
        if len(sizes) != 1:
            raise ValueError(
                f"take() needs tensors of one size along dim={dim} and got sizes {sorted(sizes)}; "
                "pass dim= for the dimension that counts examples, and call take() once per dimension"
            )
        (size,) = sizes
        if size < 2:
            raise ValueError("a minibatch that is shared out needs at least 2 examples and got 1; drop the last batch")
        first = size // 2
        start, length = (0, first) if index == 0 else (first, size - first)
        self.first += length if index == 0 else 0
        self.seen[index] += size
        return tuple(_map_tensors(lambda t: t.narrow(dim, start, length) if t.ndim else t, part) for part in batch)

    def weights(self) -> tuple[float, float]:
        """Every half counts by its size. Called after each pass, so it also checks that the pass took its half."""
        seen = self.seen if self.seen[1] else [self.seen[0]] * 2
        if seen[0] == 0:
            raise RuntimeError("every pass works on its half of the minibatch: call part.take(inputs, targets) in it")
        if seen[0] != seen[1]:
            raise RuntimeError(
                f"the passes took halves of different minibatches ({seen[0]} and {seen[1]} examples); "
                "call take() on the same data in both"
            )
        return self.first / seen[0], 1 - self.first / seen[0]


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (tuple, list)):
        for value in tree:
            yield from _tensors(value)


def _map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, PackedSequence):
        raise TypeError("take() cannot split a PackedSequence; take from the padded tensors and pack afterwards")
    if isinstance(tree, Tensor):
        return function(tree)
    make: Any = type(tree)
    if isinstance(tree, Mapping):
        return make((key, _map_tensors(function, value)) for key, value in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):  # a named tuple
        return make(*(_map_tensors(function, value) for value in tree))
    if isinstance(tree, (tuple, list)):
        return make(_map_tensors(function, value) for value in tree)
    return tree
