"""Fair comparison of things that take seconds, on machines that are never quite idle."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


def interleaved(functions: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every function in every round. Each round calls all of them, so that all see the same disturbances."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warmup, rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


class Ratio(NamedTuple):
    """Median, smallest and largest of the ratios of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """The ratio round by round: what disturbs a whole round cancels."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def machine() -> str:
    """One line about what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
