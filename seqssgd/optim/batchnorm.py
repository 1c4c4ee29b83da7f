"""Batch-norm running statistics when the weights move between passes.

A perturbed pass sees wider activations than the clean network that is evaluated (S-SGD leaves open what to do about
it). Two answers: choose which passes update the statistics (``bn_stats=``), and estimate them anew with clean weights
before evaluation (:func:`recalibrate_bn`).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

BNStats = Literal["both", "first", "none"]  # the passes of a step that update running statistics


def _is_statistic(name: str) -> bool:
    return name.startswith("running_") or name == "num_batches_tracked"


def _norm_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that keep running statistics: torch's batch norms and any class with buffers named ``running_…``."""
    return [m for m in model.modules() if any(_is_statistic(name) and b is not None for name, b in m._buffers.items())]


class RunningStatistics:
    """The running statistics of every norm layer in ``model``, to be kept through a pass."""

    def __init__(self, model: nn.Module):
        self.buffers: list[Tensor] = [
            buffer
            for module in _norm_modules(model)
            for name, buffer in module._buffers.items()
            if _is_statistic(name) and buffer is not None
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever the block does, the statistics come out of it as they went in."""
        with torch.no_grad():
            saved = [buffer.clone() for buffer in self.buffers]
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(self.buffers, saved, strict=True):
                    buffer.copy_(value)


@torch.no_grad()
def recalibrate_bn(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replaces batch-norm running statistics by the plain mean over ``batches``, with the weights as they are.

    Only the norm layers run in training mode, so dropout stays off. Every module is left in the mode it was in.

    Args:
        model: the network, with clean weights. Without norm layers nothing happens.
        batches: inputs, each passed as ``model(batch)`` (a tuple is spread over the arguments), without targets:
            ``(x for x, y in loader)``. All count alike.

    Raises:
        TypeError: ``batches`` is one tensor, or a batch is nothing that the model takes.
        ValueError: ``batches`` is empty, or a layer has running statistics but no ``momentum`` to average with.
    """
    if isinstance(batches, Tensor):
        raise TypeError("recalibrate_bn takes minibatches, not one tensor; give a list of them: [inputs]")
    norms: list[Any] = _norm_modules(model)  # torch declares the attributes of no module
    if not norms:
        return
    for module in norms:
        if not hasattr(module, "momentum"):
            raise ValueError(f"{type(module).__name__} keeps running statistics but has no momentum to recalibrate by")
    modes = {module: module.training for module in model.modules()}
    momenta = [module.momentum for module in norms]
    count = 0
    try:
        model.eval()
        for module in norms:
            module.train()
        for buffer in RunningStatistics(model).buffers:
            buffer.nan_to_num_(0.0, 0.0, 0.0)  # or they would outlive an average that gives them the weight 0
        for batch in batches:
            count += 1
            for module in norms:
                module.momentum = 1 / count  # makes the exponential average the plain mean of the batches so far
            _call(model, batch)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if count == 0:
        raise ValueError("recalibrate_bn needs at least one batch")


def _call(model: nn.Module, batch: Any) -> None:
    try:
        model(*batch) if isinstance(batch, tuple) else model(batch)
    except TypeError as error:
        if isinstance(batch, Tensor):
            raise
        call = f"model(*batch), a tuple of {len(batch)}" if isinstance(batch, tuple) else "model(batch)"
        raise TypeError(
            f"recalibrate_bn calls {call} for a batch of type {type(batch).__name__}, which the model does not take "
            f"({error}). Batches are inputs alone: (x for x, y in loader)"
        ) from error
