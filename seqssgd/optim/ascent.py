"""A move of the weights along a direction with a norm over all of them, as SAM and its relatives make it."""

from collections.abc import Iterable

import torch
from torch import Tensor

from .entry import Entry


def move_along(directions: Iterable[tuple[Entry, Tensor]], norm: Tensor, sign: int) -> None:
    """Adds ``sign`` times the level of an entry times its direction over ``norm`` to its weight, in place."""
    scale = 1 / ((norm.float() if norm.dtype == torch.float16 else norm) + 1e-12)
    for entry, direction in directions:
        w = entry.weight
        if w.dtype == torch.float16:  # which has no room for the scale of a small norm, nor for 1e12
            w.add_((direction.float() * scale.to(w.device)).to(w.dtype), alpha=sign * entry.level)
        else:
            w.addcmul_(direction.to(w), scale.to(w), value=sign * entry.level)


def require_dense(gradients: Iterable[Tensor | None], method: str) -> None:
    """Makes sure that no gradient, or no momentum of gradients, is sparse.

    Raises:
        ValueError: one is.
    """
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise ValueError(f"{method} takes no sparse gradients, as of nn.Embedding(sparse=True); leave sparse out there")
