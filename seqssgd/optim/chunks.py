"""Work on large tensors piece by piece: what lies between two steps of it stays in the processor's cache."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 2**18  # elements: on a CPU a new tensor of many megabytes costs more than the arithmetic on it


def pieces(*columns: Sequence[Tensor]) -> Iterator[tuple[list[int], tuple[list[Tensor], ...]]]:
    """The same pieces of the tensors of every column, for elementwise work in place.

    Args:
        columns: lists of as many tensors, those at one place of one shape.

    Yields:
        the places that the pieces belong to, and for each column the pieces: on a CPU those of one tensor, of some
        hundred thousand elements; elsewhere all tensors at once, as they are.
    """
    rows = list(zip(*columns, strict=True))
    if any(t.device.type != "cpu" for row in rows for t in row):
        yield list(range(len(rows))), tuple(list(column) for column in columns)
        return
    for place, row in enumerate(rows):
        if row[0].numel() <= CHUNK or not all(t.is_contiguous() for t in row):
            yield [place], tuple([t] for t in row)
            continue
        for parts in zip(*(t.view(-1).split(CHUNK) for t in row), strict=True):
            yield [place], tuple([part] for part in parts)


def widest(device: torch.device) -> torch.dtype:
    """What to sum in: double precision, where the device has it (Apple's does not)."""
    return torch.float32 if device.type == "mps" else torch.float64
