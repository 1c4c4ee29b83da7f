"""What the settings of a method may be, said once: in the signature of its class."""

import functools
import inspect
import operator
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 1e30  # not far beyond it numbers overflow in single precision


@dataclass(frozen=True)
class Range:
    """The limits of a number, for annotations: ``copies: Annotated[int, Range(ge=1)] = 1``.

    Attributes:
        gt, ge, lt, le: above, at least, below, at most; None: no such limit.
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: Any) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        limits = ((">", self.gt), (">=", self.ge), ("<", self.lt), ("<=", self.le))
        return " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)

    @property
    def bounded(self) -> bool:
        """Whether it has both ends, so that nothing in it is infinite."""
        return (self.gt, self.ge) != (None, None) and (self.lt, self.le) != (None, None)


def parameters(make: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters of a class or a function, by name and with their annotations, ``Annotated`` included.

    For what a class takes as ``**settings``, those of the classes that it derives from.
    """
    if isinstance(make, type):
        makers: list[Any] = [vars(c)["__init__"] for c in make.__mro__[:-1] if "__init__" in vars(c)]
    else:
        makers = [make]
    found: dict[str, inspect.Parameter] = {}
    for maker in makers:
        hints = get_type_hints(maker, include_extras=True)
        own = list(inspect.signature(maker).parameters.values())[isinstance(make, type) :]  # without self
        for each in own:
            if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
                found.setdefault(each.name, each.replace(annotation=hints.get(each.name, Any)))
        if not any(each.kind == each.VAR_KEYWORD for each in own):
            break
    return found


def unmet(annotation: Any, value: Any) -> str | None:
    """What ``value`` would have to be, if ``annotation`` excludes it, such as ``a whole number >= 1``; else None.

    Numbers, choices and switches are judged: ``int`` and ``float``, which must be finite and within their
    :class:`Range`, ``Literal`` and ``bool``, each also with ``| None``. Of everything else any value but None is
    allowed.
    """
    kinds, limits = _parts(annotation)
    if any(_holds(kind, limits, value) for kind in kinds):
        return None
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    wanted = [f"one of {', '.join(dict.fromkeys(map(str, choices)))}"] if choices else []
    wanted += [_wanted(kind, limits) for kind in kinds if get_origin(kind) is not Literal and kind is not NoneType]
    return ", or ".join(dict.fromkeys(wanted + ["null"] * (NoneType in kinds)))


def plain_type(annotation: Any) -> Any:
    """The type of an annotation without its limits: of ``Annotated[float, Range(gt=0)]`` float, of choices str."""
    kinds = [type(get_args(kind)[0]) if get_origin(kind) is Literal else kind for kind in _parts(annotation)[0]]
    return functools.reduce(operator.or_, kinds)


def check_settings(make: Callable[..., Any], **values: Any) -> None:
    """Makes sure that ``values`` are what the signature of ``make`` says.

    Raises:
        ValueError: one is not; the message names it and what it would have to be.
    """
    known = parameters(make)
    for name, value in values.items():
        if (wanted := unmet(known[name].annotation, value)) is not None:
            raise ValueError(f"{name}={value!r} must be {wanted}")


def _parts(annotation: Any) -> tuple[list[Any], list[Range]]:
    """The alternatives of an annotation, and the limits of its numbers."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kinds, limits = _parts(arguments[0])
        return kinds, limits + [limit for limit in arguments[1:] if isinstance(limit, Range)]
    if origin in (Union, UnionType):
        found = [_parts(argument) for argument in arguments]
        return [kind for kinds, _ in found for kind in kinds], [limit for _, limits in found for limit in limits]
    return [annotation], []


def _holds(kind: Any, limits: list[Range], value: Any) -> bool:
    if kind is NoneType or value is None:
        return kind in (NoneType, Any) and value is None
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is bool:
        return isinstance(value, bool)
    if kind not in (int, float):
        return True
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return False
    return value in Range(ge=-LARGEST, le=LARGEST) and all(value in limit for limit in limits)


def _wanted(kind: Any, limits: list[Range]) -> str:
    if kind is bool:
        return "True or False"
    if kind not in (int, float):
        return f"of type {getattr(kind, '__name__', kind)}"
    number = "whole number" if kind is int else "number" if any(x.bounded for x in limits) else "finite number"
    return " ".join(["a", number, *map(str, limits)])
