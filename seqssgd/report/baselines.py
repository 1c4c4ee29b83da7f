"""What a method is held against: the base optimizer without a method, at equal epochs and at equal compute."""

import math
from collections.abc import Callable, Sequence

from ..errors import UserError
from .grouping import Group

EQUAL_EPOCHS, EQUAL_PASSES, CHOSEN = "equal epochs", "equal passes", "chosen baseline"
OF_THE_TASK = ("optim.base", "training.accumulate")  # what a baseline shares beside model, data and minibatch
TOLERANCE = 0.02  # passes that differ by less count as equal: minibatches of speech vary a little in number


def criteria(groups: Sequence[Group], chosen: str | None = None) -> dict[str, Callable[[Group], Group | None]]:
    """What makes a group the baseline of another, by name: functions from a group to its baseline, itself included.

    Args:
        groups: all there are.
        chosen: the label of a group, or one of its run directories: the baseline of all, in place of those at equal
            epochs.

    Raises:
        UserError: there is no such group, or there are several.
    """

    def equal_passes(group: Group) -> Group | None:
        passes = group.mean("passes")
        return find_baseline(group, groups, lambda g: math.isclose(g.mean("passes"), passes, rel_tol=TOLERANCE))

    if chosen is not None:
        baseline = _named(groups, chosen)
        return {CHOSEN: lambda group: baseline, EQUAL_PASSES: equal_passes}
    return {
        EQUAL_EPOCHS: lambda group: find_baseline(group, groups, lambda g: g.epochs == group.epochs),
        EQUAL_PASSES: equal_passes,
    }


def find_baseline(group: Group, groups: Sequence[Group], equal: Callable[[Group], bool]) -> Group | None:
    """The baseline among ``groups`` that ``equal`` accepts and whose settings differ least; ``group`` if it is one.

    A baseline has no method, and differs in nothing outside the sections ``optim`` and ``training``: model, data and
    minibatch are the same, and the base optimizer is, and as many minibatches make a step.
    """
    if group.is_baseline:
        return group
    found = {}
    for other in groups:
        if other.is_baseline and equal(other):
            keys = other.differs_in(group)
            if all(key.startswith(("optim.", "training.")) and key not in OF_THE_TASK for key in keys):
                found[other] = len(keys)
    return min(found, key=found.__getitem__, default=None)


def _named(groups: Sequence[Group], name: str) -> Group:
    def is_meant(group: Group) -> bool:
        paths = [path for run in group.runs for path in (str(run.path), run.path.name)]
        return name.casefold() == group.label.casefold() or name.rstrip("/") in paths

    found = [group for group in groups if is_meant(group)]
    if len(found) != 1:
        labels = "; ".join(group.label for group in groups)
        raise UserError(f"baseline {name!r}: {'several' if found else 'none'} of these methods; they are {labels}")
    return found[0]
