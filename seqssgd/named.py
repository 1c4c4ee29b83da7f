"""Classes from elsewhere, by name."""

import importlib
from typing import Any

from .errors import UserError


def load_named(key: str | None, name: str) -> Any:
    """What ``module:name`` stands for.

    Args:
        key: the setting whose value it is, for messages; None: the caller says it.

    Raises:
        UserError: there is no such module, or it has nothing of that name.
    """
    module, _, attribute = name.partition(":")
    what = name if key is None else f"{key}: {name}"
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            hint = "; install it, or name the folder that it lies in: PYTHONPATH=FOLDER"
        raise UserError(f"{what}: {error}{hint}") from None
    except ValueError as error:  # no name of a module
        raise UserError(f"{what}: not module:Class ({error})") from None
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UserError(f"{what}: {error}") from None
    return found
