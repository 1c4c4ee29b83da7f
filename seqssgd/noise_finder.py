"""How much noise a recipe bears: its loss under a rising noise level, as a learning-rate finder raises that rate.

Two short trainings of one recipe begin alike and see the same minibatches. One has no noise; the other has none at
first, then a level that rises evenly, step by step. By how much the second one's loss is higher is what noise costs.

What noise costs grows while a network learns, and what it brings shows on other data alone. So the level found is the
upper end of those that are worth a try, not the best one.
"""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from .errors import UserError
from .files import atomic_path
from .training import parse_recipe
from .training.methods import METHODS
from .training.recipe import as_options, load_program

BEARABLE = 0.1  # of the loss: what the highest level worth a try costs
POINTS = 10  # of a curve: each the mean of as many successive steps


class Point(NamedTuple):
    """Means over some successive steps: the noise level, and the training loss without noise and with it."""

    level: float
    plain: float
    noisy: float

    @property
    def cost(self) -> float:
        """By what share noise raised the loss; infinite where it was not finite."""
        return self.noisy / self.plain - 1 if math.isfinite(self.noisy) else math.inf


@dataclass(frozen=True)
class NoiseFinder:
    """Two short trainings of a recipe, in the folders ``plain`` and ``noisy`` of ``out``.

    Attributes:
        program: the recipe's train.py.
        options: of the program: its configuration, data and settings.
        highest: the noise level at the last step, in the unit of the method's ``optim.noise``; None: three times the
            recipe's, or 1.5 if that has none.
        warmup: steps without noise.
        steps: steps after them, in which the level rises.
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

    def train(self) -> int:
        """Trains both, from where they were left; returns the exit status, which is not 0 if a signal ended one.

        Raises:
            UserError: there is no such program, it refuses an option, or its method has no noise level.
        """
        recipe = load_program(self.program)
        if not (hasattr(recipe, "Config") and hasattr(recipe, "main")):
            raise UserError(f"{self.program}: trains no recipe (it has no Config and main); give its train.py")
        optim = parse_recipe(recipe.Config, [*self.options, "--out", str(self.out)]).config.optim
        method = "ssgd" if optim.method == "none" else optim.method
        if "noise" not in METHODS[method].settings:
            raise UserError(f"optim.method: {method} has no noise level; give one that has, such as ssgd")
        common = {
            "optim.noise_schedule": None,
            "training.log_every": self._log_every,
            "training.evaluate_every": 10**6,  # validation is of no interest here
            "training.max_nonfinite": 10**6,
        }
        highest = self.highest or 3 * optim.noise or 1.5
        rising = {"optim.noise": highest, "optim.noise_ramp": [self.warmup, self.steps], "optim.noise_unit": "step"}
        for name, settings in (("plain", {"optim.method": "none"}), ("noisy", {"optim.method": method, **rising})):
            run = ["--out", str(self.out / name), "--max-steps", str(self.warmup + self.steps)]
            if status := recipe.main([*self.options, *as_options({**common, **settings}), *run]):
                return status
        return 0

    def curve(self) -> list[Point]:
        """What the two trainings found.

        Raises:
            UserError: they ended before the level had risen, or the loss without noise is not a number > 0.
        """
        plain, noisy = (self._losses(name) for name in ("plain", "noisy"))
        length = self.steps // POINTS
        levels = [self._highest() * (length * (index + 0.5) - 0.5) / self.steps for index in range(POINTS)]
        points = [Point(*values) for values in zip(levels, plain, noisy, strict=True)]
        for point in points:
            if not (math.isfinite(point.plain) and point.plain > 0):
                raise UserError(f"{self.out / 'plain'}: the loss without noise is {point.plain:g}, not > 0")
        return points

    @property
    def _log_every(self) -> int:
        """Steps between rows of metrics, such that some rows make up the warm-up, and some each point."""
        return math.gcd(self.warmup, self.steps // POINTS)

    def _highest(self) -> float:
        return yaml.safe_load((self.out / "noisy" / "config.yaml").read_text(encoding="utf-8"))["optim"]["noise"]

    def _losses(self, name: str) -> list[float]:
        """The mean loss of each point's steps; infinite if that of one step was not finite."""
        rows = [
            json.loads(line) for line in (self.out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        rows = [row for row in rows if row["kind"] == "train"]
        each, begin = self.steps // POINTS // self._log_every, self.warmup // self._log_every
        if len(rows) < begin + POINTS * each:
            raise UserError(
                f"{self.out / name}: ended before step {self.warmup} + {self.steps}; "
                "give fewer --warmup and --steps, or more --training.epochs"
            )
        failed = [0, *(row["nonfinite"] for row in rows)]
        losses = []
        for first in range(begin, begin + POINTS * each, each):
            of_point = [row["loss"] for row in rows[first : first + each]]
            whole = failed[first] == failed[first + each]
            losses.append(math.fsum(of_point) / each if whole else math.inf)
        return losses


def suggest(points: Sequence[Point]) -> tuple[float | None, str]:
    """The level above which noise costs more than ``BEARABLE``, None if it is not on the curve; and why that one."""
    if points[-1].cost <= BEARABLE:
        return None, f"up to {points[-1].level:.2g} noise costs less than {BEARABLE:.0%} of the loss; raise --highest"
    for low, high in reversed(list(itertools.pairwise(points))):
        if low.cost <= BEARABLE:  # at all points after it noise costs more
            share = (BEARABLE - low.cost) / (high.cost - low.cost)
            level = low.level + share * (high.level - low.level)
            return level, f"from {level:.2g} on noise costs more than {BEARABLE:.0%} of the loss"
    return None, f"at {points[0].level:.2g} noise costs more than {BEARABLE:.0%} of the loss already; lower --highest"


def table(points: Sequence[Point]) -> str:
    """The curve as lines of text."""
    lines = ["noise level  loss without  with noise     cost"]
    return "\n".join(lines + [f"{p.level:11.4g}  {p.plain:12.4g}  {p.noisy:10.4g}  {p.cost:+7.1%}" for p in points])


def write(points: Sequence[Point], level: float | None, out: Path) -> list[Path]:
    """Writes the curve as ``noise-finder.csv`` and ``noise-finder.png`` into ``out``, and returns the two paths."""
    paths = [out / "noise-finder.csv", out / "noise-finder.png"]
    with atomic_path(paths[0]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(*Point._fields, "cost"), *((*point, point.cost) for point in points)])
    with atomic_path(paths[1]) as temporary:
        _draw(points, level, temporary)
    return paths


def _draw(points: Sequence[Point], level: float | None, path: Path) -> None:
    from .report.plots import COLOURS, new_figure

    figure = new_figure(4.5, 3.4)
    axes = figure.add_subplot(xlabel="noise level", ylabel="training loss")
    for name, colour, dash in zip(("noisy", "plain"), COLOURS, ("-", "--"), strict=False):
        label = {"noisy": "level as it rises", "plain": "same steps without noise"}[name]
        axes.plot([p.level for p in points], [getattr(p, name) for p in points], dash, color=colour, label=label)
    if level is not None:
        axes.axvline(level, color=COLOURS[2], linestyle=":", label=f"costs {BEARABLE:.0%} from {level:.2g} on")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})
