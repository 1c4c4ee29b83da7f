"""Which recipe made a run, and so what reads it: settings, task, model, evaluation.

``config.yaml`` says so in its entry ``recipe``: a name of ``RECIPES``, ``module:NAME`` for a :class:`Recipe` of
anyone's, or null. Runs of versions that did not say are told by the sections that their configurations have, if
these hold nothing that the recipe does not know: a recipe of anyone's may have sections of the same names.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import UserError
from ..named import load_named
from . import layout
from .settings import check_kinds, completed, knows_all, read_config

LANGUAGE_MODEL, RECOGNISER, CLASSIFIER = "a language model", "a speech recogniser", "an image classifier"


class Recipe(NamedTuple):
    """What a recipe's runs are made of.

    Attributes:
        name: of it, as in config.yaml.
        kind: what messages call a run of it.
        room: the package of its task, with modules ``config``, ``task``, ``finished`` and ``evaluation``.
        settings: the dataclass in ``config`` of its configuration.
    """

    name: str
    kind: str
    room: str
    settings: str = "Config"

    def module(self, name: str) -> ModuleType:
        """A module of its room."""
        return importlib.import_module(f"{self.room}.{name}")

    @property
    def config_class(self) -> type:
        """The dataclass of its configuration."""
        return getattr(self.module("config"), self.settings)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("ptb_lstm", LANGUAGE_MODEL, "seqssgd.language"),
        Recipe("wsj_sgcn", RECOGNISER, "seqssgd.speech"),
        Recipe("cifar_cnn", CLASSIFIER, "seqssgd.images"),
        Recipe("imagenet_resnet", CLASSIFIER, "seqssgd.images", "EncodedConfig"),
    )
}


def recipe_of(config: Mapping[str, Any], imports: bool = True) -> Recipe | None:
    """The recipe of a run by its configuration; None if nothing tells.

    Args:
        config: the run's.
        imports: whether one from elsewhere is imported; if not, nothing tells.

    Raises:
        UserError: it names a recipe that is not there.
    """
    if "recipe" in config:
        name = config["recipe"]
        return None if not isinstance(name, str) else find_recipe(name) if imports else RECIPES.get(name)
    if not isinstance(config.get("model"), Mapping):
        return None
    likely = next((recipe for recipe, signs in _SIGNS.items() if all(_has(config, sign) for sign in signs)), None)
    if likely is None or not knows_all(config, RECIPES[likely].config_class, beside=_ABOUT):
        return None
    return RECIPES[likely]


# Of runs that do not say their recipe: settings that each of them has, in the order in which they decide.
_SIGNS = {
    "wsj_sgcn": ("tokens", "augment"),
    "imagenet_resnet": ("bn_images", "corpus.smallest_area"),
    "cifar_cnn": ("bn_images",),
    "ptb_lstm": ("sequence_length",),
}
_ABOUT = ("data", "tokenizer")  # what their configurations have beside the settings


def _has(config: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.rpartition(".")
    found = config.get(section) if section else config
    return isinstance(found, Mapping) and name in found


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    found = load_named("recipe", name) if ":" in name else None
    if not isinstance(found, Recipe):
        raise UserError(f"recipe {name!r} is not one of {', '.join(RECIPES)}, and no module:NAME of a Recipe")
    return found


def read_recipe(run: str | Path, kind: str | None = None, settled: bool = True) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a run, and its configuration, completed where an earlier version wrote it.

    Args:
        run: the run directory.
        kind: of runs that are meant; None: any.
        settled: as in :func:`seqssgd.runs.settings.completed`. Who needs no section ``optim`` gives False, and so no
            method or base optimizer from elsewhere.

    Raises:
        UserError: not a run directory, or a run of another kind.
    """
    config = read_config(run)
    recipe = recipe_of(config)
    if recipe is None:
        raise UserError(
            f"{Path(run) / layout.CONFIG}: it does not say which recipe reads the run; see about['recipe'] in "
            "docs/extend.md"
        )
    if kind is not None and recipe.kind != kind:
        raise UserError(f"{run} is a run of {recipe.kind}; give one of {kind}")
    try:
        check_kinds(config, recipe.config_class)
    except ValueError as error:
        raise UserError(f"{Path(run) / layout.CONFIG}: {error}; put the run's own back") from None
    return recipe, completed(config, recipe.config_class, settled)


def read_section(run: str | Path, name: str, kind: str | None = None) -> dict[str, Any]:
    """One section of a run's configuration, as it stands there.

    Raises:
        UserError: not a run directory, a run of another kind, or it has no such section.
    """
    config = read_config(run)
    recipe = recipe_of(config)
    if kind is not None and recipe is not None and recipe.kind != kind:
        raise UserError(f"{run} is a run of {recipe.kind}; give one of {kind}")
    section = config.get(name)
    if not isinstance(section, dict):
        raise UserError(f"{Path(run) / layout.CONFIG} has no section {name!r}; give a run of {kind or 'a recipe'}")
    return section
