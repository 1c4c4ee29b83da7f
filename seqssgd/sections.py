"""Configurations with sections that depend on what they name, such as a network, or a method from elsewhere."""

import dataclasses
import functools
from typing import Any


@functools.cache  # so that equal configurations are of one class
def with_section(config_class: Any, name: str, kind: Any, keep: bool = False) -> Any:
    """The dataclass with a section of another class in place of its own.

    Args:
        config_class: a dataclass.
        name: of the section's field, which has a ``default_factory`` or no default; then it has none here either.
        kind: the dataclass that it is to be of.
        keep: whether its default has the values that it had before, which ``kind`` must have fields for; else it is
            that of ``kind``.
    """
    (own,) = (field for field in dataclasses.fields(config_class) if field.name == name)
    make: Any = own.default_factory
    optional: dict[str, Any] = {}
    if make is not dataclasses.MISSING:
        optional["default_factory"] = (lambda: kind(**dataclasses.asdict(make()))) if keep else kind
    fields = [(name, kind, dataclasses.field(metadata=own.metadata, **optional))]
    namespace = {"__doc__": config_class.__doc__, "__module__": config_class.__module__}
    return dataclasses.make_dataclass(config_class.__name__, fields, bases=(config_class,), namespace=namespace)
