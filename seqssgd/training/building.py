"""The optimizer and the schedulers that a configuration describes."""

import dataclasses
import re
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import UserError
from ..optim import LambdaNoise, MultiPassOptimizer, SinglePass, noise_groups
from ..optim.arguments import check_signs
from ..optim.signs import BY_RANK
from .bases import build_base
from .config import OptimConfig
from .methods import COMMON, Method, find_method, is_elsewhere


def build_optimizer(model: nn.Module, config: OptimConfig) -> MultiPassOptimizer:
    """The optimizer that ``config`` describes, for the parameters of ``model``.

    Raises:
        UserError: the method does not fit the model (no weights with the roles of ``only``), lacks a setting, or, one
            from elsewhere, is not finished.
    """
    method = find_method(config.method)
    for key, setting in method.own.items():
        if setting.required and getattr(config, key) is None:
            raise UserError(f"optim: {config.method} needs optim.{key}, {setting.help}".rstrip(", "))
    given = {"model": model, "seed": config.noise_seed, **{key: getattr(config, key) for key in COMMON}}
    own = {key: getattr(config, key) for key in method.own}
    values = {**given, **own, **method.fixed}
    settings = {key: value for key, value in values.items() if key in method.parameters}
    try:
        groups = _groups(model, config, method)
        first = groups if method.steps_itself else build_base(groups, config)
        optimizer = method.make(first, **settings)
        if is_elsewhere(config.method):
            check_signs(type(optimizer), optimizer.pass_signs())
        return optimizer
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"optim: {error}") from error
    except TypeError as error:
        twice = re.search(r"multiple values for (?:keyword )?argument '(\w+)'", str(error))
        if twice is None or not is_elsewhere(config.method):
            raise
        raise UserError(
            f"optim.method: {config.method} sets {twice[1]} and has it among its **settings too; name it in its "
            "own __init__"
        ) from error


def to_look_at(config: OptimConfig) -> OptimConfig:
    """``config`` for an optimizer that is looked at and takes no step: the signs that processes shared out, of which
    there is one now, are in two passes. What noise does to the weights is the same."""
    shared = config.takes("signs") and config.signs in BY_RANK
    return dataclasses.replace(config, signs="batch") if shared else config


def _groups(model: nn.Module, config: OptimConfig, method: Method) -> Any:
    """Parameters, in groups with levels where the method does not set one for all."""
    if not method.has_level or method.groups_alike(config.only):
        return model.parameters()
    key = method.kind.level_key
    level = getattr(config, key) if method.sets_level else 1.0 if method.steps_itself else config.noise
    groups = noise_groups(model, 1.0, only=config.only)
    for group in groups:  # set, as it may be above what noise_groups takes for a slip: an absolute size
        group[key] = level * group.pop("noise")
    return groups


def build_schedulers(
    optimizer: Optimizer, config: OptimConfig, epochs: int, steps_per_epoch: int | None = None
) -> list[tuple[Any, str]]:
    """The schedulers that ``config`` describes for ``optimizer``, as pairs with when :func:`fit` steps them.

    Args:
        epochs: of the training: where a cosine ends.
        steps_per_epoch: of the training; a warm-up by steps needs it.

    Raises:
        ValueError: it is needed and not given.
    """
    schedulers: list[tuple[Any, str]] = []
    unit = "epoch" if config.lr_warmup is None else config.lr_warmup_unit
    if unit == "step" and steps_per_epoch is None:
        raise ValueError("lr_warmup_unit='step': a schedule by epochs goes on in it; give steps_per_epoch")
    if (factor := config._lr(epochs, steps_per_epoch or 1)) is not None:
        schedulers.append((LambdaLR(optimizer, factor), unit))
    if not isinstance(optimizer, SinglePass) and (factor := config._noise()) is not None:
        schedulers.append((LambdaNoise(optimizer, factor), config.noise_unit))
    return schedulers
