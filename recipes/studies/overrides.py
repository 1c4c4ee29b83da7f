"""What may follow ``--`` on a study's command line: options that none of its runs would have are refused."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqssgd.documents import parse_yaml
from seqssgd.errors import UserError
from seqssgd.runs.settings import flatten

BEFORE = ("arms", "data", "out", "max-minutes", "seeds", "study", "recipe", "list")
SEEDS = ("seed", "optim.noise_seed")
MADE = {  # what settings without a dot set, and take no multiples of
    "phases": {"optim.noise_schedule", "optim.noise_unit"},
    "late": {"optim.noise_schedule", "optim.noise_unit"},
    "periods": {"optim.lr_schedule", "optim.lr_period", "optim.lr_multiplier"},
}


def check_overrides(arms: Mapping[str, Mapping[str, Any]], overrides: Sequence[str]) -> list[str]:
    """Makes sure that what follows ``--`` reaches some run.

    Args:
        arms: of the study.
        overrides: options of the recipe's train.py.

    Returns:
        notes on options that some arms have a value of their own for.

    Raises:
        UserError: an option that the study sets for all its runs; a file of settings, of which the recipe's options
            and the arms would override what they like.
    """
    found = []
    for key in dict.fromkeys(_keys(overrides)):
        if key == "config":
            raise UserError(
                "--config: a study has the file of its recipe; give single settings, such as --training.epochs 10, or "
                "make the file a recipe of its own in recipes.yaml"
            )
        if key in SEEDS:
            raise UserError(f"--{key}: a study sets it; give --seeds before --")
        if key in BEFORE:
            raise UserError(f"--{key}: it is an option of the study; give it before --")
        if key == "max-steps":
            raise UserError("--max-steps: a study makes whole runs; give --training.epochs")
        own = [arm for arm, settings in arms.items() if key in _set_by(settings)]
        # levels are multiples of the given one where an arm says so, and 0 where it says nothing
        reached = [
            arm for arm, settings in arms.items() if arm not in own and (key != "optim.noise" or "noise" in settings)
        ]
        if not reached:
            raise UserError(
                f"--{key}: the study's arms set it; choose another study, or train with the recipe's train.py"
            )
        if own:
            found.append(f"--{key} is not for {', '.join(own)}, which set{'s' * (len(own) == 1)} it")
    return found


def _keys(overrides: Sequence[str]) -> Iterator[str]:
    """The settings, under dotted keys, and other options that words of a command line give, sections in files too."""
    for word, following in itertools.pairwise([*overrides, ""]):
        if not word.startswith("--"):
            continue
        key, equals, value = word.removeprefix("--").partition("=")
        inside, text = None, value if equals else following
        with contextlib.suppress(ValueError, OSError):  # the recipe says what is wrong with it
            of_file = "." not in key and Path(text).is_file()  # --optim optim.yaml
            inside = parse_yaml(Path(text).read_bytes() if of_file else text.encode())
        yield from flatten(inside, f"{key}.") if isinstance(inside, dict) and key != "config" else [key]


def _set_by(settings: Mapping[str, Any]) -> set[str]:
    return {name for key in settings for name in MADE.get(key, {key} if "." in key else set())}
