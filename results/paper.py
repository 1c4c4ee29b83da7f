"""Writes results/README.md: every row of the paper's tables and figures beside the runs in this folder that answer it.

    make results

paper.yaml says which runs those are. Every figure is computed from their files, every verdict by a rule over figures;
what names runs that are not there, or that lack a figure, is an error.
"""

import shlex
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from contrasts import CONTRASTS, kept

from seqssgd.documents import parse_json, read_yaml
from seqssgd.errors import UserError, run_cli
from seqssgd.files import atomic_path
from seqssgd.report import Comparison, Run, compare, read_run
from seqssgd.report.comparison import Difference, Estimate, Row, difference, holm
from seqssgd.report.noise_size import logged_noise
from seqssgd.report.tables import LEVEL, mean_and_sd, p_value, words
from seqssgd.runs import layout

RESULTS = Path(__file__).resolve().parent
LIMIT = "--max-minutes"
KEYS = {"row", "paper", "noise", "runs", "scale", "data", "against", "command"}
SCALES = ("full", "reduced")
HEAD = ["row", "paper", "ours", "n", "c", "scale and data", "hours", "difference (95 %; Holm's p)", "verdict"]
INTRODUCTION = f"""\
# The paper, row by row

What Sung et al. (2020, arXiv 2009.02479) report, and what the runs in this folder found. `make results` makes this page
of [paper.yaml](paper.yaml) and the files of the runs; what will be run next is in [plan.md](plan.md).

- **paper**: its figure where it is on record here ("–": see the paper), and the noise levels that it gives.
- **ours**: mean ± standard deviation over n seeds, of each run's best checkpoint on validation.
- **c**: root mean square of the noise over that of the weights.
- **scale**: *full*, the paper's network and data, and its length where that is known; *reduced*; or *not run*.
- **hours**: of one run, on one core of a 2-core virtual machine (AMD EPYC; speechocean762: Intel Xeon) that had other
  work to do. The small RNN: one of some twenty runs at a time on one NVIDIA H200; the LSTM with dropout: the first seed
  there, the others on one core of an Intel Xeon, and the hours are the mean of both.
- **difference**: from the baseline that is named, with the 95 % interval: Welch's where both have several seeds, else
  ("~") that of the standard deviation pooled over all methods beside it. p is Welch's, corrected by Holm's method for
  all tests in the part. A recipe's table corrects for its own methods alone, so that its p can be smaller.
- **verdict**: *better* or *worse* where the corrected p is below {LEVEL}, else *no significant difference*;
  *not tested* where a side has one seed. Of full rows also whether the paper's figure lies within the 95 % interval of
  the mean of ours.
"""


@dataclass
class Line:
    """A row of the page.

    Attributes:
        entry: of paper.yaml.
        comparison: of the runs' folder; None where there are none.
        of: the method that the runs are seeds of.
        differences: from the baselines, by what is equal.
    """

    entry: dict[str, Any]
    comparison: Comparison | None = None
    of: Row | None = None
    differences: dict[str, Difference] = field(default_factory=dict)


def main() -> None:
    text, said = build()
    with atomic_path(RESULTS / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"results/README.md: {said}")


def build() -> tuple[str, str]:
    """The page, and what is in it in some words."""
    read = read_parts()
    parts = [(part, [line_of(row, part["figure"]) for row in part["rows"]]) for part in read]
    tests = sum(correct(lines) for _, lines in parts)
    ran = sum(line.of is not None for _, lines in parts for line in lines)
    said = f"{sum(len(lines) for _, lines in parts)} rows, {ran} of them with runs; {tests} tests"
    return page(parts), said


def read_parts() -> list[dict[str, Any]]:
    """The parts of paper.yaml.

    Raises:
        UserError: a row has an unknown key, no name, neither runs nor a command, or no scale.
    """
    parts = read_yaml(RESULTS / "paper.yaml", "put the file of the repository back")["parts"]
    for row in [row for part in parts for row in part["rows"]]:
        name = row.get("row", row)
        if wrong := sorted(set(row) - KEYS):
            raise UserError(
                f"paper.yaml, {name}: no such entry: {', '.join(wrong)}; there are {', '.join(sorted(KEYS))}"
            )
        if ("runs" in row) == ("command" in row) or "row" not in row:
            raise UserError(f"paper.yaml, {name}: give it a name, and runs, or the command that would make them")
        if "runs" in row and row.get("scale") not in SCALES:
            raise UserError(f"paper.yaml, {name}: scale: {row.get('scale')!r} is not one of {', '.join(SCALES)}")
    return parts


def line_of(entry: dict[str, Any], figure: str) -> Line:
    """A row with its figures, of that name.

    Raises:
        UserError: its runs, or those of a baseline, are not there, lack the figure, or are not the seeds of one method.
    """
    if "runs" not in entry:
        return Line(entry)
    comparison, of = method(entry["runs"], figure)
    line = Line(entry, comparison, of)
    for equal, pattern in entry.get("against", {}).items():
        beside, baseline = method(pattern, figure)
        if beside is not comparison:  # of other data, maybe
            raise UserError(f"paper.yaml, {entry['row']}: {pattern} is not beside {entry['runs']}: take one folder")
        line.differences[equal] = difference(of, baseline, comparison.decisive, comparison.spread)
    return line


def method(pattern: str, figure: str) -> tuple[Comparison, Row]:
    """The method whose runs are those of a pattern, and the comparison of all that lie beside them."""
    paths = {path.parent for path in RESULTS.glob(f"{pattern}/{layout.CONFIG}")}
    if not paths:
        raise UserError(f"paper.yaml: {pattern}: no such runs in results/; copy them there, or take the row back")
    comparison = folder(pattern.partition("/")[0])
    for row in comparison.rows:
        own = {run.path for run in row.group.runs}
        if own & paths:
            if own != paths:
                raise UserError(f"paper.yaml: {pattern}: not the runs of one method, which are {_names(own)}")
            if comparison.decisive != figure:
                raise UserError(
                    f"paper.yaml: {pattern}: not all runs beside it have {figure}; evaluate them with --save"
                )
            return comparison, row
    raise UserError(f"paper.yaml: {pattern}: {'; '.join(comparison.left_out.values())}; finish the runs")


@cache
def folder(name: str) -> Comparison:
    """All runs of a folder side by side; of a tuned study those that were chosen, since the others are not tested."""
    if name in CONTRASTS:
        return compare(kept(RESULTS / name))
    paths = sorted((RESULTS / name).glob(f"*/{layout.CONFIG}"))
    return compare([read_run(path.parent) for path in paths])


def correct(lines: list[Line]) -> int:
    """Corrects the p-values of a part for their number, which it returns; twins are one test."""
    tested = {}
    for line in lines:
        for equal, found in line.differences.items():
            if found.p is not None:
                tested.setdefault((line.entry["runs"], line.entry["against"][equal]), []).append((line, equal, found))
    corrected = holm([same[0][2].p for same in tested.values()])
    for same, p in zip(tested.values(), corrected, strict=True):
        for line, equal, found in same:
            line.differences[equal] = found._replace(holm=p)
    return len(tested)


# ---- words -----------------------------------------------------------------------------------------------------------


def verdict(line: Line) -> str:
    """What the figures of a row say."""
    if line.of is None or line.comparison is None:
        return "not run"
    estimate = line.of.figure(line.comparison.decisive)
    assert estimate is not None
    said = [f"at {equal}: {word(found, line.comparison.lower_is_better)}" for equal, found in line.differences.items()]
    if line.entry["scale"] == "full" and isinstance(line.entry.get("paper"), (int, float)):
        said.append(agreement(line.entry["paper"], estimate))
    return "; ".join(said) or ("baseline" if line.of.group.is_baseline else "no baseline")


def word(found: Difference, lower_is_better: bool) -> str:
    """The verdict on one difference."""
    if found.delta is None or found.holm is None:
        return "not tested"
    if found.holm >= LEVEL:
        return "no significant difference"
    return "better" if (found.delta < 0) == lower_is_better else "worse"


def agreement(published: float, ours: Estimate) -> str:
    """Whether a published figure lies within the 95 % interval of our mean (Student's t)."""
    if ours.sd is None:
        return "one seed, which tells nothing of the paper's figure"
    from scipy.stats import t

    half = float(t.ppf(0.975, ours.n - 1)) * ours.sd / ours.n**0.5
    low, high = ours.mean - half, ours.mean + half
    return f"the paper's figure is {'within' if low <= published <= high else 'outside'} {low:.2f} to {high:.2f}"


def page(parts: list[tuple[dict[str, Any], list[Line]]]) -> str:
    text = [INTRODUCTION]
    for part, lines in parts:
        rows = [HEAD, ["---"] * 3 + ["---:"] * 2 + ["---"] + ["---:"] + ["---"] * 2, *(cells(line) for line in lines)]
        table = ["| " + " | ".join(row) + " |" for row in rows]
        note = f" {part['note']}" if "note" in part else ""
        text += [f"## {part['title']}\n", f"Figures: {words(part['figure'])}.{note}\n", *table, ""]
        text += ["Commands:\n", *commands(lines), ""]
    return "\n".join(text)


def cells(line: Line) -> list[str]:
    entry = line.entry
    noise = f"noise {entry['noise']}" if "noise" in entry else ""
    paper = f"{entry['paper']:.2f}" if "paper" in entry else "–"
    known = [entry["row"], f"{paper} ({noise})" if noise else paper]
    if line.of is None or line.comparison is None:
        return [*known, "", "", "", "*not run*", "", "", "not run"]
    runs, estimate, c = line.of.group.runs, line.of.figure(line.comparison.decisive), logged_noise(line.of.group)
    assert estimate is not None
    hours = f"{line.of.group.mean('seconds') / 3600:.2f}"
    shown = [f"{found.baseline}, {equal}: {interval(found)}" for equal, found in line.differences.items()]
    size = "–" if c is None else f"{c:.2g}"
    scale = f"*{entry['scale']}*; {entry.get('data', '')}"
    return [*known, mean_and_sd(estimate, 2), str(len(runs)), size, scale, hours, "<br>".join(shown), verdict(line)]


def interval(found: Difference) -> str:
    text = f"{found.delta:+.2f}"
    if found.low is not None and found.high is not None:
        text += f" ({'' if found.p is not None else '~'}{found.low:+.2f} to {found.high:+.2f}"
        text += f"; {p_value(found.holm)})" if found.holm is not None else ")"
    return text.replace("-", "−")


def commands(lines: list[Line]) -> list[str]:
    """A line for each row: the runs of each commit and what made the first of them; of those not run what would."""
    found = []
    for line in lines:
        if line.of is None:
            found.append(f"- {line.entry['row']}: `{line.entry['command']}`")
            continue
        made: dict[str, list[tuple[Run, list[str]]]] = {}
        for run in sorted(line.of.group.runs, key=lambda run: run.path):
            its = environment(run)
            made.setdefault(its["commit"][:7], []).append((run, its["command"]))
        parts = []
        for commit, those in made.items():
            folders = ", ".join(f"[{run.path.name}]({run.path.relative_to(RESULTS).as_posix()})" for run, _ in those)
            parts.append(f"{folders}, commit {commit}: `{shlex.join(['python', *without_limit(those[0][1])])}`")
        found.append(f"- {line.entry['row']}: {'; '.join(parts)}")
    return found


def without_limit(command: list[str]) -> list[str]:
    """A command without the time after which it was to stop, which says nothing of what it made."""
    if LIMIT not in command:
        return command
    place = command.index(LIMIT)
    return [*command[:place], *command[place + 2 :]]


def environment(run: Run) -> dict[str, Any]:
    """What a run recorded of where it was made.

    Raises:
        UserError: it has no such record, or one without commit or command.
    """
    file = run.path / "environment.json"
    try:
        found = parse_json(file.read_bytes())
        return {"commit": str(found["commit"]), "command": [str(word) for word in found["command"]]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: does not say by what command and at which commit it was made ({error})") from None


def _names(paths: set[Path]) -> str:
    return ", ".join(sorted(path.relative_to(RESULTS).as_posix() for path in paths))


if __name__ == "__main__":
    sys.exit(run_cli(main))
