"""Gates and normalisations whose second derivative takes a few passes over memory.

Torch composes these of many small operations: a fifth of the time of a product for a gated ConvNet, a quarter for a
ResNet. Here the first derivative is a function of its own, and what its derivative needs of the weights alone is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """As :func:`torch.nn.functional.glu`."""
    return _Gate.apply(input, dim)


class _Gate(torch.autograd.Function):
    """a σ(b) of the two halves of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int) -> Tensor:
        value, gate = x.chunk(2, dim)
        share = gate.sigmoid()
        ctx.save_for_backward(x, share, value * share * (1 - share))
        ctx.dim = dim
        return value * share

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return _GateGradient.apply(g, *ctx.saved_tensors, ctx.dim), None


class _GateGradient(torch.autograd.Function):
    """(g σ, g a σ'), as a function of g and x; σ and a σ' are known."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, share: Tensor, slope: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(g, share, slope)
        ctx.dim, ctx.bent = dim, None
        return torch.cat([g * share, g * slope], dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        g, share, slope = ctx.saved_tensors
        if ctx.bent is None:  # for all further products too
            ctx.bent = g * share * (1 - share), g * slope * (1 - 2 * share)
        value, gate = along.chunk(2, ctx.dim)
        mixed, second = ctx.bent
        of_g = (value * share).addcmul_(gate, slope)
        return of_g, torch.cat([gate * mixed, (value * mixed).addcmul_(gate, second)], ctx.dim), None, None, None


def layer_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5
) -> Tensor | None:  # fmt: skip
    """As :func:`torch.nn.functional.layer_norm`; None if it is over more than one dimension."""
    if len(normalized_shape) > 1:
        return None
    size = normalized_shape[0]
    weight = input.new_ones(size) if weight is None else weight
    return _LayerNorm.apply(input, weight, input.new_zeros(size) if bias is None else bias, eps)


class _LayerNorm(torch.autograd.Function):
    """y = γ x̂ + β with x̂ = r (x - mean), r = 1/√(var + ε), over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, scale = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return *_LayerNormGradient.apply(g, *ctx.saved_tensors), None


class _LayerNormGradient(torch.autograd.Function):
    """r P(γ g), Σ g x̂ and Σ g, as functions of g, x and γ, where P v = v - mean(v) - x̂ mean(x̂ v) in every row."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        found = _layer_norm_backward(g, x, mean, scale, weight, [True, True, True])
        ctx.save_for_backward(g, x, weight, mean, scale, found[0])
        ctx.kept = None
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> tuple[Any, ...]:
        g, x, weight, mean, scale, gradient = ctx.saved_tensors
        if ctx.kept is None:  # for all further products too
            normal = (x - mean) * scale
            ctx.kept = normal, (normal * (g * weight)).mean(-1, keepdim=True)
        normal, along_g = ctx.kept
        total_g, total_x, total_w = torch.zeros_like(g), torch.zeros_like(g), None
        if u is not None:
            moved = _layer_norm_backward(u, x, mean, scale, None, [True, False, False])[0]  # r P u
            total_g.addcmul_(moved, weight)
            total_w = (g * moved).flatten(0, -2).sum(0)
            total_x.addcmul_(normal, (u * gradient).mean(-1, keepdim=True))
            total_x.addcmul_(gradient, (u * normal).mean(-1, keepdim=True)).addcmul_(moved, along_g).mul_(-scale)
        if of_weight is not None:
            total_g.addcmul_(normal, of_weight)
            total_x += _layer_norm_backward(g * of_weight, x, mean, scale, None, [True, False, False])[0]
        if of_bias is not None:
            total_g += of_bias
        return total_g, total_x, total_w, None, None


def _layer_norm_backward(
    g: Tensor, x: Tensor, mean: Tensor, scale: Tensor, weight: Tensor | None, which: list[bool]
) -> Any:
    return torch.ops.aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, scale, weight, weight, which)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """As :func:`torch.nn.functional.batch_norm` with statistics that are known; None where they are not."""
    if training or running_mean is None or running_var is None:
        return None
    weight = torch.ones_like(running_mean) if weight is None else weight
    bias = torch.zeros_like(running_mean) if bias is None else bias
    return _BatchNorm.apply(input, weight, bias, running_mean, running_var, eps)


class _BatchNorm(torch.autograd.Function):
    """y = γ x̂ + β with x̂ = r (x - mean), r = 1/√(var + ε), mean and variance of every channel known."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean.clone(), var.clone())  # which may be taken anew meanwhile
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return *_BatchNormGradient.apply(g, *ctx.saved_tensors, ctx.eps), None, None, None


class _BatchNormGradient(torch.autograd.Function):
    """γ r g, Σ g x̂ and Σ g, as functions of g, x and γ."""

    @staticmethod
    def forward(
        ctx: Any, g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, eps: float
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, x, weight, mean, (var + eps).rsqrt())
        which = [True, True, True]
        return torch.ops.aten.native_batch_norm_backward(g, x, weight, mean, var, None, None, False, eps, which)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, u: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None) -> tuple[Any, ...]:
        g, x, weight, mean, scale = ctx.saved_tensors
        channels = [1, -1] + [1] * (x.ndim - 2)
        total_g, total_x, total_w = None, None, None
        if u is not None:
            total_g = u * (weight * scale).view(channels)
            total_w = (g * u).sum([d for d in range(x.ndim) if d != 1]) * scale
        if of_weight is not None:
            slope = of_weight * scale
            total_x = g * slope.view(channels)
            total_g = x * slope.view(channels) if total_g is None else total_g.addcmul_(x, slope.view(channels))
            of_bias = (0 if of_bias is None else of_bias) - mean * slope
        if of_bias is not None:
            total_g = of_bias.view(channels).expand_as(g) if total_g is None else total_g.add_(of_bias.view(channels))
        return total_g, total_x, total_w, None, None, None
