"""What the program of every recipe ends with, and how other programs call it."""

import contextlib
import dataclasses
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from .. import notes
from ..documents import parse_yaml
from ..errors import UserError, run_cli
from ..optim import MultiPassOptimizer
from ..processes import is_main
from ..runs.directory import RunDirectory
from ..runs.recipes import RECIPES
from . import distributed
from .building import build_optimizer, build_schedulers, to_look_at
from .command_line import Command
from .curvature import begin_recording
from .graphs import check_replayable
from .logs import say
from .loop import fit
from .precision import settle_precision
from .reach import check_judged, check_reach
from .task import Task
from .unused import idle, left_out


def train(command: Command, task: Task, about: Mapping[str, Any], begin: Callable[[Path], None] | None = None) -> int:
    """Trains ``task`` as the command line says; returns the exit status of the program.

    Args:
        command: its configuration has the sections ``optim`` and ``training``.
        task: see :class:`Task`.
        about: what the result depends on beside the configuration, such as the data, and ``"recipe"``, what reads the
            run (:mod:`seqssgd.runs.recipes`; None without it); it becomes a part of config.yaml.
        begin: called by the main process with the run directory as soon as that is open.

    Raises:
        UserError: see :func:`settle_precision`, :func:`build_optimizer`, :func:`check_reach`, :class:`RunDirectory`
            and :func:`fit`.
    """
    config = command.config
    if (built := _built.get()) is not None:
        built.append((task, build_optimizer(task.model, to_look_at(config.optim)), config))
        return 0
    settle_precision(task.model, config.training, command.out)
    optimizer = build_optimizer(task.model, config.optim)
    check_judged(task, config.training)
    not_reached = check_reach(config.optim, config.training, task.steps_per_epoch, command.max_steps)
    schedulers = build_schedulers(optimizer, config.optim, config.training.epochs, task.steps_per_epoch)
    if config.training.log_curvature:
        begin_recording(optimizer)  # what cannot be is refused before there is a run directory
    if config.training.graphs:
        check_replayable(task)
    run = RunDirectory(command.out, config, {"recipe": None, **about}, command.data)
    with contextlib.closing(run):
        if is_main():
            for by, unused in left_out(config.optim).items():
                settings = ", ".join(f"{key} {value}" for key, value in unused.items())
                say(f"{run.path}: {by} leaves out {settings}")
            for text in [*not_reached, *idle(config, task.model)]:
                notes.warn(f"{run.path}: {text}")
            if begin is not None:
                begin(run.path)
        limits = {"max_steps": command.max_steps, "max_minutes": command.max_minutes}
        return fit(task, optimizer, schedulers, config.training, run, **limits)["exit_code"]


_built: ContextVar[list[tuple[Task, MultiPassOptimizer, Any]] | None] = ContextVar("built", default=None)


def build(program: Callable[[], int]) -> tuple[Task, MultiPassOptimizer, Any]:
    """What a recipe's program would train, with what optimizer, and its configuration; nothing is trained or written.

    Args:
        program: calls the program's ``main`` with its arguments.

    Raises:
        UserError: the program refuses them, or trains by other means than :func:`train`.
    """
    built: list[tuple[Task, MultiPassOptimizer, Any]] = []
    token = _built.set(built)
    try:
        program()
    finally:
        _built.reset(token)
    if not built:
        raise UserError("the program does not train by seqssgd.training.train; give a recipe's train.py")
    return built[0]


def run_program(main: Callable[[], int | None]) -> NoReturn:
    """Runs ``main`` as :func:`seqssgd.errors.run_cli` does, leaves the group of processes and ends the program."""
    try:
        status = run_cli(lambda: distributed.with_others(main))
    finally:
        distributed.cleanup()
    sys.exit(status)


def load_program(path: Path) -> ModuleType:
    """A program of a recipe as a module, whose ``main`` takes the program's arguments.

    Raises:
        UserError: there is no such file, or it is not Python.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path}: no such program; give the path of a recipe's train.py")
    name = f"{path.resolve().parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # as for every file named *.py
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def find_program(config: Path, program: Path | None = None) -> Path:
    """The program of the recipe that a file of settings is for.

    Args:
        config: the file.
        program: the one that is given; None: train.py beside the file, or else that of the one recipe which has all
            of the file's settings, where this package is in its repository.

    Raises:
        UserError: there is no such file, it is none of settings, or nothing tells its recipe.
    """
    if not config.is_file():
        raise UserError(f"{config}: no such file; give a recipe's settings in YAML")
    try:
        content = parse_yaml(config.read_bytes())
    except ValueError as error:
        raise UserError(f"{config}: no settings in YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise UserError(f"{config}: no settings in YAML; give a recipe's")
    if program is not None:
        return program
    if (beside := config.parent / "train.py").is_file():
        return beside
    fitting = [recipe.name for recipe in RECIPES.values() if set(content) <= _settings(recipe.config_class)]
    known = [path for name in fitting if (path := _REPOSITORY / "recipes" / name / "train.py").is_file()]
    if len(known) != 1:
        raise UserError(
            f"{config}: there is no train.py beside it, and nothing else tells its recipe; give --program, such as "
            "recipes/ptb_lstm/train.py"
        )
    return known[0]


_REPOSITORY = Path(__file__).resolve().parents[2]


def _settings(config_class: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings under dotted keys as options of a recipe's train.py."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return [word for key, text in texts.items() for word in (f"--{key}", text)]
