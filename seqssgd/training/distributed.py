"""How a training begins and ends in every process, and which share of the data is its own.

See :mod:`seqssgd.processes`; in a process that torchrun did not start there is nothing to share.
"""

import os
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..errors import UserError
from ..processes import rank, world_size
from .config import OptimConfig, TrainingConfig, check_seed
from .memory import keep_freed_memory


def setup(config: TrainingConfig, seed: int) -> torch.device:
    """All that comes before the model: threads, processes, device, determinism, seeds. Every process gets one seed.

    Returns:
        the device for model and batches.

    Raises:
        UserError: CUDA or graphs are asked for and there is no such device; more processes than CUDA devices, or more
            threads than cores; the seed is negative or too large; there is no torchrun, though WORLD_SIZE is set.
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
    if config.graphs and (kind == "cpu" or _from_torchrun("WORLD_SIZE", 1) > 1):  # before there is a run directory
        raise UserError("training.graphs: it takes one process with a CUDA device; leave it out")
    if kind == "cpu":
        keep_freed_memory()
    local_rank = _from_torchrun("LOCAL_RANK", 0)
    if kind == "cuda":
        if local_rank >= (count := torch.cuda.device_count()):
            raise UserError(f"LOCAL_RANK {local_rank}: there are {count} CUDA devices here; start one process for each")
        torch.cuda.set_device(local_rank)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        except ValueError as error:  # a variable is missing, or no number
            raise UserError(
                f"WORLD_SIZE is set, but not as torchrun does ({error}); use torchrun, or unset it"
            ) from None
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it CUDA matrix products are not deterministic
    torch.use_deterministic_algorithms(config.deterministic)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def _from_torchrun(name: str, otherwise: int) -> int:
    """A number that torchrun sets in the environment."""
    said = os.environ.get(name) or str(otherwise)
    if not said.isdecimal():
        raise UserError(f"{name} is {said!r}, and no number; use torchrun, or unset it")
    return int(said)


def cleanup() -> None:
    """Leaves the group of processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def with_others(main: Callable[[], Any]) -> Any:
    """What ``main`` returns.

    Raises:
        UserError: another process has ended, or cannot be reached: its own words are those that say why.
    """
    try:
        return main()
    except RuntimeError as error:
        if world_size() == 1 or not re.search("Connection (closed|reset) by peer|Broken pipe", str(error)):
            raise
        raise UserError(
            "another process of this training has ended, or cannot be reached; see what it said, and run the same "
            "command again to resume"
        ) from None


def data_share(optim: OptimConfig) -> tuple[int, int]:
    """Which share of every minibatch this process works on, and of how many: with signs "pairs" two work on one."""
    together = 2 if optim.takes("signs") and optim.signs == "pairs" and world_size() > 1 else 1
    return rank() // together, world_size() // together
