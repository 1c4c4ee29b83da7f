"""The primary contrasts of plan.md, from the runs of a tuned study: which trials count, and how surely what differs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seqssgd.report import read_run
from seqssgd.report.comparison import Estimate, estimate, holm, welch
from seqssgd.report.metrics import best_evaluation, run_figures
from seqssgd.runs import layout
from seqssgd.runs.reading import Run

NOISE = ("weight_noise", "late", "halves", "phases", "two_draws")
BEST_NOISE = "the best noise"
METRIC = "valid_perplexity"


class Contrast(NamedTuple):
    """Two arms to be held against each other; ``later``: without the seed that chose one of them."""

    arm: str
    other: str
    later: bool = False


# by the folder of the runs, in the order of the plan
CONTRASTS = {
    "demo_regularised": (Contrast(BEST_NOISE, "none", later=True), Contrast("phases", "two_draws"),
                         Contrast("halves", "weight_noise")),
    "demo_pair": (Contrast("ivon_halves", "ivon"), Contrast("shaped_halves", "halves"), Contrast("balanced", "ssgd")),
    "demo_transformer": (Contrast(BEST_NOISE, "none", later=True), Contrast("halves", "weight_noise")),
}  # fmt: skip


class Found(NamedTuple):
    """A contrast with its figures: of both arms, and their difference with its 95 % interval and p-values."""

    contrast: Contrast
    names: tuple[str, str]
    sides: tuple[Estimate, Estimate]
    delta: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm: float | None = None


def trials(folder: Path) -> dict[str, dict[int, Run]]:
    """The runs of a study by alternative and seed: those in ``folder/ALTERNATIVE_sSEED``."""
    found: dict[str, dict[int, Run]] = {}
    for config in sorted(folder.glob(f"*_s*/{layout.CONFIG}")):
        name, _, seed = config.parent.name.rpartition("_s")
        found.setdefault(name, {})[int(seed)] = read_run(config.parent)
    return found


def chosen(found: Mapping[str, Mapping[int, Run]], arms: Iterable[str]) -> str:
    """The alternative of these arms that is the best on validation with the first seed.

    Raises:
        KeyError: there is none.
    """

    def validation(name: str) -> float:
        row = best_evaluation(found[name][min(found[name])], METRIC)
        return float("inf") if row is None else row[METRIC]

    arms = set(arms)
    names = [name for name in found if name.partition("-")[0] in arms]
    if not names:
        raise KeyError(f"no runs of {', '.join(sorted(arms))}")
    return min(names, key=validation)


def first_trials(folder: Path) -> list[Run]:
    """The runs that the alternatives were chosen by: each one's first seed, which is the same for all."""
    return [seeds[min(seeds)] for seeds in trials(folder).values()]


def kept(folder: Path) -> list[Run]:
    """All seeds of the alternatives that were chosen, one of each arm, as far as they have been tested."""
    found = trials(folder)
    names = dict.fromkeys(chosen(found, [name.partition("-")[0]]) for name in found)
    return [run for name in names for run in found[name].values() if "test" in run.evaluations]


def contrasts(folder: Path, asked: Sequence[Contrast]) -> list[Found]:
    """Those of which both sides have been tested, p-values corrected by Holm over them."""
    runs = trials(folder)
    rows = []
    for contrast in asked:
        try:
            names = (chosen(runs, NOISE if contrast.arm == BEST_NOISE else [contrast.arm]),
                     chosen(runs, [contrast.other]))  # fmt: skip
        except KeyError:
            continue
        values = [_tests(runs[name], contrast.later) for name in names]
        if all(values):
            sides = estimate(values[0]), estimate(values[1])
            interval = welch(*values) or (None, None, None)
            rows.append(Found(contrast, names, sides, sides[0].mean - sides[1].mean, *interval))
    tested = [row for row in rows if row.p is not None]
    corrected = iter(holm([row.p for row in tested if row.p is not None]))
    return [row if row.p is None else row._replace(holm=next(corrected)) for row in rows]


def _tests(runs: Mapping[int, Run], later: bool) -> list[float]:
    name = METRIC.replace("valid", "test")
    figures = [run_figures(run, METRIC).get(name) for seed, run in runs.items() if not (later and seed == min(runs))]
    return [value for value in figures if value is not None]


def table(found: Sequence[Found]) -> str:
    """A row for each contrast."""
    lines = ["| contrast | chosen | test perplexity | Δ (95 %) | p; Holm |", "| --- | --- | ---: | ---: | ---: |"]
    for row in found:
        title = f"{row.contrast.arm} − {row.contrast.other}"
        sides = " − ".join(f"{side.mean:.2f} ± {side.sd or 0:.2f} ({side.n})" for side in row.sides)
        delta = f"{row.delta:+.2f}"
        if row.low is not None and row.high is not None:
            delta += f" ({row.low:+.2f} to {row.high:+.2f})"
        p = "–" if row.p is None or row.holm is None else f"{row.p:.3f}; {row.holm:.3f}"
        names = " − ".join(f"`{name}`" for name in row.names)
        lines.append(f"| {title} | {names} | {sides} | {delta.replace('-', '−')} | {p} |")
    return "\n".join(lines)
