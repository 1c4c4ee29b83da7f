"""What the methods that follow the curvature cost beyond their passes and their own step.

    python benchmarks/curvature_overhead.py [--rounds 9] [--models conv1d resnet20 small_lstm] [--threads 1]

For each model, ratios within one run (median, smallest and largest of the rounds), each of a step to its passes
(forward-backward) and one step of the optimizer inside: SGD, for IVON its own update. Beside them S-SGD and one-sided
Gaussian noise, which measure nothing, and what IVON's ratio would be if it cost no more than the draw of its normal
numbers, one for each weight. Nanoseconds are for each weight: they tell how many operations on all of them a
forward-backward is worth. Of one thread seconds are the processor's. As the recipes do, the program keeps freed memory.

Time on one core: 3 minutes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from optimizer_overhead import MODELS, model, zaremba
from timing import Figures, benchmark, interleaved, ratio, spent
from torch import Tensor, nn

from seqssgd.optim import IVON, MultiPassOptimizer, OneSidedNoise, ShapedNoise, SymmetricNoise, noise_groups
from seqssgd.optim.ivon import NaturalStep
from seqssgd.optim.noise import NoiseSource
from seqssgd.training.memory import keep_freed_memory


@model
def small_lstm():
    """Zaremba et al.'s small model, 2 x 200 units, batch 20, 20 steps of time: many weights for few tokens."""
    return zaremba("small", 20)


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(noise_groups(network, noise=0.5), lr=1e-4)


def ivon(network: nn.Module, signs: str, seed: int) -> IVON:
    return IVON(network.parameters(), 1e-4, ess=1e6, hess_init=1e-3, signs=signs, seed=seed)


# Every method with its passes; seeds differ, as all are taken for optimizers of one loss.
METHODS: dict[str, tuple[Callable[[nn.Module], MultiPassOptimizer], int]] = {
    "S-SGD": (lambda network: SymmetricNoise(sgd(network), seed=0), 2),
    "balanced S-SGD": (lambda network: SymmetricNoise(sgd(network), balance=True, seed=1), 2),
    "shaped S-SGD": (lambda network: ShapedNoise(sgd(network), seed=2), 2),
    "one-sided Gaussian": (lambda network: OneSidedNoise(sgd(network), distribution="gaussian", seed=3), 1),
    "IVON": (lambda network: ivon(network, "one", 4), 1),
    "IVON, both signs": (lambda network: ivon(network, "batch", 5), 2),
}


def stepping(optimizer: MultiPassOptimizer, loss: Callable[..., Tensor], batch: tuple[Tensor, ...]):
    def step() -> None:
        optimizer.zero_grad()  # of what the functions before have left
        for _ in optimizer.passes():
            loss(*batch).backward()
        optimizer.step()

    return step


def measure(name: str, args: argparse.Namespace, folder: Path) -> Figures:
    keep_freed_memory()
    torch.manual_seed(0)
    network, loss, batch, _ = MODELS[name]()
    plain = torch.optim.SGD(network.parameters(), lr=1e-4)
    natural = NaturalStep(
        network.parameters(), lr=1e-6, betas=(0.9, 0.99999), weight_decay=1e-4, hess_init=1e-3, clip_radius=float("inf")
    )
    source, tensors = NoiseSource("gaussian", "absolute"), [torch.zeros_like(p) for p in network.parameters()]

    def forward_backward() -> None:
        plain.zero_grad()
        loss(*batch).backward()

    def own_step() -> None:
        natural.estimates = {id(p): p.grad for p in network.parameters() if p.grad is not None}
        natural.step()

    functions = {"passes": forward_backward, "SGD": plain.step, "own": own_step}
    functions |= {label: stepping(build(network), loss, batch) for label, (build, _) in METHODS.items()}
    functions["draw"] = lambda: source.fill_(tensors, 0)
    functions["add"] = lambda: torch._foreach_add_(tensors, [p.detach() for p in network.parameters()])
    seconds = interleaved(functions, args.rounds, clock=partial(spent, args.threads))
    figures: Figures = {}
    for label, (_, passes) in METHODS.items():
        inside = seconds["own" if label.startswith("IVON") else "SGD"]
        ideal = [passes * f + s for f, s in zip(seconds["passes"], inside, strict=True)]
        figures[f"{label} step / ({passes} forward-backward + step)"] = ratio(seconds[label], ideal)
        if label.startswith("IVON"):
            drawing = [a + b for a, b in zip(ideal, seconds["draw"], strict=True)]
            figures[f"{label}, if its draw were all it cost"] = ratio(drawing, ideal)
    weights = sum(p.numel() for p in network.parameters())
    for what, key in (("a forward-backward", "passes"), ("a normal number", "draw"), ("a sum of two tensors", "add")):
        figures[f"nanoseconds of {what}, for each weight"] = 1e9 * min(seconds[key]) / weights
    return figures


if __name__ == "__main__":
    about = {name: (function.__doc__ or "").strip() for name, function in MODELS.items()}
    default = ["conv1d", "resnet20", "small_lstm"]
    benchmark(__doc__.splitlines()[0], about, measure, default=default, rounds=9, steps=None, threads=1)
