"""The optimizers that step, inside a method: three by short names, any other by that of its class."""

import copy
import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from ..errors import UserError
from ..named import load_named


@dataclass(frozen=True)
class Base:
    """A base optimizer.

    Attributes:
        make: its class.
        common: the settings of the configuration that it takes; all others are in ``base_settings``.
        fixed: arguments that are no settings.
    """

    make: Callable[..., Optimizer]
    common: tuple[str, ...] = ("lr",)
    fixed: Mapping[str, Any] = field(default_factory=dict)


# fused: on a CPU, where it is not the default, an eighth of the time, which for small models is much of a step
BASES = {
    "sgd": Base(SGD, ("lr", "momentum", "weight_decay")),
    "adam": Base(Adam, ("lr", "betas", "weight_decay"), {"fused": True}),
    "adamw": Base(AdamW, ("lr", "betas", "weight_decay"), {"fused": True}),
}


@functools.cache
def find_base(name: str) -> Base:
    """The base optimizer of a name: an entry of ``BASES``, ``torch.optim.CLASS``, or ``module:Class``.

    Raises:
        UserError: there is none, or what has that name is no optimizer.
    """
    if name in BASES:
        return BASES[name]
    known = {each.lower(): each for each in dir(torch.optim) if isinstance(getattr(torch.optim, each), type)}
    if name.startswith("torch.optim.") and ":" not in name:
        found = load_named("optim.base", f"torch.optim:{name.removeprefix('torch.optim.')}")
    elif ":" in name:
        found = load_named("optim.base", name)
    else:
        close = f"; did you mean torch.optim.{known[name.lower()]}?" if name.lower() in known else ""
        names = f"{', '.join(BASES)}, torch.optim.CLASS or module:Class"
        raise UserError(f"optim.base: {name!r} is not one of {names}{close}")
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise UserError(f"optim.base: {name} is no class of optimizers")
    if hasattr(found, "passes"):
        raise UserError(f"optim.base: {name} is a method; give it as optim.method")
    return Base(found)


def build_base(groups: Any, config: Any) -> Optimizer:
    """The optimizer that the settings ``base``, ``base_settings`` and their like describe, over parameter groups.

    Raises:
        UserError: it does not take a setting, or not these parameters.
    """
    base, more = find_base(config.base), config.base_settings or {}
    common = {key: getattr(config, key) for key in base.common}
    if twice := [key for key in more if key in common]:
        raise UserError(f"optim.base_settings: {twice[0]} of {config.base} is optim.{twice[0]}; set that")
    try:
        return base.make(groups, **{**base.fixed, **common, **more})
    except (TypeError, ValueError, RuntimeError) as error:
        hint = "; seqssgd.optim:MuonAdamW steps the others by AdamW" if config.base == "torch.optim.Muon" else ""
        key = "optim.base_settings" if more and not hint else "optim.base"
        raise UserError(f"{key}: {config.base}: {' '.join(str(error).split())}{hint}") from error


def check_base(config: Any) -> None:
    """Tries an optimizer that is not every day's on one small matrix, before anything is read.

    Raises:
        UserError: it cannot be made, or cannot step (LBFGS, which calls the loss itself, or one for sparse gradients),
            or its state_dict does not hold all that it remembers, so that a run would resume as another.
    """
    find_base(config.base)
    if config.base in BASES and not config.base_settings:
        return
    usual = {"momentum": 0.0, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    for key in (key for key, value in usual.items() if config.base not in BASES and getattr(config, key) != value):
        raise UserError(f"optim.{key}: {config.base} takes it in optim.base_settings")
    draws = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    ends = []
    for stopped in (False, True):
        try:
            ends.append(_trial(config, stopped))
        finally:  # an optimizer may draw from the global generators: the same in both trials, and not for good
            torch.set_rng_state(draws[0])
            random.setstate(draws[1])
            numpy.random.set_state(draws[2])
    if not torch.equal(*ends):
        raise UserError(
            f"optim.base: {config.base} steps otherwise once its state_dict() was loaded, so that no run would resume "
            "as it was; it must keep all that it remembers in self.state[p] or in its groups"
        )


def _trial(config: Any, stopped: bool) -> torch.Tensor:
    """A matrix after some steps; ``stopped``: of which the last are another instance's, with the state of the first."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer, verb = build_base([weight], config), "step by gradients alone"
    try:
        for number, size in enumerate((1.0, 0.5, -0.02, 0.3)):  # of several signs and sizes, for steps by signs too
            if stopped and number == 2:
                state, verb = copy.deepcopy(optimizer.state_dict()), "load its own state_dict()"
                optimizer = build_base([weight], config)
                optimizer.load_state_dict(state)
            weight.grad = size * torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
            optimizer.step()
    except Exception as error:
        said = " ".join(str(error).split())
        raise UserError(f"optim.base: {config.base} cannot {verb} ({said}); take another") from error
    return weight.detach().nan_to_num()  # two trials that both overflow are alike
