"""Every method by its name in a configuration: one class, and one entry here.

All else that a configuration has to know of a method stands in its class: its settings, their types, limits and
defaults in the signature, what they are for in the docstring.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, get_type_hints

from torch import nn
from torch.optim import Optimizer

from ..errors import UserError
from ..named import load_named
from ..optim import (
    IVON,
    MRWP,
    MSAM,
    NSO,
    SAM,
    CovarianceNoise,
    DropConnect,
    MultiPassOptimizer,
    OneSidedNoise,
    ShapedNoise,
    SinglePass,
    SymmetricNoise,
    WeightAverage,
)
from ..optim.hooks import Hooks
from ..optim.limits import Range, parameters

# What a configuration has for every method, and gives to those whose signature asks for it.
COMMON = ("lr", "momentum", "weight_decay", "betas", "noise", "bn_stats")
GIVEN = (*COMMON, "seed", "model")
LEVEL = ("only", "noise_schedule", "noise_ramp")  # settings of all methods with a level


@dataclass(frozen=True)
class Setting:
    """A setting of a method.

    Attributes:
        annotation: its type and limits, as :func:`seqssgd.optim.limits.unmet` reads them.
        default: None where it has none.
        required: it has none.
        help: what the docstring says of it.
    """

    annotation: Any
    default: Any
    required: bool
    help: str


@dataclass(frozen=True, eq=False)
class Method:
    """How a method is built, and what it can be told.

    Attributes:
        make: the class, or a function that returns an instance of one. Its first parameter is ``base``, the optimizer
            that steps, or, of a method that steps by itself, ``params``.
        defaults: of its settings, where they are others than in the signature.
        fixed: arguments that are no settings here.
    """

    make: Callable[..., MultiPassOptimizer]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def parameters(self) -> Mapping[str, Any]:
        """Those of ``make`` behind the first."""
        return dict(list(parameters(self.make).items())[1:])

    @functools.cached_property
    def own(self) -> Mapping[str, Setting]:
        """The settings that the signature has for it."""
        found = {}
        for name, parameter in self.parameters.items():
            if name in GIVEN or name in self.fixed:
                continue
            required = parameter.default is parameter.empty and name not in self.defaults
            default = None if required else self.defaults.get(name, parameter.default)
            found[name] = Setting(parameter.annotation, default, required, _help(self.make, name))
        return found

    @property
    def steps_itself(self) -> bool:
        """Whether it wraps no other optimizer."""
        return next(iter(parameters(self.make))) == "params"

    @property
    def kind(self) -> type[MultiPassOptimizer]:
        """The class of what is built."""
        return self.make if isinstance(self.make, type) else get_type_hints(self.make)["return"]

    @property
    def has_level(self) -> bool:
        """Whether it moves the weights, as far as an entry of their groups says."""
        return not issubclass(self.kind, SinglePass)

    @property
    def sets_level(self) -> bool:
        """Whether an argument of its own is the level of groups that have none."""
        return self.kind.level_key in self.parameters

    def groups_alike(self, only: Any) -> bool:
        """Whether all parameters are in one group, whose level is the method's own: no roles are named."""
        return (self.sets_level or self.steps_itself) and only is None

    @property
    def takes_noise(self) -> bool:
        """Whether ``optim.noise`` is its level."""
        return self.has_level and not self.steps_itself and ("noise" in self.parameters or not self.sets_level)

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """All that it can be told beyond what every method can, with its defaults."""
        level = {key: None for key in LEVEL if self.has_level and key not in self.fixed}
        noise = {"noise": 0.0} if self.takes_noise else {}
        return {**level, **noise, **{name: setting.default for name, setting in self.own.items()}}


def exponential_average(
    base: Optimizer,
    model: nn.Module,
    *,
    average_decay: Annotated[float, Range(gt=0, lt=1)] = 0.999,
    average_start: Annotated[int, Range(ge=0)] = 0,
) -> WeightAverage:
    """The base optimizer, evaluated with the exponential moving average of its weights.

    Args:
        base: the optimizer that steps.
        model: the module that it trains.
        average_decay: of the moving average.
        average_start: steps before the average begins.
    """
    return WeightAverage(base, model, decay=average_decay, start=average_start)


def plain_average(
    base: Optimizer, model: nn.Module, *, average_start: Annotated[int, Range(ge=0)] = 0
) -> WeightAverage:
    """The base optimizer, evaluated with the mean of its weights after every step.

    Args:
        base: the optimizer that steps.
        model: the module that it trains.
        average_start: steps before the average begins.
    """
    return WeightAverage(base, model, decay=None, start=average_start)


_MEAN = {"reduction": "mean"}  # as Pass.mean makes the losses of the tasks

# A new method is one more entry.
METHODS: dict[str, Method] = {
    "none": Method(SinglePass, fixed={"model": None, "bn_stats": "both"}),
    "ssgd": Method(SymmetricNoise, fixed=_MEAN),
    "ssgd_shaped": Method(ShapedNoise, fixed=_MEAN),
    "weight_noise": Method(OneSidedNoise),
    "two_draws": Method(OneSidedNoise, fixed={"copies": 2}),
    "smoothout": Method(OneSidedNoise, {"distribution": "uniform", "granularity": "absolute"}),
    "adasmoothout": Method(OneSidedNoise, {"distribution": "uniform", "granularity": "filter"}),
    "graves": Method(OneSidedNoise, {"distribution": "gaussian", "granularity": "absolute"}),
    "nso": Method(NSO),
    "mrwp": Method(MRWP),
    "dropconnect": Method(DropConnect),
    "covariance": Method(CovarianceNoise, fixed={"only": None}),  # it has one level for all
    "sam": Method(SAM, fixed={"adaptive": False, "eta": 0.01}),
    "asam": Method(SAM, {"rho": 0.5}, {"adaptive": True}),
    "msam": Method(MSAM),
    "ivon": Method(IVON, fixed={"estimate": "price", **_MEAN}),
    "ema": Method(exponential_average),
    "swa": Method(plain_average),
}


def is_elsewhere(name: Any) -> bool:
    """Whether a method's name is that of a class outside of this package."""
    return isinstance(name, str) and name not in METHODS and ":" in name


@functools.cache
def find_method(name: str) -> Method:
    """The method of a name: an entry of ``METHODS``, or a class from elsewhere as ``module:Class``.

    Raises:
        UserError: there is no such method, or what has that name is none.
    """
    if name in METHODS:
        return METHODS[name]
    if not is_elsewhere(name):
        raise UserError(f"optim.method: {name!r} is not one of {', '.join(METHODS)}, or module:Class")
    found = load_named("optim.method", name)
    if not (isinstance(found, type) and issubclass(found, MultiPassOptimizer)):
        is_base = isinstance(found, type) and issubclass(found, Optimizer)
        hint = "it goes to optim.base" if is_base else "it has no passes"
        raise UserError(f"optim.method: {name} is no class derived from seqssgd.optim.MultiPassOptimizer; {hint}")
    needed = ("pass_signs",) if issubclass(found, SinglePass) else ("pass_signs", "perturb")
    if lacking := [hook for hook in needed if getattr(found, hook) is getattr(Hooks, hook)]:
        raise UserError(f"optim.method: {name} is not finished: it has no {' and no '.join(lacking)}")
    method = Method(found)
    for key, setting in method.own.items():
        if setting.annotation is Any:
            raise UserError(f"optim.method: {name} does not say of what type its {key} is; annotate it in __init__")
    return method


def _help(make: Callable[..., Any], name: str) -> str:
    """What the docstrings of a class, and of those that it derives from, say of an argument, in plain text."""
    for each in make.__mro__ if isinstance(make, type) else [make]:
        for names, text in _arguments(each.__doc__ or ""):
            if name in names and not text.startswith("see :class:"):
                return re.sub(r":\w+:`~?([\w.]+)`", r"\1", text).replace("``", "")
    return ""


@functools.cache
def _arguments(doc: str) -> list[tuple[list[str], str]]:
    from docstring_parser import parse

    return [(e.arg_name.split(", "), " ".join((e.description or "").split())) for e in parse(doc).params]
