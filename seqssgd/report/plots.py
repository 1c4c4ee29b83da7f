"""Learning curves, as pictures that are legible on light and on dark pages."""

import io
import re
from typing import TYPE_CHECKING

from .comparison import Comparison, Point
from .tables import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a curve is drawn over: a Point's field, and its name. Equal passes are equal compute.
AXES = {"epoch": "epochs", "passes": "forward-backward passes"}
# At least 3 : 1 against white and against near-black (WCAG 2, graphics); told apart by their dashes too.
COLOURS = ("#2f7fd1", "#d1592a", "#2b9b63", "#a861c9", "#b07d10", "#d64b83", "#1d95a3", "#7d7d7d")
DASHES = ("-", "--", "-.", ":")
CAPTION = "Means over the seeds; bands of one standard deviation. The first evaluations may lie outside the picture."
_INK = "#111111"  # of text and axes: almost black in PNG, the page's own colour in SVG
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def draw_curves(comparison: Comparison, over: str) -> dict[str, bytes]:
    """Draws the curve of every method, with a band of one standard deviation where it has several seeds.

    Args:
        over: ``"epoch"`` or ``"passes"``.

    Returns:
        the picture as ``"png"`` (on white) and as ``"svg"`` (without a background, text in ``currentColor``).
    """
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": over}):
        figure = _figure(comparison, over)
        files = {name: io.BytesIO() for name in ("png", "svg")}
        figure.savefig(files["png"], format="png", dpi=150, facecolor="white", metadata={"Software": None})
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(files["svg"], format="svg", transparent=True, metadata=nothing)
    return {"png": files["png"].getvalue(), "svg": _portable(files["svg"].getvalue().decode(), over).encode()}


def _figure(comparison: Comparison, over: str) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    figure = Figure(figsize=(4.5, 3.2 + 0.2 * len(comparison.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel=AXES[over], ylabel=words(comparison.drawn))
    for index, row in enumerate(comparison.rows):
        colour, dash = COLOURS[index % len(COLOURS)], DASHES[index // len(COLOURS) % len(DASHES)]
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
