"""What every use of a finished run begins with: its configuration, one of its checkpoints, and a device."""

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from seqssgd.documents import parse_json, read_yaml
from seqssgd.errors import UserError

LANGUAGE_MODEL, RECOGNISER, CLASSIFIER = "a language model", "a speech recogniser", "an image classifier"
# Sections of config.yaml that a model does not depend on once it is trained.
_OF_TRAINING = ("optim", "training", "seed")


def read_config(run: str | Path) -> dict[str, Any]:
    """The resolved configuration of a run, its ``config.yaml``.

    Raises:
        UserError: not a run directory, or the file is damaged.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run directory (no config.yaml); give a --run that train.py wrote")
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
        raise UserError(f"{Path(run) / 'config.yaml'} has no section {name!r}; give a --run of {kind or 'a recipe'}")
    return section


def find_checkpoint(run: str | Path, checkpoint: str | Path = "best") -> Path:
    """The file of a run's checkpoint.

    Args:
        run: the run directory.
        checkpoint: ``"best"`` on validation, ``"last"``, the name of one of the run's checkpoints such as
            ``step-00001000.pt``, or the path of a file. Of a run that has no best one yet it is the last, and a note
            on standard error says so.

    Raises:
        UserError: there is no such checkpoint.
    """
    folder = Path(run) / "checkpoints"
    if checkpoint not in ("best", "last"):
        for path in (folder / checkpoint, Path(checkpoint)):
            if path.is_file():
                return path
        raise UserError(f"{checkpoint} is not a file; give best, last, or the name or path of a checkpoint of {run}")
    best = folder / "best.pt"
    if checkpoint == "best" and best.is_file():
        return best
    steps = {int(m[1]): path for path in folder.glob("step-*.pt") if (m := re.fullmatch(r"step-(\d+)\.pt", path.name))}
    if not steps:
        raise UserError(f"{folder} holds no {'best.pt or ' if checkpoint == 'best' else ''}step-*.pt; train first")
    last = steps[max(steps)]
    if checkpoint == "best":
        print(f"note: {run} has no best checkpoint (it was never validated with a finite metric); taking the last, "
              f"{last.name}", file=sys.stderr, flush=True)  # fmt: skip
    return last


def checksums(run: str | Path) -> dict[str, str]:
    """Checksums of what a model depends on beside its weights: the tokenizer's files, and the settings in config.yaml
    but for those of the training."""
    config = {key: value for key, value in read_config(run).items() if key not in _OF_TRAINING}
    found = {"config.yaml": hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()}
    for path in sorted((Path(run) / "tokenizer").glob("[!.]*")):
        found[f"tokenizer/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_files(run: str | Path, state: Mapping[str, Any], checkpoint: Path) -> None:
    """Makes sure that the files of a run are those that the model in a checkpoint was trained with.

    Checkpoints that an earlier version wrote do not say.

    Raises:
        UserError: one of them has changed, or is missing.
    """
    known = state.get("files")
    if not isinstance(known, Mapping):
        return
    own = checksums(run)
    for name in {**known, **own}:
        if known.get(name) != own.get(name):
            how = "is not the one" if name in own else "is missing, one of the files"
            raise UserError(
                f"{Path(run) / name} {how} that {checkpoint} was trained with; put the run's own back, or give a --run "
                "and a --checkpoint that belong together"
            )


def data_folder(run: str | Path, given: str | Path | None, option: str = "--data") -> Path:
    """The folder of the data that a run was trained on: the one that is given, or else the one that the run noted.

    Raises:
        UserError: none is given, and the run does not know, or its data lie there no more.
    """
    if given is not None:
        return Path(given)
    read_config(run)
    try:
        noted = parse_json((Path(run) / "environment.json").read_bytes())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        noted = None
    if not isinstance(noted, str):
        raise UserError(f"{run} does not say where its data lie; give {option}")
    if not Path(noted).is_dir():
        raise UserError(f"{noted}, the data of {run}, is not there any more; give {option}")
    return Path(noted)


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
