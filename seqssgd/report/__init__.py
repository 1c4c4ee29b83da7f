"""Runs side by side: grouped by method, averaged over seeds, held against baselines of equal epochs and equal compute.

``grouping`` puts the seeds of one configuration together and names it,
``comparison`` averages and tests, ``tables`` and ``plots`` show what it found, ``writing`` makes files of them.
"""

from ..runs.reading import Run, read_run, record
from .comparison import Comparison, compare
from .grouping import Group, group_runs
from .tables import results_table
from .writing import summary, write_between, write_report

__all__ = [
    "Comparison",
    "Group",
    "Run",
    "compare",
    "group_runs",
    "read_run",
    "record",
    "results_table",
    "summary",
    "write_between",
    "write_report",
]
