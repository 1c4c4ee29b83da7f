"""A weight that the passes move, and all that a method may want to know of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .sharding import local


@dataclass(eq=False, slots=True)
class Entry:
    """A weight that is moved.

    Attributes:
        parameter: as the base optimizer has it, to look its state up by.
        group: its parameter group.
        level: the level of the group, above 0.
        layer: its layer's name after the group's number, ``"0.rnn.l0"``; tensors with equal ones share a norm.
        number: its place among all parameters of the optimizer, as in state dicts.
        weight: what is moved, in place: the parameter; of a sharded one (FSDP2) the part on this process.
        saved: in a loop over passes a copy of ``weight`` unmoved; to be read only.
        earlier: in the last pass what of :attr:`gradient` comes from earlier loops of the same step, if any does.
    """

    parameter: Tensor
    group: dict[str, Any]
    level: float
    layer: str
    number: int
    weight: Tensor = field(init=False)
    saved: Tensor = field(init=False)
    earlier: Tensor | None = None

    def __post_init__(self) -> None:
        self.weight = self.saved = local(self.parameter)

    @property
    def gradient(self) -> Tensor | None:
        """What is in ``.grad`` (of a sharded parameter, the part on this process)."""
        gradient = self.parameter.grad
        return None if gradient is None else local(gradient)


def check_apart(entries: Iterable[Entry], name_of: Callable[[Tensor], str]) -> None:
    """Checks that no two weights lie in the same memory, as ``a.weight.data = b.weight.data`` makes them.

    Args:
        name_of: the name of a parameter.

    Raises:
        ValueError: two do: each would be moved by the noise of both, and back from where the other was.
    """
    places: dict[tuple[Any, int], Tensor] = {}
    for entry in entries:
        place = entry.weight.device, entry.weight.data_ptr()  # 0 where there is no memory
        if place[1] and (other := places.setdefault(place, entry.parameter)) is not entry.parameter:
            raise ValueError(
                f"{name_of(entry.parameter)} and {name_of(other)} are two parameters in the same memory, which noise "
                "would move twice. Tie them as one, b.weight = a.weight and not b.weight.data = a.weight.data, before "
                "the groups are made"
            )
