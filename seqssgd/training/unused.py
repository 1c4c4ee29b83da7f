"""Settings that would do nothing."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..documents import parse_yaml
from ..errors import UserError
from ..optim.batchnorm import RunningStatistics
from ..optim.roles import kinds
from ..options import options_in
from .bases import BASES
from .config import OptimConfig
from .methods import find_method

# What each schedule of the learning rate is told.
OF_SCHEDULES = {
    "zaremba": ("lr_constant_epochs", "lr_divisor"),
    "sgdr": ("lr_period", "lr_multiplier"),
    "steps": ("lr_milestones", "lr_divisor"),
}


def left_out(optim: OptimConfig) -> dict[str, dict[str, Any]]:
    """What leaves settings out, and which: the base optimizer alone those of methods, a base those of others, and so a
    schedule of the learning rate."""
    found = {"optim.method none": _of_methods(optim), _stepping(optim): _of_bases(optim)}
    found[_scheduling(optim)] = _of_schedules(optim)
    return {by: settings for by, settings in found.items() if settings}


def _stepping(optim: OptimConfig) -> str:
    """The setting that says what steps."""
    itself = find_method(optim.method).steps_itself
    return f"optim.method {optim.method}" if itself else f"optim.base {optim.base}"


def _scheduling(optim: OptimConfig) -> str:
    return f"optim.lr_schedule {optim.lr_schedule}"


def _of_bases(optim: OptimConfig) -> dict[str, Any]:
    method, keys = find_method(optim.method), ["momentum", "betas"]
    if method.steps_itself:
        keys += ["lr", "weight_decay", "base", "base_settings"]
        taken = {*method.parameters}
    elif optim.base in BASES:
        taken = {*method.parameters, *BASES[optim.base].common}
    else:  # its settings are in base_settings, or refused
        return {}
    return _unusual(optim, [key for key in keys if key not in taken])


def _of_methods(optim: OptimConfig) -> dict[str, Any]:
    if optim.method != "none":
        return {}
    values = {key: (getattr(optim, key), unset) for key, unset in optim.unset().items()}
    return {f"optim.{key}": value for key, (value, unset) in values.items() if value is not None and value != unset}


def _of_schedules(optim: OptimConfig) -> dict[str, Any]:
    taken = OF_SCHEDULES.get(optim.lr_schedule, ())
    return _unusual(optim, [key for keys in OF_SCHEDULES.values() for key in keys if key not in taken])


def _unusual(optim: OptimConfig, keys: Sequence[str]) -> dict[str, Any]:
    """Those of some settings that are not what they are if nothing is said, under dotted keys."""
    usual = OptimConfig()
    return {f"optim.{key}": value for key in keys if (value := getattr(optim, key)) != getattr(usual, key)}


def idle(config: Any, model: nn.Module) -> list[str]:
    """Warnings of settings that do nothing beside others, or for this network.

    Those that a method, a base or a schedule leaves out are :func:`left_out`'s, those that a training is too short for
    :func:`seqssgd.training.reach.check_reach`'s. A limit that is never met is no idle setting, and no seed is one.

    Args:
        config: a recipe's, whose section ``optim`` is looked at. If it has a method ``idle()``, that gives what there
            is of other sections: a setting under a dotted key, its value, and what it does nothing with.
        model: the network.
    """
    optim: OptimConfig = config.optim
    found: list[tuple[str, Any, str]] = []
    if optim.noise_unit != "epoch" and optim.noise_schedule is None and optim.noise_ramp is None:
        found.append(("optim.noise_unit", optim.noise_unit, "without optim.noise_schedule or optim.noise_ramp"))
    if optim.lr_warmup_unit != "epoch" and optim.lr_warmup is None:
        found.append(("optim.lr_warmup_unit", optim.lr_warmup_unit, "without optim.lr_warmup"))
    method = find_method(optim.method)
    if optim.bn_stats != "both":
        if "bn_stats" not in method.parameters or "bn_stats" in method.fixed:
            found.append(("optim.bn_stats", optim.bn_stats, f"with optim.method {optim.method}"))
        elif not RunningStatistics(model).buffers:
            found.append(("optim.bn_stats", optim.bn_stats, "with this network, which has no batch norm"))
    if optim.only and "only" in method.settings:
        present = {place.kind for places in kinds(model).values() for place in places}
        lacking = [role for role in optim.only if role not in present]
        found += [("optim.only", role, "with this network, which has no such weights") for role in lacking]
    found += config.idle() if hasattr(config, "idle") else []
    return [f"{key}: {value} does nothing {why}; leave it out" for key, value, why in found]


def changed(section: Any, key: str, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Of the settings ``names`` of a section, which is at ``key``, those that have not their defaults."""
    for field in dataclasses.fields(section):
        if field.name in names and (value := getattr(section, field.name)) != field.default:
            yield f"{key}.{field.name}".lstrip("."), value


def check_used(optim: OptimConfig, files: Sequence[str], options: Sequence[str]) -> None:
    """Refuses settings that do nothing: those of a method where none is named, those of a base optimizer or a schedule
    that is not the one, and a method with a level of 0.

    ``--optim.method none`` makes a configuration the baseline of what its files, and the options before, describe;
    ``--optim.base`` and the other methods leave out what these say of another base, ``--optim.lr_schedule`` what they
    say of another schedule.

    Args:
        files: the files of a configuration.
        options: the words of the command line that go before them.

    Raises:
        UserError: there are some.
    """
    unused, named = _of_methods(optim), _last(options, "optim.method")
    for key, value in unused.items():
        if _last(options, key) > named:
            where = "after --optim.method none" if named >= 0 else "as optim.method is none"
            raise UserError(f"{key}: {value!r} does nothing, {where}; leave it out, or name a method, such as ssgd")
        if named < 0 and not any("method" in _section(file) for file in files):
            raise UserError(f"{key}: {value!r} does nothing, as there is no optim.method; name one, such as ssgd")
    itself = find_method(optim.method).steps_itself
    for by, said, place, settings in (
        ("base", _stepping(optim), max(named, -1 if itself else _last(options, "optim.base")), _of_bases(optim)),
        ("lr_schedule", _scheduling(optim), _last(options, "optim.lr_schedule"), _of_schedules(optim)),
    ):
        for key, value in settings.items():
            if _last(options, key) > place or (place < 0 and not any(by in _section(file) for file in files)):
                raise UserError(f"{key}: {value!r} does nothing, as {said} has none; leave it out")
    if optim.takes("noise") and not optim.noise:
        raise UserError(
            f"optim.noise: {optim.method} without a level is {optim.base} alone; give a level, such as 0.5, or "
            "optim.method none"
        )


def named_methods(files: Sequence[str], options: Sequence[str]) -> list[str]:
    """Every method that the files of a configuration and the options name, whichever holds in the end."""
    found = [_section(file).get("method") for file in files if Path(file).is_file()]
    for key, value in options_in(options):
        if key == "optim.method":
            found.append(value)
        elif key == "optim":
            found.append(_read(value).get("method"))
    return [name for name in found if isinstance(name, str)]


def _last(options: Sequence[str], key: str) -> int:
    """The position of the last option that sets ``key``; -1 if there is none."""
    section, name = key.split(".")
    found = -1
    for index, word in enumerate(options):
        whole = word == f"--{section}" or word.startswith(f"--{section}=")  # --optim '{noise: 0.3}'
        inside = whole and f"{name}:" in " ".join(options[index : index + 2]).replace('"', "")
        if inside or word == f"--{key}" or word.startswith(f"--{key}="):
            found = index
    return found


def _section(file: str) -> dict[str, Any]:
    content = parse_yaml(Path(file).read_bytes())
    return _read(content.get("optim") if isinstance(content, dict) else None)


def _read(section: Any) -> dict[str, Any]:
    """A section of settings: as it is, as YAML, or in a file that is named."""
    if isinstance(section, str):
        try:
            section = parse_yaml(Path(section).read_bytes() if Path(section).is_file() else section.encode())
        except (OSError, ValueError):  # it is refused where it is read in full
            return {}
    return section if isinstance(section, dict) else {}
