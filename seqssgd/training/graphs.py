"""Forward and backward computation of a network, recorded once for each shape of its inputs and then replayed.

A small recurrent network asks a GPU for hundreds of tiny kernels, and Python takes longer to ask than the GPU to do
them. A CUDA graph asks for all of them at once.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import UserError
from .task import Task

Replay = Callable[[], None]
Record = Callable[[Callable[[], Any]], tuple[Any, Replay]]  # of what computes a list or tuple of tensors and Nones


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """Without torch's warning of gradients that are accumulated on the stream of the recordings, as these are."""
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    try:
        yield
    finally:
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(True)


def check_replayable(task: Task) -> None:
    """Makes sure that the network of ``task`` can be recorded.

    Raises:
        UserError: it cannot.
    """
    if not task.replayable:
        raise UserError("training.graphs: this task's network does not do the same at every step; leave it out")


class Graphed:
    """``model``, replayed in training where it has been called before with inputs of the same shapes.

    The weights may change between calls, in place. What is returned, and what is added to ``.grad``, are copies: the
    next call overwrites neither. Inputs that require a gradient, evaluation, and shapes beyond the first ``most`` are
    computed as ever.

    Two things a loop has to see to, beside :func:`unwarned`. A call that records must find nothing alive of earlier
    calls, neither loss nor output: what autograd keeps for them belongs to the ordinary stream, which a recording must
    not touch. And once something is recorded, the state of CUDA's generator must not be set: cuDNN's dropout between
    the layers of an LSTM would take other memory.

    Args:
        model: whose forward does the same for every input of one shape, whatever its values.
        autocast: the type of its matrix products; None: as the weights are.
        recorder: what makes a ``record`` for each pair of graphs; by default :func:`cuda_recorder`.
        warm: calls of a shape that are computed as ever before it is recorded.
        most: shapes that are recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        autocast: torch.dtype | None = None,
        recorder: Callable[[], Record] | None = None,
        warm: int = 3,
        most: int = 8,
    ) -> None:
        self.model, self.autocast, self.recorder = model, autocast, recorder or cuda_recorder
        self.warm, self.most = warm, most
        self._seen: Counter = Counter()
        self._recorded: dict[Any, _Recorded] = {}

    def __call__(self, *inputs: Any) -> Any:
        leaves, tree = tree_flatten(inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not (self.model.training and torch.is_grad_enabled()) or any(t.requires_grad for t in tensors):
            return self.model(*inputs)
        described = tuple(
            (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
        )
        key = tree, described, tuple(p.requires_grad for p in self.model.parameters())
        recorded = self._recorded.get(key)
        if recorded is None:
            self._seen[key] += 1
            if self._seen[key] <= self.warm or len(self._recorded) == self.most:
                return self.model(*inputs)
            recorded = self._recorded[key] = _Recorded(self, leaves, tree)
        return recorded(tensors)


class _Recorded:
    """The two graphs for inputs of one shape, and the memory that they read and write."""

    def __init__(self, owner: Graphed, leaves: Sequence[Any], tree: Any) -> None:
        record = owner.recorder()
        self.tree: Any = None  # of what the network returns
        self.inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.weights = [p for p in owner.model.parameters() if p.requires_grad]
        device = self.weights[0].device.type

        def forward() -> list[Tensor]:
            torch.clear_autocast_cache()  # a weight that was cast before would keep its values of now for ever
            with torch.autocast(device, owner.autocast, enabled=owner.autocast is not None):
                found, self.tree = tree_flatten(owner.model(*tree_unflatten(self.inputs, tree)))
            torch.clear_autocast_cache()
            return found

        self.outputs, self.forward = record(forward)  # a list, of the same tensors ever after
        self.with_gradient = [i for i, output in enumerate(self.outputs) if output.requires_grad]
        self.arriving = [torch.zeros_like(self.outputs[i]) for i in self.with_gradient]

        def backward() -> Sequence[Tensor | None]:
            outputs = [self.outputs[i] for i in self.with_gradient]
            with torch.autocast(device, enabled=False), _unhooked(self.weights):  # a loop has left its own by then
                return torch.autograd.grad(outputs, self.weights, self.arriving, allow_unused=True)

        self.gradients, self.backward = record(backward)
        self.tensors = [*owner.model.parameters(), *owner.model.buffers()]
        self.places, self.calls = self.addresses(), 0

    def addresses(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        if self.addresses() != self.places:
            raise RuntimeError(
                "weights or buffers have moved to other memory since the network was recorded: change them in place"
            )
        mine = [leaf for leaf in self.inputs if isinstance(leaf, Tensor)]
        torch._foreach_copy_(mine, list(tensors))
        return tree_unflatten(_Replayed.apply(self, *self.weights), self.tree)


@contextlib.contextmanager
def _unhooked(weights: Sequence[Tensor]) -> Iterator[None]:
    """Whoever has hooks on the weights gets the gradients of every replay: none while it is being recorded.

    Other leaves in their place would do too, but an LSTM that sees them moves its weights to other memory.
    """
    hooks = [(p._backward_hooks, dict(p._backward_hooks)) for p in weights if p._backward_hooks]
    for present, _ in hooks:
        present.clear()
    try:
        yield
    finally:
        for present, saved in hooks:
            present.update(saved)


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, *weights: Tensor) -> tuple[Tensor, ...]:
        recorded.forward()
        recorded.calls += 1
        ctx.recorded, ctx.call = recorded, recorded.calls
        ctx.set_materialize_grads(False)
        outputs = tuple(output.detach().clone() for output in recorded.outputs)
        ctx.mark_non_differentiable(*(o for i, o in enumerate(outputs) if i not in recorded.with_gradient))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *arriving: Tensor | None) -> tuple[Tensor | None, ...]:
        recorded = ctx.recorded
        if ctx.call != recorded.calls:
            raise RuntimeError(
                "backward a second time, or after the network was called again; set training.graphs to false"
            )
        for place, index in zip(recorded.arriving, recorded.with_gradient, strict=True):
            gradient = arriving[index]
            if gradient is None:
                place.zero_()
            else:
                place.copy_(gradient)
        recorded.backward()
        recorded.calls += 1  # its memory is free for what comes next: no second time
        return None, *(None if g is None else g.clone() for g in recorded.gradients)


def cuda_recorder() -> Record:
    """What records computations as CUDA graphs that share their memory."""
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], Any]) -> tuple[Any, Replay]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = compute()
        return results, graph.replay

    return record
