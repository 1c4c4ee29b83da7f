"""What every method came to and how it got there, as pictures that are legible on light and on dark pages."""

import io
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .baselines import CHOSEN
from .comparison import Comparison, Difference, Point, Row
from .tables import figure_title, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# What a curve is drawn over: a Point's field, and its name. Equal passes are equal compute.
AXES = {"epoch": "epochs", "passes": "forward-backward passes"}
# At least 3 : 1 against white and against near-black (WCAG 2, graphics).
COLOURS = ("#2f7fd1", "#d1592a", "#2b9b63", "#a861c9", "#b07d10", "#d64b83", "#1d95a3")
GREY = "#7d7d7d"  # of baselines
# The parts of a report: heading, caption, and the pictures by the name of their file, each with what it shows.
PICTURES = {
    "Methods": (
        "Left a dot for every run and a bar for their mean; dotted: the mean of each base optimizer alone. Beside it "
        "the difference from the baseline with its 95 % interval: Welch's where both have several seeds (solid), else "
        "from the standard deviation pooled over all methods (dashed). An interval that crosses 0 decides nothing.",
        {"methods": "figures of every method, and differences from its baselines"},
    ),
    "Curves": (
        "A method in each panel; grey: the base optimizers alone. Means over the seeds; bands of one standard "
        "deviation. The first evaluations may lie outside the picture.",
        {f"curves_{over}": f"curves over {name}" for over, name in AXES.items()},
    ),
}
_INK = "#111111"  # of text and axes: almost black in PNG, the page's own colour in SVG
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw(comparison: Comparison) -> dict[str, dict[str, bytes]]:
    """Draws the :data:`PICTURES` of a comparison.

    Returns:
        by name the picture as ``"png"`` (on white) and as ``"svg"`` (without a background, text in ``currentColor``).
    """
    figures: dict[str, Callable[[], Figure]] = {"methods": partial(_methods, comparison)}
    figures |= {f"curves_{over}": partial(_curves, comparison, over) for over in AXES}
    return {name: picture_files(figure, name) for name, figure in figures.items()}


def picture_files(draw_figure: Callable[[], "Figure"], name: str) -> dict[str, bytes]:
    """What a function draws, as ``"png"`` (on white) and ``"svg"`` (ids begin with ``name``): always the same bytes."""
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name, "text.parse_math": False}):
        figure = draw_figure()
        files = {kind: io.BytesIO() for kind in ("png", "svg")}
        figure.savefig(files["png"], format="png", dpi=150, facecolor="white", metadata={"Software": None})
        figure.set_layout_engine("none")  # everything has its place now; finding it takes half of the time
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(files["svg"], format="svg", transparent=True, metadata=nothing)
    return {"png": files["png"].getvalue(), "svg": _portable(files["svg"].getvalue().decode(), name).encode()}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def powers_of_ten(axis: "Axis") -> None:
    """Labels such as 10⁻³ for a logarithmic axis; matplotlib's own need its mathematics, which pictures leave off."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    superscripts = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

    def label(value: float, _: int | None = None) -> str:
        sign = "−" if value < 0 else ""
        return "0" if not value else f"{sign}10{str(round(math.log10(abs(value)))).translate(superscripts)}"

    axis.set_major_formatter(FuncFormatter(label))
    axis.set_minor_formatter(NullFormatter())


def _colours(rows: Sequence[Row]) -> list[str]:
    """Of each row, the same in every picture: grey for baselines, so that what they are compared with stands out."""
    shown = itertools.cycle(COLOURS)
    return [GREY if row.group.is_baseline else next(shown) for row in rows]


def _wrapped(label: str, width: int = 30) -> str:
    return "\n".join(textwrap.wrap(label, width))


def _methods(comparison: Comparison) -> "Figure":
    """The figure that decides, of every run, and beside it the difference from each baseline; names at the left."""
    rows, title = comparison.rows, figure_title(comparison, comparison.decisive)
    held = [criterion for criterion in comparison.criteria if _differences(comparison, criterion)]
    labels = [_wrapped(row.group.label) for row in rows]
    figure = new_figure(
        4.2 + 2.0 * len(held), 0.9 + 0.2 * sum(1 + label.count("\n") for label in labels) + 0.1 * len(rows)
    )
    axes, *others = figure.subplots(1, 1 + len(held), sharey=True, squeeze=False)[0]
    for index, (row, colour) in enumerate(zip(rows, _colours(rows), strict=True)):
        values = [value for value in row.values(comparison.decisive) if value is not None]
        axes.plot(values, [index] * len(values), "o", color=colour, markersize=5, alpha=0.7)
        if (mean := row.figure(comparison.decisive)) is not None:
            axes.plot([mean.mean], [index], "|", color=colour, markersize=14, markeredgewidth=2)
            if row.group.is_baseline:
                axes.axvline(mean.mean, color=colour, linestyle=":", linewidth=1)
    axes.set(xlabel=title, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    for axes_of_criterion, criterion in zip(others, held, strict=True):
        found = _differences(comparison, criterion)
        forest(axes_of_criterion, [found.get(row.group.label) for row in rows], _colours(rows))
        better = "left" if comparison.lower_is_better else "right"
        preposition = "to" if criterion == CHOSEN else "at"
        axes_of_criterion.set_xlabel(f"Δ {preposition} {criterion}\n({better} is better)")
    for every in figure.axes:
        every.grid(alpha=0.3, axis="x")
        every.tick_params(axis="y", length=0)
    return figure


def _differences(comparison: Comparison, criterion: str) -> dict[str, Difference]:
    """The differences that there are, by the method's name."""
    found = {row.group.label: row.against[criterion] for row in comparison.rows}
    return {label: one for label, one in found.items() if one is not None and one.delta is not None}


def forest(axes: "Axes", differences: Sequence[Difference | None], colours: Sequence[str]) -> None:
    """A forest plot: a dot for each difference, from above, with a line for its interval, and a line at 0.

    The line is dashed where the interval is not of the method's own seeds; without an interval there is none.
    """
    axes.axvline(0, color=GREY, linewidth=1)
    for index, (found, colour) in enumerate(zip(differences, colours, strict=True)):
        if found is None or found.delta is None:
            continue
        if found.low is not None and found.high is not None:
            dash = "-" if found.p is not None else (0, (2, 2))
            axes.plot([found.low, found.high], [index, index], linestyle=dash, color=colour, linewidth=1.5)
        axes.plot([found.delta], [index], "o", color=colour, markersize=5)


def _curves(comparison: Comparison, over: str) -> "Figure":
    """A panel for each method: its curve, with a band of one standard deviation where it has several seeds.

    Args:
        over: ``"epoch"`` or ``"passes"``.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    rows = comparison.rows
    baselines = [row for row in rows if row.group.is_baseline]
    panels = [row for row in rows if not row.group.is_baseline] or baselines[:1]
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(2.4 * columns + 0.6, 2.0 * lines + 0.5)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    colours = dict(zip(map(id, rows), _colours(rows), strict=True))
    for axes, panel in zip(grid, panels, strict=False):
        for row in [*(row for row in baselines if row is not panel), panel]:
            x, mean = ([getattr(point, name) for point in row.curve] for name in (over, "mean"))
            colour = colours[id(row)]
            dots = "o" if len(x) <= 40 and row is panel else None
            axes.plot(x, mean, color=colour, marker=dots, markersize=3, linewidth=1.4, label=row.group.label)
            if len(row.group.runs) > 1:
                low, high = ([p.mean + sign * (p.sd or 0) for p in row.curve] for sign in (-1, 1))
                axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.set_title(_wrapped(panel.group.label), fontsize=9, loc="left", color=colours[id(panel)])
        axes.grid(alpha=0.3)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - columns) : len(panels)]:
        axes.tick_params(labelbottom=True)  # panels above an empty place have none otherwise
    # the first evaluations, far from all others, would flatten the rest of the picture
    late = [value for row in rows for value in _reach(row.curve[len(row.curve) // 4 :])]
    if late:
        margin = 0.05 * (max(late) - min(late)) or 1
        grid[0].set_ylim(min(late) - margin, max(late) + margin)
    grid[0].xaxis.set_major_locator(MaxNLocator(4, integer=True))
    grid[0].xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    figure.supxlabel(AXES[over], fontsize=10)
    figure.supylabel(words(comparison.drawn), fontsize=10)
    return figure


def _reach(points: list[Point]) -> list[float]:
    return [point.mean + sign * (point.sd or 0) for point in points for sign in (-1, 1)]


def _portable(svg: str, prefix: str) -> str:
    """The picture without prolog, in the colour of the text around it, with ids of its own on a page with others."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
