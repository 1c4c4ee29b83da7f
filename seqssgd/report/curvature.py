"""How curvature went during training, as far as runs logged it: a section of the page."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..runs.reading import Run
from .comparison import Comparison
from .page import Section
from .plots import COLOURS, new_figure, picture_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"sharpness": "sharpness ½nᵀHn", "relative_trace": "relative trace R"}
_CAPTION = (
    "What the two gradients of each pair tell of the curvature along the noise (training.log_curvature), each point a "
    "mean over the steps between two lines of the log; a colour for each run. At the levels of training the fourth "
    "order counts: this is the curvature seen from a distance of the noise."
)


def curvature_section(comparison: Comparison) -> Section | None:
    """Small multiples of sharpness, relative trace and the trace of every layer; None if no run logged them."""
    runs = {
        f"{row.group.label}, {comparison.names[run.path]}" if len(row.group.runs) > 1 else row.group.label: run
        for row in comparison.rows
        for run in row.group.runs
        if run.curvature
    }
    if not runs:
        return None
    keys = dict.fromkeys(key for run in runs.values() for row in run.curvature for key in row)
    layers = [key for key in keys if key.startswith("trace/")]
    whole = [key for key in _TITLES if key in keys]  # a run with balanced levels has no relative trace
    figures = {"curvature_whole": whole} | ({"curvature_layers": layers} if layers else {})
    pictures = {name: picture_files(partial(_curves, runs, shown), name) for name, shown in figures.items()}
    shows = {
        "curvature_whole": "sharpness and relative trace over the epochs",
        "curvature_layers": "the trace of every layer's Hessian over the epochs",
    }
    parts = {"Curves of curvature": (_CAPTION, {name: shows[name] for name in pictures})}
    return Section("Curvature during training", {}, [], parts, pictures)


def _curves(runs: dict[str, Run], keys: Sequence[str]) -> "Figure":
    columns = min(4 if len(keys) > 4 else 2, len(keys))
    lines = -(-len(keys) // columns)
    wide = 2.4 if columns > 2 else 4.0
    figure = new_figure(wide * columns + 0.4, 0.62 * wide * lines + 0.5 + 0.2 * len(runs))
    grid = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
    for axes in grid[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid, keys, strict=False):
        for index, (label, run) in enumerate(runs.items()):
            points = [(_epochs(run, row), row[key]) for row in run.curvature if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), color=COLOURS[index % len(COLOURS)], linewidth=1.2, label=label)
        axes.axhline(0, color="grey", linewidth=0.6)
        axes.set_title(_TITLES.get(key, f"tr H, {key.removeprefix('trace/')}"), fontsize=9 if columns < 3 else 7)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    for axes in grid[max(0, len(keys) - columns) : len(keys)]:
        axes.tick_params(labelbottom=True)  # panels above an empty place have none otherwise
        axes.set_xlabel("epochs", fontsize=8)
    handles, labels = max((axes.get_legend_handles_labels() for axes in grid), key=lambda found: len(found[1]))
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    return figure


def _epochs(run: Run, row: dict) -> float:
    """How far the training was, in epochs: its rows say the step, and the epoch as a whole number."""
    last = run.rows[-1]
    return row["step"] * last["epoch"] / max(1, last["step"])
