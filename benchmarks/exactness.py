"""Whether S-SGD in a trainer is S-SGD: the examples against the same steps by hand.

    python benchmarks/exactness.py [--rounds 3] [--steps 20] [--json results/benchmarks/exactness.json]

Every example trains a small model, with accumulation, clipping and schedules as far as it has them. Then a twin goes
through the minibatches that the model was shown: it sets w+n and w-n, takes ``torch.autograd.grad`` at each and their
mean, puts w back, clips, and steps the base optimizer. The figures, a round for each seed (median, smallest, largest):

- the largest difference of the weights in the end, in units in the last place of the largest weight of their tensor;
- seconds of S-SGD in the trainer / seconds of the same trainer with noise 0, which takes one pass a step.

Time on one machine with 2 cores: about 4 minutes. Needs the packages of the extra ``examples``.
"""

import argparse
import copy
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "examples", "benchmarks")]

import accelerate_loop  # noqa: E402
import bare_loop  # noqa: E402
import fabric  # noqa: E402
import hf_trainer  # noqa: E402
import lightning_automatic  # noqa: E402
import lightning_manual  # noqa: E402
import tiny  # noqa: E402
from explicit import recording, replay, ulps  # noqa: E402
from timing import Ratio, benchmark, ratio  # noqa: E402
from torch.optim.lr_scheduler import LinearLR  # noqa: E402
from transformers import get_linear_schedule_with_warmup  # noqa: E402

from seqssgd.optim import LambdaNoise, noise_groups, schedules  # noqa: E402

NOISE = 0.5
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def hf(model: nn.Module, data: list, steps: int, noise: float, folder: Path, **arguments: Any) -> None:
    hf_trainer.trainer(model, data, str(folder), noise, max_steps=steps, save_strategy="no", **arguments).train()


def lightning(program: Any) -> Callable[..., None]:
    def train(model: nn.Module, data: list, steps: int, noise: float, folder: Path, **settings: Any) -> None:
        trainer = program.trainer(max_steps=steps, default_root_dir=folder, **{**QUIET, **settings})
        trainer.fit(program.Module(model, noise), tiny.minibatches(data))
        assert trainer.global_step == steps

    return train


def linear(base: torch.optim.Optimizer, steps: int) -> Any:
    return LinearLR(base, 1.0, 0.1, total_iters=60)


class Case(NamedTuple):
    """An example, and what its steps are made of."""

    train: Callable[..., Any]  # (model, data, steps, noise, folder)
    accumulate: int = 2
    ramp: bool = True  # of the noise level
    rate: Callable[..., Any] = linear  # (base optimizer, steps) -> learning-rate scheduler


CASES = {
    "a bare loop": Case(
        lambda model, data, steps, noise, folder: bare_loop.train(model, data, steps, noise),
        rate=lambda base, steps: get_linear_schedule_with_warmup(base, 5, steps),
    ),
    "HF Trainer": Case(hf, rate=lambda base, steps: get_linear_schedule_with_warmup(base, 0, steps)),
    "Accelerate": Case(lambda model, data, steps, noise, folder: accelerate_loop.train(model, data, steps, noise)),
    "Lightning, automatic": Case(lightning(lightning_automatic)),
    "Lightning, manual": Case(lightning(lightning_manual), accumulate=1, ramp=False),
    "Fabric": Case(
        lambda model, data, steps, noise, folder: fabric.train(model, data, steps, noise),
        accumulate=1,
        rate=lambda base, steps: LinearLR(base, 1.0, 1.0),
    ),
}


def difference(case: Case, model: nn.Module, steps: int, folder: Path) -> float:
    """The difference in ulp after ``steps`` steps of ``case``."""
    twin, data = copy.deepcopy(model), tiny.text()
    with recording(model) as seen:
        case.train(model, data, steps, NOISE, folder)
    base = torch.optim.SGD(noise_groups(twin, noise=NOISE), lr=0.5, momentum=0.9)
    schedulers = [case.rate(base, steps), *([LambdaNoise(base, schedules.ramp(2, 10))] if case.ramp else [])]
    taken = replay(twin, base, seen, accumulate=case.accumulate, clip=1.0, schedulers=schedulers)
    assert taken == steps, f"{taken} steps in place of {steps}"
    return ulps(model, twin)


def seconds(case: Case, model: nn.Module, steps: int, noise: float, folder: Path) -> float:
    start = time.perf_counter()
    case.train(model, tiny.text(), steps, noise, folder)
    return time.perf_counter() - start


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Ratio]:
    figures = {}
    for label, case in CASES.items():
        found, times = [], {NOISE: [], 0.0: []}
        for seed in range(args.rounds):
            torch.manual_seed(seed)
            found.append(difference(case, tiny.MODELS[name](), args.steps, folder))
            for noise, taken in times.items():
                taken.append(seconds(case, tiny.MODELS[name](), args.steps, noise, folder))
        figures[f"{label}: difference in ulp"] = Ratio(median(found), min(found), max(found))
        figures[f"{label}: time of S-SGD / of one pass a step"] = ratio(times[NOISE], times[0.0])
    return figures


def quiet() -> None:
    """Trainers say much at every start."""
    warnings.filterwarnings("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    quiet()
    sizes = dict.fromkeys(tiny.MODELS, "two layers of 32")
    benchmark(__doc__.splitlines()[0], sizes, measure, rounds=3, steps=20, threads=1)
