"""What a run directory says about its run, and what an evaluation adds to it."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..documents import parse_json, parse_yaml, printable, read_json
from ..errors import UserError
from ..files import atomic_path
from ..kinds import misfit
from ..locks import alone
from ..options import options_in
from . import layout, plausible
from .environment import read_environment
from .metrics import Figures, check_result, parse_rows, usable
from .recipes import RECIPES, recipe_of
from .settings import check_kinds, completed, flatten, read_config

REPEAT = "repeat the run in another directory"
ANEW = "delete it, and the command of the run makes it again from the last checkpoint"
AGAIN = "delete it, and evaluate again: seqssgd evaluate --run {run} --save"


@dataclasses.dataclass(eq=False)
class Run:
    """One run.

    Attributes:
        path: its directory.
        settings: the resolved configuration, under dotted keys such as ``optim.lr``.
        rows: the evaluations in order, as they stand in metrics.jsonl; one row per epoch evaluated.
        curvature: those rows of the training that tell of the curvature (``training.log_curvature``).
        result: the contents of result.json; empty while there is none.
        evaluations: what evaluations added (``seqssgd evaluate --save``), by split.
    """

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    evaluations: dict[str, dict[str, Any]]
    curvature: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def finished(self) -> bool:
        """All its epochs were made, or its patience ended it; not so if a limit of steps or minutes did, or a loss that
        stayed non-finite."""
        epochs = self.settings["training.epochs"]
        return bool(self.result) and (self.result["stopped_early"] or self.result["epochs"] >= epochs)

    @property
    def diverged(self) -> str | None:
        """What is wrong with it or its model, at its end; None if nothing is."""
        return self.result.get("diverged")


@contextlib.contextmanager
def _reading(file: Path, mend: str = REPEAT) -> Iterator[None]:
    """Whatever is wrong with a file of a run in one line: the file, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{file}: cannot be used ({str(error).splitlines()[0]}); {mend}") from None


def read_run(path: str | Path) -> Run:
    """Reads a run directory, finished or not.

    A setting of the optimizer or the loop that did not exist when the run was made has its default.

    Raises:
        UserError: no run directory, or its files are damaged, impossible, or contradict each other.
    """
    path = Path(path)
    config, metrics = path / layout.CONFIG, path / layout.METRICS
    for file in (config, metrics):
        if not file.is_file():
            raise UserError(f"{path}: not a run directory (no {file.name})")
    with _reading(config, f"put the run's own back, or {REPEAT}"):
        settings = _settings(parse_yaml(config.read_bytes()))
    with _reading(metrics):
        every = parse_rows(metrics.read_bytes(), figures=True)
        plausible.check_order(every)
    with _reading(config, plausible.MEND):
        plausible.check_settings(settings, every, str(settings.get("recipe")) in RECIPES, _command(path))
    curvature = [row for row in every if row["kind"] == "train" and "sharpness" in row]
    rows = [row for row in every if row["kind"] == "valid"]
    with _reading(path / layout.RESULT, ANEW):
        result = _json(path / layout.RESULT)
        if result:
            check_result(result)
            result = {**result, "best": usable(result.get("best") or {})}
    with _reading(metrics):
        if result and not (rows and rows[-1]["step"] == result["steps"]):
            raise ValueError(f"{layout.RESULT} ends differently")
    with _reading(path / layout.RESULT, ANEW):
        if result:
            plausible.check_end(result, rows)
    with _reading(path / layout.EVALUATION, AGAIN.format(run=path)):
        evaluations = _checked_evaluations(_json(path / layout.EVALUATION), rows)
    settings, rows, result, evaluations, curvature = map(printable, (settings, rows, result, evaluations, curvature))
    # evaluated again at the end of an epoch in which an earlier limit of steps had ended the run
    return Run(path, settings, list({row["epoch"]: row for row in rows}.values()), result, evaluations, curvature)


def _settings(config: Any) -> dict[str, Any]:
    from ..training.config import OptimConfig, TrainingConfig  # here: a training writes runs

    if not isinstance(config, dict):
        raise ValueError("holds no settings")
    given = flatten(config)
    for key in ("optim.method", "optim.base", "training.epochs"):
        if key not in given:
            raise ValueError(f"has no {key}")
    recipe = recipe_of(config, imports=False)  # a run to compare may be anyone's
    if recipe is None:  # of a task that no recipe has: what every task has
        kind = dataclasses.make_dataclass("Config", [("optim", OptimConfig), ("training", TrainingConfig)])
    else:
        kind, config = recipe.config_class, {"recipe": recipe.name, **config}
    if config.get("recipe", "") is None:  # as earlier versions left it out
        config = {key: value for key, value in config.items() if key != "recipe"}
    check_kinds(config, kind)
    found = completed(config, kind, settled=False)
    return flatten({"optim": found["optim"], "training": found["training"], **found})  # first what every task has


def _command(run: Path) -> list[str]:
    """The command that a run was started by; empty if it does not say."""
    with contextlib.suppress(UserError, OSError):  # its figures do not depend on that record
        return read_environment(run).get("command", [])
    return []


def _json(path: Path) -> dict[str, Any]:
    found = parse_json(path.read_bytes()) if path.is_file() else {}
    if not isinstance(found, dict):
        raise ValueError("holds no object")
    return found


def _checked_evaluations(evaluations: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The figures of all splits; a name that is a number in one split, or in the validation, must be a number or null
    in the others."""
    if wrong := misfit(dict[str, dict], evaluations):
        raise ValueError(wrong)
    found = {split: usable(figures) for split, figures in evaluations.items()}
    names = {key.removeprefix("valid_") for row in rows[-1:] for key in row}
    names |= {key for figures in found.values() for key, value in figures.items() if isinstance(value, float)}
    for split, figures in found.items():
        own = {key: value for key, value in figures.items() if key in names}
        if wrong := misfit(Figures, own, split) or (cannot := plausible.out_of_range(own)) and f"{split}.{cannot}":
            raise ValueError(wrong)
    return found


def record(run: str | Path, split: str, figures: dict[str, Any]) -> None:
    """Adds the evaluation of a split, with the name of its checkpoint, to a run's evaluation.json.

    Raises:
        UserError: the run directory cannot be written to, or its evaluation.json is damaged.
    """
    path = Path(run) / layout.EVALUATION
    busy = f"{path}: another evaluation has been writing there for a minute; try again"
    try:
        with alone(path.parent / layout.EVALUATION_LOCK, busy, wait=60):  # or of two at once one would be lost
            known = read_json(path, AGAIN.format(run=run), dict[str, dict]) if path.is_file() else {}
            text = json.dumps({**known, split: figures}, indent=2) + "\n"
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None


def data_folder(run: str | Path, given: str | Path | None) -> Path:
    """The folder of the data that a run was trained on: the one that is given, or else the one that the run noted.

    Raises:
        UserError: none is given, and the run does not know, or its record is damaged, or its data lie there no more.
    """
    if given is not None:
        return Path(given)
    read_config(run)
    known = read_environment(Path(run))
    options = dict(options_in(known.get("command", [])))
    noted = known.get("data") or options.get("data")  # earlier versions noted the command alone
    if noted is None:
        raise UserError(f"{run} does not say where its data lie; give their folder (--data)")
    if not Path(noted).is_dir():
        raise UserError(f"{noted}, the data of {run}, is not there any more; give their folder (--data)")
    return Path(noted)
