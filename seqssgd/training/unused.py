"""Settings of the optimizer that would do nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..documents import parse_yaml
from ..errors import UserError
from .methods import METHODS, SETTINGS

if TYPE_CHECKING:
    from .config import OptimConfig


def left_out(optim: OptimConfig) -> dict[str, Any]:
    """The settings of methods that the base optimizer alone leaves out."""
    if optim.method != "none":
        return {}
    values = {key: getattr(optim, key) for key in SETTINGS}
    return {f"optim.{key}": value for key, value in values.items() if value is not None and value != SETTINGS[key]}


def check_used(optim: OptimConfig, files: Sequence[str], options: Sequence[str]) -> None:
    """Refuses settings that do nothing: those of a method where none is named, and a method with a level of 0.

    ``--optim.method none`` makes a configuration the baseline of what its files, and the options before, describe.

    Args:
        files: the files of a configuration.
        options: the words of the command line that go before them.

    Raises:
        UserError: there are some.
    """
    unused, named = left_out(optim), _last(options, "optim.method")
    for key, value in unused.items():
        if _last(options, key) > named:
            where = "after --optim.method none" if named >= 0 else "as optim.method is none"
            raise UserError(f"{key}: {value!r} does nothing, {where}; leave it out, or name a method, such as ssgd")
        if named < 0 and not any("method" in _section(file) for file in files):
            raise UserError(f"{key}: {value!r} does nothing, as there is no optim.method; name one, such as ssgd")
    if "noise" in METHODS[optim.method].settings and not optim.noise:
        raise UserError(
            f"optim.noise: {optim.method} without a level is {optim.base} alone; give a level, such as 0.5, or "
            "optim.method none"
        )


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
    section = content.get("optim") if isinstance(content, dict) else None
    return section if isinstance(section, dict) else {}
