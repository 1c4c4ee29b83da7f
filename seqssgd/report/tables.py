"""Comparisons in words and numbers: tables for people, CSV for programs, and the notes that belong to them."""

import csv
import io
from collections import defaultdict
from dataclasses import dataclass

from ..runs.reading import Run
from .baselines import CHOSEN, TOLERANCE
from .comparison import Comparison, Difference, Estimate
from .escape import cell, markdown
from .grouping import EPOCHS, SEEDS, differing_settings, show
from .metrics import best_evaluation, is_best
from .noise_size import has_begun, logged_noise

LEVEL = 0.05  # of significance


@dataclass
class Table:
    """A head and rows of cells; ``texts`` is the number of columns, from the left, that are no numbers."""

    head: list[str]
    rows: list[list[str]]
    texts: int = 1

    def markdown(self) -> str:
        """The table in GitHub's Markdown."""
        rule = ["---"] * self.texts + ["---:"] * (len(self.head) - self.texts)
        lines = [self.head, rule, *self.rows]
        return "\n".join(
            "| " + " | ".join(markdown(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
        )


def results_table(comparison: Comparison) -> Table:
    """One row per method, family by family."""
    groups = [row.group for row in comparison.rows]
    digits = _digits(comparison)
    in_minutes = max(group.mean("seconds") for group in groups) >= 600
    head = ["method", "n", "c", "epochs", "passes", *(figure_title(comparison, name) for name in comparison.figures)]
    head += [f"Δ {'to' if criterion == CHOSEN else 'at'} {criterion} (p; Holm)" for criterion in comparison.criteria]
    rows = []
    for row in comparison.rows:
        group, seconds = row.group, row.group.mean("seconds")
        cells = [
            group.label,
            str(len(group.runs)),
            _size(logged_noise(group)),
            f"{round(group.mean('epoch'), 1):g}",
            f"{group.mean('passes'):,.0f}",
        ]
        cells += [mean_and_sd(row.figure(name), digits) for name in comparison.figures]
        cells += [_difference(found, group.label, digits) for found in row.against.values()]
        rows.append([*cells, f"{seconds / 60:.1f}" if in_minutes else f"{seconds:.0f}"])
    return Table([*head, "minutes" if in_minutes else "seconds"], rows)


def settings_table(comparison: Comparison) -> Table:
    """The settings that are not the same for all methods."""
    groups = [row.group for row in comparison.rows]
    keys = differing_settings(groups)
    rows = [[group.label, *(show(group.settings.get(key, "(absent)")) for key in keys)] for group in groups]
    return Table(["method", *keys], rows, texts=1 + len(keys))


def runs_table(comparison: Comparison) -> Table:
    """Every run with its seeds, its figures, and the epoch that was the best."""
    head = ["method", "run", *SEEDS, *(figure_title(comparison, name) for name in comparison.figures), "best epoch"]
    rows = []
    for row in comparison.rows:
        for index, run in enumerate(row.group.runs):
            best = best_evaluation(run, comparison.metric)
            cells = [row.group.label, comparison.names[run.path], *(show(run.settings.get(key)) for key in SEEDS)]
            cells += [_number(row.values(name)[index], _digits(comparison)) for name in comparison.figures]
            rows.append([*cells, str(best["epoch"]) if best else "–"])
    return Table(head, rows, texts=2)


def results_csv(comparison: Comparison) -> str:
    """The results with all their digits; empty cells where there is no value.

    Columns: those of :func:`results_table`, every figure with its ``_sd``, seconds, and for each criterion, such as
    ``equal_epochs``, the fields of a :class:`Difference`.
    """
    rows = []
    for row in comparison.rows:
        cells = {"method": row.group.label, "n": len(row.group.runs), "c": logged_noise(row.group)}
        cells |= {"epochs": row.group.mean("epoch")} | {key: row.group.mean(key) for key in ("passes", "seconds")}
        for name in comparison.figures:
            found = row.figure(name)
            cells |= {name: found and found.mean, f"{name}_sd": found and found.sd}
        for criterion, found in row.against.items():
            values = found._asdict() if found else dict.fromkeys(Difference._fields)
            low, high, _ = values.pop("paired") or (None, None, None)
            values |= {"paired_low": low, "paired_high": high}
            cells |= {f"{criterion.replace(' ', '_')}_{key}": value for key, value in values.items()}
        rows.append({cell(name): cell(value) for name, value in cells.items()})
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def notes(comparison: Comparison) -> list[str]:
    """What a reader of the tables has to know: what was measured, against what, and what is missing."""
    better = "Lower" if comparison.lower_is_better else "Higher"
    checkpoint = "best checkpoint on validation" if comparison.metric in comparison.figures else "last checkpoint"
    found = [
        f"Mean ± standard deviation over n seeds. {better} is better. All figures are of each run's {checkpoint}.",
        f"Δ: difference of the {figure_title(comparison, comparison.decisive)} from that of the baseline (equal "
        f"passes: within {TOLERANCE:.0%}); p: Welch's t-test; Holm: the same, corrected for the number of methods that "
        "are tested; –: no baseline, or fewer than two seeds on a side.",
        "c: root mean square of the noise over that of the weights it moves, in the last epoch with noise.",
    ]
    unknown = [row.group.label for row in comparison.rows if logged_noise(row.group) is None]
    if unknown:
        found.append(f"c is not known where a run did not log it and its settings do not tell: {_list(unknown)}.")
    if plain := [comparison.names[run.path] for run in _before_their_method(comparison)]:
        found.append(
            f"Best before noise or average began, so that the figures are of training without: {_list(plain)}."
        )
    if comparison.spread is not None:
        found.append(
            f"Between seeds the {figure_title(comparison, comparison.decisive)} has a standard deviation of "
            f"{_number(comparison.spread.sd, _digits(comparison))}, pooled over the methods "
            f"({comparison.spread.freedom} degrees of freedom)."
        )
    for criterion in comparison.criteria:
        held: dict[str, list[str]] = {}
        for row in comparison.rows:
            if (difference := row.against[criterion]) and difference.baseline != row.group.label:
                held.setdefault(difference.baseline, []).append(row.group.label)
        found += [f"{criterion.capitalize()}: {name} is the baseline of {_list(rows)}." for name, rows in held.items()]
        found += _unlike_trainings(comparison, criterion)
        found += _verdict(comparison, criterion) + _paired(comparison, criterion)
    for name in comparison.figures:
        lacking = [
            comparison.names[run.path]
            for row in comparison.rows
            for run, value in zip(row.group.runs, row.values(name), strict=True)
            if value is None
        ]
        if lacking:
            why = "not finite" if name == comparison.metric else "not evaluated at the best checkpoint"
            found.append(f"No {figure_title(comparison, name)} ({why}): {_list(lacking)}.")
        if name != comparison.metric and len(ways := _ways(comparison, name)) > 1:
            groups = " | ".join(f"{way}: {_list(names)}" for way, names in ways.items())
            found.append(f"The {figure_title(comparison, name)} is not of one and the same evaluation: {groups}.")
    for run in comparison.runs:
        if run.diverged:
            found.append(
                f"{comparison.names[run.path]} diverged at its end ({run.diverged}); its best checkpoint counts."
            )
    return found + [f"Left out: {name}: {reason}." for name, reason in comparison.left_out.items()]


def _ways(comparison: Comparison, name: str) -> dict[str, list[str]]:
    """The names of the runs by how the decoding was done, and on how much, that gave them a figure."""
    split, _, rate = name.rpartition("_")
    found: dict[str, list[str]] = {}
    for run in comparison.runs:
        if figures := run.evaluations.get(split):
            counts = figures.get(f"{rate}_counts")
            size = {key: figures.get(key) for key in ("utterances", "predictions", "images", "bn_images")}
            size |= {"units of reference": counts.get("reference") if isinstance(counts, dict) else None}
            # behind the comma: weights, which may be those that suit each run
            way = [str(figures["decoding"]).partition(", ")[0]] if "decoding" in figures else []
            way += [f"{show(count)} {key.replace('_', ' ')}" for key, count in size.items() if count is not None]
            found.setdefault(", ".join(way) or "not said", []).append(comparison.names[run.path])
    return found


def _unlike_trainings(comparison: Comparison, criterion: str) -> list[str]:
    """What a method's loop had otherwise than its baseline's, such as the precision: no part of the method."""
    baselines = {row.group.label: row.group for row in comparison.rows}
    said = []
    for row in comparison.rows:
        if found := row.against[criterion]:
            keys = row.group.differs_in(other := baselines[found.baseline])
            unlike = [
                f"{key} {show(row.group.settings.get(key))} against {show(other.settings.get(key))}"
                for key in keys
                if key.startswith("training.") and key != EPOCHS
            ]
            said += [f"{row.group.label} ({', '.join(unlike)})"] if unlike else []
    return [f"{criterion.capitalize()}, trained otherwise than the baseline: {_list(said)}."] if said else []


def _before_their_method(comparison: Comparison) -> list[Run]:
    """The runs whose figures are of a checkpoint before that which their method adds had begun."""
    found = []
    for run in comparison.runs:
        taken = best_evaluation(run, comparison.metric) if comparison.metric in comparison.figures else run.rows[-1]
        if taken is not None and not has_begun(run, taken):
            found.append(run)
    return found


def _verdict(comparison: Comparison, criterion: str) -> list[str]:
    """Which methods a test tells from their baselines; nothing if there was no test."""
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "no significant difference": []}
    for row in comparison.rows:
        found = row.against[criterion]
        if found is not None and found.delta is not None and found.holm is not None:
            better = (found.delta < 0) == comparison.lower_is_better
            kind = "no significant difference" if found.holm >= LEVEL else "better" if better else "worse"
            verdicts[kind].append(row.group.label)
    said = ". ".join(f"{kind.capitalize()}: {_list(labels)}" for kind, labels in verdicts.items() if labels)
    return [f"{criterion.capitalize()}, p < {LEVEL} after Holm's correction: {said}."] if said else []


def _paired(comparison: Comparison, criterion: str) -> list[str]:
    """The intervals over the same speakers or utterances, and what has none; nothing if no method has one.

    Those over the seeds of both sides are apart from others.
    """
    intervals, without = defaultdict(list), []
    for row in comparison.rows:
        found = row.against[criterion]
        if found is None or found.delta is None:
            continue
        if found.paired is None:
            without.append(row.group.label)
            continue
        delta, *ends = (_signed(value, _digits(comparison)) for value in (found.delta, *found.paired[:2]))
        intervals[found.paired.over].append(f"{row.group.label} {delta} ({' to '.join(ends)})")
    start = f"{criterion.capitalize()}, 95 % intervals over the same"
    lines = [f"{start} {over} (paired bootstrap): {_list(found)}." for over, found in intervals.items()]
    if lines and without:
        lacking = "None, as runs lack the errors of the same utterances, which seqssgd evaluate --save keeps"
        lines[-1] += f" {lacking}: {_list(without)}."
    return lines


def words(name: str) -> str:
    """The name of a figure or a metric in words."""
    return " ".join({"wer": "WER", "cer": "CER"}.get(word, word) for word in name.split("_"))


def figure_title(comparison: Comparison, name: str) -> str:
    """The name of a figure in words, and whether it is the best of its run."""
    return f"best {words(name)}" if name == comparison.metric and is_best(comparison.runs, name) else words(name)


def _list(names: list[str]) -> str:
    return "; ".join(names)  # labels have commas of their own


def _digits(comparison: Comparison) -> int:
    """Two decimals; four for losses, and for rates that are given as fractions."""
    values = [value for row in comparison.rows for value in row.values(comparison.decisive) if value is not None]
    return 4 if comparison.metric.endswith("loss") or max(map(abs, values), default=0) <= 1 else 2


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _size(c: float | None) -> str:
    return "–" if c is None else f"{c:.2g}" if c else "0"


def mean_and_sd(found: Estimate | None, digits: int) -> str:
    """A mean with its standard deviation, where it has one."""
    if found is None or found.sd is None:
        return _number(found and found.mean, digits)
    return f"{found.mean:.{digits}f} ± {found.sd:.{digits}f}"


def _difference(found: Difference | None, label: str, digits: int) -> str:
    if found is not None and found.baseline == label:
        return "baseline"
    if found is None or found.delta is None:
        return "–"
    tested = "–" if found.p is None else f"{p_value(found.p)}; {p_value(found.holm)}"
    return f"{_signed(found.delta, digits)} ({tested})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_value(value: float | None) -> str:
    """A p-value: three decimals, and never 0."""
    return _number(value, 3) if value is None or value >= 0.001 else "< 0.001"
