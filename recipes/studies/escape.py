"""How long SGD stays in a minimum, by simulation: what theories of escape get right, and what S-SGD does to the stay.

    python recipes/studies/escape.py --quick --out out
    python recipes/studies/escape.py --out runs/escape --workers 2     # goes on where it was left

Writes what every cell came to into OUT/cells, all of them and their tables into OUT/escape.json and OUT/escape.md, and
pictures beside them. The README beside this file says what they show.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from escape_cells import Cell, cells
from escape_figures import draw
from escape_tables import markdown

from seqssgd.documents import read_json
from seqssgd.errors import UserError, require, run_cli
from seqssgd.files import atomic_path
from seqssgd.training.config import check_seed


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    todo = cells(args.quick, args.seed)
    left = {name: cell for name, cell in todo.items() if read(args.out, name, cell) is None}
    print(f"{args.out}: {len(todo) - len(left)} of {len(todo)} cells done", flush=True)
    deadline = math.inf if args.max_minutes is None else time.monotonic() + 60 * args.max_minutes
    for done, (name, seconds) in enumerate(simulate_all(args.out, left, args.workers, deadline), 1):
        print(f"[{len(todo) - len(left) + done}/{len(todo)}] {name}: {seconds:.1f} s", flush=True)
    results = {name: found for name, cell in todo.items() if (found := read(args.out, name, cell)) is not None}
    if len(results) < len(todo):
        print(f"{len(todo) - len(results)} cells left; the same command goes on")
        return 0
    write(args.out / "escape.json", as_json(results))
    write(args.out / "escape.md", markdown(results) + "\n")
    for name, picture in draw(results).items():
        write(args.out / f"{name}.png", picture)
    print(f"\n{markdown(results)}\n\n{args.out}: escape.json, escape.md and pictures")
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for cells, tables and pictures")
    parser.add_argument("--quick", action="store_true", help="fewer cells and particles: a minute on two cores")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers (default: 0)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes, of a thread each (default: 2)")
    parser.add_argument("--max-minutes", type=float, metavar="M", help="begin no cell, to be resumed, after so many")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: it must be at least 1")
    check_seed("--seed", args.seed)
    require("sklearn", "study")  # has the networks' data; asked for before the first cell, not after the last but one
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise UserError(f"--max-minutes {args.max_minutes:g}: it must be a number > 0")
    try:
        (args.out / "cells").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot write there ({error.strerror}); choose another folder") from None
    return args


def simulate_all(out: Path, left: dict[str, Cell], workers: int, deadline: float) -> Iterator[tuple[str, float]]:
    """Makes the cells that are left, in order, and writes each as soon as it is there; yields name and seconds."""
    if workers == 1:
        torch.set_num_threads(1)  # a result is the same whoever made it
        for name, cell in left.items():
            if time.monotonic() >= deadline:
                return
            yield name, simulate(out, name, cell)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker) as pool:
        futures = {pool.submit(simulate, out, name, cell, deadline): name for name, cell in left.items()}
        try:
            for future in as_completed(futures):
                if (seconds := future.result()) is not None:
                    yield futures[future], seconds
        except BaseException:  # Ctrl-C: the cells under way are finished and written
            pool.shutdown(cancel_futures=True)
            raise


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    def end_with_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def simulate(out: Path, name: str, cell: Cell, deadline: float = math.inf) -> float | None:
    """Simulates one cell and writes it; returns the seconds it took, None if it was too late to begin."""
    if time.monotonic() >= deadline:
        return None
    begin = time.monotonic()
    passages, unit = cell.passages(), cell.unit
    predicted, rows = cell.predicted(), []
    for index, level in enumerate(passages.levels):
        rate = passages.rate(index, unit)
        median = passages.median(index, unit)
        rows.append(
            {
                "level": level,
                "escapes": rate.escapes,
                "particles": passages.passed.shape[1],
                "exposure": rate.exposure,
                "spread": rate.spread,
                "median": median if math.isfinite(median) else None,
                "trend": passages.trend(index),
                "predicted": {
                    key: value if isinstance(value, float) else value[index] for key, value in predicted.items()
                },
            }
        )
    found = {"settings": _plain(cell), "diverged": passages.diverged, "passages": rows}
    write(_path(out, name), json.dumps(found, indent=1) + "\n")
    return time.monotonic() - begin


def read(out: Path, name: str, cell: Cell) -> dict[str, Any] | None:
    """What a cell came to; None if it has not been made.

    Raises:
        UserError: it was made with other settings.
    """
    path = _path(out, name)
    if not path.is_file():
        return None
    found = read_json(path, "delete it, and it is made again")
    if not isinstance(found, dict) or found.get("settings") != _plain(cell):
        raise UserError(f"{path}: made with other settings (--quick, --seed or another version); choose another --out")
    return found


def as_json(results: dict[str, Any]) -> str:
    """A line for each cell."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(found)}" for name, found in results.items()) + "\n}\n"


def write(path: Path, content: str | bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def _path(out: Path, name: str) -> Path:
    return out / "cells" / f"{name.replace('/', '_')}.json"


def _plain(cell: Cell) -> dict[str, Any]:
    """The settings of a cell as JSON gives them back."""
    return json.loads(json.dumps({"kind": type(cell).__name__, **dataclasses.asdict(cell)}))


if __name__ == "__main__":
    sys.exit(run_cli(main))
