"""Every method by the name it has in a configuration, with the settings that are its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

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
    noise_groups,
)
from ..optim.ivon import IVON_SIGNS
from ..optim.noise import DISTRIBUTIONS, GRANULARITIES
from ..optim.symmetric import SIGNS

if TYPE_CHECKING:
    from .config import OptimConfig

T = TypeVar("T")


def _betas(c: OptimConfig) -> tuple[float, float]:
    return c.betas or (0.9, 0.999)


# Every base optimizer: (parameter groups, configuration) -> optimizer.
BASES: dict[str, Callable[[Any, OptimConfig], Optimizer]] = {
    "sgd": lambda groups, c: SGD(groups, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay),
    # fused: on a CPU, where it is not the default, an eighth of the time, which for small models is much of a step
    "adam": lambda groups, c: Adam(groups, lr=c.lr, betas=_betas(c), weight_decay=c.weight_decay, fused=True),
    "adamw": lambda groups, c: AdamW(groups, lr=c.lr, betas=_betas(c), weight_decay=c.weight_decay, fused=True),
}


@dataclass(frozen=True)
class Method:
    """How a method is built, and what it can be told.

    Attributes:
        build: (model, configuration) -> optimizer with ``passes()``.
        settings: of the keys in ``SETTINGS`` those that the method takes, with their values where none is given.
        betas: where none are given.
    """

    build: Callable[[nn.Module, OptimConfig], MultiPassOptimizer]
    settings: Mapping[str, Any]
    betas: tuple[float, float] = (0.9, 0.999)


def _plain(model: nn.Module, c: OptimConfig) -> MultiPassOptimizer:
    return SinglePass(BASES[c.base](model.parameters(), c))


def _noisy(method: Callable[..., MultiPassOptimizer], *own: str, **fixed: Any) -> Callable:
    """Builds a method over weights with a noise level, handing on its ``own`` settings and those that are ``fixed``."""

    def build(model: nn.Module, c: OptimConfig) -> MultiPassOptimizer:
        groups = noise_groups(model, 1.0, only=c.only)
        for group in groups:
            group["noise"] *= c.noise  # set, as it may be above what noise_groups takes for a slip: an absolute size
        base = BASES[c.base](groups, c)
        settings = {key: getattr(c, key) for key in own}
        return method(base, **settings, **fixed, seed=c.noise_seed, model=model, bn_stats=c.bn_stats)

    return build


def _settled(value: T | None) -> T:
    """A setting of the method's own: :class:`OptimConfig` leaves those null that are another method's."""
    assert value is not None
    return value


def _sam(model: nn.Module, c: OptimConfig, method: Callable[..., MultiPassOptimizer] = SAM, **settings: Any) -> Any:
    if c.rho is None:
        raise ValueError(f"{c.method} needs optim.rho, the norm of its perturbation")
    groups, rho = model.parameters(), c.rho
    if c.only is not None:
        by_role = noise_groups(model, 1.0, only=c.only)
        groups = [{"params": group["params"], "rho": rho * group["noise"]} for group in by_role]
    return method(BASES[c.base](groups, c), rho=rho, model=model, bn_stats=c.bn_stats, **settings)


def _covariance(model: nn.Module, c: OptimConfig) -> MultiPassOptimizer:
    base = BASES[c.base](model.parameters(), c)
    return CovarianceNoise(
        base, noise=c.noise, diagonal=_settled(c.diagonal), centred=_settled(c.centred), seed=c.noise_seed,
        model=model, bn_stats=c.bn_stats,
    )  # fmt: skip


def _ivon(model: nn.Module, c: OptimConfig) -> MultiPassOptimizer:
    if c.ess is None:
        raise ValueError("ivon needs optim.ess, the effective sample size: the number of training examples")
    groups = model.parameters() if c.only is None else noise_groups(model, 1.0, only=c.only)
    settings = {key: getattr(c, key) for key in ("ess", "betas", "weight_decay", "hess_init", "signs")}
    radius = math.inf if c.clip_radius is None else c.clip_radius
    return IVON(groups, c.lr, **settings, clip_radius=radius, seed=c.noise_seed, model=model, bn_stats=c.bn_stats)


def _average(model: nn.Module, c: OptimConfig, decay: float | None) -> MultiPassOptimizer:
    base = BASES[c.base](model.parameters(), c)
    return WeightAverage(base, model, decay=decay, start=_settled(c.average_start))


_LEVEL = {"only": None, "noise_schedule": None, "noise_ramp": None}


def _settings(distribution: str, granularity: str, **own: Any) -> dict[str, Any]:
    return {**_LEVEL, "noise": 0.0, "distribution": distribution, "granularity": granularity, **own}


_NOISE = ("distribution", "granularity")
_ONE_SIDED = _noisy(OneSidedNoise, "copies", *_NOISE)

_IVON = {"signs": "one", "ess": None, "hess_init": 1.0, "clip_radius": None}

# A new method is one more entry.
METHODS: dict[str, Method] = {
    "none": Method(_plain, {}),
    "ssgd": Method(_noisy(SymmetricNoise, "signs", *_NOISE), _settings("rademacher", "layer", signs="batch")),
    "ssgd_shaped": Method(
        _noisy(ShapedNoise, "signs", "curvature_decay", "damping", *_NOISE),
        _settings("rademacher", "layer", signs="batch", curvature_decay=0.99, damping=1.0),
    ),
    "weight_noise": Method(_ONE_SIDED, _settings("rademacher", "layer", copies=1)),
    "two_draws": Method(_noisy(OneSidedNoise, *_NOISE, copies=2), _settings("rademacher", "layer")),
    "smoothout": Method(_ONE_SIDED, _settings("uniform", "absolute", copies=1)),
    "adasmoothout": Method(_ONE_SIDED, _settings("uniform", "filter", copies=1)),
    "graves": Method(_ONE_SIDED, _settings("gaussian", "absolute", copies=1)),
    "nso": Method(
        _noisy(NSO, "pairs", "clean_weight", *_NOISE), _settings("gaussian", "absolute", pairs=1, clean_weight=0.0)
    ),
    "mrwp": Method(_noisy(MRWP, "clean_weight", *_NOISE), _settings("gaussian", "filter_std", clean_weight=0.5)),
    "dropconnect": Method(_noisy(DropConnect), {**_LEVEL, "noise": 0.0}),
    "covariance": Method(
        _covariance, {"noise": 0.0, "noise_schedule": None, "noise_ramp": None, "diagonal": False, "centred": False}
    ),
    "sam": Method(_sam, {**_LEVEL, "rho": 0.05}),
    "asam": Method(lambda model, c: _sam(model, c, adaptive=True, eta=c.eta), {**_LEVEL, "rho": 0.5, "eta": 0.01}),
    "msam": Method(partial(_sam, method=MSAM), {**_LEVEL, "rho": None}),
    "ivon": Method(_ivon, {**_LEVEL, **_IVON}, betas=(0.9, 0.99999)),
    "ema": Method(lambda model, c: _average(model, c, c.average_decay), {"average_decay": 0.999, "average_start": 0}),
    "swa": Method(partial(_average, decay=None), {"average_start": 0}),
}

# The settings that only some methods take, and what they are for the others.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(key for method in METHODS.values() for key in method.settings),
    **{"noise": 0.0, "distribution": "rademacher", "granularity": "layer", "signs": "batch"},
}


def _among(choices: tuple[str, ...]) -> tuple[Callable[[Any], bool], str]:
    return (lambda value: value in choices, f"one of {', '.join(choices)}")


# What their values must be.
_COUNT = (lambda n: n >= 1, "a whole number >= 1")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "distribution": _among(DISTRIBUTIONS),
    "granularity": _among(GRANULARITIES),
    "signs": _among((*SIGNS, *(signs for signs in IVON_SIGNS if signs not in SIGNS))),
    "copies": _COUNT,
    "pairs": _COUNT,
    "clean_weight": (lambda x: 0 <= x < 1, "a number >= 0 and < 1"),
    "rho": (lambda x: 0 <= x <= 1e30, "a finite number >= 0"),
    "eta": (lambda x: 0 < x <= 1e30, "a finite number > 0"),
    "ess": (lambda x: 0 < x <= 1e30, "a finite number > 0"),
    "curvature_decay": (lambda x: 0 <= x < 1, "a number >= 0 and < 1"),
    "damping": (lambda x: 0 < x <= 1e30, "a finite number > 0"),
    "hess_init": (lambda x: 0 < x <= 1e30, "a finite number > 0"),
    "clip_radius": (lambda x: 0 < x <= 1e30, "a finite number > 0, or null"),
    "average_decay": (lambda x: 0 < x < 1, "a number > 0 and < 1"),
    "average_start": (lambda n: n >= 0, "a whole number >= 0"),
}
