"""Methods side by side: means over seeds, and differences from baselines."""

import math
import os
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..documents import printable
from ..errors import UserError
from ..runs.reading import Run
from ..runs.settings import comparable
from . import baselines
from .grouping import Group, group_runs
from .metrics import lower_is_better, run_figures, shared_metric
from .paired import Paired, paired


class Estimate(NamedTuple):
    """Mean and standard deviation (n − 1 in the denominator; None for one value) of n values."""

    mean: float
    sd: float | None
    n: int


class Difference(NamedTuple):
    """A method's mean less its baseline's.

    ``low`` and ``high`` bound the 95 % confidence interval: that of :func:`welch`, or where a side has a single seed
    the one that :class:`Spread` gives. ``p`` is of :func:`welch`, ``holm`` the same corrected by :func:`holm` for the
    number of methods held against a baseline; ``paired`` of :func:`seqssgd.report.paired.paired`. What cannot be had is
    None; ``delta`` too where a value is missing or the method is the baseline itself.
    """

    baseline: str
    delta: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm: float | None = None
    paired: Paired | None = None


class Spread(NamedTuple):
    """The standard deviation between seeds, pooled over all methods, with its degrees of freedom.

    It stands in where a method has one seed: that its spread is that of the others is then an assumption.
    """

    sd: float
    freedom: int

    def interval(self, delta: float, n: int, m: int) -> tuple[float, float]:
        """The 95 % confidence interval of the difference of two means of ``n`` and ``m`` seeds (Student's t)."""
        from scipy.stats import t

        half = float(t.ppf(0.975, self.freedom)) * self.sd * math.sqrt(1 / n + 1 / m)
        return delta - half, delta + half


class Point(NamedTuple):
    """A point of a learning curve; ``mean`` and ``sd`` are over the runs."""

    epoch: int
    passes: float
    mean: float
    sd: float | None


@dataclass
class Row:
    """A method.

    Attributes:
        group: its runs.
        of_runs: the figures of each of them, by name.
        curve: the metric, or the training loss, after every epoch.
        against: by criterion; None where there is no baseline.
    """

    group: Group
    of_runs: list[dict[str, float | None]]
    curve: list[Point]
    against: dict[str, Difference | None] = field(default_factory=dict)

    def values(self, name: str) -> list[float | None]:
        """The figure of each run, None where it is missing."""
        return [figures.get(name) for figures in self.of_runs]

    def complete(self, name: str) -> list[float] | None:
        """The figure of each run; None if one of them lacks it."""
        values = [value for value in self.values(name) if value is not None]
        return values if len(values) == len(self.of_runs) else None

    def figure(self, name: str) -> Estimate | None:
        """The figure over all runs; None if one of them lacks it."""
        values = self.complete(name)
        return None if values is None else estimate(values)


@dataclass
class Comparison:
    """Methods side by side.

    Attributes:
        metric: of the evaluations during training.
        drawn: what the curves show: the metric, or the training loss if the task has no validation data.
        rows: one per method, family by family: the order does not depend on the figures.
        figures: the names of the figures that some run has: the metric, that of the test set, those of other splits.
        decisive: the figure that methods are tested by: the first of a split that all runs were evaluated on, else
            the metric.
        spread: of the decisive figure; None where no method has two seeds, or none varies.
        names: of the runs by path, those left out included: the path from the folder that holds them all.
        left_out: the name of every run that is not in it, and why.
    """

    metric: str
    drawn: str
    rows: list[Row]
    figures: list[str]
    decisive: str
    spread: Spread | None
    names: dict[Path, str]
    left_out: dict[str, str]

    @property
    def criteria(self) -> list[str]:
        """What makes a run a baseline."""
        return list(self.rows[0].against)

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower metric is a better one."""
        return lower_is_better(self.metric, self.runs)

    @property
    def runs(self) -> list[Run]:
        """Those that are in it, method by method."""
        return [run for row in self.rows for run in row.group.runs]


def compare(
    runs: Sequence[Run], metric: str | None = None, baseline: str | None = None, partial: bool = False
) -> Comparison:
    """Groups runs, averages each group and holds it against its baselines, at equal epochs and at equal passes.

    Args:
        runs: of one task.
        metric: of the evaluations; None: one that all runs have, no loss and no character error rate if there are
            others.
        baseline: see :func:`seqssgd.report.baselines.criteria`.
        partial: takes unfinished runs in, as far as they are.

    Raises:
        UserError: no finished run, runs of different tasks or data, a metric or a baseline that is not there.
    """
    kept, left_out = _select(runs, partial)
    metric = shared_metric(kept, metric)
    settings = comparable([run.settings for run in kept])
    kept = [replace(run, settings=its) for run, its in zip(kept, settings, strict=True)]
    _check_data(kept)
    groups = group_runs(kept)
    find = baselines.criteria(groups, baseline)
    drawn = metric if any(metric in row for run in kept for row in run.rows) else "train_loss"
    rows = {g: Row(g, [run_figures(run, metric) for run in g.runs], _curve(g, drawn)) for g in groups}
    figures = _figure_names(rows.values(), metric)
    splits = [name for name in figures if name != metric and all(row.figure(name) for row in rows.values())]
    decisive = splits[0] if splits else figures[0]
    spread = _spread(rows.values(), decisive)
    for criterion, find_one in find.items():
        tested: list[tuple[Row, Difference, float]] = []
        for row in rows.values():
            other = find_one(row.group)
            found = row.against[criterion] = other and difference(row, rows[other], decisive, spread)
            if found is not None and found.p is not None:
                tested.append((row, found, found.p))
        for (row, found, _), p in zip(tested, holm([p for _, _, p in tested]), strict=True):
            row.against[criterion] = found._replace(holm=p)
    folder = os.path.commonpath([run.path.resolve().parent for run in runs])
    names = {run.path: printable(os.path.relpath(run.path.resolve(), folder)) for run in runs}
    return Comparison(
        metric=metric,
        drawn=drawn,
        rows=sorted(rows.values(), key=lambda row: row.group.place),
        figures=figures,
        decisive=decisive,
        spread=spread,
        names=names,
        left_out={names[path]: reason for path, reason in left_out.items()},
    )


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard deviation of the values of several seeds."""
    return Estimate(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def welch(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float] | None:
    """The 95 % confidence interval of the difference of two means, and the p-value of Welch's two-sided t-test.

    Seeds that occur on both sides are not paired. A seed fixes initial weights and the order of the data, but noise and
    a few steps make the two runs as different as those of two seeds: there is next to no common variance to take away,
    and a paired test of n seeds has n − 1 degrees of freedom in place of about 2n − 2. With three seeds it needs
    t = 4.3 where this one needs 2.8. If there is a positive correlation after all, this test errs towards caution.

    Returns:
        (low, high, p), or None if a side has fewer than two values or none varies.

    Source: B. L. Welch, Biometrika 34 (1947), 28-35.
    """
    if min(len(values), len(others)) < 2 or len({*values}) == len({*others}) == 1:
        return None
    from scipy.stats import ttest_ind

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a side that does not vary: the other one's variance stays
        found: Any = ttest_ind(values, others, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return float(low), float(high), float(found.pvalue)


def difference(row: Row, baseline: Row, figure: str, spread: Spread | None) -> Difference:
    """A method's mean of a figure less its baseline's, not corrected for the number of methods.

    Args:
        spread: of that figure, for methods with one seed.
    """
    mine, its = row.complete(figure), baseline.complete(figure)
    if row is baseline or mine is None or its is None:
        return Difference(baseline.group.label)
    delta = statistics.fmean(mine) - statistics.fmean(its)
    over_utterances = paired(row.group.runs, baseline.group.runs, figure)
    if min(len(mine), len(its)) < 2 and spread is not None:
        interval = spread.interval(delta, len(mine), len(its))
        return Difference(baseline.group.label, delta, *interval, paired=over_utterances)
    low, high, p = welch(mine, its) or (None, None, None)
    return Difference(baseline.group.label, delta, low, high, p, paired=over_utterances)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the chance of one false finding among all of them stays below the level.

    Source: S. Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _select(runs: Sequence[Run], partial: bool) -> tuple[list[Run], dict[Path, str]]:
    kept, left_out, paths = [], {}, set()
    for run in runs:
        if run.path.resolve() in paths:
            raise UserError(f"{run.path}: given twice")
        paths.add(run.path.resolve())
        if not run.rows:
            left_out[run.path] = "no evaluation yet"
        elif not (run.finished or partial):
            epoch, epochs = run.rows[-1]["epoch"], run.settings["training.epochs"]
            how = "diverged" if run.diverged else "ended by a limit of steps" if run.result else "unfinished"
            left_out[run.path] = f"{how} at epoch {epoch} of {epochs}; --partial takes it in"
        else:
            kept.append(run)
    if not kept:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left_out.items())
        raise UserError(f"there is nothing to compare ({reasons or 'no runs'})")
    return kept, left_out


def _check_data(runs: Sequence[Run]) -> None:
    first, *others = runs
    for run in others:
        for key in {**first.settings, **run.settings}:
            if key.split(".")[0] == "data" and first.settings.get(key) != run.settings.get(key):
                raise UserError(f"{run.path}: its data are not those of {first.path} ({key}); compare runs of one task")


def _figure_names(rows: Iterable[Row], metric: str) -> list[str]:
    """Those that some run has: the metric, that of the test set, those of other splits."""
    found = {name for row in rows for figures in row.of_runs for name, value in figures.items() if value is not None}
    first = [metric, f"test_{metric.removeprefix('valid_')}"]
    return [name for name in first if name in found] + sorted(found.difference(first)) or [metric]


def _spread(rows: Iterable[Row], figure: str) -> Spread | None:
    of_methods = [row.complete(figure) for row in rows]
    known = [values for values in of_methods if values is not None and len(values) > 1]
    freedom = sum(len(values) - 1 for values in known)
    squares = sum((len(values) - 1) * statistics.variance(values) for values in known)
    return Spread(math.sqrt(squares / freedom), freedom) if squares else None


def _curve(group: Group, metric: str) -> list[Point]:
    """The mean over the runs after every epoch that all of them evaluated with a finite value."""
    by_epoch = [{row["epoch"]: row for row in run.rows if row.get(metric) is not None} for run in group.runs]
    points = []
    for epoch in sorted(set.intersection(*map(set, by_epoch))):
        rows = [rows[epoch] for rows in by_epoch]
        found = estimate([row[metric] for row in rows])
        points.append(Point(epoch, statistics.fmean(row["passes"] for row in rows), found.mean, found.sd))
    return points
