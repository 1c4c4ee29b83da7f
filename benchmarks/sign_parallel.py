"""What the paper's Fig. 1 brings: two processes that take a sign each, against one that takes both in turn.

    python benchmarks/sign_parallel.py [--rounds 7] [--steps 5] [--models lstm conv1d resnet20]

Every process has one thread; the two exchange their gradients by gloo. For each model, ratios within one run (median,
smallest and largest of the rounds):

- a step with ``signs="pairs"``, in two processes / a plain step of the base optimizer, in one;
- a step with ``signs="batch"``, in one process / the same plain step.

All are of the same minibatch, and in turns; while process 0 works alone, process 1 waits.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from optimizer_overhead import MODELS
from timing import Figures, benchmark, ratio
from torch import Tensor, nn

from seqssgd.optim import MultiPassOptimizer, SinglePass, SymmetricNoise, noise_groups

LEVEL = 0.3


class Loss(nn.Module):
    """A model and its loss as one module, for DistributedDataParallel to wrap."""

    def __init__(self, name: str):
        super().__init__()
        torch.manual_seed(0)
        self.network, self.loss, self.batch, _ = MODELS[name]()

    def forward(self) -> Tensor:
        return self.loss(*self.batch)


def steps_of(module: nn.Module, optimizer: MultiPassOptimizer, steps: int) -> None:
    for _ in range(steps):
        for _ in optimizer.passes():
            module().backward()
        optimizer.step()
        optimizer.zero_grad()


def worker(rank: int, name: str, rounds: int, steps: int, folder: str) -> None:
    """One of the two processes; process 0 writes the seconds of every round to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    alone, shared = Loss(name), Loss(name)
    together = nn.parallel.DistributedDataParallel(shared)

    def noisy(model: nn.Module, signs: str) -> SymmetricNoise:
        return SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=LEVEL), lr=1e-6), signs=signs)

    plain = SinglePass(torch.optim.SGD(alone.network.parameters(), lr=1e-6))
    turns = {
        "plain": (alone, plain),
        "batch": (alone, noisy(alone.network, "batch")),
        "pairs": (together, noisy(shared.network, "pairs")),
    }
    seconds: dict[str, list[float]] = {turn: [] for turn in turns}
    for number in range(-1, rounds):
        for turn, (module, optimizer) in turns.items():
            dist.barrier()
            start = time.perf_counter()
            if rank == 0 or turn == "pairs":
                steps_of(module, optimizer, steps)
            if number >= 0:
                seconds[turn].append(time.perf_counter() - start)
    if rank == 0:
        Path(folder, "seconds.json").write_text(json.dumps(seconds))
    dist.barrier()
    dist.destroy_process_group()


def measure(name: str, args: argparse.Namespace, folder: Path) -> Figures:
    own = folder / name
    own.mkdir()
    multiprocessing.spawn(worker, (name, args.rounds, args.steps, str(own)), nprocs=2)
    seconds = json.loads((own / "seconds.json").read_text())
    return {
        "pairs step in two processes / plain step": ratio(seconds["pairs"], seconds["plain"]),
        "batch step in one process / plain step": ratio(seconds["batch"], seconds["plain"]),
        "seconds of a plain step": min(seconds["plain"]) / args.steps,
    }


if __name__ == "__main__":
    about = {name: (function.__doc__ or "").strip() for name, function in MODELS.items()}
    benchmark(__doc__.splitlines()[0], about, measure, default=["conv1d"], rounds=7, steps=5, threads=1)
