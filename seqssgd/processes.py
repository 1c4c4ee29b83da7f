"""The processes of a training, as torchrun starts them; a process started otherwise is the only one.

Every process runs the same program. Process 0, the main one, alone writes files and prints.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .errors import UserError
from .optim.processes import rank, world_size


def is_main() -> bool:
    """True in the process that writes files and prints."""
    return rank() == 0


def mean(value: float) -> float:
    """The mean of ``value`` over all processes."""
    return _reduce(value, dist.ReduceOp.SUM) / world_size() if world_size() > 1 else value


def maximum(value: float) -> float:
    """The largest ``value`` of all processes. Of truth values: whether any is true."""
    return _reduce(value, dist.ReduceOp.MAX) if world_size() > 1 else value


def gather(value: Any) -> list[Any]:
    """In process 0 the values of all processes, in order; in the others an empty list."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def from_main(value: Any) -> Any:
    """Process 0's ``value``, in every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """A ``UserError`` of process 0 in this block, which all processes enter, is raised in all of them: else the others
    would wait for it.
    """
    refusal = None
    try:
        yield
    except UserError as error:
        refusal = error
    said = from_main(refusal and str(refusal))
    if refusal is not None or said is not None:
        raise refusal or UserError(said)


def parallel(model: nn.Module) -> nn.Module:
    """``model`` wrapped so that its gradients are averaged over the processes; itself if there is only this one."""
    if world_size() == 1:
        return model
    device = next(model.parameters()).device
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids)


def _reduce(value: float, operation: dist.ReduceOp.RedOpType) -> float:
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    return tensor.item()
