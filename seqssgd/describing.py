"""What noise does to the model of a recipe: of one of its configurations, or of a run."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from .errors import UserError
from .optim import Description, describe
from .runs import layout
from .runs.recipes import read_recipe
from .runs.settings import restored_section
from .training import OptimConfig, build_optimizer
from .training.building import to_look_at
from .training.recipe import build, find_program, load_program


def describe_config(config: Path, data: str, program: Path | None = None, options: Sequence[str] = ()) -> str:
    """The method of a configuration and its model's layers, with the weights as training begins.

    Args:
        config: the recipe's settings, in YAML.
        data: the folder of prepared data, on which the sizes of the model depend.
        program: the recipe's program; None: see :func:`seqssgd.training.recipe.find_program`.
        options: of the program.

    Raises:
        UserError: there is no such file or program, it trains no recipe, or it refuses the settings or the data.
    """
    recipe = load_program(find_program(config, program))
    if not hasattr(recipe, "main"):
        raise UserError(f"{recipe.__file__}: trains no recipe (it has no main); give its train.py")
    settings = ["--config", str(config), "--data", data, *options, "--out", "unused"]
    task, optimizer, used = build(lambda: recipe.main(settings))
    return _text(used.optim, describe(optimizer, task.model))


def describe_run(run: Path, checkpoint: str = "best") -> str:
    """The method of a run and its model's layers, with the weights of a checkpoint and the level of its configuration.

    Args:
        run: the run directory.
        checkpoint: as in :func:`seqssgd.runs.checkpoints.find_checkpoint`.

    Raises:
        UserError: not a run of a recipe, no such checkpoint, or a damaged one.
    """
    recipe, config = read_recipe(run)
    model = recipe.module("finished").load_model(run, checkpoint)
    try:
        optim = restored_section(config["optim"], recipe.config_class, "optim")
    except UserError as error:
        raise UserError(f"{run / layout.CONFIG}: {error}") from None
    return _text(optim, describe(build_optimizer(model, to_look_at(optim)), model))


def _text(config: OptimConfig, description: Description) -> str:
    schedules = {"noise_schedule": config.noise_schedule, "noise_ramp": config.noise_ramp}
    when = "".join(f", {name} {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
                   for name, value in schedules.items() if value is not None)  # fmt: skip
    unit = f" (in {config.noise_unit}s)" if when else ""
    return f"method {config.method}, base {config.base}{when}{unit}\n\n{description}"
