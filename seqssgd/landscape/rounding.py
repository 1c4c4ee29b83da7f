"""Weights in few bits, as a device without floating point holds them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .objective import weights_restored


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits - 1 evenly spaced values from -max|w| to max|w|, with a maximum for each row.

    A row is a slice along dimension 0: the weights of a unit, a filter, a token's embedding.

    Args:
        weight: of any shape; not changed.
        bits: at least 2.
    """
    top = 2 ** (bits - 1) - 1
    rows = weight.detach().reshape(len(weight), -1)
    steps = rows.abs().amax(1).float().div(top).clamp_(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros_like(steps, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(rows.float(), steps, zeros, 0, -top, top).to(weight).view_as(weight)


@contextmanager
def in_bits(params: Sequence[Tensor], bits: int) -> Iterator[None]:
    """The weights rounded; afterwards they are what they were."""
    with torch.no_grad(), weights_restored(params):
        for p in params:
            p.copy_(rounded(p, bits))
        yield
