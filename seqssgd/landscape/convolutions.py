"""Convolutions whose derivatives are made of torch's own kernels for their first derivatives.

⟨g, x * w⟩ is linear in the input x, the weight w and the output's gradient g. So is each of its three derivatives in
the two others, and the derivatives of these are the same three again. Torch writes the second derivative of
convolutions with groups as a loop over these instead: a quarter of the time of a product for a gated ConvNet.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class _How(NamedTuple):
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int


def convolution(
    dimensions: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """The convolution, or None if it is of a kind that is left to torch."""
    if isinstance(padding, str) or input.ndim != dimensions + 2:
        return None
    stride, padding, dilation = (_each(value, dimensions) for value in (stride, padding, dilation))
    how = _How(stride, padding, dilation, groups)
    found = _Output.apply(input, weight, how)
    return found if bias is None else found + bias.view(-1, *[1] * dimensions)


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (dimensions // len(values))


def _derivative(g: Tensor, x: Tensor, w: Tensor, how: _How, of_weight: bool) -> Tensor:
    """Of ⟨g, x * w⟩ in x, or in w; whichever it is of is looked at for its shape alone."""
    return _derivatives(g, x, w, how, [not of_weight, of_weight, False])[of_weight]


def _derivatives(g: Tensor, x: Tensor, w: Tensor, how: _How, which: list[bool]) -> Any:
    nothing = [0] * len(how.stride)
    return torch.ops.aten.convolution_backward(
        g, x, w, None, how.stride, how.padding, how.dilation, False, nothing, how.groups, which
    )


class _Output(torch.autograd.Function):
    """x * w."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.how = how
        nothing = [0] * len(how.stride)
        return torch.convolution(x, w, None, how.stride, how.padding, how.dilation, False, nothing, how.groups)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        of_x, of_w, _ = ctx.needs_input_grad
        if of_x and of_w and not torch.is_grad_enabled():  # both by one call
            return *_derivatives(g, x, w, ctx.how, [True, True, False])[:2], None
        return (
            _Input.apply(g, w, x.detach(), ctx.how) if of_x else None,
            _Weight.apply(g, x, w.detach(), ctx.how) if of_w else None,
            None,
        )


class _Input(torch.autograd.Function):
    """The derivative of ⟨g, x * w⟩ in x."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, x: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.how = how
        return _derivative(g, x, w, how, of_weight=False)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, w = ctx.saved_tensors
        of_g, of_w = ctx.needs_input_grad[:2]
        return (
            _Output.apply(x, w, ctx.how) if of_g else None,
            _Weight.apply(g, x, w.detach(), ctx.how) if of_w else None,
            None,
            None,
        )


class _Weight(torch.autograd.Function):
    """The derivative of ⟨g, x * w⟩ in w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, w: Tensor, how: _How) -> Tensor:
        ctx.save_for_backward(g, x)
        ctx.how = how
        return _derivative(g, x, w, how, of_weight=True)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        g, x = ctx.saved_tensors
        of_g, of_x = ctx.needs_input_grad[:2]
        return (
            _Output.apply(x, w, ctx.how) if of_g else None,
            _Input.apply(g, w, x.detach(), ctx.how) if of_x else None,
            None,
            None,
        )
