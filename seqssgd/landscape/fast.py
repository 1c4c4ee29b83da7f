"""Functions of torch in a form that is differentiated twice as fast as once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .convolutions import convolution
from .pointwise import batch_norm, glu, layer_norm

# The function of torch, and what takes its place: with the same arguments, None where it cannot.
_FAST: dict[Callable, Callable] = {
    torch.conv1d: partial(convolution, 1),
    torch.conv2d: partial(convolution, 2),
    torch.conv3d: partial(convolution, 3),
    F.glu: glu,
    F.layer_norm: layer_norm,
    F.batch_norm: batch_norm,
}


class FastTwice(TorchFunctionMode):
    """Inside of it, convolutions, gates and normalisations have fast second derivatives, and no third ones."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _FAST and (found := _FAST[func](*args, **kwargs)) is not None:
            return found
        return func(*args, **kwargs)
