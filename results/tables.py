"""Writes every table of results in the README files anew, from the runs in this folder.

    make tables

A sub-folder holds the run directories of one comparison, without their checkpoints; ``benchmarks`` holds what the
benchmarks wrote with ``--json``. The place of each in a README file is marked by ``<!-- results/NAME: begin -->`` and
``<!-- results/NAME: end -->``.
"""

import json
import sys
from pathlib import Path

from seqssgd.errors import run_cli
from seqssgd.report import Run, plot, read_run, table, write_between

RESULTS = Path(__file__).resolve().parent
RUNS = {"ptb_small_cpu": "recipes/ptb_lstm/README.md"}
BENCHMARKS = {
    "benchmarks/optimizer_overhead": "benchmarks/README.md",
    "benchmarks/lm_throughput": "benchmarks/README.md",
}


def read_runs(name: str) -> list[Run]:
    """The runs of one comparison, in the order of their names."""
    return [read_run(path.parent) for path in sorted((RESULTS / name).glob("*/metrics.jsonl"))]


def benchmark_table(name: str) -> str:
    """A column for each model, a row for each figure: median (smallest to largest) of the rounds, or one number."""
    figures = json.loads((RESULTS / f"{name}.json").read_text())
    models = {key: dict(value) for key, value in figures.items() if isinstance(value, dict)}
    for values in models.values():
        for label, copies in values.pop("memory", {}).items():
            values[f"memory of {label} beyond a plain step, in copies of the weights"] = copies
    labels = list(dict.fromkeys(label for values in models.values() for label in values))
    rows = [["", *models], ["---", *["---:"] * len(models)]]
    rows += [[label, *(_cell(values.get(label)) for values in models.values())] for label in labels]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"{figures['machine']}; {figures['rounds']} rounds."])


def _cell(value: float | list[float] | None) -> str:
    if isinstance(value, list):
        return "{:.2f} ({:.2f} to {:.2f})".format(*value)
    return "" if value is None else f"{value:,.0f}" if value > 100 else f"{value:.2f}"


def tables() -> dict[str, tuple[Path, str]]:
    """Every table by name: the file that shows it, and its text."""
    root = RESULTS.parent
    shown = {name: (root / readme, table(read_runs(name))) for name, readme in RUNS.items()}
    return shown | {name: (root / readme, benchmark_table(name)) for name, readme in BENCHMARKS.items()}


def main() -> None:
    for name, (readme, text) in tables().items():
        write_between(readme, f"results/{name}", text)
        print(f"{readme.relative_to(RESULTS.parent)}: results/{name}")
    for name in RUNS:
        plot(read_runs(name), RESULTS / name / "curves.png")


if __name__ == "__main__":
    sys.exit(run_cli(main))
