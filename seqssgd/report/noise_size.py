"""How large the noise of methods is, in one measure: its root mean square over that of the weights it moves."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

from ..runs.reading import Run
from .grouping import Group


def logged_noise(group: Group) -> float | None:
    """The c of a method, as its runs logged it when they last had noise, averaged over them.

    Runs that logged none have it by their settings, where these tell. 0 without noise, be it that there never was any
    by their schedules; None if it is not known, as of methods from elsewhere.
    """
    found = [_of_run(run) for run in group.runs]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def _of_run(run: Run) -> float | None:
    logged = [row["relative_noise"] for row in run.rows if row.get("relative_noise") is not None]
    if logged:
        return next((size for size in reversed(logged) if size), 0.0)
    return _of_settings(run)


def _of_settings(run: Run) -> float | None:
    from ..optim.noise import NORMS
    from ..training.methods import METHODS

    settings = run.settings
    name, level = settings["optim.method"], settings["optim.noise"]
    if name not in METHODS:  # one from elsewhere may do with its level what it likes
        return None
    if not (METHODS[name].has_level and has_begun(run, run.rows[-1])):
        return 0.0
    if name == "dropconnect":
        return math.sqrt(level / (1 - level)) if 0 <= level < 1 else None
    return level if "granularity" in METHODS[name].own and settings["optim.granularity"] in NORMS else None


def has_begun(run: Run, row: Mapping[str, Any]) -> bool:
    """Whether what a run's method adds had begun by one of its evaluations: noise, or an average of the weights."""
    from ..training.methods import METHODS
    from ..training.reach import highest

    settings = run.settings
    method = METHODS.get(settings["optim.method"])  # None: one from elsewhere
    if method is not None and not method.has_level:
        return "average_start" not in method.own or row["step"] > (settings.get("optim.average_start") or 0)
    length = row["step" if settings.get("optim.noise_unit") == "step" else "epoch"]
    try:
        return highest(settings.get("optim.noise_schedule"), settings.get("optim.noise_ramp"), length) > 0
    except (TypeError, ValueError):  # no schedule that there can be
        return True
