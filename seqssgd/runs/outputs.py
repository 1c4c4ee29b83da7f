"""Where programs may write what they make of runs."""

import errno
import os
from pathlib import Path

from ..errors import UserError
from . import layout


def check_output(folder: str | Path) -> None:
    """Makes sure that a folder to write to, which may be absent, is none that others rely on.

    Raises:
        UserError: it is a run directory or prepared data, or lies in one, or it is a file.
    """
    whole = Path(os.path.realpath(folder))
    for place in (whole, *whole.parents):
        if (what := _taken(place)) is not None:
            where = what if place == whole else f"in {place}, {what}"
            raise UserError(f"--out {folder}: {where}; choose another folder")
    if os.path.lexists(whole) and not whole.is_dir():
        raise UserError(f"--out {folder}: cannot write there ({os.strerror(errno.ENOTDIR)}); choose another folder")


def _taken(folder: Path) -> str | None:
    """What a folder is that nothing of others belongs in. (os.path takes every name, and what may not be looked at.)"""
    begun = any(os.path.exists(folder / name) for name in (layout.METRICS, layout.CHECKPOINTS))
    if begun and os.path.isfile(folder / layout.CONFIG):
        return "a run directory"
    return "prepared data" if os.path.isfile(folder / "dataset.json") else None
