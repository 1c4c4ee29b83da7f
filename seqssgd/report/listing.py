"""The runs in a folder, and how far each is."""

import os
from pathlib import Path
from typing import NamedTuple

from ..documents import printable
from ..errors import UserError
from ..runs import layout
from ..runs.directory import in_use
from ..runs.reading import Run, read_run
from .metrics import best_evaluation, shared_metric


class Entry(NamedTuple):
    """A line of a list of runs: all as text."""

    run: str
    state: str
    epoch: str
    step: str
    metric: str
    minutes: str


def list_runs(folder: str | Path) -> list[Entry]:
    """The runs in a folder and in those below it, by name.

    ``state`` is ``training`` (a process holds its lock), ``finished``, ``diverged``, ``limited`` (ended by
    ``--max-steps``), ``unfinished``, or ``damaged`` with the reason. ``metric`` is the best so far.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; give one with run directories in it")
    paths = sorted(path.parent for path in folder.rglob(layout.CONFIG))
    if not paths:
        raise UserError(f"{folder}: no run directory in it (none with a {layout.CONFIG})")
    return [_entry(path, path.relative_to(folder).as_posix() if path != folder else path.name) for path in paths]


def table(entries: list[Entry]) -> str:
    """A list of runs in columns, with a head."""
    rows = [Entry(*Entry._fields), *entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _entry(path: Path, name: str) -> Entry:
    name = printable(name)  # a line break would make two rows of it
    training, saved = in_use(path), max(layout.step_files(path / layout.CHECKPOINTS), default=0)
    if not (path / layout.METRICS).is_file():
        return Entry(name, "training" if training else "unfinished", "", f"{saved:,}", "", "")
    try:
        run = read_run(path)
    except UserError as error:
        return Entry(name, f"damaged: {str(error).removeprefix(f'{path}{os.sep}')}", "", f"{saved:,}", "", "")
    last = run.rows[-1] if run.rows else {}
    epoch = f"{run.result.get('epochs', last.get('epoch', 0))}/{run.settings['training.epochs']}"
    step = max(saved, run.result.get("steps", 0), last.get("step", 0))
    minutes = f"{(run.result.get('seconds') or last.get('seconds', 0.0)) / 60:.1f}"
    return Entry(name, "training" if training else _state(run), epoch, f"{step:,}", _metric(run), minutes)


def _state(run: Run) -> str:
    if run.diverged:
        return "diverged"
    return "finished" if run.finished else "limited" if run.result else "unfinished"


def _metric(run: Run) -> str:
    try:
        name = shared_metric([run])
    except (UserError, IndexError, ValueError):  # not validated yet, or never
        return ""
    best = best_evaluation(run, name)
    return f"{name} {best[name]:.4g}" if best else ""
