"""Whether plain values, as YAML and JSON give them, are what annotations say: what files may hold is said by types.

Not by pydantic: torch is all that the package depends on, and what reads runs should need little beside it.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}
_LARGEST = 2**63  # whole numbers from there on are none that a program counts with


def misfit(kind: Any, value: Any, name: str = "") -> str | None:
    """What is wrong with a value, such as ``sets.train.hours: 'x' is not a number``; None if nothing is.

    Args:
        kind: an annotation: of plain types, alternatives and collections of them, ``Literal`` (of whose choices the
            type counts: an earlier version may have had others), a ``TypedDict``, whose further entries may be
            anything, or a dataclass, whose missing ones have defaults. What is of any other class may be anything.
        value: of a file.
        name: of the value in it.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Annotated, NotRequired):
        return misfit(arguments[0], value, name)
    if origin in (Union, UnionType):
        rest = [one for one in arguments if one is not NoneType]
        if len(rest) == 1 and value is not None:  # says where within it
            return misfit(rest[0], value, name)
        found = [misfit(one, value, name) for one in arguments]
        if isinstance(value, Mapping) and None not in found and (first := _group(arguments)) is not None:
            return found[first]  # says where within it, too
        fits = None in found
    elif is_typeddict(kind) or dataclasses.is_dataclass(kind):
        if isinstance(value, Mapping):
            return _of_entries(kind, value, name)
        fits = False
    elif dict in (kind, origin):
        if isinstance(value, Mapping):
            of = arguments[1] if arguments else Any
            return _first(misfit(of, entry, _within(name, key)) for key, entry in value.items())
        fits = False
    elif {kind, origin} & {list, tuple}:
        of_each = origin is not tuple or ... in arguments
        if isinstance(value, (list, tuple)) and (of_each or len(value) == len(arguments)):
            kinds = (arguments or (Any,))[:1] * len(value) if of_each else arguments
            return _first(misfit(*pair, name) for pair in zip(kinds, value, strict=True))
        fits = False
    else:
        fits = _is_plain(kind, value)
    wanted = "a usable number" if _is_extreme(kind, value) else _wanted(kind)
    return None if fits else f"{name or 'all of it'}: {_shown(value)} is not {wanted}"


def _group(kinds: tuple[Any, ...]) -> int | None:
    """Which of some alternatives is the first group of named values."""
    return next(
        (index for index, kind in enumerate(kinds) if is_typeddict(kind) or dataclasses.is_dataclass(kind)), None
    )


def _of_entries(kind: Any, value: Mapping[str, Any], name: str) -> str | None:
    hints, required = get_type_hints(kind, include_extras=True), getattr(kind, "__required_keys__", ())
    absent = next((key for key in hints if key in required and key not in value), None)
    if absent is not None:
        return f"{_within(name, absent)} is missing"
    return _first(misfit(hint, value[key], _within(name, key)) for key, hint in hints.items() if key in value)


def _is_plain(kind: Any, value: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) for choice in get_args(kind))
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
        return whole or (kind is float and isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind) if kind in (bool, str) else True


def _is_extreme(kind: Any, value: Any) -> bool:
    """Whether a value is a number as wanted, but for its size."""
    numbers = {int: (int,), float: (int, float)}
    return kind in numbers and isinstance(value, numbers[kind]) and not isinstance(value, bool)


def _wanted(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(one) for one in arguments)
    if origin is Literal:
        return _wanted(type(arguments[0]))
    if origin is tuple and ... not in arguments:
        return f"a list of {len(arguments)}"
    return _NAMES.get(kind) or ("a list" if {kind, origin} & {list, tuple} else "a group of named values")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _within(name: str, key: Any) -> str:
    return f"{name}.{key}" if name else str(key)


def _first(found: Any) -> str | None:
    return next((wrong for wrong in found if wrong is not None), None)
