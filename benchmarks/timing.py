"""Fair comparison of things that take seconds, on machines that are never quite idle."""

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


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


def in_turns(functions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every function gives, such as a rate that it measures itself, in every round."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            values[name].append(function())
    return values


def asked(batches: Iterable[T], times: list[float]) -> Iterator[T]:
    """The same minibatches; when each of them, and the one after the last, is asked for goes into ``times``."""
    times.append(time.perf_counter())
    for batch in batches:
        yield batch
        times.append(time.perf_counter())


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


def show(figures: Mapping[str, float | Ratio]) -> None:
    """Prints one figure a line."""
    for what, value in figures.items():
        number = value if isinstance(value, Ratio) else f"{value:,.0f}" if value > 100 else f"{value:.4g}"
        print(f"  {what:<50} {number}", flush=True)


def machine() -> str:
    """One line about what the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
