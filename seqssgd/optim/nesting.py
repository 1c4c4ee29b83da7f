"""The tensors in a minibatch, however it is put together."""

import copy
import dataclasses
import enum
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_NO_DATA = (type(None), str, bytes, bool, Number, enum.Enum, os.PathLike, torch.dtype, torch.device, type)


def is_array(thing: Any) -> bool:
    """Whether ``thing`` is a tensor or an array of NumPy."""
    numpy = sys.modules.get("numpy")
    return isinstance(thing, Tensor) or (numpy is not None and isinstance(thing, numpy.ndarray))


def map_arrays(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same structure with ``function`` of every tensor and array in it.

    Mappings (those of ``transformers`` too), dataclasses, tuples, named ones and lists may lie inside each other.

    Raises:
        TypeError: something else than these and plain values; a packed, nested or sparse tensor; a list or tuple of
            tensors that are alike, which may be several parts of the minibatch or its examples one by one.
    """
    if isinstance(tree, PackedSequence):
        raise TypeError("take() cannot split a PackedSequence; take from the padded tensors and pack afterwards")
    if isinstance(tree, Tensor) and (tree.is_nested or tree.layout is not torch.strided):
        raise TypeError("take() cannot split nested or sparse tensors; take from dense ones and convert afterwards")
    if is_array(tree):
        return function(tree) if tree.ndim else tree
    if isinstance(tree, Mapping):
        return _mapping_like(tree, {key: map_arrays(function, value) for key, value in tree.items()})
    if isinstance(tree, (tuple, list)):
        if len(tree) > 1 and all(map(is_array, tree)) and len({(a.ndim, a.dtype) for a in tree}) == 1 and tree[0].ndim:
            raise TypeError(
                f"take() cannot tell whether a {type(tree).__name__} of {len(tree)} tensors that are alike is several "
                "tensors of a minibatch or its examples one by one: hand the tensors over as arguments of their own, "
                "take(*tensors), or say dim=None for examples"
            )
        values = [map_arrays(function, value) for value in tree]
        make: Any = type(tree)
        return make(*values) if hasattr(tree, "_fields") else make(values)  # a named tuple takes them one by one
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        new = copy.copy(tree)
        for field in dataclasses.fields(tree):
            object.__setattr__(new, field.name, map_arrays(function, getattr(tree, field.name)))  # frozen ones too
        return new
    if isinstance(tree, _NO_DATA) or callable(tree):
        return tree
    raise TypeError(
        f"take() cannot split a {torch.typename(tree)}; hand it the tensors inside, in tuples, mappings or "
        "dataclasses, and leave out what both halves need whole"
    )


def _mapping_like(tree: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    try:
        new: Any = copy.copy(tree)
        for key, value in values.items():
            new[key] = value
    except TypeError:  # one that cannot be copied or written to
        return values
    return new


def slice_examples(batch: Sequence[Any], start: int, stop: int) -> tuple[Any, ...]:
    """Of sequences with an entry for each example, the entries from ``start`` to ``stop``."""
    return tuple(part[start:stop] for part in batch)
