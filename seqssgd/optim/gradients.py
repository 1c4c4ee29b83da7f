"""What the passes do to the gradients of parameters, in place."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .sharding import local

Gradients = list[tuple[Tensor, Tensor]]  # parameters, each with a gradient


@torch.no_grad()
def set_aside(parameters: Iterable[Tensor]) -> Gradients:
    """Copies of the gradients, which become 0."""
    earlier = []
    for p in parameters:
        if p.grad is not None:
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
