"""Two runs held against each other: what was asked for, where it ran, and the first place where they part."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ..documents import printable
from . import checkpoints, layout
from .environment import read_environment
from .metrics import read_rows
from .settings import flatten, read_config

# What a clock has measured, which differs between two runs that are the same to the bit.
TIMES = ("seconds", "units_per_second", "training_seconds", "metrics_length")
_OF_THE_CALL = ("command", "started", "data")  # of the environment: they differ between two runs of one kind


def differences(a: str | Path, b: str | Path) -> list[str]:
    """What differs between two runs, a line for each; none for runs that are the same but for their times.

    Configuration and environment first, then the first row of metrics, then the first tensor or number of the last
    checkpoint that both have of one step; of runs without one, of their best.

    Raises:
        UserError: one is no run directory, or its files are damaged.
    """
    a, b = Path(a), Path(b)
    lines = [f"{layout.CONFIG}: {line}" for line in _of_mappings(*(flatten(read_config(run)) for run in (a, b)))]
    environments = [_environment(run) for run in (a, b)]
    lines += [f"{layout.ENVIRONMENT}: {line}" for line in _of_mappings(*environments)]
    return [printable(line) for line in (*lines, *_first_row(a, b), *_first_tensor(a, b))]


def leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and plain values of a checkpoint under dotted names, in its order, those of times left out."""
    if isinstance(tree, Mapping):
        pairs = [(key, value) for key, value in tree.items() if key not in TIMES]
    elif isinstance(tree, (list, tuple)):
        pairs = list(enumerate(tree))
    else:
        yield name, tree
        return
    for key, value in pairs:
        yield from leaves(value, f"{name}.{key}" if name else str(key))


def _of_mappings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    keys = [key for key in {**one, **other} if one.get(key, _ABSENT) != other.get(key, _ABSENT)]
    return [f"{key} {one.get(key, _ABSENT)} | {other.get(key, _ABSENT)}" for key in keys]


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()


def _environment(run: Path) -> dict[str, Any]:
    return {key: value for key, value in flatten(read_environment(run)).items() if key not in _OF_THE_CALL}


def _first_row(a: Path, b: Path) -> list[str]:
    rows = [read_rows(run / layout.METRICS) if (run / layout.METRICS).is_file() else [] for run in (a, b)]
    for pair in zip(*rows, strict=False):
        one, other = ({key: value for key, value in row.items() if key not in TIMES} for row in pair)
        if one != other:
            return [f"{layout.METRICS}: first at step {one.get('step')}: {'; '.join(_of_mappings(one, other)[:3])}"]
    lengths = [len(found) for found in rows]
    return [f"{layout.METRICS}: {lengths[0]} rows | {lengths[1]}"] if lengths[0] != lengths[1] else []


def _first_tensor(a: Path, b: Path) -> list[str]:
    files = [layout.step_files(run / layout.CHECKPOINTS) for run in (a, b)]
    common = [step for step in files[0] if step in files[1]]
    if common:
        paths = [found[common[0]] for found in files]
    else:
        paths = [run / layout.CHECKPOINTS / layout.BEST for run in (a, b)]
        if not all(path.is_file() for path in paths):
            return ["checkpoints: none of the same step in both"] if any(files) else []
    name = f"{layout.CHECKPOINTS}/{paths[0].name}"
    one, other = (dict(leaves(checkpoints.load(path))) for path in paths)
    for key in {**one, **other}:
        found = _unlike(one.get(key, _ABSENT), other.get(key, _ABSENT))
        if found:
            return [f"{name}: first {key}: {found}"]
    return []


def _unlike(one: Any, other: Any) -> str | None:
    """How two values differ; None if they do not, to the bit."""
    if not (isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)):
        same = type(one) is type(other) and not isinstance(one, torch.Tensor) and (one == other or one != one)
        return None if same else f"{_shown(one)} | {_shown(other)}"
    if one.shape != other.shape or one.dtype != other.dtype:
        return f"{_shown(one)} | {_shown(other)}"
    unequal = (_bytes(one) != _bytes(other)).any(1)
    if not unequal.any():
        return None
    kind = torch.complex128 if one.is_complex() else torch.float64
    apart = (one.reshape(-1)[unequal].to(kind) - other.reshape(-1)[unequal].to(kind)).abs().max().item()
    return f"{int(unequal.sum()):,} of {one.numel():,} elements, by at most {apart:.3g}"


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Elements × bytes: NumPy does not know all types of torch, such as bfloat16."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).view(tensor.numel(), tensor.element_size())


def _shown(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
