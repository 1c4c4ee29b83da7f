"""The loss whose landscape is looked at: that of a model on fixed batches, as a function of its weights alone."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Objective:
    """L(w): the mean of the loss terms of fixed batches, every term weighing the same, whatever batch it is in.

    The model is put into evaluation mode whenever it is used: no dropout, batch-norm statistics as they are.

    Args:
        model: the network, at the weights to be looked at.
        batches: whatever ``outputs`` and ``losses`` take, each on the model's device; kept.
        outputs: a batch to the model's outputs (one tensor).
        losses: outputs and batch to the loss terms, a tensor of any shape: the number of its elements is the batch's
            weight.

    Raises:
        ValueError: there are no loss terms; a weight has less than single precision, in which what is small is lost.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        outputs: Callable[[Any], Tensor],
        losses: Callable[[Tensor, Any], Tensor],
    ) -> None:
        self.model, self.batches, self.outputs, self.losses = model, list(batches), outputs, losses
        self.params = [p for p in model.parameters() if p.requires_grad]
        if coarse := {p.dtype for p in self.params} & {torch.bfloat16, torch.float16}:
            kind = str(coarse.pop()).removeprefix("torch.")
            raise ValueError(f"the weights are in {kind}: too coarse for curvature and sharpness; give model.float()")
        self.loss, self.terms = self._measure()
        if not self.terms:
            raise ValueError("there are no loss terms: the batches are empty")

    @torch.no_grad()
    def _measure(self) -> tuple[float, int]:
        total, terms = 0.0, 0
        with self.frozen():
            for batch in self.batches:
                losses = self.losses(self.outputs(batch), batch)
                total, terms = total + losses.double().sum().item(), terms + losses.numel()
        return total / max(terms, 1), terms

    def value(self) -> float:
        """L at the weights as they are now."""
        return self._measure()[0]

    def gradient(self) -> list[Tensor]:
        """The gradient of L at the weights as they are now, one tensor for each of ``params``."""
        return self.value_and_gradient()[1]

    def value_and_gradient(self) -> tuple[float, list[Tensor]]:
        """L and its gradient at the weights as they are now."""
        value, total = 0.0, [torch.zeros_like(p) for p in self.params]
        with self.frozen(), torch.enable_grad():
            for batch in self.batches:
                loss = self.losses(self.outputs(batch), batch).sum() / self.terms
                gradients = torch.autograd.grad(loss, self.params, allow_unused=True)
                for sums, gradient in zip(total, gradients, strict=True):
                    if gradient is not None:
                        sums += gradient
                value += loss.item()
        return value, total

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The model in evaluation mode, and kernels that can be differentiated twice; all as before afterwards."""
        modes = [(module, module.training) for module in self.model.modules()]
        with ExitStack() as stack:
            stack.enter_context(torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH))
            recurrent = any(isinstance(module, nn.RNNBase) for module, _ in modes)
            if recurrent and self.params and self.params[0].is_cuda:  # cuDNN's have no second derivative
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            self.model.eval()
            try:
                yield
            finally:
                for module, mode in modes:
                    module.training = mode

    def part(self, batches: Sequence[Any]) -> "Objective":
        """The same loss on other batches."""
        return Objective(self.model, batches, self.outputs, self.losses)


@contextmanager
def weights_restored(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields copies of the weights; whatever the block does to ``params``, they are those copies again afterwards."""
    saved = [p.detach().clone() for p in params]
    try:
        yield saved
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(params), saved)
