"""What every method came to and how it got there, as pictures that are legible on light and on dark pages."""

import io
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .comparison import Comparison, Point
from .tables import figure_title, words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a curve is drawn over: a Point's field, and its name. Equal passes are equal compute.
AXES = {"epoch": "epochs", "passes": "forward-backward passes"}
# At least 3 : 1 against white and against near-black (WCAG 2, graphics); told apart by their dashes too.
COLOURS = ("#2f7fd1", "#d1592a", "#2b9b63", "#a861c9", "#b07d10", "#d64b83", "#1d95a3", "#7d7d7d")
DASHES = ("-", "--", "-.", ":")
# The parts of a report: heading, caption, and the pictures by the name of their file, each with what it shows.
PICTURES = {
    "Methods": (
        "A dot for every run, a bar for their mean; dotted: the mean of each base optimizer alone.",
        {"methods": "figures of every method"},
    ),
    "Curves": (
        "Means over the seeds; bands of one standard deviation. The first evaluations may lie outside the picture.",
        {f"curves_{over}": f"curves over {name}" for over, name in AXES.items()},
    ),
}
_INK = "#111111"  # of text and axes: almost black in PNG, the page's own colour in SVG
_STYLE = {
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
    return {name: _files(figure, name) for name, figure in figures.items()}


def _files(draw_figure: Callable[[], "Figure"], name: str) -> dict[str, bytes]:
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = draw_figure()
        files = {kind: io.BytesIO() for kind in ("png", "svg")}
        figure.savefig(files["png"], format="png", dpi=150, facecolor="white", metadata={"Software": None})
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(files["svg"], format="svg", transparent=True, metadata=nothing)
    return {"png": files["png"].getvalue(), "svg": _portable(files["svg"].getvalue().decode(), name).encode()}


def _new_figure(height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _style(index: int) -> tuple[str, str]:
    """Colour and dashes of the method in a row of the comparison, the same in every picture."""
    return COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]


def _methods(comparison: Comparison) -> "Figure":
    """The figure that decides, of every run: the methods one below the other, the best at the top."""
    rows = comparison.rows
    figure = _new_figure(0.8 + 0.4 * len(rows))
    axes = figure.add_subplot(xlabel=figure_title(comparison, comparison.decisive))
    for index, row in enumerate(rows):
        colour, _ = _style(index)
        # above the dots: beside them long names would leave no room on a phone
        axes.text(0.02, index - 0.4, row.group.label, transform=axes.get_yaxis_transform(), fontsize=9, va="center")
        values = [value for value in row.values(comparison.decisive) if value is not None]
        axes.plot(values, [index] * len(values), "o", color=colour, markersize=5, alpha=0.7)
        if (mean := row.figure(comparison.decisive)) is not None:
            axes.plot([mean.mean], [index], "|", color=colour, markersize=14, markeredgewidth=2)
            if row.group.is_baseline:
                axes.axvline(mean.mean, color=colour, linestyle=":", linewidth=1)
    axes.set_yticks([])
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.grid(alpha=0.3, axis="x")
    return figure


def _curves(comparison: Comparison, over: str) -> "Figure":
    """The curve of every method, with a band of one standard deviation where it has several seeds.

    Args:
        over: ``"epoch"`` or ``"passes"``.
    """
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = _new_figure(3.2 + 0.2 * len(comparison.rows))
    axes = figure.add_subplot(xlabel=AXES[over], ylabel=words(comparison.drawn))
    for index, row in enumerate(comparison.rows):
        colour, dash = _style(index)
        x, mean = ([getattr(point, name) for point in row.curve] for name in (over, "mean"))
        dots = "o" if len(x) <= 40 else None
        axes.plot(x, mean, dash, color=colour, marker=dots, markersize=3, linewidth=1.4, label=row.group.label)
        if len(row.group.runs) > 1:
            low, high = ([p.mean + sign * p.sd for p in row.curve] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    # the first evaluations, far from all others, would flatten the rest of the picture
    late = [value for row in comparison.rows for value in _reach(row.curve[len(row.curve) // 4 :])]
    if late:
        margin = 0.05 * (max(late) - min(late)) or 1
        axes.set_ylim(min(late) - margin, max(late) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower left", frameon=False, fontsize=9)
    return figure


def _reach(points: list[Point]) -> list[float]:
    return [point.mean + sign * (point.sd or 0) for point in points for sign in (-1, 1)]


def _portable(svg: str, prefix: str) -> str:
    """The picture without prolog, in the colour of the text around it, with ids of its own on a page with others."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
