"""How large the noise of methods is, in one measure: its root mean square over that of the weights it moves."""

import math
import statistics
from typing import Any

from ..runs.reading import Run
from .grouping import Group

WITHOUT = ("none", "ema", "swa")  # methods that move no weights
OTHERS = ("covariance", "sam", "asam", "msam", "ivon")  # whose level is no fraction of the weights


def relative_noise(group: Group) -> float | None:
    """The c of a method, as its runs logged it when they last had noise, averaged over them.

    Runs that logged none, of an earlier version, have it by their settings, where these tell. 0 without noise; None if
    it is not known.
    """
    found = [_of_run(run) for run in group.runs]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def _of_run(run: Run) -> float | None:
    logged = [row["relative_noise"] for row in run.rows if row.get("relative_noise")]
    return logged[-1] if logged else _of_settings(run.settings)


def _of_settings(settings: dict[str, Any]) -> float | None:
    from ..optim.noise import NORMS

    method, level = settings["optim.method"], settings["optim.noise"]
    if method in WITHOUT:
        return 0.0
    if method == "dropconnect":
        return math.sqrt(level / (1 - level)) if 0 <= level < 1 else None
    return level if method not in OTHERS and settings["optim.granularity"] in NORMS else None
