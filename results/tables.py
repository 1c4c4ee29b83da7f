"""Writes every table of results in the README files anew, from the runs in this folder.

    make tables

Each sub-folder holds the run directories of one comparison, without their checkpoints, and its place in a README file
is marked by ``<!-- results/NAME: begin -->`` and ``<!-- results/NAME: end -->``.
"""

import sys
from pathlib import Path

from seqssgd.errors import run_cli
from seqssgd.report import plot, read_run, table, write_between

RESULTS = Path(__file__).resolve().parent
PLACES = {"ptb_small_cpu": "recipes/ptb_lstm/README.md"}


def main() -> None:
    for name, readme in PLACES.items():
        runs = [read_run(path.parent) for path in sorted((RESULTS / name).glob("*/metrics.jsonl"))]
        write_between(RESULTS.parent / readme, f"results/{name}", table(runs))
        plot(runs, RESULTS / name / "curves.png")
        print(f"{readme}: {len(runs)} runs of results/{name}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
