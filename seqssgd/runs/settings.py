"""The configuration of a run: read back, completed where an earlier version wrote it, and held against another one.

A later version may have settings that an earlier one had not, and their defaults are what the earlier one did. So a
setting that a configuration lacks has its default, for a run that is resumed as for one that is compared.
"""

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..documents import read_yaml
from ..errors import UserError
from ..kinds import misfit
from . import layout


def read_config(run: str | Path) -> dict[str, Any]:
    """The resolved configuration of a run, its ``config.yaml``.

    Raises:
        UserError: not a run directory, or the file is damaged.
    """
    path = Path(run) / layout.CONFIG
    if not path.is_file():
        raise UserError(f"{run} is not a run directory (no {layout.CONFIG}); give one that a recipe's train.py wrote")
    config = read_yaml(path, "put the run's own back")
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no settings; put the run's own back")
    return config


def completed(config: Mapping[str, Any], like: Any, settled: bool = True) -> dict[str, Any]:
    """A configuration with the settings that it lacks at their defaults.

    Args:
        config: nested, as it stands in config.yaml. What ``like`` does not know stays as it is.
        like: such a configuration of now: a dataclass with dataclasses for its sections, or the class.
        settled: whether settings that follow from others are worked out, which may import what these name. If not,
            they have the values of a configuration of defaults alone.
    """
    found, settings = {}, {}
    for field, section in _sections(config, like):
        within = config.get(field.name, {})
        if section is not None:
            found[field.name] = completed(within, section, settled) if isinstance(within, Mapping) else within
        elif field.name in config:
            found[field.name] = settings[field.name] = config[field.name]
        elif (default := _default(field)) is not dataclasses.MISSING:
            found[field.name] = settings[field.name] = default
    kind = like if isinstance(like, type) else type(like)
    if len(settings) == len(dataclasses.fields(kind)):  # no sections in it
        found = _settled(settings, config, kind) if settled else {**_defaults(kind), **config}
    return {**plain(found), **{key: value for key, value in config.items() if key not in found}}


def check_kinds(config: Mapping[str, Any], like: Any, prefix: str = "") -> None:
    """Makes sure that the settings of a run are of the types that they have in a configuration of now, or its defaults.

    Raises:
        ValueError: one is not; the message begins with its key.
    """
    kinds = typing.get_type_hints(like if isinstance(like, type) else type(like), include_extras=True)
    for field, section in _sections(config, like):
        value, key = config.get(field.name, _default(field)), f"{prefix}{field.name}"
        if section is not None and isinstance(value, Mapping):
            check_kinds(value, section, f"{key}.")
        elif (
            field.name in config
            and repr(value) != repr(plain(_default(field)))  # True == 1
            and (wrong := misfit(section or kinds[field.name], value, key))
        ):
            raise ValueError(wrong)


def knows_all(config: Mapping[str, Any], like: Any, beside: Sequence[str] = ()) -> bool:
    """Whether a configuration has no sections and settings but those of ``like`` (see :func:`completed`).

    Args:
        beside: further entries that it may have, whatever they hold.
    """
    for field, section in _sections(config, like):
        within = config.get(field.name)
        if section is None and "networks" in field.metadata:  # of a network that is not known
            return False
        if section is not None and isinstance(within, Mapping) and not knows_all(within, section):
            return False
    kind = like if isinstance(like, type) else type(like)
    return set(config) <= {*_names(kind), *beside}


def restored(config: Mapping[str, Any], kind: type) -> Any:
    """The configuration of a run as the dataclass that it was.

    Raises:
        UserError: it has settings that the dataclass does not know, or that it refuses.
    """
    config = completed(config, kind)
    found = {name: restored_section(config[name], kind, name) for name in _names(kind) if name in config}
    return kind(**found)


def restored_section(section: Any, kind: type, name: str) -> Any:
    """The setting or section ``name`` of a configuration as what it is in the dataclass ``kind``.

    Raises:
        UserError: it has settings that the dataclass does not know, or that it refuses.
    """
    [(field, inside)] = _sections({name: section}, kind, names=[name])
    networks = field.metadata.get("networks")
    if networks is not None:
        inside = networks
    if inside is None or not isinstance(section, Mapping):
        return section
    make = getattr(inside, "restored", None)  # of a section whose settings depend on what it names
    try:
        if make is not None:
            return make(section)
        if unknown := set(section) - _names(inside):
            raise TypeError(f"no setting {', '.join(sorted(unknown))}")
        return inside(**{key: restored_section(value, inside, key) for key, value in section.items()})
    except TypeError as error:
        raise UserError(f"section {name!r} is of another version or kind ({error})") from None


def _names(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _sections(
    config: Mapping[str, Any], like: Any, names: Sequence[str] | None = None
) -> Iterator[tuple[dataclasses.Field, Any]]:
    """The fields of a configuration, each with what its section is like; None for a setting."""
    types = typing.get_type_hints(like if isinstance(like, type) else type(like))
    for field in dataclasses.fields(like):
        if names is not None and field.name not in names:
            continue
        section = types[field.name] if isinstance(like, type) else getattr(like, field.name)
        if isinstance(like, type) and (networks := field.metadata.get("networks")) is not None:
            section = networks.of_section(config.get(field.name))
        yield field, section if dataclasses.is_dataclass(section) else None


def _default(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _settled(settings: Mapping[str, Any], config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    try:
        return dataclasses.asdict(kind(**settings))
    except (TypeError, ValueError):  # refused by now: compared as it stands, beside the defaults
        return {**_defaults(kind), **config}


def _defaults(kind: type) -> dict[str, Any]:
    try:
        return dataclasses.asdict(kind())
    except TypeError:  # some have none
        return {field.name: _default(field) for field in dataclasses.fields(kind)
                if _default(field) is not dataclasses.MISSING}  # fmt: skip


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Compares the settings of a run, under dotted keys, with those that it is to have now.

    Raises:
        UserError: they differ.
    """
    # a setting that a later version has, left at null, is no difference
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if keys:
        shown = ", ".join(f"{k} = {old.get(k, '(absent)')}, now {new.get(k, '(absent)')}" for k in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        data = " and its --data" if any(key.startswith("data.") for key in keys) else ""
        raise UserError(
            f"{path}: a run of another configuration ({shown}{more}); "
            f"choose another directory, or repeat the settings of the first start{data}"
        )


def comparable(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Configurations under dotted keys, without checksums of the data that some of them lack, if all others agree on
    them: no version is other data for having taken none."""

    def unknown(key: str) -> bool:
        section, *names = key.split(".")
        known = [config[key] for config in configs if key in config]
        return section == "data" and "content" in names and len(known) < len(configs) and len({*known}) == 1

    return [{key: value for key, value in config.items() if not unknown(key)} for config in configs]


def plain(value: Any) -> Any:
    """``value`` as it comes back from YAML."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a nested configuration under dotted keys, such as ``optim.lr``."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat
