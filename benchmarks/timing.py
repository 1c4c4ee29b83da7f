"""Fair comparison of things that take seconds, on machines that are never quite idle."""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from seqssgd.files import make_folder

T = TypeVar("T")
Figures = dict[str, float | Sequence[float] | dict[str, float]]


def benchmark(
    description: str,
    models: Mapping[str, str],
    measure: Callable[[str, argparse.Namespace, Path], Figures],
    default: Sequence[str] | None = None,
    rounds: int = 5,
    steps: int | None = 40,
    threads: int | None = None,
    data: str | None = None,
) -> None:
    """The program of a benchmark: its options, its figures as text, and with ``--json`` as a file.

    Args:
        models: what can be measured: name and a line about it.
        measure: gives the figures of a model, from the options and a folder for files of its own.
        default: the models that are measured unless ``--models`` says otherwise; None: all.
        rounds, steps, threads: what they are unless the options say otherwise; steps None: no such option; threads
            None: torch's choice.
        data: the prepared data that it needs; None: no such option.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", choices=models, default=default or list(models))
    parser.add_argument("--rounds", type=int, default=rounds)
    if steps is not None:
        parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=threads or torch.get_num_threads())
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, metavar="DIR", help=data)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args()
    if args.json:
        make_folder(args.json.parent)
    torch.set_num_threads(args.threads)
    figures = {"machine": machine(), "rounds": args.rounds}
    if steps is not None:
        figures["steps"] = args.steps
    print(figures["machine"])
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            print(f"\n{name}: {models[name]}", flush=True)
            figures[name] = measure(name, args, Path(folder))
            _show(figures[name])
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every function in every round. Each round calls all of them, so that all see the same disturbances."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(-warmup, rounds):
        for name, function in functions.items():
            start = clock()
            function()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 0:
                seconds[name].append(clock() - start)
    return seconds


def in_turns(functions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What every function gives, such as a rate that it measures itself, in every round."""
    values: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            values[name].append(function())
    return values


def apart(program: str, *words: object) -> float:
    """What ``program`` prints when it is called with ``--one`` and ``words``, in a process of its own."""
    command = [sys.executable, program, "--one", *map(str, words)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def asked(batches: Iterable[T], times: list[float]) -> Iterator[T]:
    """The same minibatches; when each of them, and the one after the last, is asked for goes into ``times``."""
    times.append(spent(torch.get_num_threads()))
    for batch in batches:
        yield batch
        times.append(spent(torch.get_num_threads()))


class Ratio(NamedTuple):
    """Median, smallest and largest of the ratios of the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def spent(threads: int) -> float:
    """A clock: of one thread the processor's time, to which other programs do not add; else the day's."""
    return time.process_time() if threads == 1 else time.perf_counter()


def ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """The ratio round by round: what disturbs a whole round cancels."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def _show(figures: Figures) -> None:
    """Prints one figure a line."""
    for what, value in figures.items():
        if isinstance(value, dict):
            print(f"  {what}")
            _show({f"  {name}": part for name, part in value.items()})
            continue
        number = value if isinstance(value, Ratio) else f"{value:,.0f}" if value > 100 else f"{value:.4g}"
        print(f"  {what:<50} {number}", flush=True)


def machine() -> str:
    """One line about what the figures were measured on."""
    threads = torch.get_num_threads()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{threads} CPU thread{'s' * (threads > 1)}"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
