"""The figures of a run: by what metric it was validated, and what its best checkpoint gave on other data."""

from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..runs.layout import BEST
from ..runs.reading import Run

# splits that the training has seen: evaluated again, however decoded, they are no result
SEEN = ("train", "valid", "train_beam", "valid_beam")
_NOT_METRICS = {"kind", "step", "epoch", "passes", "lr", "noise", "relative_noise", "seconds", "units_per_second"}


def shared_metric(runs: Sequence[Run], metric: str | None = None) -> str:
    """``metric``, or if that is None one that all runs have: no loss and no character error rate if there are others.

    Raises:
        UserError: not all runs have it, or they have none in common.
    """
    names = [_metrics(run) for run in runs]
    shared = names[0]
    for run, own in zip(runs, names, strict=True):
        if not shared & own:
            raise UserError(
                f"{run.path}: no metric in common with {runs[0].path} ({', '.join(sorted(own)) or 'none'}; "
                f"{', '.join(sorted(shared)) or 'none'}); compare runs of one task, evaluated if it has no validation"
            )
        shared = shared & own
    if metric is not None and metric not in shared:
        raise UserError(f"metric {metric!r}: not in all of these runs; they share {', '.join(sorted(shared))}")
    return metric or min(shared, key=lambda name: (name.endswith("loss"), name.endswith("cer"), name))


def _metrics(run: Run) -> set[str]:
    """What a run was validated by; if its task has no validation data, what its last model was evaluated by."""
    figures = [pair for split, found in run.evaluations.items() if split not in SEEN for pair in found.items()]
    evaluated = {f"valid_{name}" for name, value in figures if isinstance(value, float)}
    validated = {name for name in run.rows[-1] if not name.startswith("train_")} - _NOT_METRICS
    return validated or evaluated


def best_evaluation(run: Run, metric: str) -> dict[str, Any] | None:
    """The evaluation of the best checkpoint, by whatever its task calls best; None if ``metric`` was not finite there.

    An unfinished run does not say which that is: the best value of ``metric`` is taken.
    """
    sign = 1 if lower_is_better(metric) else -1
    known = [row for row in run.rows if row.get(metric) is not None]
    best = run.result.get("best") or min(known, key=lambda row: sign * row[metric], default={})
    return best if best.get(metric) is not None else None


def run_figures(run: Run, metric: str) -> dict[str, float | None]:
    """What the best checkpoint gave, by name: the metric, and its like on other splits, such as test_wer for valid_wer.

    None for a metric that was not finite, and for an evaluation of another checkpoint.
    """
    best, name = best_evaluation(run, metric), metric.removeprefix("valid_")
    found: dict[str, float | None] = {metric: best[metric] if best else None}
    for split, figures in run.evaluations.items():
        if split not in SEEN and name in figures:
            found[f"{split}_{name}"] = figures[name] if figures.get("checkpoint") == BEST else None
    return found


def is_best(runs: Sequence[Run], metric: str) -> bool:
    """Whether no evaluation of these runs has a better value than that of the best checkpoint.

    It may have, where the best was chosen by another metric.
    """
    sign = 1 if lower_is_better(metric, runs) else -1
    best = [(run, best_evaluation(run, metric)) for run in runs]
    return all(
        sign * taken[metric] <= sign * row[metric]
        for run, taken in best
        for row in run.rows
        if taken and row.get(metric) is not None
    )


def lower_is_better(metric: str, runs: Sequence[Run] = ()) -> bool:
    """As the runs say that were chosen by that metric; else true of everything but accuracies."""
    known = {name: kind for run in runs for name, kind in run.result.get("best_by", {}).items()}
    return known[metric] == "min" if metric in known else "accuracy" not in metric
