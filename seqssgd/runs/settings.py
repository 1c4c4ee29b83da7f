"""The configuration of a run: read back, completed where an earlier version wrote it, and held against another one.

A later version may have settings that an earlier one had not, and their defaults are what the earlier one did. So a
setting that a configuration lacks has its default, for a run that is resumed as for one that is compared.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..documents import read_yaml
from ..errors import UserError
from . import layout

LANGUAGE_MODEL, RECOGNISER, CLASSIFIER = "a language model", "a speech recogniser", "an image classifier"


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


def kind_of(config: Mapping[str, Any]) -> str | None:
    """What a run trains, by its configuration; None if it is none of the recipes'."""
    model = config.get("model")
    if not isinstance(model, Mapping):
        return None
    if {"features", "network"} <= set(model) or {"tokens", "augment"} <= set(config):
        return RECOGNISER
    if "bn_images" in config or set(model) == {"name"}:
        return CLASSIFIER
    return LANGUAGE_MODEL if "hidden_size" in model else None


def read_section(run: str | Path, name: str, kind: str | None = None) -> dict[str, Any]:
    """One section of a run's configuration.

    Args:
        run: the run directory.
        name: of the section.
        kind: of runs that are meant; None: any.

    Raises:
        UserError: not a run directory, a run of another kind, or it has no such section.
    """
    config = read_config(run)
    if kind is not None and (found := kind_of(config)) not in (None, kind):
        raise UserError(f"{run} is a run of {found}; give a --run of {kind}")
    section = config.get(name)
    if not isinstance(section, dict):
        raise UserError(f"{Path(run) / layout.CONFIG} has no section {name!r}; give a --run of {kind or 'a recipe'}")
    return section


def completed(config: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """A configuration with the settings that it lacks at their defaults.

    Args:
        config: nested, as it stands in config.yaml. What ``kind`` does not know stays as it is.
        kind: the dataclass of such configurations now, with dataclasses for its sections.
    """
    found, settings, types = {}, {}, typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, section = field.name, types[field.name]
        if isinstance(section, type) and dataclasses.is_dataclass(section):
            within = config.get(name, {})
            found[name] = completed(within, section) if isinstance(within, Mapping) else within
        elif name in config:
            found[name] = settings[name] = config[name]
        elif field.default is not dataclasses.MISSING:
            found[name] = settings[name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            found[name] = settings[name] = field.default_factory()
    if len(settings) == len(types):  # no sections in it: some settings may follow from others
        with contextlib.suppress(TypeError, ValueError):  # what is refused by now is compared as it stands
            found |= dataclasses.asdict(kind(**settings))
    return {**plain(found), **{key: value for key, value in config.items() if key not in found}}


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
        raise UserError(
            f"{path}: a run of another configuration ({shown}{more}); "
            "choose another --out, or repeat the settings of the first start"
        )


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
