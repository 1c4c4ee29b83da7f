"""The settings of methods as fields of a configuration."""

import dataclasses
import functools
import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..errors import UserError
from ..optim.limits import plain_type
from .methods import Method, Setting

T = TypeVar("T")


def with_settings_of(methods: Mapping[str, Method]) -> Callable[[type[T]], type[T]]:
    """Gives a configuration a field for every setting that some of ``methods`` have of their own, null if left open.

    Their types and what ``--help`` says of them come from the signatures and docstrings of the methods.

    Raises:
        UserError: such a setting has the name of one that the configuration has for all, whose value it would get.
    """

    def extend(config: type[T]) -> type[T]:
        known = {field.name for field in dataclasses.fields(config)}  # pyright: ignore[reportArgumentType]
        shared = {key for method in getattr(config, "methods", {}).values() for key in method.own}
        takers: dict[str, dict[str, Setting]] = {}
        for name, method in methods.items():
            for key, setting in method.own.items():
                if key not in shared and (key in known or hasattr(config, key)):
                    raise UserError(
                        f"optim.method: {name}: its setting {key!r} has the name of one of the recipe's; rename it"
                    )
                takers.setdefault(key, {})[name] = setting
        new = {key: _kind(by_method) for key, by_method in takers.items() if key not in known}
        lines = [f"        {key}: {_help(by_method)}" for key, by_method in takers.items() if key in new]
        doc = "\n".join([(config.__doc__ or "").rstrip(), *lines, "    "])
        everyone = {**getattr(config, "methods", {}), **methods}
        namespace = {"__doc__": doc, "__module__": config.__module__, "methods": everyone}
        fields = [(key, kind | None, dataclasses.field(default=None)) for key, kind in new.items()]
        made: Any = dataclasses.make_dataclass(config.__name__, fields, bases=(config,), namespace=namespace)
        return made

    return extend


def _kind(by_method: Mapping[str, Setting]) -> Any:
    """The type of a setting, for the parser: that of all methods that have it; choices are judged later."""
    return functools.reduce(operator.or_, (plain_type(setting.annotation) for setting in by_method.values()))


def _help(by_method: Mapping[str, Setting]) -> str:
    """What a setting is for and what it is if it is left open, once for the methods that say the same."""
    said: dict[str, dict[str, Setting]] = {}
    for name, setting in by_method.items():
        said.setdefault(setting.help, {})[name] = setting
    return " ".join(f"Of {', '.join(own)}: {text.rstrip('.')}{_defaults(own)}." for text, own in said.items())


def _defaults(by_method: Mapping[str, Setting]) -> str:
    """What a setting is if it is left open, as a configuration spells it; nothing where that is an error."""
    names: dict[str, list[str]] = {}
    for name, setting in by_method.items():
        if not setting.required:
            value = setting.default
            names.setdefault(value if isinstance(value, str) else json.dumps(value), []).append(name)
    alone = len(names) == 1 and len(*names.values()) == len(by_method)
    values = [value if alone else f"{value} of {', '.join(those)}" for value, those in names.items()]
    return f"; by default {'; '.join(values)}" if values else ""
