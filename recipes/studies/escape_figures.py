"""The pictures of the study of escape, from what its cells came to."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from escape_tables import Results, at, networks, rate
from escape_valley import MINIMUM, threshold

from seqssgd.landscape.escape import Rate, time_ratio
from seqssgd.report.plots import COLOURS, GREY, new_figure, picture_files, powers_of_ten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

METHODS = ("one-sided", "pair", "halves")
METHOD_COLOURS = {"none": GREY, "one-sided": COLOURS[1], "pair": COLOURS[0], "halves": COLOURS[2]}
PASSED = (2.0, 3.0)  # of L/L*: whose passages the picture of the methods shows
LEVEL = 0.3  # of weight noise, at which all networks are compared


def draw(results: Results) -> dict[str, bytes]:
    """PNGs by name: ``valley``, ``barrier``, ``ratio`` and ``ssgd``."""
    pictures: dict[str, Callable[[Results], Figure]] = {
        "valley": _valley,
        "barrier": _barrier,
        "ratio": _ratio,
        "ssgd": _ssgd,
    }
    return {name: picture_files(partial(picture, results), name)["png"] for name, picture in pictures.items()}


def _figure(rows: int, columns: int) -> "tuple[Figure, list[Axes]]":
    figure = new_figure(4.2 * columns, 4.4 * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.grid(alpha=0.3)
    return figure, axes


def _legend_below(axes: "Axes", columns: int = 1) -> None:
    """Where no point can be in its way."""
    axes.legend(frameon=False, fontsize=8, ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _plain_numbers(axis: "Axis") -> None:
    """Of a logarithmic axis: 0.5, 1, 2, 5, … in place of powers of ten, thinned out where it spans many of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 200 else (1.0,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _points(
    axes: "Axes", found: dict[float, Rate], colour: str, label: str, marker: str = "o", joined: str = ""
) -> None:
    """Mean times with their intervals; an arrow up from the lower bound where none escaped."""
    seen = {x: r for x, r in found.items() if r.escapes}
    x, y = list(seen), [r.time for r in seen.values()]
    bounds = [r.time_interval() for r in seen.values()]
    errors = [
        [t - low for t, (low, _) in zip(y, bounds, strict=True)],
        [high - t for t, (_, high) in zip(y, bounds, strict=True)],
    ]
    axes.errorbar(x, y, errors, fmt=marker + joined, color=colour, label=label, markersize=4, capsize=2, linewidth=1)
    for level, r in found.items():
        if not r.escapes:
            axes.plot([level], [r.time_interval()[0]], "^", color=colour, markersize=6, fillstyle="none")


def _valley(results: Results) -> "Figure":
    figure, (left, middle, right) = _figure(1, 3)
    for axes, noise, label in ((left, "white", "1/D"), (middle, "minibatch", "2B/η")):
        chosen = [
            (1 / r["settings"]["strength"], r)
            for r in results.values()
            if r["settings"]["kind"] == "Valley"
            and (r["settings"]["noise"], r["settings"]["method"], r["settings"]["sharpness"]) == (noise, "none", 1)
        ]
        chosen.sort(key=lambda pair: pair[0])
        _points(axes, {x: rate(r["passages"][0]) for x, r in chosen}, COLOURS[0], "simulated")
        for kind, name, dash in (
            ("exact", "exact, of the diffusion", "-"),
            ("formula", "Kramers" if noise == "white" else "Xie et al.", "--"),
        ):
            times = [r["passages"][0]["predicted"][kind] for _, r in chosen]
            axes.plot([x for x, _ in chosen], times, dash, color=COLOURS[1], label=name, linewidth=1.2)
        axes.set(xlabel=label, ylabel="mean time to escape", yscale="log")
        axes.set_title("white noise, D" if noise == "white" else "noise as assumed: D = (η/2B)·|H|", fontsize=10)
    for noise, colour in (("white", COLOURS[0]), ("minibatch", COLOURS[2])):
        strength = {"white": 6.5, "minibatch": 0.33}[noise]
        chosen = {
            1 / s["sharpness"]: r
            for r in results.values()
            if (s := r["settings"])["kind"] == "Valley"
            and (s["noise"], s["method"], s["strength"]) == (noise, "none", strength)
        }
        chosen = dict(sorted(chosen.items()))
        # time·k: what is left once the identity f_k(x) = f(√k·x) has been taken out
        scaled = {x: Rate(r["passages"][0]["escapes"], r["passages"][0]["exposure"] / x) for x, r in chosen.items()}
        _points(right, scaled, colour, {"white": "white", "minibatch": "D ∝ |H|"}[noise])
        exact = [r["passages"][0]["predicted"]["exact"] / x for x, r in chosen.items()]
        right.plot(list(chosen), exact, "-", color=COLOURS[1], linewidth=1.2)
    right.set(xlabel="1/k", ylabel="k · mean time to escape", yscale="log")
    right.set_title("sharpness k: an identity, no test", fontsize=10)
    for axes in (left, middle, right):
        _plain_numbers(axes.yaxis)
        axes.legend(frameon=False, fontsize=8)
    return figure


def _by_level(result: dict[str, Any]) -> dict[float, Rate]:
    return {row["level"]: rate(row) for row in result["passages"]}


def _log_levels(axes: "Axes", levels: list[float]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set(xscale="log", yscale="log", xlabel="c, of the loss c·L* that is passed", ylabel="mean time to pass")
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.xaxis.set_minor_locator(NullLocator())


def _barrier(results: Results) -> "Figure":
    """Log-log: a power law is a straight line, and an exponential bends upwards."""
    found = [
        ("regression/d1/0.3_1", "linear regression, d = 1, η/B = 0.3"),
        ("regression/d5/0.1_1", "linear regression, d = 5, η/B = 0.1"),
    ]
    found += [
        (f"network/{key}", f"network, {key}") for key in networks(results) if f"network/{key}/constant" in results
    ]
    figure, all_axes = _figure(1, len(found))
    noises = {
        "minibatch": ("SGD", COLOURS[0], "o"),
        "none": ("SGD", COLOURS[0], "o"),
        "constant": ("constant noise, same covariance", COLOURS[1], "s"),
        "white": ("white noise, same trace", COLOURS[2], "D"),
    }
    for axes, (prefix, name) in zip(all_axes, found, strict=True):
        for noise, (label, colour, marker) in noises.items():
            result = results.get(f"{prefix}/{noise}")
            if result is None or result["settings"].get("method", "none") != "none":
                continue
            _points(axes, _by_level(result), colour, label, marker)
            for kind, dash in (("exact", "-"), ("mori", ":")):
                times = {row["level"]: row["predicted"].get(kind) for row in result["passages"]}
                if all(times.values()) and times:
                    text = {"exact": f"{label}: exact for its diffusion", "mori": "SGD: Mori et al."}[kind]
                    axes.plot(list(times), list(times.values()), dash, color=colour, linewidth=1.2, label=text)
        _log_levels(
            axes,
            [row["level"] for row in results[f"{prefix}/{'none' if 'network' in prefix else 'minibatch'}"]["passages"]],
        )
        shown = [
            r.time
            for n in noises
            if (res := results.get(f"{prefix}/{n}"))
            for r in _by_level(res).values()
            if r.escapes
        ]
        axes.set_ylim(min(shown) / 4, max(shown) * 8)
        _plain_numbers(axes.yaxis)
        axes.set_title(name, fontsize=10)
        _legend_below(axes)
    return figure


def _ratio(results: Results) -> "Figure":
    """At equal η/B: the same curves, as far as steps are small."""
    figure, (left, right) = _figure(1, 2)
    for axes, prefix, name in (
        (left, "regression/d5/", "linear regression, d = 5"),
        (right, "network/cancer/", "network, cancer"),
    ):
        chosen = [
            r
            for n, r in results.items()
            if n.startswith(prefix)
            and r["settings"]["noise"] == "minibatch"
            and r["settings"].get("method", "none") == "none"
        ]
        ratios = sorted({r["settings"]["rate"] / r["settings"]["batch"] for r in chosen})
        for result in sorted(
            chosen, key=lambda r: (r["settings"]["rate"] / r["settings"]["batch"], r["settings"]["rate"])
        ):
            s = result["settings"]
            value = s["rate"] / s["batch"]
            same = sorted(
                r["settings"]["rate"] for r in chosen if r["settings"]["rate"] / r["settings"]["batch"] == value
            )
            marker = "os^D"[same.index(s["rate"])]
            label = f"η/B = {value:.3g}: η {s['rate']:g}, B {s['batch']}"
            _points(axes, _by_level(result), COLOURS[ratios.index(value)], label, marker, "-")
        _log_levels(axes, [row["level"] for row in chosen[0]["passages"]])
        _plain_numbers(axes.yaxis)
        axes.set_title(name, fontsize=10)
        _legend_below(axes)
    return figure


def _ssgd(results: Results) -> "Figure":
    """Toy valley; times in one network over the level; times in every network at one level."""
    keys = networks(results)
    figure, panels = _figure(1, 2 + (len(keys) > 1))
    _toy(panels[0], results)
    cells = {(s["method"], s["level"]): r for r in _noisy(results, keys[0]) if (s := r["settings"])}
    levels = sorted({level for _, level in cells})
    for method, (shift, passed) in itertools.product(METHODS, enumerate(PASSED)):
        found = {
            x + 0.008 * (METHODS.index(method) - 1) + 0.002 * shift: (
                cells[method, x],
                results[f"network/{keys[0]}/none"],
            )
            for x in levels
        }
        _ratios(panels[1], found, passed, method)
    panels[1].set_xticks(levels, [f"{level:g}" for level in levels])
    panels[1].set_xlim(levels[0] - 0.06, levels[-1] + 0.06)
    panels[1].set(xlabel="noise level c = ‖n‖/‖w‖")
    panels[1].set_title(f"network, {keys[0]}", fontsize=10)
    if len(keys) > 1:
        for method, (shift, passed) in itertools.product(METHODS, enumerate(PASSED)):
            found = {
                index + 0.22 * (METHODS.index(method) - 1) + 0.06 * shift: (r, results[f"network/{key}/none"])
                for index, key in enumerate(keys)
                for r in _noisy(results, key)
                if (r["settings"]["method"], r["settings"]["level"]) == (method, LEVEL)
            }
            _ratios(panels[2], found, passed, method, joined=False)
        panels[2].set_xticks(range(len(keys)), keys)
        panels[2].set_xlim(-0.5, len(keys) - 0.5)
        panels[2].set_title(f"all networks, c = {LEVEL:g}", fontsize=10)
    for axes in panels[1:]:
        axes.axhline(1, color=GREY, linestyle=":", linewidth=1.2)
        axes.set(yscale="log", ylabel="mean time / without weight noise")
        _plain_numbers(axes.yaxis)
    _legend_below(panels[1], columns=3)
    return figure


def _noisy(results: Results, key: str) -> list[dict[str, Any]]:
    """The simulations of a network with minibatch noise and weight noise."""
    return [
        r
        for name, r in results.items()
        if name.startswith(f"network/{key}/")
        and r["settings"]["noise"] == "minibatch"
        and r["settings"]["method"] != "none"
    ]


def _ratios(
    axes: "Axes",
    found: dict[float, tuple[dict[str, Any], dict[str, Any]]],
    passed: float,
    method: str,
    joined: bool = True,
) -> None:
    """Ratios of mean times to ``passed``·L* with their intervals; open arrows for bounds."""
    pairs = {x: (rate(at(one, passed)), rate(at(other, passed))) for x, (one, other) in found.items()}
    both = {x: time_ratio(*pair) for x, pair in pairs.items() if all(r.escapes for r in pair)}
    style = {"color": METHOD_COLOURS[method], "fillstyle": "full" if passed == PASSED[0] else "none"}
    if both:
        values, lows, highs = zip(*both.values(), strict=True)
        errors = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        line = ("o-" if passed == PASSED[0] else "o--") if joined else "o"
        label = f"{method}, {passed:g}·L*"
        axes.errorbar(list(both), values, errors, fmt=line, label=label, markersize=4, capsize=2, linewidth=1, **style)
    for x, (one, other) in pairs.items():
        if not one.escapes and other.escapes:
            axes.plot([x], [one.time_interval()[0] / other.time], "^", markersize=7, **style)


def _toy(axes: "Axes", results: Results) -> None:
    """Weight noise of fixed size and nothing else: rates against its size."""
    arms: dict[tuple[str, str, float], dict[float, Rate]] = {}
    for name, result in results.items():
        if name.startswith("valley/alone/"):
            s = result["settings"]
            arms.setdefault((s["method"], s["distribution"], s["step"]), {})[s["level"] / MINIMUM] = rate(
                result["passages"][0]
            )
    dashes = {"rademacher": "-", "gaussian": "--"}
    for (method, distribution, step), found in arms.items():
        kind = "±σ" if distribution == "rademacher" else "Gaussian"
        marker = {0.005: "o", 0.02: "s", 0.05: "D"}[step]
        axes.plot(
            list(found),
            [r.value for r in found.values()],
            dashes[distribution] + marker,
            color=METHOD_COLOURS[method],
            markersize=4,
            linewidth=1,
            label=f"{method}, {kind}, ηH {29.27 * step:.2g}",
        )
    axes.axvline(threshold(relative=False) / MINIMUM, color=METHOD_COLOURS["none"], linestyle=":", linewidth=1.2)
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=-0.002, top=30)
    powers_of_ten(axes.yaxis)
    axes.set(xlabel="σ over the minimum's distance from 0", ylabel="escapes per unit of time")
    axes.set_title("toy valley, no minibatch noise", fontsize=10)
    _legend_below(axes)
