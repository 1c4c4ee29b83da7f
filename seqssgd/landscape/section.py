"""What was measured in words, tables and pictures: a section of the comparison page."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..report.page import Section
from ..report.tables import Table
from .figures import draw, variance_of
from .order import FEWEST, rank_correlation
from .study import FILE, file_name, read
from .surface import Surface, read_surface
from .variance import VarianceSplit

# The parts of the section: heading, caption, and how the names of its pictures begin.
_PARTS = {
    "Sharpness": (
        "By how much noise of level c raises the training loss (95 % bands over the draws); dashed: what the trace "
        "predicts, ½c²R. They part where the fourth order or kinks count.",
        "sharpness",
    ),
    "Relative trace by layer": ("‖w‖²/N · tr H of every layer that noise may perturb, with 95 % intervals.", "layers"),
    "Spectral density": (
        "How the eigenvalues of the Hessian are spread: one Lanczos run from a random vector, every node a Gaussian.",
        "density",
    ),
    "Variance": (
        "The variance of a step's gradient by where it comes from, in that of a plain step: D/B of the minibatch, M/B "
        "what noise adds to it, N₁ the first-order noise of one-sided steps, N₂ the rest.",
        "variance",
    ),
    "Robustness": ("Loss and error rate under noise of the weights; 95 % bands over the draws.", "robustness"),
    "Lines": (
        "From one solution to another through the weights in between; dotted: the two. Batch-norm statistics are taken "
        "anew at every point, here and below.",
        "lines",
    ),
    "Planes": ("The plane through three solutions, in an orthonormal basis: distances are those of weights.", "plane"),
    "Slices": (
        "Two random directions, every filter as long as the filter of the weights at 1; one colour scale for all runs.",
        "slice",
    ),
}


def section(folder: str | Path, pictures: bool = True) -> Section:
    """The section about what ``seqssgd landscape`` has left in a folder.

    Args:
        folder: with its landscape.json.
        pictures: whether to draw, for which the surfaces must be there.

    Raises:
        UserError: there is no landscape, or it is damaged.
    """
    folder = Path(folder)
    found = read(folder / FILE)
    drawn: dict[str, dict[str, bytes]] = {}
    if pictures:
        made = draw(found, surfaces_of(found, folder))
        drawn = {f"landscape_{name}": files for name, files in made.items()}
    parts = {}
    for heading, (caption, start) in _PARTS.items():
        shown = {name: _shows(name) for name in drawn if name.startswith(f"landscape_{start}")}
        if shown:
            parts[heading] = caption, shown
    tables = {}
    if any(
        value is not None for run in found["runs"].values() for value in (*flatness(run).values(), run.get("errors"))
    ):
        tables["Curvature and sharpness"] = curvature_table(found)
    if (order := order_table(found)).rows:
        tables["Whether flatness orders the errors"] = order
    if any(map(variance_of, found["runs"].values())):
        tables["Variance of a step's gradient, in that of plain steps"] = variance_table(found)
    if any("bits" in run.get("rounding", {}) for run in found["runs"].values()):
        tables["Loss and error with weights in few bits"] = rounding_table(found)
    if any("weights" in run.get("calibration", {}) for run in found["runs"].values()):
        tables["Calibration"] = calibration_table(found)
    if any("barriers" in surface for surface in found["surfaces"].values()):
        tables["Barriers"] = barrier_table(found)
    return Section("Landscape", tables, notes(found), parts, drawn)


def surfaces_of(found: Mapping[str, Any], folder: Path) -> dict[str, Surface]:
    """The surfaces that a landscape.json names, as far as they were begun."""
    return {name: read_surface(folder / f"{file_name(name)}.npz") for name in found["surfaces"]}


def curvature_table(found: Mapping[str, Any]) -> Table:
    """One row per run: how it does, and what says how flat it is."""
    levels = [f"{level:g}" for level in found["settings"]["levels"]]
    split = found["settings"]["split"]
    head = ["run", f"{split} loss", f"{split} error in %", "loss", "λ_max", "of two halves", "tr H", "R"]
    head += [f"rise at c = {level} / ½c²R" for level in levels] + ["Keskar", "SAM"]
    rows = []
    for name, run in found["runs"].items():
        errors, traces, top, sharp = (run.get(stage, {}) for stage in ("errors", "traces", "eigenvalues", "sharpness"))
        measured = {f"{row['level']:g}": row["increase"][0] for row in sharp.get("noise", [])}
        predicted = {level: value[0] for level, value in traces.get("predicted_sharpness", {}).items()}
        cells = [name, _number(errors.get("loss")), _number(errors.get("error"))]
        cells += [_number(_training_loss(run)), _number(top.get("lambda_max"))]
        cells += [" / ".join(map(_number, top.get("of_halves", []))) or "–"]
        cells += [_with_interval(traces.get("trace")), _with_interval(traces.get("relative_trace"))]
        cells += [f"{_number(measured.get(level))} / {_number(predicted.get(level))}" for level in levels]
        rows.append([*cells, _number(sharp.get("keskar")), _number(sharp.get("sam"))])
    return Table(head, rows)


def _training_loss(run: Mapping[str, Any]) -> float | None:
    """That of the data on which curvature and sharpness were measured."""
    noise, top = run.get("sharpness", {}).get("noise"), run.get("eigenvalues", {})
    return noise[0].get("clean") if noise else top.get("loss")


def flatness(run: Mapping[str, Any]) -> dict[str, float | None]:
    """What is known of how flat a run's minimum is, by name: the larger, the sharper."""
    traces, top, sharp = (run.get(stage, {}) for stage in ("traces", "eigenvalues", "sharpness"))
    found = {"λ_max": top.get("lambda_max")}
    found |= {name: traces.get(key, [None])[0] for name, key in (("tr H", "trace"), ("R", "relative_trace"))}
    found |= {f"rise at c = {row['level']:g}": row["increase"][0] for row in sharp.get("noise", [])}
    return found | {"Keskar": sharp.get("keskar"), "SAM": sharp.get("sam")}


def order_table(found: Mapping[str, Any]) -> Table:
    """One row per measure of sharpness: its rank correlation over the runs with loss and error rate.

    The training loss stands first as the control: a measure that orders no better says nothing that the loss does not.
    Without rows where fewer than :data:`seqssgd.landscape.order.FEWEST` runs have both.
    """
    split, runs = found["settings"]["split"], list(found["runs"].values())
    measures, rows = [{"training loss": _training_loss(run), **flatness(run)} for run in runs], []
    for name in dict.fromkeys(key for measure in measures for key in measure):
        cells = [name]
        for figure in ("loss", "error"):
            pairs = [
                (one.get(name), run.get("errors", {}).get(figure)) for one, run in zip(measures, runs, strict=True)
            ]
            # equal pairs are of equal weights, as those of a last checkpoint that is the best
            known = list(dict.fromkeys(pair for pair in pairs if None not in pair))
            if len(known) < FEWEST:
                break
            cells.append("{:+.2f} ({:+.2f} to {:+.2f})".format(*rank_correlation(*zip(*known, strict=True))))
        else:
            rows.append([*cells, str(len(known))])
    return Table(["ρ of", f"{split} loss", f"{split} error", "runs"], rows)


def variance_table(found: Mapping[str, Any]) -> Table:
    """One row per run: the variance of a step's gradient by method, and from what minibatch on the pair pays."""
    head = ["run", "noise level", "minibatch", "one-sided", "halves", "pair (2 passes)", "the pair pays from", "take"]
    rows = []
    for name, run in found["runs"].items():
        if split := variance_of(run):
            steps = split["of_step"]
            cells = [_number(steps[key] / steps["none"]) for key in ("one-sided", "halves", "pair")]
            pairs = split.get("pairs", found["settings"].get("pairs"))
            restored = VarianceSplit.restored(split, pairs)
            doubt = "" if restored.decided else f" (not decided by {pairs or 'the'} pairs)"
            take = split["recommended"] + doubt
            rows.append([name, f"{split['level']:g}", str(split["batch"]), *cells, restored.pays_in_words(), take])
    return Table(head, rows)


def rounding_table(found: Mapping[str, Any]) -> Table:
    """One row per run: loss and error rate on the split beside the training set, by the bits of a weight."""
    known = {name: run["rounding"]["bits"] for name, run in found["runs"].items() if "bits" in run.get("rounding", {})}
    bits = list(dict.fromkeys(key for each in known.values() for key in each))
    rows = []
    for name, each in known.items():
        pairs = [[each.get(key, {}).get(figure) for figure in ("loss", "error")] for key in bits]
        rows.append([name, *(" / ".join(map(_number, pair)) for pair in pairs)])
    return Table(["run", *(key if key == "clean" else f"{key} bits" for key in bits)], rows)


def calibration_table(found: Mapping[str, Any]) -> Table:
    """One row per run: loss, error rate and calibration error of its weights, and of the mean over draws."""
    head = ["run", "loss", "error in %", "ECE in %", "draws", "loss of their mean", "error in %", "ECE in %"]
    rows = []
    for name, run in found["runs"].items():
        if "weights" in (this := run.get("calibration", {})):
            own, mean = ([_number(part.get(key)) for key in ("loss", "error", "calibration_error")]
                         for part in (this["weights"], this.get("averaged", {})))  # fmt: skip
            rows.append([name, *own, str(this.get("draws", "–")), *mean])
    return Table(head, rows)


def barrier_table(found: Mapping[str, Any]) -> Table:
    """One row per line: how far each figure rises above the straight line between its ends."""
    lines = {name: surface["barriers"] for name, surface in found["surfaces"].items() if "barriers" in surface}
    keys = list(dict.fromkeys(key for barriers in lines.values() for key in barriers))
    rows = [
        [name.removeprefix("line "), *(_number(_unless_rounding(barriers.get(key))) for key in keys)]
        for name, barriers in lines.items()
    ]
    return Table(["line", *keys], rows)


def _unless_rounding(value: float | None) -> float | None:
    return 0.0 if value is not None and abs(value) < 1e-12 else value


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader has to know: on what data, at which checkpoints, how exact, and what is missing."""
    runs = found["runs"]
    said = [*_on_what_data(found), *_what_figures_are(found)]
    said.append("Checkpoints: " + "; ".join(f"{name}: {run['checkpoint']}" for name, run in runs.items()) + ".")
    if order_table(found).rows:
        said.append(
            "ρ: Spearman's rank correlation over the runs, with the 95 % interval of ranks like those of a bivariate "
            "normal; checkpoints of one training are not independent, and the interval is then too narrow. The "
            "training loss is the control: a measure that orders no better says nothing that the loss does not."
        )
    return [*said, *_what_is_missing(found)]


def _on_what_data(found: Mapping[str, Any]) -> list[str]:
    settings, runs = found["settings"], found["runs"]
    first = next(iter(runs.values()))
    said = []
    if any(value is not None for run in runs.values() for value in flatness(run).values()):
        said.append(
            f"Curvature and sharpness on about {settings['terms']:,} {first['terms_are']} of the training data, or all "
            "where it has fewer, without augmentation and dropout."
        )
    stages = [run.get(stage, {}) for run in runs.values() for stage in ("errors", "rounding")]
    counts = {stage["terms"] for stage in stages if "terms" in stage}
    if counts:
        counted = " or ".join(f"{count:,}" for count in sorted(counts))
        said.append(
            f"{settings['split']} loss and error ({first['errors_are']}) in the tables on {counted} "
            f"{first['terms_are']}."
        )
    measured_on_both = [
        *(["lines, planes, slices"] if found["surfaces"] else []),
        *(["robustness"] if any("robustness" in run for run in runs.values()) else []),
    ]
    if measured_on_both:
        said.append(
            f"{', '.join(measured_on_both).capitalize()}: losses and error rates ({first['errors_are']}) on about "
            f"{settings['figure_terms']:,} {first['terms_are']} of each split, or all where it has fewer."
        )
    return said


def _what_figures_are(found: Mapping[str, Any]) -> list[str]:
    split, runs = found["settings"]["split"], found["runs"]
    measured = [flatness(run) for run in runs.values()]

    def has(key: str) -> bool:
        return any(measure.get(key) is not None for measure in measured)

    said = []
    if has("R"):
        said.append(
            "R = Σ ‖w‖²/N · tr H over the layers that noise may perturb: noise of level c raises the loss by ½c²R, to "
            "second order. ± is half of a 95 % interval."
        )
    if has("Keskar"):
        said.append("Keskar: the largest rise within |Δw| ≤ 0.001 (|w| + 1), in percent of 1 + L.")
    if has("SAM"):
        said.append("SAM: the rise at a distance of 0.05 along the gradient.")
    if any("bits" in run.get("rounding", {}) for run in runs.values()):
        said.append(
            f"Few bits: {split} loss / error rate in % with every weight that noise may perturb at the "
            "nearest of 2^b − 1 evenly spaced values, symmetric, a scale for each row (unit, filter, token)."
        )
    if any("weights" in run.get("calibration", {}) for run in runs.values()):
        said.append(
            f"ECE: expected calibration error on the {split} data, 15 bins of equal width (Guo et al. "
            "2017). The mean is that of the probabilities under draws of the run's own noise, with both signs, or of "
            "IVON's posterior."
        )
    return said


def _what_is_missing(found: Mapping[str, Any]) -> list[str]:
    said: list[str] = []
    alike: dict[str, list[str]] = {}  # the same but for its numbers, which are in the table
    for name, run in found["runs"].items():
        for stage, result in run.items():
            if isinstance(result, dict) and (why := result.get("left_out")):
                said.append(f"{name}: no {stage}: {why}.")
            elif isinstance(result, dict) and (warning := result.get("warning")):
                alike.setdefault(re.sub(r"-?\d\S*", "", warning), [f"{name}: {warning}"]).append(name)
    for text, _, *others in alike.values():
        said.append(f"{text}{'; likewise ' * bool(others)}{', '.join(others)}.")
    for name, surface in found["surfaces"].items():
        if surface["done"] < surface["points"]:
            said.append(f"{name}: {surface['done']} of {surface['points']} points so far.")
        if surface["not_finite"]:
            said.append(f"{name}: not finite at {surface['not_finite']} points, which are missing (red crosses).")
    if not found.get("complete"):
        said.append("Not all is measured yet; the same command goes on.")
    return said


def _shows(name: str) -> str:
    return name.removeprefix("landscape_").replace("_", " ")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _with_interval(estimate: list[float | None] | None) -> str:
    if estimate is None or estimate[0] is None:
        return "–"
    value, low, high = estimate
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} ± {(high - low) / 2:.2g}"
