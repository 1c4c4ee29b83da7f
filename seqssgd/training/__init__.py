"""One training loop for every task: passes, checkpoints, exact resume, logs."""

from ..runs.directory import RunDirectory
from . import distributed
from .building import build_optimizer, build_schedulers
from .command_line import Command, parse_recipe
from .config import OptimConfig, TrainingConfig
from .distributed import cleanup, setup
from .logs import say
from .loop import fit
from .recipe import run_program, train
from .task import Task

__all__ = [
    "Command",
    "OptimConfig",
    "RunDirectory",
    "Task",
    "TrainingConfig",
    "build_optimizer",
    "build_schedulers",
    "cleanup",
    "distributed",
    "fit",
    "parse_recipe",
    "run_program",
    "say",
    "setup",
    "train",
]
