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


def map_arrays(function: Callable[[Any], Any], tree: Any, strings: Callable[[Any], Any] | None = None) -> Any:
    """The same structure with ``function`` of every tensor and array in it.

    Mappings (those of ``transformers`` too), dataclasses, tuples, named ones and lists may lie inside each other.
    ``strings``, if given, is applied to lists and tuples of nothing but strings.

    Raises:
        TypeError: something else than these and plain values; a packed, nested or sparse tensor.
    """
    if isinstance(tree, PackedSequence):
        raise TypeError("take() cannot split a PackedSequence; take from the padded tensors and pack afterwards")
    if isinstance(tree, Tensor) and (tree.is_nested or tree.layout is not torch.strided):
        raise TypeError("take() cannot split nested or sparse tensors; take from dense ones and convert afterwards")
    if is_array(tree):
        return function(tree) if tree.ndim else tree
    if isinstance(tree, Mapping):
        return _mapping_like(tree, {key: map_arrays(function, value, strings) for key, value in tree.items()})
    if isinstance(tree, (tuple, list)):
        named = hasattr(tree, "_fields")
        if strings is not None and tree and not named and all(isinstance(value, (str, bytes)) for value in tree):
            return strings(tree)
        values = [map_arrays(function, value, strings) for value in tree]
        make: Any = type(tree)
        return make(*values) if named else make(values)  # a named tuple takes them one by one
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        new = copy.copy(tree)
        for field in dataclasses.fields(tree):
            value = map_arrays(function, getattr(tree, field.name), strings)
            object.__setattr__(new, field.name, value)  # frozen ones too
        return new
    if isinstance(tree, _NO_DATA) or callable(tree):
        return tree
    raise TypeError(
        f"take() cannot split a {torch.typename(tree)}; hand it the tensors inside, in tuples, mappings or "
        "dataclasses, and leave out what both halves need whole"
    )


def check_parts(batch: tuple, size: int, dim: int) -> None:
    """Refuses lists and tuples that may as well be the ``size`` examples one by one, or hold a value for each.

    Entries are several parts of the minibatch if their kinds differ: their dtypes, numbers of dimensions, keys. Of one
    kind they are parts if their shapes differ, as those of inputs (B, 8) and targets (B, 1) do, unless they look like
    images (channels, height, width), or are mappings and the like, as many as the examples. Two in a tuple, and those
    of a named tuple, are parts even if they are alike.

    Raises:
        TypeError: there is such a list or tuple.
    """
    for part in batch:
        _check(part, size, dim)


def _check(tree: Any, size: int, dim: int) -> None:
    if isinstance(tree, (tuple, list)) and not hasattr(tree, "_fields") and len(tree) > 1:
        if len(tree) == size and not _is_pair(tree) and all(isinstance(value, Number) for value in tree):
            raise TypeError(
                f"take() does not know whether a {type(tree).__name__} of {size} numbers has one for each example, of "
                f"which there are {size}: make it a tensor, which is halved, or leave it out of what is taken"
            )
        if len({_kind(value) for value in tree}) == 1 and _may_be_examples(tree, size, dim):
            what = "tensors" if is_array(tree[0]) else f"entries ({type(tree[0]).__name__})"
            raise TypeError(
                f"take() cannot tell whether a {type(tree).__name__} of {len(tree)} {what} that are alike is several "
                "parts of a minibatch or its examples one by one: hand parts over as arguments of their own, "
                "take(*parts), and say dim=None for examples"
            )
    for value in _inside(tree):
        _check(value, size, dim)


def _may_be_examples(entries: Sequence[Any], size: int, dim: int) -> bool:
    """Whether ``entries``, which are of one kind, may be examples."""
    shapes = [_shapes(entry) for entry in entries]
    if not shapes[0]:
        return False
    if len(set(shapes)) == 1 and not _is_pair(entries):
        return True
    if not is_array(entries[0]):
        return len(entries) == size
    channels_first = entries[0].ndim == 3 and dim % 3 == 0 and size in (1, 3, 4)
    return channels_first and all(len({entry.shape[i] for entry in entries}) > 1 for i in (1, 2))


def _is_pair(entries: Sequence[Any]) -> bool:
    return isinstance(entries, tuple) and len(entries) == 2


def _inside(tree: Any) -> list[Any]:
    if is_array(tree):
        return []
    if isinstance(tree, Mapping):
        return list(tree.values())
    if isinstance(tree, (tuple, list)):
        return list(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    return []


def _kind(tree: Any) -> Any:
    """Equal for what differs in sizes and values only."""
    if is_array(tree):
        return tree.ndim, tree.dtype
    keys = frozenset(tree) if isinstance(tree, Mapping) else None
    return type(tree), keys, tuple(_kind(value) for value in _inside(tree))


def _shapes(tree: Any) -> tuple[Any, ...]:
    """Those of all arrays with dimensions in it."""
    if is_array(tree):
        return (tuple(tree.shape),) if tree.ndim else ()
    return tuple(shape for value in _inside(tree) for shape in _shapes(value))


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
