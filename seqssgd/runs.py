"""What every use of a finished run begins with: its configuration, one of its checkpoints, and a device."""

import re
from pathlib import Path
from typing import Any

import torch

from seqssgd.errors import UserError


def read_config(run: str | Path) -> dict[str, Any]:
    """The resolved configuration of a run, its ``config.yaml``; empty if that is damaged.

    Raises:
        UserError: not a run directory.
    """
    import yaml

    try:
        config = yaml.safe_load((Path(run) / "config.yaml").read_bytes())
    except OSError:
        raise UserError(f"{run} is not a run directory (no config.yaml); give a --run that train.py wrote") from None
    except yaml.YAMLError:
        config = None
    return config if isinstance(config, dict) else {}


def read_section(run: str | Path, name: str, kind: str) -> dict[str, Any]:
    """One section of a run's configuration.

    Args:
        run: the run directory.
        name: of the section.
        kind: of runs that have it, for the message.

    Raises:
        UserError: not a run directory, or it has no such section.
    """
    section = read_config(run).get(name)
    if not isinstance(section, dict):
        raise UserError(f"{Path(run) / 'config.yaml'} has no section {name!r}; give a --run of {kind}")
    return section


def find_checkpoint(run: str | Path, checkpoint: str | Path = "best") -> Path:
    """The file of a run's checkpoint.

    Args:
        run: the run directory.
        checkpoint: ``"best"`` on validation (the last one in a run that has not been validated yet), ``"last"``,
            or the path of a file.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = Path(run) / "checkpoints"
    if checkpoint not in ("best", "last"):
        if not Path(checkpoint).is_file():
            raise UserError(f"{checkpoint} is not a file; give best, last, or the path of a checkpoint")
        return Path(checkpoint)
    best = folder / "best.pt"
    if checkpoint == "best" and best.is_file():
        return best
    steps = {int(m[1]): path for path in folder.glob("step-*.pt") if (m := re.fullmatch(r"step-(\d+)\.pt", path.name))}
    if not steps:
        raise UserError(f"{folder} holds no {'best.pt or ' if checkpoint == 'best' else ''}step-*.pt; train first")
    return steps[max(steps)]


def choose_device(name: str | None) -> torch.device:
    """The device of that name; for ``None`` CUDA if there is one, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # the name alone does not tell whether it is there
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name} cannot be used here ({reason}); try --device cpu") from None
    return device
