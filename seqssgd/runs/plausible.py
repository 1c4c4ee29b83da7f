"""What no training gives: figures that cannot be, and settings that a run's own record contradicts.

Only what is impossible whatever the task is refused: a word error rate may be above 100 %, a run may have been resumed,
ended by a limit or evaluated between epochs, and a task of anyone's may have any loss.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ..options import options_in
from . import layout

_COUNT = (0.0, math.inf)
# By name the range of what is reckoned so whatever the task; figures of others have none.
RANGES = {
    **dict.fromkeys(("step", "steps", "epoch", "epochs", "passes", "seconds", "nonfinite", "parameters"), _COUNT),
    **dict.fromkeys(("lr", "noise", "relative_noise", "units", "units_per_second", "real_time_factor"), _COUNT),
    **dict.fromkeys(("wer", "cer", "predictions", "utterances", "images"), _COUNT),
    "perplexity": (1.0, math.inf),
    "accuracy": (0.0, 100.0),
}
PAIR = ("ssgd", "batch")  # two passes a step
ROUNDING = 1e-6  # relative; and absolute, near 0
MEND = f"put the run's own {layout.CONFIG} back, or repeat the run in another directory"


def out_of_range(figures: Mapping[str, Any]) -> str | None:
    """Which figure is impossible, such as ``valid_perplexity: 0.5 is below 1``; None if none is."""
    for name, value in figures.items():
        low, high = RANGES.get(name.removeprefix("valid_"), (-math.inf, math.inf))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if value < low - ROUNDING:
                return f"{name}: {value!r} is below {low:g}"
            if value > high * (1 + ROUNDING):
                return f"{name}: {value!r} is above {high:g}"
    return None


def check_order(rows: Sequence[Mapping[str, Any]]) -> None:
    """Makes sure that steps, epochs and passes never become fewer: resuming cuts off what it trains once more.

    Raises:
        ValueError: they do; the message begins with the line.
    """
    for number, (before, row) in enumerate(itertools.pairwise(rows), 2):
        for key in ("step", "epoch", "passes"):
            old, new = before.get(key), row.get(key)
            if old is not None and new is not None and new < old:
                raise ValueError(f"line {number}: damaged ({key} {new:g} comes after {old:g})")


def check_end(result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Makes sure that a result is that of a run with these evaluations.

    Raises:
        ValueError: it is not, or has a figure that cannot be.
    """
    best = result.get("best") or {}
    wrong = out_of_range(result) or out_of_range(best)
    if wrong is None and rows:
        last = rows[-1]["epoch"]
        if result["epochs"] not in (last, last - 1):  # one less if it ended within an epoch
            wrong = f"epochs: {result['epochs']}, where {layout.METRICS} ends in epoch {last}"
        elif best and (best["step"] > result["steps"] or best["epoch"] > last):
            wrong = f"best: step {best['step']} of epoch {best['epoch']} is after the last one"
    if wrong is not None:
        raise ValueError(wrong)


def check_settings(
    settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], known: bool, command: Sequence[str]
) -> None:
    """Makes sure that what a run recorded does not contradict its settings.

    Args:
        settings: under dotted keys.
        rows: all of its metrics.
        known: whether a program of ours trained it; others may step by what they like.
        command: that it was started by; empty if that is not known.

    Raises:
        ValueError: it does.
    """
    wrong = _of_epochs(settings, rows)
    if known:
        wrong = wrong or _of_method(settings, rows) or _of_command(settings, command)
    if wrong is not None:
        raise ValueError(wrong)


def _of_epochs(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    epochs, last = settings["training.epochs"], max((row.get("epoch") or 0 for row in rows), default=0)
    return f"training.epochs: {epochs}, where {layout.METRICS} has epoch {last:g}" if last > epochs else None


def _of_method(settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str | None:
    """What levels and passes in the metrics say against the method."""
    from ..training.methods import METHODS  # here: a training writes runs

    name, noise = settings["optim.method"], settings.get("optim.noise")
    levels = [row["noise"] for row in rows if row.get("noise") is not None]
    if name == "none":
        noise, steady = 0.0, True
    elif name in METHODS and METHODS[name].takes_noise and noise is not None:
        steady = settings.get("optim.noise_schedule") is None and settings.get("optim.noise_ramp") is None
    else:
        return None
    for level in levels:
        if level > noise * (1 + ROUNDING) or (steady and level < noise * (1 - ROUNDING)):
            return f"optim.method: {name} with noise {noise:g}, where {layout.METRICS} has noise {level:g}"
    if settings.get("training.accumulate") != 1 or not steady:
        return None
    copies = settings.get("optim.copies") or 1
    cost = {"none": 1, "weight_noise": copies}.get(name) or (2 if (name, settings.get("optim.signs")) == PAIR else None)
    for row in rows if cost else ():
        if row.get("passes") is not None and row["passes"] != cost * row["step"]:
            return f"optim.method: {name}, where {layout.METRICS} has {row['passes']:g} passes at step {row['step']}"
    return None


def _of_command(settings: Mapping[str, Any], command: Sequence[str]) -> str | None:
    """What the command line of a recipe's train.py gave otherwise: the last option of each setting holds."""
    if not command or PurePath(command[0]).name != "train.py":
        return None
    given: dict[str, str] = {}
    for key, text in options_in(command[1:]):
        given = {other: value for other, value in given.items() if not other.startswith(f"{key}.")}  # a whole group
        given[key] = text
    for key in ("optim.method", "optim.base", "optim.noise", "optim.lr", "training.epochs", "seed"):
        own = settings.get(key)
        if key in given and own is not None and not _may_be(own, given[key]):
            return f"{key}: {own}, where the command in {layout.ENVIRONMENT} has {given[key]}"
    return None


def _may_be(value: Any, text: str) -> bool:
    """Whether a setting's value may be what was given so; true too of a text that is none for it here."""
    if isinstance(value, str):
        return text.strip("'\" ") == value
    try:
        return float(text) == value
    except ValueError:
        return True
