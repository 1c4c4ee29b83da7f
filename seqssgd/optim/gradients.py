"""What the passes do to the gradients of parameters, in place."""

import weakref
from collections.abc import Iterable

import torch
from torch import Tensor

from .sharding import is_sharded, local

Gradients = list[tuple[Tensor, Tensor]]  # parameters, each with a gradient


class Zeros:
    """Which gradients are still the zeros that ``zero_grad(set_to_none=False)`` left, told without waiting for the
    device: from which tensors they are, and how often these had been written to."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}

    def note(self, parameters: Iterable[Tensor]) -> None:
        """The gradients of ``parameters``, and no others, are 0 now."""
        whole = [(p, p.grad) for p in parameters if not is_sharded(p)]
        self._known = {id(p): (weakref.ref(g), g._version) for p, g in whole if g is not None}

    def has(self, p: Tensor) -> bool:
        """Whether the gradient of ``p`` is known to be 0."""
        gradient, version = self._known.get(id(p), (None, 0))
        return gradient is not None and p.grad is not None and gradient() is p.grad and p.grad._version == version


@torch.no_grad()
def set_aside(parameters: Iterable[Tensor], zeros: Zeros) -> Gradients:
    """Copies of the gradients, which become 0; none of those that are ``zeros`` already."""
    earlier = []
    for p in parameters:
        if p.grad is not None and not zeros.has(p):
            earlier.append((p, p.grad.clone()))
            p.grad.zero_()  # in place: data-parallel buckets and captured graphs hold on to its address
    return earlier


@torch.no_grad()
def add(gradients: Gradients) -> None:
    """Adds ``gradients`` to what is in ``.grad``."""
    for p, gradient in gradients:
        if p.grad is None:
            p.grad = gradient
        else:
            p.grad.add_(gradient)


@torch.no_grad()
def scale(parameters: Iterable[Tensor], factor: float | Tensor) -> None:
    """Multiplies the gradients by ``factor``; a tensor, of no dimensions, is not waited for."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if isinstance(factor, Tensor):
        for gradient in map(local, gradients):
            gradient.mul_(factor.to(gradient.device))
    elif gradients and factor != 1:
        torch._foreach_zero_(gradients) if factor == 0 else torch._foreach_mul_(gradients, factor)


def take(parameters: Iterable[Tensor]) -> Gradients:
    """The gradients, which become None."""
    taken = [(p, p.grad) for p in parameters if p.grad is not None]
    for p, _ in taken:
        p.grad = None
    return taken
