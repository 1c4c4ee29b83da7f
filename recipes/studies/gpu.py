"""The paper's own sizes on one GPU, in order of value, several runs at a time, going on where it was left.

    python recipes/studies/gpu.py --max-minutes 25                   # with data/ptb and data/cifar10 prepared
    python recipes/studies/gpu.py --rehearse --data tiny --out out   # on a CPU, with networks of next to no size

The runs are those of the studies in studies.yaml, made by run.py: another call goes on with them, also on another
machine that the folder --out was carried to. Small networks leave most of a GPU idle, so each run is a process.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from seqssgd.errors import UserError, run_cli
from seqssgd.files import make_folder

RUN = Path(__file__).resolve().parent / "run.py"


@dataclass(frozen=True)
class Job:
    """A study on one recipe.

    Attributes:
        data: the folder of its prepared data, within that of --data.
        processes: as many as it has runs, of which each takes the next one.
        rehearsal: options that leave nothing of its size.
        options: of all runs, on the GPU alone.
    """

    study: str
    recipe: str
    seeds: tuple[int, ...]
    data: str
    processes: int
    rehearsal: tuple[str, ...]
    options: tuple[str, ...] = ("--training.graphs", "true")


_IMAGES = ("--training.epochs", "7", "--optim.lr_milestones", "[3, 5]", "--batch_size", "4", "--bn_images", "8")
_TEXT = ("--model.hidden_size", "6", "--batch_size", "5", "--sequence_length", "4", "--training.epochs", "3")
JOBS = {  # in order of value
    "rnn300": Job("table5", "rnn300", (0, 1), "ptb", 4, _TEXT),
    "lstm": Job("table5", "ptb_large", (0,), "ptb", 2, _TEXT),
    "resnet20": Job("table2", "cifar_paper_all", (0, 1), "cifar10", 6, _IMAGES, ()),
    "4k": Job("table2", "cifar_4k", (0,), "cifar10", 3, _IMAGES, ()),
}


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if not args.rehearse:
        import torch

        if not torch.cuda.is_available():
            raise UserError("there is no CUDA device here; --rehearse tries everything on a CPU, at tiny sizes")
    make_folder(args.out)
    limit = time.monotonic() + 60 * args.max_minutes
    waiting = [name for name in args.jobs for _ in range(JOBS[name].processes)]
    status = Pool(args, limit).work(waiting)
    for name in args.jobs:
        print(f"\n{name}:", flush=True)
        subprocess.run([*command(name, args), "--list", *options(name, args)], check=False)
    print(f"\nthe same command goes on; seqssgd compare {args.out}/JOB/*/seed* --out report", flush=True)
    return status


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), metavar="JOB", help=f"of {', '.join(JOBS)} (all)")
    parser.add_argument("--max-minutes", type=float, default=25.0, metavar="M", help="to be resumed (default 25)")
    parser.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="with ptb and cifar10 (data)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="for the runs (runs/gpu)")
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="runs at a time (default 8)")
    parser.add_argument("--rehearse", action="store_true", help="tiny networks, on whatever device there is")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.jobs if name not in JOBS]:
        raise UserError(f"--jobs {' '.join(unknown)}: there are {', '.join(JOBS)}")
    if not args.max_minutes > 0 or args.parallel < 1:
        raise UserError("--max-minutes must be a number > 0, and --parallel at least 1")
    return args


def command(name: str, args: argparse.Namespace) -> list[str]:
    """The study's, without what is to follow ``--``."""
    job = JOBS[name]
    words = [sys.executable, str(RUN), "--study", job.study, "--recipe", job.recipe, "--seeds", *map(str, job.seeds)]
    return [*words, "--data", str(args.data / job.data), "--out", str(args.out / name)]


def options(name: str, args: argparse.Namespace) -> list[str]:
    """What follows the study's own options."""
    return ["--", *(JOBS[name].rehearsal if args.rehearse else JOBS[name].options)]


class Pool:
    """Processes at work, some at a time, until a moment of ``time.monotonic()``."""

    def __init__(self, args: argparse.Namespace, limit: float):
        self.args, self.limit = args, limit
        self.running: dict[subprocess.Popen, tuple[str, Path]] = {}
        self.signal = 0

    def work(self, waiting: Sequence[str]) -> int:
        """Runs a process for each job that is named; the exit status. SIGTERM and SIGINT go to all of them."""
        before = {number: signal.signal(number, self.stop) for number in (signal.SIGTERM, signal.SIGINT)}
        left, status, numbers = list(waiting), 0, dict.fromkeys(waiting, 0)
        try:
            while self.running or (left and self.minutes() > 0 and not self.signal):
                while left and len(self.running) < self.args.parallel and self.minutes() > 0 and not self.signal:
                    name = left.pop(0)
                    numbers[name] += 1
                    self.start(name, self.args.out / f"{name}-{numbers[name]}.log")
                status = max(status, self.reap())
                time.sleep(0.05)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 128 + self.signal if self.signal else status

    def start(self, name: str, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        minutes = max(self.minutes(), 1e-4)
        words = [*command(name, self.args), "--max-minutes", f"{minutes:.4f}", *options(name, self.args)]
        with open(log, "a", encoding="utf-8") as file:
            # a group of its own: Ctrl-C reaches it through this process alone, once
            process = subprocess.Popen(words, stdout=file, stderr=file, env=environment, start_new_session=True)
        self.running[process] = name, log
        print(f"{name}: started; see {log}", flush=True)

    def reap(self) -> int:
        """The status of those that have ended: 1 if one of them failed."""
        failed = 0
        for process in [process for process in self.running if process.poll() is not None]:
            name, log = self.running.pop(process)
            if process.returncode and not self.signal:
                print(
                    f"error: {name}: status {process.returncode}; the reason is in {log}", file=sys.stderr, flush=True
                )
                failed = 1
        return failed

    def minutes(self) -> float:
        return (self.limit - time.monotonic()) / 60

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        for process in self.running:
            process.send_signal(number)


if __name__ == "__main__":
    sys.exit(run_cli(main))
