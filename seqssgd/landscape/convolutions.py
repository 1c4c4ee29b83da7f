"""Convolutions whose derivatives are made of torch's own kernels for their first derivatives.

⟨g, x * w⟩ is linear in the input x, the weight w and the output's gradient g. So is each of its three derivatives in
the two others, and the derivatives of these are the same three again. Torch writes the second derivative of
convolutions with groups as a loop over these instead: a quarter of the time of a product for a gated ConvNet.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

OUTPUT, INPUT, WEIGHT = range(3)  # g, x and w


class _How(NamedTuple):  # in the order of torch's arguments
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    transposed: bool
    output_padding: list[int]
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
    how = _How(stride, padding, dilation, False, [0] * dimensions, groups)
    found = _Derivative.apply(OUTPUT, how, None, input, weight)
    return found if bias is None else found + bias.view(-1, *[1] * dimensions)


def _each(value: Any, dimensions: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * (dimensions // len(values))


class _Derivative(torch.autograd.Function):
    """The derivative of ⟨g, x * w⟩ in one of the three, of which that one is looked at for its shape alone.

    In g it is x * w.
    """

    @staticmethod
    def forward(ctx: Any, which: int, how: _How, *three: Any) -> Tensor:
        ctx.which, ctx.how = which, how
        ctx.save_for_backward(*(None if index == which else one for index, one in enumerate(three)))
        if which == OUTPUT:
            return torch.convolution(three[INPUT], three[WEIGHT], None, *how)
        return _of_both(three, how, [which == INPUT, which == WEIGHT])[which - INPUT]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        three, wanted = list(ctx.saved_tensors), ctx.needs_input_grad[2:]
        three[ctx.which] = v  # ⟨v, the derivative⟩ is the same form, with v in the place of what it is in
        if wanted[INPUT] and wanted[WEIGHT] and not torch.is_grad_enabled():
            return None, None, None, *_of_both(three, ctx.how, [True, True])
        found: list[Any] = [None] * 3
        for index in (OUTPUT, INPUT, WEIGHT):
            if wanted[index]:
                like = None if index == OUTPUT else three[index].detach()
                found[index] = _Derivative.apply(index, ctx.how, *three[:index], like, *three[index + 1 :])
        return None, None, *found


def _of_both(three: Sequence[Any], how: _How, which: list[bool]) -> Any:
    """The derivatives in x and in w, by one call: those of them that are asked for."""
    return torch.ops.aten.convolution_backward(*three, None, *how, [*which, False])[:2]
