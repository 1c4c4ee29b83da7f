"""Finished runs side by side: a table and a plot, both read from the run directories alone."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqssgd.errors import UserError
from seqssgd.files import atomic_path


@dataclass
class Run:
    """What a run directory says about its run.

    Attributes:
        path: the directory.
        config: the resolved configuration.
        rows: the evaluations in order, as they stand in metrics.jsonl.
        result: the contents of result.json; empty while the run is not finished.
        evaluations: what the recipe's ``evaluate.py --save`` wrote, by split.
    """

    path: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]

    @property
    def method(self) -> str:
        """Base optimizer, method, noise level and signs, as far as they are not the ordinary ones."""
        optim = self.config.get("optim", {})
        base = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}.get(optim.get("base"), str(optim.get("base")))
        if optim.get("method") != "ssgd":
            return base
        signs = "" if optim["signs"] == "batch" else f", {optim['signs']}"
        return f"S-{base} {optim['noise']:g}{signs}"


def read_run(path: str | Path) -> Run:
    """Reads a run directory, finished or not.

    Raises:
        UserError: no run directory, or one without any evaluation yet.
    """
    import yaml

    path = Path(path)
    try:
        config = yaml.safe_load((path / "config.yaml").read_text())
        lines = (path / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        result, evaluations = (_json(path / name) for name in ("result.json", "evaluation.json"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path}: not a run directory (no {Path(error.filename).name})") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: its files are damaged ({reason}); repeat the run with another --out") from None
    rows = [row for row in rows if row["kind"] == "valid"]
    if not rows:
        raise UserError(f"{path}: no evaluation yet; run on until the first epoch ends")
    return Run(path, config, rows, result, evaluations)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def record(run: str | Path, split: str, figures: dict[str, Any]) -> None:
    """Adds the evaluation of a split, with the name of its checkpoint, to a run's evaluation.json.

    Raises:
        UserError: the run directory cannot be written to.
    """
    path = Path(run) / "evaluation.json"
    try:
        evaluations = {**_json(path), split: figures}
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(evaluations, indent=2) + "\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written ({error}); leave out --save") from None


def shared_metric(runs: Sequence[Run], metric: str | None = None) -> str:
    """``metric``, or if that is None one that all runs have: no loss and no character error rate if there are others.

    Raises:
        UserError: not all runs have it, or they have none in common.
    """
    own = {"kind", "step", "epoch", "passes", "lr", "noise", "seconds", "units_per_second", "train_loss"}
    shared = set.intersection(*(set(run.rows[-1]) for run in runs)) - own
    if metric is not None and metric not in shared:
        raise UserError(
            f"--metric {metric}: not in all of these runs; they share {', '.join(sorted(shared)) or 'none'}"
        )
    if not shared:
        raise UserError("these runs have no metric in common; compare runs of one task")
    return metric or min(shared, key=lambda name: (name.endswith("loss"), name.endswith("cer"), name))


def best_row(run: Run, metric: str) -> dict[str, Any]:
    """The evaluation with the best value: the highest of an accuracy, the lowest of everything else."""
    known = [row for row in run.rows if row[metric] is not None]
    if not known:
        raise UserError(f"{run.path}: {metric} was never finite")
    sign = -1 if "accuracy" in metric else 1
    return min(known, key=lambda row: sign * row[metric])


def table(runs: Sequence[Run], metric: str | None = None) -> str:
    """A Markdown table with one row per run.

    Args:
        runs: in the order of the rows.
        metric: of the evaluations; None: :func:`shared_metric`.
    """
    metric = shared_metric(runs, metric)
    tests = [run.evaluations.get("test", {}) for run in runs]
    tests = [figures if figures.get("checkpoint") == "best.pt" else {} for figures in tests]
    name = metric.replace("_", " ")
    short = max(run.rows[-1]["seconds"] for run in runs) < 600
    unit = "seconds" if short else "minutes"
    head = ["run", "method", "epochs", "passes", f"best {name} (epoch)", f"last {name}", unit]
    if any(tests):
        head.insert(-1, f"test {name.removeprefix('valid ')} of the best")
    rows = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for run, test in zip(runs, tests, strict=True):
        last, best = run.rows[-1], best_row(run, metric)
        cells = [run.path.name, run.method, f"{last['epoch']}", f"{last['passes']:,.0f}"]
        cells += [f"{best[metric]:.2f} ({best['epoch']})", _number(last[metric])]
        cells.append(f"{last['seconds']:.0f}" if short else f"{last['seconds'] / 60:.1f}")
        if any(tests):
            cells.insert(-1, _number(test.get(metric.removeprefix("valid_"))))
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def plot(runs: Sequence[Run], path: str | Path, metric: str | None = None) -> None:
    """Draws the metric of every run over the passes made, so that equal abscissas are equal compute.

    Args:
        runs: one curve each.
        path: the picture to write; its suffix (.png, .svg, .pdf) says in what format.
        metric: as in :func:`table`.

    Raises:
        UserError: the file cannot be written, or not in that format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    path, metric = Path(path), shared_metric(runs, metric)
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="forward-backward passes", ylabel=metric.replace("_", " "))
    for run in runs:
        values = [row[metric] for row in run.rows]
        axes.plot(
            [row["passes"] for row in run.rows],
            values,
            marker="o",
            markersize=3,
            label=f"{run.path.name}: {run.method}",
        )
    if "perplexity" in metric:  # the first evaluations would flatten all the rest of the picture
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {path}: {str(error).splitlines()[0]}") from None


def write_between(path: Path, name: str, text: str) -> None:
    """Puts ``text`` between the lines ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->`` of a file.

    Raises:
        UserError: the file has no such lines.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text()
    pattern = re.compile(rf"({re.escape(begin)}\n).*?({re.escape(end)})", re.DOTALL)
    new, count = pattern.subn(lambda match: f"{match[1]}{text}\n{match[2]}", old)
    if count != 1:
        raise UserError(f"{path}: needs the lines {begin} and {end} once")
    if new != old:
        with atomic_path(path) as temporary:
            temporary.write_text(new)
