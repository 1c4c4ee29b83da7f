"""The tables of the study of escape, from what its cells came to."""

import math
from typing import Any

import numpy as np

from seqssgd.landscape.escape import Rate, time_ratio
from seqssgd.landscape.escape_theory import mori_exponent

Results = dict[str, dict[str, Any]]
BARRIERS = (1.2, 2.0, 3.0, 4.0)  # of L/L*: those at which methods are compared
FEW = 5  # escapes: below them a time has no place in a fit


def rate(row: dict[str, Any]) -> Rate:
    return Rate(row["escapes"], row["exposure"], row["spread"])


def at(result: dict[str, Any], level: float) -> dict[str, Any]:
    """What was found at one of a cell's levels."""
    return next(row for row in result["passages"] if row["level"] == level)


def networks(results: Results) -> list[str]:
    return list(dict.fromkeys(name.split("/")[1] for name in results if name.startswith("network/")))


def title(results: Results, key: str) -> str:
    """Of a network: its data, layers and training."""
    s = results[f"network/{key}/none"]["settings"]
    return f"{s['data']}, {s['hidden']} hidden units, minimum {s['minimum']}; η {s['rate']:g}, B {s['batch']}"


def markdown(results: Results) -> str:
    """All tables, each under the line that says what it shows."""
    parts = {
        "Mean times out of the toy valley (time is learning rate × steps), 95 % intervals:": valley_table(results),
        "Mean times to the first passage of the loss over c·L*, and how they grow with c:": barrier_table(results),
        "Mean times with weight noise, over that without (95 %), to 1.2, 2, 3 and 4·L*:": methods_table(results),
        "Weight noise and no minibatch noise: escapes from the toy valley, per unit of time:": alone_table(results),
        "Weight noise on the gradient of all examples: copies that passed a loss, of all:": full_table(results),
    }
    return "\n\n".join(f"{caption}\n\n{table}" for caption, table in parts.items())


def valley_table(results: Results) -> str:
    header = ["noise of the step", "k", "weight noise", "simulated", "exact", "sim./exact", "formula", "sim./formula"]
    rows = []
    for name, result in results.items():
        row = result["passages"][0]
        if not name.startswith("valley/") or not row["predicted"]:
            continue
        s, predicted, found = result["settings"], row["predicted"], rate(row)
        noise = f"white, D = {s['strength']:g}" if s["noise"] == "white" else f"D = {s['strength']:g}·\\|H\\|"
        weight = "" if s["method"] == "none" else f"{s['method']}, σ = {s['level']:g}"
        cells = [noise, f"{s['sharpness']:g}", weight, with_interval(found)]
        for kind in ("exact", "formula"):
            value = predicted.get(kind)
            cells += ["", ""] if value is None else [number(value), f"{found.time / value:.2f}"]
        rows.append(cells)
    return table(header, rows)


def growth(times: dict[float, float]) -> tuple[float, float, float] | None:
    """Of mean times by level c: the power of c, and R² of log T over log c and over c; None for fewer than three."""
    if len(times) < 3:
        return None
    levels, logs = np.array(list(times)), np.log(list(times.values()))
    squares = [float(np.corrcoef(x, logs)[0, 1] ** 2) for x in (np.log(levels), levels)]
    return float(np.polyfit(np.log(levels), logs, 1)[0]), squares[0], squares[1]


def barrier_table(results: Results) -> str:
    header = ["simulation", "times at c", "power of c", "R², power law", "R², exponential", "power by theory"]
    rows = []
    for result in results.values():
        s = result["settings"]
        plain = s["kind"] == "Training" and s["method"] == "none" and s["noise"] != "none"
        if s["kind"] != "Regression" and not plain:
            continue
        found = {row["level"]: rate(row).time for row in result["passages"] if row["escapes"] >= FEW}
        fit = growth(found)
        theory = ""
        if s["kind"] == "Regression":
            where = f"regression, d = {s['dimensions']}"
            if s["noise"] == "minibatch":
                theory = f"{mori_exponent(1.0, s['rate'] / s['batch'], s['dimensions']):.1f}"
        else:
            where = f"{s['data']}, minimum {s['minimum']}"
        noise = {"minibatch": "SGD", "constant": "constant noise, covariance of the minimum", "white": "white noise"}
        rows.append(
            [
                f"{where}, η {s['rate']:g}, B {s['batch']}: {noise[s['noise']]}",
                ", ".join(f"{level:g}: {number(value)}" for level, value in found.items()),
                *([f"{fit[0]:.1f}", f"{fit[1]:.3f}", f"{fit[2]:.3f}"] if fit else [""] * 3),
                theory,
            ]
        )
    return table(header, rows)


def methods_table(results: Results) -> str:
    settings = [r["settings"] for r in results.values() if r["settings"]["kind"] == "Training"]
    noisy = {(s["method"], s["level"]) for s in settings if s["noise"] == "minibatch" and s["method"] != "none"}
    arms = [arm for method in ("one-sided", "pair", "halves") for arm in sorted(noisy) if arm[0] == method]
    keys = networks(results)
    rows = [["none, mean time", "", *(_plain_times(results, key) for key in keys)]]
    rows.append(["none, trend", "", *(_trends(results, key) for key in keys)])
    for method, level in arms:
        cells = []
        for key in keys:  # some networks have one level only
            result = results.get(f"network/{key}/{method}/{level:g}")
            base = results[f"network/{key}/none"]
            pairs = [(rate(at(result, c)), rate(at(base, c))) for c in BARRIERS] if result else []
            cells.append("; ".join(ratio(*pair) for pair in pairs))
        rows.append([method, f"{level:g}", *cells])
    return table(["weight noise", "c", *(title(results, key) for key in keys)], rows)


def _plain_times(results: Results, key: str) -> str:
    return "; ".join(with_interval(rate(at(results[f"network/{key}/none"], c))) for c in BARRIERS)


def _trends(results: Results, key: str) -> str:
    found = [at(results[f"network/{key}/none"], c)["trend"] for c in BARRIERS]
    return "; ".join("unknown" if trend is None else f"{trend:.2f}" for trend in found)


def ratio(one: Rate, other: Rate) -> str:
    """How many times longer ``one`` takes; a bound where it, or the other, was never seen to pass."""
    if one.escapes and other.escapes:
        return "{} ({} to {})".format(*(number(value, 2) for value in time_ratio(one, other)))
    if other.escapes:
        return f"> {number(one.time_interval()[0] / other.time, 2)}"
    return f"< {number(one.time / other.time_interval()[0], 2)}" if one.escapes else "none passed"


def alone_table(results: Results) -> str:
    arms: dict[str, dict[float, str]] = {}
    for result in results.values():
        s = result["settings"]
        if s["kind"] != "Valley" or s["noise"] != "none":
            continue
        size = (
            "n = c·w" if s["relative"] and s["dimensions"] == 1 else "‖n‖ = c·‖w‖" if s["relative"] else "σ = c·2.747"
        )
        where = f"{s['dimensions']} coordinates" if s["dimensions"] > 1 else f"ηH {s['step'] * 29.27:.2g}"
        level = s["level"] if s["relative"] else s["level"] / 2.7468
        found = rate(result["passages"][0])
        low, high = found.interval()
        text = f"{found.value:.2g} ({low:.2g} to {high:.2g})" if found.escapes else f"0 (< {high:.2g})"
        arms.setdefault(f"{s['method']}, {s['distribution']}, {size}, {where}", {})[round(level, 3)] = text
    rows = [[arm, ", ".join(f"c {level:g}: {text}" for level, text in found.items())] for arm, found in arms.items()]
    return table(["weight noise", "escapes per unit of time"], rows)


def full_table(results: Results) -> str:
    rows = []
    for result in results.values():
        s = result["settings"]
        if s["kind"] == "Training" and s["noise"] == "none":
            passed = [f"{row['escapes']}/{row['particles']}" for row in result["passages"]]
            rows.append([f"{s['data']}, {s['method']}, c = {s['level']:g}, to time {s['time']:g}", *passed])
    levels = next((r["passages"] for r in results.values() if r["settings"]["kind"] == "Training"), [])
    return table(["simulation", *(f"{row['level']:g}·L*" for row in levels)], rows)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(found: Rate) -> str:
    low, high = found.time_interval()
    if not found.escapes:
        return f"> {number(low)}"
    return f"{number(found.time)} ({number(low)} to {number(high)})"


def number(value: float, digits: int = 3) -> str:
    """So many digits that count, and no powers of ten."""
    after = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{float(f'{value:.{digits}g}'):,.{after}f}"
