"""How much noise a recipe bears: :func:`seqssgd.optim.noise_finder` as two runs of its own program.

So the search has what a recipe's training has, such as mixed precision or several processes, goes on where it was left,
and can be extended to higher levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from .errors import UserError
from .kinds import misfit
from .optim.finder import POINTS, NoiseCurve, points
from .runs import layout
from .runs.metrics import read_rows
from .runs.settings import flatten, read_config
from .training import parse_recipe
from .training.methods import find_method
from .training.recipe import as_options, load_program

_LENGTH = 1_000_000  # steps, more than any search has: the ramp of the level is written as reaching them


class Losses(TypedDict):
    """What a row of a training has that is read here."""

    loss: float | None
    nonfinite: int


@dataclass
class NoiseFinder:
    """Two short trainings of a recipe, in the folders ``plain`` and ``noisy`` of ``out``.

    A search that ended at a lower ``highest`` goes on: the level keeps rising as it did, for as many steps as it takes.

    Attributes:
        program: the recipe's train.py.
        options: of the program: its configuration, data and settings.
        highest: the noise level at the last step, in the unit of the method's ``optim.noise``; None: three times the
            recipe's, or 1.5 if that has none.
        warmup: steps without noise.
        steps: steps after them, in which the level rises to the ``highest`` that the search was begun with.
    """

    program: Path
    options: Sequence[str]
    out: Path
    highest: float | None = None
    warmup: int = 200
    steps: int = 400

    def __post_init__(self) -> None:
        if self.highest is not None and not (math.isfinite(self.highest) and self.highest > 0):
            raise UserError(f"--highest {self.highest:g}: it must be a number > 0")
        if self.warmup < 0 or self.steps < POINTS:
            raise UserError(f"--warmup {self.warmup} --steps {self.steps}: at least 0 and {POINTS}")
        self.rising = self.steps  # how many steps the level rises in

    def train(self) -> int:
        """Trains both, from where they were left; returns the exit status, which is not 0 if a signal ended one.

        Raises:
            UserError: there is no such program, it refuses an option, its method has no noise level, or a training
                ended before the level had risen.
        """
        recipe = load_program(self.program)
        if not (hasattr(recipe, "Config") and hasattr(recipe, "main")):
            raise UserError(f"{self.program}: trains no recipe (it has no Config and main); give its train.py")
        optim = parse_recipe(recipe.Config, [*self.options, "--out", str(self.out)]).config.optim
        method = "ssgd" if optim.method == "none" else optim.method
        if "noise" not in find_method(method).settings:
            raise UserError(f"optim.method: {method} has no noise level; give one that has, such as ssgd")
        if 1.0 not in find_method(method).kind.levels:
            raise UserError(f"optim.method: the level of {method} is a probability; try some of them directly")
        common = {
            "optim.noise_schedule": None,
            "training.log_every": self._log_every,
            "training.evaluate_every": 10**6,  # validation is of no interest here
            "training.max_nonfinite": 10**6,
            "training.log_curvature": False,
        }
        highest = self.highest or 3 * optim.noise or 1.5
        level = self._level() or highest / self.steps * _LENGTH
        self.rising = round(highest / level * _LENGTH)
        rising = {"optim.noise": level, "optim.noise_ramp": [self.warmup, _LENGTH], "optim.noise_unit": "step"}
        for name, settings in (("plain", {"optim.method": "none"}), ("noisy", {"optim.method": method, **rising})):
            run = ["--out", str(self.out / name), "--max-steps", str(self.warmup + self.rising)]
            if status := recipe.main([*self.options, *as_options({**common, **settings}), *run]):
                return status
            self._losses(name)  # one that ended too soon is no use to the other
        return 0

    def curve(self) -> NoiseCurve:
        """What the two trainings found.

        Raises:
            UserError: they ended before the level had risen, or the loss without noise is not a number > 0.
        """
        plain, noisy = (self._losses(name) for name in ("plain", "noisy"))
        try:
            return NoiseCurve(points(plain, noisy, (self._level() or 0.0) / _LENGTH), "--{}")
        except ValueError as error:
            raise UserError(f"{self.out / 'plain'}: {error}") from None

    @property
    def _log_every(self) -> int:
        """Steps between rows of metrics, such that some rows make up the warm-up, and some each point."""
        return math.gcd(self.warmup, self.steps // POINTS)

    def _level(self) -> float | None:
        """The level that the ramp of a search begun before has at its (distant) end."""
        known = self.out / "noisy"
        if not (known / layout.CONFIG).is_file():
            return None
        level = flatten(read_config(known)).get("optim.noise")
        if wrong := misfit(float, level, "optim.noise"):
            raise UserError(f"{known / layout.CONFIG}: {wrong}; delete {self.out} and search again")
        return level

    def _losses(self, name: str) -> list[float]:
        """The loss of each step, as the mean of some: infinite if that of one of them was not finite."""
        file = self.out / name / layout.METRICS
        rows = []
        for number, row in enumerate(read_rows(file), 1):
            if row["kind"] == "train":
                if wrong := misfit(Losses, row):
                    raise UserError(f"{file}, line {number}: damaged ({wrong}); delete {self.out} and search again")
                rows.append(row)
        if len(rows) < (self.warmup + self.rising) // self._log_every:
            raise UserError(
                f"{self.out / name}: ended before step {self.warmup} + {self.rising}; "
                "give fewer --warmup and --steps, or more --training.epochs"
            )
        failed, losses = 0, []
        for row in rows:
            losses += [row["loss"] if row["nonfinite"] == failed else math.inf] * self._log_every
            failed = row["nonfinite"]
        return losses[self.warmup : self.warmup + self.rising]
