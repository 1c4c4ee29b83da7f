"""The landscape as pictures: curves along noise, lines, contours over planes and slices, and the density."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.plots import COLOURS, new_figure, picture_files, powers_of_ten
from .surface import Surface

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEVELS = 15  # lines of a contour plot
NARROWEST = 4  # as many times as long as high a plane may be and yet be drawn to scale
MOST_CURVES = 4  # in one panel of noise levels


def draw(found: Mapping[str, Any], surfaces: Mapping[str, Surface]) -> dict[str, dict[str, bytes]]:
    """Every picture that there are figures for, by name, as in :func:`seqssgd.report.plots.picture_files`.

    Args:
        found: the contents of landscape.json.
        surfaces: by name; those over planes and slices share one colour scale for each figure that they show.
    """
    runs = found["runs"]
    pictures = {}
    if any("noise" in run.get("sharpness", {}) for run in runs.values()):
        pictures["sharpness"] = partial(_sharpness, runs)
    if any(run.get("traces", {}).get("layers") for run in runs.values()):
        pictures["layers"] = partial(_layers, runs)
    if any(run.get("robustness", {}).get("curves") for run in runs.values()):
        pictures["robustness"] = partial(_robustness, runs)
    if any(map(_nodes, runs.values())):
        pictures["density"] = partial(_density, runs)
    if any(map(variance_of, runs.values())):
        pictures["variance"] = partial(_variance, runs)
    known = {name: surface for name, surface in surfaces.items() if surface.values}
    lines = {name: surface for name, surface in known.items() if surface.b.size == 1}
    if lines:
        pictures["lines"] = partial(_lines, lines)
    for kind in ("plane", "slice"):
        chosen = {name: surface for name, surface in known.items() if name.startswith(kind)}
        names = list(dict.fromkeys(key for surface in chosen.values() for key in surface.values))
        for key in names:
            pictures[f"{kind}_{key.replace(' ', '_')}"] = partial(_contours, chosen, key)
    return {name: picture_files(figure, name) for name, figure in pictures.items()}


def variance_of(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was measured of the variance of a run's steps; empty if that is nothing, or not finite."""
    split = run.get("variance", {})
    if "of_step" not in split:
        return {}
    figures = [*split["of_step"].values(), *(split[key][0] for key in ("data", "first", "second"))]
    return {} if None in figures else split


def _nodes(run: Mapping[str, Any]) -> list[tuple[float, float]]:
    """The nodes of a run's density, with their weights, that are finite."""
    found = run.get("density", {})
    return [pair for pair in zip(found.get("nodes", []), found.get("weights", []), strict=False) if None not in pair]


def _panels(count: int, width: float = 4.2, height: float = 3.2) -> tuple["Figure", list["Axes"]]:
    columns = 2 if count == 4 else min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(width * columns, height * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for empty in axes[count:]:
        empty.set_axis_off()
    return figure, axes[:count]


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _band(
    axes: "Axes", increases: Sequence[Mapping[str, Any]], colour: str, label: str, clean: bool, band: bool = True
) -> None:
    """A curve over the noise level with its 95 % band, from level 0 on; nothing where nothing was measured."""
    if not increases:
        return
    x, rows = [0.0], [[0.0, 0.0, 0.0]]
    for increase in increases:
        if increase["increase"][0] is not None:
            x.append(increase["level"])
            rows.append([math.nan if value is None else value for value in increase["increase"]])
    mean, low, high = np.array(rows).T + (increases[0]["clean"] if clean else 0.0)
    axes.plot(x, mean, "o-", color=colour, markersize=3, label=label or None)
    if band:
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)


def _sharpness(runs: Mapping[str, Any]) -> "Figure":
    """The measured rise of the loss, and dashed what the trace predicts; a panel for each training if they are many,
    with the measured rises of the others in grey."""
    trainings: dict[str, list[str]] = {}
    for name in runs:
        trainings.setdefault(name.partition("@")[0] if len(runs) > MOST_CURVES else "", []).append(name)
    figure, panels = _panels(len(trainings), *((5.2, 3.8) if len(trainings) == 1 else (4.2, 3.6)))
    for axes in panels[1:]:
        axes.sharey(panels[0])
    for axes, (training, own) in zip(panels, trainings.items(), strict=True):
        for name in runs.keys() - set(own):
            _band(axes, runs[name].get("sharpness", {}).get("noise", []), "#d5d5d5", "", clean=False, band=False)
        for index, name in enumerate(own):
            label = name.removeprefix(training).removeprefix("@")
            _band(axes, runs[name].get("sharpness", {}).get("noise", []), _colour(index), label, clean=False)
            predicted = runs[name].get("traces", {}).get("predicted_sharpness")
            if predicted:
                levels = [0.0, *map(float, predicted)]
                axes.plot(levels, [0.0, *(value[0] for value in predicted.values())], "--", color=_colour(index))
        axes.plot([], [], "--", color="grey", label="½c²R, the second order")
        axes.set(xlabel="noise level c", ylabel="E[L(w ± n)] − L(w)")
        axes.set_title(training, fontsize=10)
    return _finished(figure, panels)


def _layers(runs: Mapping[str, Any]) -> "Figure":
    """What each layer has of the relative trace."""
    known = {name: run["traces"]["layers"] for name, run in runs.items() if run.get("traces", {}).get("layers")}
    layers = list(next(iter(known.values())))
    figure, (axes,) = _panels(1, 5.6, 1.2 + 0.16 * len(layers) * len(known))
    height = 0.8 / len(known)
    for index, (name, found) in enumerate(known.items()):
        place = np.arange(len(layers)) + height * (index - (len(known) - 1) / 2)
        value, low, high = np.array([found[layer]["relative"] for layer in layers], dtype=float).T
        error = np.nan_to_num(np.abs([value - low, high - value]))
        axes.barh(place, value, height, color=_colour(index), label=name)
        axes.errorbar(value, place, xerr=error, fmt="none", ecolor="grey", elinewidth=0.8)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("‖w‖²/N · tr H of the layer: its part of R")
    return _finished(figure, [axes])


def _robustness(runs: Mapping[str, Any]) -> "Figure":
    known = {name: run["robustness"]["curves"] for name, run in runs.items() if "curves" in run.get("robustness", {})}
    keys = list(dict.fromkeys(key for curves in known.values() for key in curves))
    figure, panels = _panels(len(keys))
    for axes, key in zip(panels, keys, strict=True):
        for index, name in enumerate(runs):
            curve = known.get(name, {}).get(key)
            if curve and curve[0]["clean"] is not None:
                _band(axes, curve, _colour(index), name, clean=True)
        axes.set(xlabel="noise level c", ylabel=_title(key))
    return _finished(figure, panels)


def _density(runs: Mapping[str, Any]) -> "Figure":
    """Every eigenvalue a Gaussian, on a logarithmic scale, as Ghorbani et al. (ICML 2019) draw it."""
    figure, (axes,) = _panels(1, 5.2, 3.8)
    for index, (name, run) in enumerate(runs.items()):
        if not _nodes(run):
            continue
        nodes, weights = np.array(_nodes(run)).T
        span = max(nodes.max() - nodes.min(), 1e-12)
        grid = np.linspace(nodes.min() - 0.1 * span, nodes.max() + 0.1 * span, 600)
        width = 0.01 * span
        bells = np.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        axes.semilogy(grid, np.maximum(bells @ weights, 1e-12), color=_colour(index), label=name)
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", ylim=(1e-8, None))
    powers_of_ten(axes.yaxis)
    return _finished(figure, [axes])


def _variance(runs: Mapping[str, Any]) -> "Figure":
    """The parts of each method's variance, stacked, for every run; those of one training are a course over time."""
    known = {name: split for name, run in runs.items() if (split := variance_of(run))}
    figure, (axes,) = _panels(1, 2.2 + 0.9 * len(known), 3.8)
    place = np.arange(len(known))
    for shift, method in enumerate(("one-sided", "halves", "pair")):
        bottom = np.zeros(len(known))
        for colour, part in zip(COLOURS, ("D/B", "M/B", "N₁", "N₂"), strict=False):
            height = np.array([_parts(split, method)[part] for split in known.values()])
            label = part if not shift else None
            axes.bar(place + 0.27 * (shift - 1), height, 0.25, bottom, color=colour, label=label)
            bottom += height
        for x in place + 0.27 * (shift - 1):
            axes.annotate(method, (x, 0), (0, 4), textcoords="offset points", ha="center", color="white", rotation=90)
    axes.set_xticks(place, [name.replace("@", "\n@") for name in known], fontsize=7)
    axes.set_ylabel("variance / that of a plain step")
    axes.axhline(1, color="black", linestyle=":", linewidth=1)
    axes.set_axisbelow(True)
    finished = _finished(figure, [axes])
    axes.grid(False, axis="x")
    return finished


def _parts(split: Mapping[str, Any], method: str) -> dict[str, float]:
    """Of a method's variance, in that of a plain step."""
    unit = split["data"][0] / split["batch"]
    noise, rest = (max(split[key][0], 0.0) / unit for key in ("first", "second"))
    total = split["of_step"][method] / unit
    first = noise if method == "one-sided" else 0.0
    return {"D/B": min(1.0, total - first - rest), "M/B": max(total - first - rest - 1.0, 0.0), "N₁": first, "N₂": rest}


def _lines(lines: Mapping[str, Surface]) -> "Figure":
    keys = list(dict.fromkeys(key for surface in lines.values() for key in surface.values))
    figure, panels = _panels(len(keys))
    for axes, key in zip(panels, keys, strict=True):
        for index, surface in enumerate(lines.values()):
            y = surface.values.get(key, np.full(surface.done.shape, np.nan))[:, 0]
            there = np.isfinite(y)
            label = " to ".join(surface.positions)
            axes.plot(surface.a[there], y[there], "o-", color=_colour(index), markersize=3, label=label)
        for place in (0, 1):
            axes.axvline(place, color="grey", linestyle=":", linewidth=1)
        inside = np.concatenate(
            [s.values[key][(s.a > -0.3) & (s.a < 1.3), 0] for s in lines.values() if key in s.values]
        )
        inside = inside[np.isfinite(inside)]
        if inside.size:
            axes.set_ylim(*_padded(inside.min(), inside.max()))
        axes.set(xlabel="from the one (0) to the other (1)", ylabel=_title(key))
    return _finished(figure, panels)


def _contours(surfaces: Mapping[str, Surface], key: str) -> "Figure":
    """Filled contours with the solutions in them; one colour scale for all, capped where most points lie below."""
    figure, panels = _panels(len(surfaces))
    values = np.concatenate([surface.values[key].ravel() for surface in surfaces.values() if key in surface.values])
    values = values[np.isfinite(values)]
    if not values.size:
        return figure
    low, high = values.min(), np.quantile(values, 0.9)
    levels = np.geomspace(low, high, LEVELS) if 0 < 3 * low < high else np.linspace(*_padded(low, high, 0), LEVELS)
    drawn, box = None, {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for axes, (name, surface) in zip(panels, surfaces.items(), strict=True):
        known = surface.values.get(key)
        axes.set_title(name, fontsize=9)
        if known is not None and min(known.shape) > 1 and np.isfinite(known).sum() > 3:
            drawn = _filled(axes, surface, known, levels)
        for label, place in surface.positions.items():
            axes.plot(*place, "o", color="white", markeredgecolor="black", markersize=6)
            if len(surface.positions) == 1:
                continue  # the title says whose it is
            right = place[0] > surface.a.mean()  # names stay inside
            side = {"xytext": (-6 if right else 6, 6), "ha": "right" if right else "left"}
            axes.annotate(label, place, **side, textcoords="offset points", fontsize=8, bbox=box)
        width, height = np.ptp(surface.a), np.ptp(surface.b)
        if max(width, height) <= NARROWEST * min(width, height):
            axes.set_aspect("equal")
        else:  # true to scale it would be a strip in which nothing can be read
            axes.set_title(f"{name}\n(axes not to one scale)", fontsize=9)
    if drawn is not None:
        figure.colorbar(drawn, ax=panels, label=_title(key), extend="max")
    return figure


def _filled(axes: "Axes", surface: Surface, known: np.ndarray, levels: np.ndarray) -> Any:
    """Contours of the points that were measured: of a whole grid by its lines, of a part of one by triangles."""
    if np.isfinite(known).all():
        where = (surface.a, surface.b, known.T)
        axes.contour(*where, levels=levels, colors="black", linewidths=0.3)
        return axes.contourf(*where, levels=levels, cmap="viridis", extend="both")
    there = np.isfinite(known)
    a, b = np.meshgrid(surface.a, surface.b, indexing="ij")
    missing = surface.done & ~there
    axes.plot(a[missing], b[missing], "x", color="red", markersize=4)
    try:
        return axes.tricontourf(a[there], b[there], known[there], levels=levels, cmap="viridis", extend="both")
    except (RuntimeError, ValueError):  # too few points so far, or all on a line
        return None


def _padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    margin = share * (high - low) or 1e-6 + 1e-3 * abs(high) * (high == low)
    return low - margin, high + margin


def _title(key: str) -> str:
    return key.replace(" error", " error in %")


def _finished(figure: "Figure", panels: Sequence["Axes"]) -> "Figure":
    for axes in panels:
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8, ncols=2)
    return figure
