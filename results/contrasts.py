"""The primary contrasts of plan.md, from the runs of a tuned study: which trials count, and how surely what differs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from seqssgd.report import read_run
from seqssgd.report.comparison import Estimate, estimate, holm, welch
from seqssgd.report.metrics import best_evaluation, lower_is_better, run_figures, shared_metric
from seqssgd.report.paired import Paired, paired
from seqssgd.report.tables import mean_and_sd, p_value, words
from seqssgd.runs import layout
from seqssgd.runs.reading import Run

NOISE = ("weight_noise", "late", "halves", "phases", "two_draws")
BEST_NOISE = "the best noise"


class Contrast(NamedTuple):
    """Two arms to be held against each other; ``later``: without the seed that chose one of them."""

    arm: str
    other: str
    later: bool = False


# by the folder of the runs, in the order of the plan
CONTRASTS = {
    "demo_regularised": (Contrast(BEST_NOISE, "none", later=True), Contrast("phases", "two_draws"),
                         Contrast("halves", "weight_noise")),
    "ptb_regularised": (Contrast(BEST_NOISE, "none", later=True), Contrast("phases", "two_draws"),
                        Contrast("halves", "weight_noise")),
    "rnn300": (Contrast("ssgd", "none"),),
    "demo_pair": (Contrast("ivon_halves", "ivon"), Contrast("shaped_halves", "halves"), Contrast("balanced", "ssgd")),
    "demo_newton": (Contrast("newton", "none"), Contrast("newton", "halves")),
    "demo_large": (Contrast("batch", "weight_noise"), Contrast("batch", "none")),
    "ocean": (Contrast("halves", "none"), Contrast("halves", "weight_noise")),
    "demo_transformer": (Contrast(BEST_NOISE, "none", later=True), Contrast("halves", "weight_noise")),
}  # fmt: skip


class Found(NamedTuple):
    """A contrast with its figures: of both arms, and their difference with its 95 % interval and p-values.

    ``figure`` is what they were tested by, ``paired`` the interval over the same speakers, of error rates.
    """

    contrast: Contrast
    figure: str
    names: tuple[str, str]
    sides: tuple[Estimate, Estimate]
    delta: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    holm: float | None = None
    paired: Paired | None = None


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

    arms = set(arms)
    names = [name for name, runs in found.items() if name.partition("-")[0] in arms and not runs[min(runs)].diverged]
    if not names:
        raise KeyError(f"no runs of {', '.join(sorted(arms))}")
    metric = _metric(found)

    def validation(name: str) -> float:
        run = found[name][min(found[name])]
        row, sign = best_evaluation(run, metric), 1 if lower_is_better(metric, [run]) else -1
        return float("inf") if row is None else sign * row[metric]

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
    """Those of which both sides have been tested, p-values corrected by Holm over all of ``asked``."""
    runs, rows = trials(folder), []
    for contrast in asked:
        try:
            names = (chosen(runs, NOISE if contrast.arm == BEST_NOISE else [contrast.arm]),
                     chosen(runs, [contrast.other]))  # fmt: skip
        except KeyError:
            continue
        metric = _metric(runs)
        figure = metric.replace("valid", "test")
        mine, its = (_tested(runs[name], contrast.later, metric, figure) for name in names)
        if mine and its:
            sides = estimate([*mine.values()]), estimate([*its.values()])
            interval = welch([*mine.values()], [*its.values()]) or (None, None, None)
            over = paired([*mine], [*its], figure)
            rows.append(Found(contrast, figure, names, sides, sides[0].mean - sides[1].mean, *interval, paired=over))
    known = [row.p for row in rows if row.p is not None]
    corrected = iter(holm([*known, *[1.0] * (len(asked) - len(known))]))  # for all that were planned
    return [row if row.p is None else row._replace(holm=next(corrected)) for row in rows]


def _tested(runs: Mapping[int, Run], later: bool, metric: str, figure: str) -> dict[Run, float]:
    """The finished ones that have the figure, with it; ``later``: without the first seed."""
    kept = [run for seed, run in runs.items() if run.finished and not (later and seed == min(runs))]
    figures = {run: run_figures(run, metric).get(figure) for run in kept}
    return {run: value for run, value in figures.items() if value is not None}


def _metric(found: Mapping[str, Mapping[int, Run]]) -> str:
    return shared_metric([run for seeds in found.values() for run in seeds.values()])


def table(found: Sequence[Found]) -> str:
    """A row for each contrast."""
    over = any(row.paired for row in found)
    head = ["contrast", "chosen", words(found[0].figure), "Δ (95 %)", *(["paired (95 %)"] if over else []), "p; Holm"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for row in found:
        title = f"{row.contrast.arm} − {row.contrast.other}"
        sides = " − ".join(f"{mean_and_sd(side, 2)} ({side.n})" for side in row.sides)
        cells = [f"{row.delta:+.2f}" + ("" if row.low is None else f" ({row.low:+.2f} to {row.high:+.2f})")]
        if over:
            cells.append("–" if row.paired is None else "{:+.2f} to {:+.2f}, over {}".format(*row.paired))
        p = "–" if row.p is None or row.holm is None else f"{p_value(row.p)}; {p_value(row.holm)}"
        names = " − ".join(f"`{name}`" for name in row.names)
        lines.append(f"| {title} | {names} | {sides} | {' | '.join(cells).replace('-', '−')} | {p} |")
    return "\n".join(lines)
