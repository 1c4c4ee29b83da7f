"""The data-parallel processes: how many there are, and what all of them have together."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """The number of processes; 1 where there is no group of them."""
    return dist.get_world_size() if grouped() else 1


def grouped() -> bool:
    """Whether there is a group of processes, be it of this one alone, in which DDP then works as in any."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number among all: 0, 1, …"""
    return dist.get_rank() if grouped() else 0


def extremes(value: float, device: torch.device) -> tuple[float, float]:
    """The smallest and the largest ``value`` of all processes, each of which must call this, and waits for the others.

    Args:
        device: one that the processes can exchange tensors of.
    """
    if world_size() == 1:
        return value, value
    found = torch.tensor([-value, value], dtype=torch.float64, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    least, most = found.tolist()
    return -least, most


def mean_(tensor: Tensor) -> Tensor:
    """Makes ``tensor`` its mean over all processes, each of which must call this."""
    if (world := world_size()) > 1:
        dist.all_reduce(tensor)
        tensor.div_(world)
    return tensor
