"""Classes from elsewhere, by name."""

import importlib
from typing import Any

from .errors import UserError


def load_named(key: str, name: str) -> Any:
    """What ``module:name`` stands for.

    Args:
        key: the setting whose value it is, for messages.

    Raises:
        UserError: there is no such module, or it has nothing of that name.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            hint = "; install it, or name the folder that it lies in: PYTHONPATH=FOLDER"
        raise UserError(f"{key}: {name}: {error}{hint}") from None
    except ValueError as error:  # no name of a module
        raise UserError(f"{key}: {name}: not module:Class ({error})") from None
    try:
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise UserError(f"{key}: {name}: {error}") from None
    return found
