"""Configurations with sections that depend on what they name, such as a network, or a method from elsewhere."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any


@functools.cache  # so that equal configurations are of one class
def with_section(config_class: Any, name: str, kind: type, default: Callable[[], Any] | None = None) -> Any:
    """The dataclass with a section of another class in place of its own.

    Args:
        config_class: a dataclass.
        name: of the field.
        kind: the dataclass that it is to be of.
        default: makes it where it is not given; None: ``kind``, at its own defaults. A field without a default has
            none here either.
    """
    (own,) = (field for field in dataclasses.fields(config_class) if field.name == name)
    optional: dict[str, Any] = (
        {} if own.default_factory is dataclasses.MISSING else {"default_factory": default or kind}
    )
    fields = [(name, kind, dataclasses.field(metadata=own.metadata, **optional))]
    namespace = {"__doc__": config_class.__doc__, "__module__": config_class.__module__}
    return dataclasses.make_dataclass(config_class.__name__, fields, bases=(config_class,), namespace=namespace)
