"""How much noise a training bears: its loss under a rising noise level, as a learning-rate finder raises that rate.

Two short trainings begin alike and see the same minibatches. One has no noise; the other has a level that rises evenly,
step by step. By how much the second one's loss is higher is what noise costs.

What noise costs grows while a network learns, and what it brings shows on other data alone. So the level found is the
upper end of those that are worth a try, not the best one.
"""

import copy
import csv
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from .limits import Range, check_settings
from .passes import MultiPassOptimizer

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
class NoiseCurve:
    """What noise costs at rising levels; ``print`` shows it.

    Attributes:
        points: ten of them, by rising level.
        option: how the message spells the settings of the search: ``"{}"`` as arguments, ``"--{}"`` as options.
    """

    points: Sequence[Point]
    option: str = "{}"

    @property
    def level(self) -> float | None:
        """The level above which noise costs more than a tenth of the loss; None if it is not on the curve."""
        return self._suggestion()[0]

    @property
    def advice(self) -> str:
        """Which levels to try and why; if there is nothing to suggest, what to change in the search."""
        level, reason = self._suggestion()
        if level is None:
            return f"no level to suggest: {reason}"
        return f"try noise levels from {level / 4:.2g} to {level:.2g}, and choose by validation: {reason}"

    def _suggestion(self) -> tuple[float | None, str]:
        points = self.points
        highest, warmup = (self.option.format(name) for name in ("highest", "warmup"))
        if points[-1].cost <= BEARABLE:
            return None, (
                f"up to {points[-1].level:.2g} noise costs less than {BEARABLE:.0%} of the loss. A network that has "
                f"learned little bears any noise: lengthen {warmup} (language models need thousands of steps); "
                f"if it has learned, raise {highest}"
            )
        for low, high in reversed(list(itertools.pairwise(points))):
            if low.cost <= BEARABLE:  # at all points after it noise costs more
                share = (BEARABLE - low.cost) / (high.cost - low.cost)
                level = low.level + share * (high.level - low.level)
                return level, f"from {level:.2g} on noise costs more than {BEARABLE:.0%} of the loss"
        first = points[0].level
        return None, f"at {first:.2g} noise costs more than {BEARABLE:.0%} of the loss already; lower {highest}"

    def __str__(self) -> str:
        lines = ["noise level  loss without  with noise     cost"]
        lines += [f"{p.level:11.4g}  {p.plain:12.4g}  {p.noisy:10.4g}  {p.cost:+7.1%}" for p in self.points]
        return "\n".join([*lines, "", self.advice])

    def save(self, folder: str | Path) -> list[Path]:
        """Writes ``noise-finder.csv`` and ``noise-finder.png`` into ``folder``; returns the paths.

        Raises:
            ModuleNotFoundError: the picture needs matplotlib (the extra ``recipes``); the CSV file is written before.
        """
        from ..files import atomic_path

        paths = [Path(folder) / "noise-finder.csv", Path(folder) / "noise-finder.png"]
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(paths[0]) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([(*Point._fields, "cost"), *((*point, point.cost) for point in self.points)])
        with atomic_path(paths[1]) as temporary:
            self._draw(temporary)
        return paths

    def _draw(self, path: Path) -> None:
        from ..report.plots import COLOURS, new_figure

        figure = new_figure(4.5, 3.4)
        axes = figure.add_subplot(xlabel="noise level", ylabel="training loss")
        for name, colour, dash in zip(("noisy", "plain"), COLOURS, ("-", "--"), strict=False):
            label = {"noisy": "level as it rises", "plain": "same steps without noise"}[name]
            axes.plot(
                [p.level for p in self.points], [getattr(p, name) for p in self.points], dash, color=colour, label=label
            )
        if self.level is not None:
            label = f"costs {BEARABLE:.0%} from {self.level:.2g} on"
            axes.axvline(self.level, color=COLOURS[2], linestyle=":", label=label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=9)
        figure.savefig(path, format="png", dpi=150, facecolor="white", metadata={"Software": None})


def noise_finder(
    model: nn.Module,
    optimizer: MultiPassOptimizer,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    *,
    highest: Annotated[float, Range(gt=0)] = 1.5,
    warmup: Annotated[int, Range(ge=0)] = 200,
    steps: Annotated[int, Range(ge=POINTS)] = 400,
) -> NoiseCurve:
    """Trains two copies of ``model``, one of them under rising noise, and finds the noise level that it bears.

    ``model`` and ``optimizer`` stay as they are, and so does the random state: both copies see the same minibatches and
    the same dropout. The learning rate stays what it is now. With two passes a step this costs ``warmup`` + 3 ``steps``
    passes, as steps without noise take one.

    Args:
        model: in the state in which noise is to begin, or untrained: then ``warmup`` should be long enough for it to
            learn something.
        optimizer: of ``model``, with a noise level in the groups that noise is for (:func:`noise_groups`).
        batches: minibatches, a ``DataLoader`` for example; gone through as often as need be.
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss of a minibatch.
        highest: the level at the last step.
        warmup: steps without noise, before the level rises.
        steps: in which it rises from 0, at least 10.

    Returns:
        the two losses at ten levels; ``print`` it, or take its ``level`` and ``advice``.

    Raises:
        TypeError: ``optimizer`` has no passes, or the loss is no tensor.
        ValueError: an impossible setting, no group with a level above 0, no minibatches, or a loss without noise that
            is not a number above 0.

    >>> import torch
    >>> from seqssgd.optim import SymmetricNoise, noise_finder, noise_groups
    >>> _ = torch.manual_seed(0)
    >>> model, loss_fn = torch.nn.Linear(4, 1), torch.nn.MSELoss()
    >>> inputs = torch.randn(64, 4)
    >>> batches = [(x, x.sum(1, keepdim=True) + torch.randn(16, 1)) for x in inputs.split(16)]
    >>> optimizer = SymmetricNoise(torch.optim.SGD(noise_groups(model, noise=0.5), lr=0.05))
    >>> curve = noise_finder(model, optimizer, batches, lambda model, batch: loss_fn(model(batch[0]), batch[1]))
    >>> 0 < curve.level < 1.5
    True
    """
    check_settings(noise_finder, highest=highest, warmup=warmup, steps=steps)
    if not isinstance(optimizer, MultiPassOptimizer):
        raise TypeError(f"noise_finder takes SymmetricNoise around an optimizer, not {torch.typename(optimizer)} alone")
    key = optimizer.level_key
    levels = [group.get(key, 0.0) for group in optimizer.param_groups]
    if not any(levels):
        raise ValueError("no parameter group has a noise level above 0; build them with noise_groups(model, noise=0.5)")
    noisy, plain = [], []
    with torch.random.fork_rng(devices=_devices(model)):
        minibatches = _repeated(batches)
        learner, learners = copy.deepcopy((model, optimizer))
        _set_levels(learners, [0.0] * len(levels))
        for batch in itertools.islice(minibatches, warmup):
            _step(learner, learners, batch, loss_fn)
        other, others = copy.deepcopy((learner, learners))
        for step, batch in enumerate(itertools.islice(minibatches, steps)):
            _set_levels(learners, [level / max(levels) * highest * step / steps for level in levels])
            with torch.random.fork_rng(devices=_devices(model)):  # the same dropout in both
                plain.append(_step(other, others, batch, loss_fn))
            noisy.append(_step(learner, learners, batch, loss_fn))
    return NoiseCurve(points(plain, noisy, highest / steps))


def points(plain: Sequence[float], noisy: Sequence[float], slope: float) -> list[Point]:
    """A curve's points from the losses of every step, of which each raises the level by ``slope``.

    Raises:
        ValueError: the loss without noise is not a number above 0.
    """
    length, found = len(plain) // POINTS, []
    for index in range(POINTS):
        part = slice(index * length, (index + 1) * length)
        means = [_mean(plain[part]), _mean(noisy[part])]
        found.append(Point(slope * (length * (index + 0.5) - 0.5), *means))
        if not math.isfinite(means[0]):
            raise ValueError(
                f"the loss without noise is not finite at step {length * index} to {length * (index + 1)} after the "
                "warmup: lower the learning rate, or mend the loss"
            )
        if means[0] <= 0:
            raise ValueError(f"the loss without noise is {means[0]:g}, not > 0: noise has no share of it")
    return found


def _mean(losses: Sequence[float]) -> float:
    return math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.inf


def _repeated(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches has no minibatch left; give a list or a DataLoader, which starts anew")


def _set_levels(optimizer: MultiPassOptimizer, levels: Sequence[float]) -> None:
    for group, level in zip(optimizer.param_groups, levels, strict=True):
        group[optimizer.level_key] = level


def _step(model: nn.Module, optimizer: MultiPassOptimizer, batch: Any, loss_fn: Callable[..., Tensor]) -> float:
    """One step; the mean loss over its passes. There is no step if that is not finite."""
    losses = []
    for part in optimizer.passes():
        loss = loss_fn(model, part.take(batch))
        if not isinstance(loss, Tensor):
            raise TypeError(f"loss_fn must return the loss, a tensor to call backward() on, not {torch.typename(loss)}")
        loss.backward()
        losses.append(loss.item())
    mean = _mean(losses)
    if math.isfinite(mean):
        optimizer.step()
    optimizer.zero_grad()
    return mean


def _devices(model: nn.Module) -> list[torch.device]:
    return list({p.device for p in model.parameters() if p.device.type == "cuda"})
