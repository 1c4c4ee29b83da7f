"""Data-parallel processes, as torchrun starts them. In a process started otherwise everything here does nothing.

Every process runs the same program; :func:`data_share` says which share of the data is its own.
Process 0 alone writes files and prints.
"""

import os
import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from ..errors import UserError
from .config import OptimConfig, TrainingConfig, check_seed


def setup(config: TrainingConfig, seed: int) -> torch.device:
    """All that comes before the model: threads, processes, device, determinism, seeds. Every process gets one seed.

    Returns:
        the device for model and batches.

    Raises:
        UserError: CUDA is asked for and there is none; more threads than cores; the seed is negative or too large.
    """
    check_seed("seed", seed)
    cores = os.cpu_count() or 1
    if config.threads is not None and config.threads > cores:
        raise UserError(f"training.threads: {config.threads} is more than the {cores} cores of this machine")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda is not available here; use cpu or auto")
    kind = "cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda"
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if kind == "cuda":
        torch.cuda.set_device(local_rank)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA matrix products are not deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def cleanup() -> None:
    """Leaves the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all: 0, 1, …"""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def data_share(optim: OptimConfig) -> tuple[int, int]:
    """Which share of every minibatch this process works on, and of how many: with signs "pairs" two work on one."""
    together = 2 if optim.takes("signs") and optim.signs == "pairs" and world_size() > 1 else 1
    return rank() // together, world_size() // together


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
