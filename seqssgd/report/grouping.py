"""Runs of one method, which differ in seeds and bookkeeping, under a name that tells them from the others."""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..runs.reading import Run

SEEDS = ("seed", "optim.noise_seed")
# How a run was watched and kept, and what computed it: settings that its figures do not depend on, up to rounding and,
# with graphs, to the masks of dropout between LSTM layers.
BOOKKEEPING = (
    "training.log_every",
    "training.log_curvature",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep",
    "training.graphs",
    "training.threads",
    "training.device",
    "training.deterministic",
    "corpus.cache_gigabytes",
    "corpus.prefetch",
)
BASES = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
METHODS = {
    "none": "{base}",
    "ssgd": "S-{base}",
    "ssgd_shaped": "S-{base}, shaped",
    "nso": "NSO",
    "sam": "SAM",
    "asam": "ASAM",
    "msam": "MSAM",
    "mrwp": "m-RWP",
    "smoothout": "SmoothOut",
    "adasmoothout": "AdaSmoothOut",
    "dropconnect": "DropConnect",
    "ivon": "IVON",
    "ema": "EMA",
    "swa": "SWA",
}
# Who stands next to whom: the base optimizer, averages of weights, one-sided noise, pairs, ascent, others.
FAMILIES = (
    *("none", "ema", "swa"),
    *("weight_noise", "two_draws", "graves", "smoothout", "adasmoothout", "dropconnect", "mrwp"),
    *("ssgd", "ssgd_shaped", "nso"),
    *("sam", "asam", "msam"),
    *("ivon",),
)
# Settings that a method with noise is always named by: what goes without saying, and how the rest is said, with the
# value as text and as it is.
NOISE = {
    "optim.signs": ("batch", "{}"),
    "optim.distribution": ("rademacher", "{}"),
    "optim.granularity": ("layer", "per {}"),
    "optim.only": (None, "{} alone"),
    "optim.balance": (False, "balanced"),
    "optim.precondition": (False, "preconditioned"),
    "optim.noise_schedule": (None, "phases {}"),
    "optim.noise_ramp": (None, "ramp from {1[0]} over {1[1]}"),
}
EPOCHS = "training.epochs"


@dataclass(eq=False)
class Group:
    """Runs of one configuration with different seeds.

    Attributes:
        runs: at least one.
        label: a short name, different from those of the other groups.
    """

    runs: list[Run]
    label: str = ""

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """The configuration without seeds and bookkeeping, under dotted keys."""
        return _method_settings(self.runs[0])

    @property
    def is_baseline(self) -> bool:
        """Trained by the base optimizer alone."""
        return self.settings["optim.method"] == "none"

    @property
    def place(self) -> tuple:
        """What methods are sorted by: their family, and within it their settings, never their figures."""
        settings = self.settings
        method, signs = settings["optim.method"], settings["optim.signs"] or "batch"
        family = FAMILIES.index(method) if method in FAMILIES else len(FAMILIES)
        scheduled = (settings["optim.noise_schedule"], settings["optim.noise_ramp"]) != (None, None)
        form = (signs != "batch", signs, scheduled, settings["optim.noise"])
        return family, method, str(settings["optim.base"]), *form, self.epochs, self.label

    @property
    def epochs(self) -> int:
        """Those that it was to make; those that it has made if it is unfinished."""
        run = self.runs[0]
        return run.settings[EPOCHS] if run.finished else run.rows[-1]["epoch"]

    def differs_in(self, other: "Group") -> list[str]:
        """The keys of the settings that are not the same."""
        return differing_settings([self, other])

    def mean(self, key: str) -> float:
        """The mean of ``epoch``, ``passes`` or ``seconds`` at the ends of the runs."""
        return sum(run.rows[-1][key] for run in self.runs) / len(self.runs)


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Puts together runs that differ in seeds and bookkeeping alone; unfinished ones only if they are equally far.

    Raises:
        UserError: two runs of one configuration have the same seeds: they would pass for two independent ones.
    """
    groups: dict[str, Group] = {}
    seen: dict[tuple[str, str], Run] = {}
    for run in runs:
        settings = _method_settings(run)
        key = _text([settings, None if run.finished else run.rows[-1]["step"]])
        used = SEEDS if _draws(settings["optim.method"]) else SEEDS[:1]  # the other seed changes nothing
        seeds = _text([run.settings.get(name) for name in used])
        if (twin := seen.setdefault((key, seeds), run)) is not run:
            raise UserError(f"{twin.path} and {run.path}: the same settings and the same seed; leave out one of them")
        groups.setdefault(key, Group([])).runs.append(run)
    found = list(groups.values())
    for group, label in zip(found, _labels(found), strict=True):
        group.label = label
    return found


def _draws(method: str) -> bool:
    """Whether a method has draws of its own; one from elsewhere may have."""
    from ..training.methods import METHODS as KNOWN

    return method not in KNOWN or "seed" in KNOWN[method].parameters


def differing_settings(groups: Sequence[Group]) -> list[str]:
    """The keys of the settings, but for seeds and bookkeeping, that are not the same in all groups."""
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    return [key for key in keys if len({_value(group, key) for group in groups}) > 1]


def show(value: Any) -> str:
    """A setting's value, short but exact."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value)) or "none"
    return "none" if value is None else str(value)


def _labels(groups: Sequence[Group]) -> list[str]:
    """Method, level and form of the noise, unusual epochs; then one more setting at a time where names are equal.

    A name that is a method's and no more is never that of settings which most runs of the method do not have.
    """
    keys = differing_settings(groups)
    # tables have a column of the epochs, and none of other settings
    usual = {key: _usual((_value(group, key) for group in groups), 0 if key == EPOCHS else 0.5) for key in keys}
    methods = [_method(group.settings) for group in groups]
    names = list(methods)
    if EPOCHS in keys:
        for index, group in enumerate(groups):
            if _value(group, EPOCHS) != usual[EPOCHS]:
                names[index] += f", {(epochs := group.settings[EPOCHS])} epoch{'' if epochs == 1 else 's'}"
    for key in keys:
        values: dict[str, set[str]] = {}
        for name, group in zip(names, groups, strict=True):
            values.setdefault(name, set()).add(_value(group, key))
        for index, group in enumerate(groups):
            if len(values[names[index]]) > 1 and _value(group, key) != usual[key]:
                names[index] += _setting(group, key)
    for index, group in enumerate(groups):  # the bare name of a method is that of its usual settings, or of none
        siblings = [other for other, method in zip(groups, methods, strict=True) if method == methods[index]]
        if names[index] == methods[index] and len(siblings) > 2:
            for key in keys:
                if _usual((_value(other, key) for other in siblings), 0.5) not in (None, _value(group, key)):
                    names[index] += _setting(group, key)
    for index, group in enumerate(groups):
        if not group.runs[0].finished:
            names[index] += f", unfinished at step {group.runs[0].rows[-1]['step']:,}"
    return names


def _setting(group: Group, key: str) -> str:
    return f", {key.rpartition('.')[2].replace('_', ' ')} {show(group.settings.get(key))}"


def _usual(values: Iterable[str], share: float) -> str | None:
    """What goes without saying: the most common value, if more than this share of the groups have it."""
    counts = Counter(values)
    value, count = counts.most_common(1)[0]
    return value if count > share * counts.total() else None


def _method(settings: dict[str, Any]) -> str:
    from ..training.methods import METHODS as KNOWN

    method, base = settings["optim.method"], settings["optim.base"]
    known = METHODS.get(method) or method.rpartition(":")[2].replace("_", " ")  # one from elsewhere is module:Class
    name = known.format(base=BASES.get(base, re.split("[.:]", base)[-1]))
    if method == "none":
        return name
    words = [f"{name} {show(settings['optim.noise'])}" if settings["optim.noise"] else name]
    own = KNOWN[method].settings if method in KNOWN else {}  # what goes without saying for one method may not for all
    for key, (usual, said) in NOISE.items():
        value = settings.get(key)
        if value not in (None, own.get(key.removeprefix("optim."), usual)):
            words.append(said.format(show(value), value))
    return ", ".join(words)


def _method_settings(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in SEEDS + BOOKKEEPING}


def _value(group: Group, key: str) -> str:
    return _text(group.settings.get(key, "(absent)"))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
