"""Configurations as dataclasses, the optimizer they describe, and the command line that every recipe answers to."""

import dataclasses
import difflib
import math
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..errors import UserError
from ..optim import LambdaNoise, MultiPassOptimizer, SinglePass
from ..optim import schedules as schedule
from ..optim.groups import HIGHEST_LEVEL
from ..optim.roles import Role
from .methods import BASES, LIMITS, METHODS, SETTINGS
from .unused import check_used


def _require(condition: bool, key: str, value: Any, wanted: str) -> None:
    if not condition:
        raise UserError(f"{key}: {value!r} is not {wanted}")


def _one_of(choices: Iterable[str], key: str, value: str) -> None:
    _require(value in choices, key, value, f"one of {', '.join(choices)}")


def _positive(value: float | None) -> bool:
    return value is None or (math.isfinite(value) and value > 0)


@dataclass
class TrainingConfig:
    """How a task is trained, whatever the task.

    Attributes:
        epochs: passes over the training data.
        accumulate: minibatches whose gradients are averaged into one step.
        clip: the largest norm of the averaged gradient; null: no clipping.
        precision: fp32, or bf16 or fp16 by autocast (fp16 with a gradient scaler).
        device: auto takes CUDA if there is one.
        threads: CPU threads; null: torch's choice. Results are the same to the bit for the same number only.
        checkpoint_every: steps between checkpoints, beside that of every epoch's end; null: none.
        checkpoint_minutes: minutes between checkpoints; null: no limit.
        keep: how many of the last checkpoints are kept, beside the best.
        patience: evaluations without a new best after which training stops; null: never.
        evaluate_every: epochs between evaluations.
        log_every: steps between lines of training metrics.
        log_curvature: of ssgd with signs batch: log the trace of the Hessian by layer, the relative trace and the
            sharpness, which the two passes of a step give away; null: do not.
        max_nonfinite: steps skipped in a row, for a loss or gradient that is not finite, after which training stops.
        deterministic: refuse operations that have no deterministic form (torch.use_deterministic_algorithms).
    """

    epochs: int = 1
    accumulate: int = 1
    clip: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
    checkpoint_every: int | None = None
    checkpoint_minutes: float | None = 10.0
    keep: int = 2
    patience: int | None = None
    evaluate_every: int = 1
    log_every: int = 100
    max_nonfinite: int = 20
    deterministic: bool = False
    log_curvature: bool | None = None

    def __post_init__(self) -> None:
        for key in ("epochs", "accumulate", "keep", "evaluate_every", "log_every", "max_nonfinite"):
            value = getattr(self, key)
            _require(value >= 1, f"training.{key}", value, "a whole number >= 1")
        for key in ("threads", "checkpoint_every", "patience", "clip", "checkpoint_minutes"):
            value = getattr(self, key)
            _require(_positive(value), f"training.{key}", value, "a finite number > 0, or null")
        for key, choices in (("precision", ("fp32", "bf16", "fp16")), ("device", ("auto", "cpu", "cuda"))):
            _one_of(choices, f"training.{key}", getattr(self, key))


@dataclass
class OptimConfig:
    """The optimizer: a method, the optimizer inside it, and their schedules.

    Attributes:
        method: none (the base optimizer alone, whatever the settings of other methods), ssgd (symmetric weight
            noise), or one it is compared with: weight_noise, two_draws, smoothout, adasmoothout, graves, nso, mrwp,
            dropconnect, covariance, sam, asam, ema, swa.
        base: the optimizer that steps: sgd, adam or adamw.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 penalty with sgd and adam, decoupled with adamw.
        betas: of adam and adamw.
        noise: the noise level c: a perturbation has c times the norm of the weights. With granularity absolute or
            filter_std the size of an element; of dropconnect the probability of dropping a weight; of covariance
            √(B/b - 1), for minibatches of B with the noise of b.
        distribution: of the noise: rademacher, gaussian or uniform; null: the method's own.
        granularity: over what the norm is taken (tensor, layer, filter), or what the size of an element is measured
            by (filter_std: the filter's norm; absolute: nothing); null: the method's own.
        signs: of ssgd: where the gradients at w+n and w-n come from: batch (two passes), halves, steps, or ranks (one;
            the last takes an even number of processes).
        copies: of one-sided noise: the perturbations of a step.
        pairs: of nso: the symmetric pairs of a step.
        clean_weight: of nso and mrwp: how much the gradient at the weights themselves counts.
        rho: of sam and asam: the norm of the perturbation.
        diagonal: of covariance: the diagonal of the gradients' second moments alone, for a second pass.
        eta: of asam: what is added to the size of each weight.
        average_decay: of ema.
        average_start: of ema and swa: steps before the average begins.
        only: roles of the weights to perturb (recurrent, conv, dense, embedding, other); null: all of them (of sam and
            asam: every parameter).
        noise_seed: of the noise.
        noise_schedule: phases without and with (S) noise, such as 75-25S-25S; null: always on.
        noise_ramp: start and length of a linear rise of the level from 0; null: none.
        noise_unit: what noise_schedule and noise_ramp count.
        lr_schedule: constant, zaremba, sgdr, cosine or steps, by epochs. zaremba divides by lr_divisor after every
            epoch that follows the constant ones, steps at the lr_milestones.
        lr_warmup: epochs at the start over which the learning rate rises linearly, on top of lr_schedule; null: none.
        lr_constant_epochs: of zaremba.
        lr_divisor: of zaremba and steps.
        lr_milestones: of steps.
        lr_period: epochs in the first period of sgdr.
        lr_multiplier: of sgdr: how much longer each period is than the one before.
        bn_stats: which passes update batch-norm statistics.
    """

    method: str = "none"
    base: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    noise: float = 0.0
    distribution: str | None = None
    granularity: str | None = None
    signs: str | None = None
    copies: int | None = None
    pairs: int | None = None
    clean_weight: float | None = None
    rho: float | None = None
    diagonal: bool | None = None
    eta: float | None = None
    average_decay: float | None = None
    average_start: int | None = None
    only: list[Role] | None = None
    noise_seed: int = 0
    noise_schedule: str | None = None
    noise_ramp: tuple[int, int] | None = None
    noise_unit: Literal["epoch", "step"] = "epoch"
    lr_schedule: str = "constant"
    lr_warmup: int | None = None
    lr_constant_epochs: int = 0
    lr_divisor: float = 10.0
    lr_milestones: list[int] = dataclasses.field(default_factory=list)
    lr_period: int = 10
    lr_multiplier: int = 2
    bn_stats: Literal["both", "first", "none"] = "both"

    def __post_init__(self) -> None:
        _require(math.isfinite(self.lr) and self.lr > 0, "optim.lr", self.lr, "a finite number > 0")
        for key in ("noise", "momentum", "weight_decay"):
            value = getattr(self, key)
            _require(math.isfinite(value) and value >= 0, f"optim.{key}", value, "a finite number >= 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "optim.betas", self.betas, "two numbers >= 0 and < 1")
        _one_of(METHODS, "optim.method", self.method)
        self._settle()
        for key, (holds, wanted) in LIMITS.items():
            value = getattr(self, key)
            _require(value is None or holds(value), f"optim.{key}", value, wanted)
        relative = "granularity" in METHODS[self.method].settings and self.granularity != "absolute"
        if relative and self.noise_ramp is None:  # the noise finder ramps to where training fails
            hint = f"at most {HIGHEST_LEVEL:g} (a fraction; for {self.noise:g} percent give {self.noise / 100:g})"
            _require(self.noise <= HIGHEST_LEVEL, "optim.noise", self.noise, hint)
        if self.method == "dropconnect":
            _require(self.noise < 1, "optim.noise", self.noise, "a probability < 1 (of dropping a weight)")
        _one_of(BASES, "optim.base", self.base)
        _one_of(LR_SCHEDULES, "optim.lr_schedule", self.lr_schedule)
        checks = {
            "lr_schedule": lambda: LR_SCHEDULES[self.lr_schedule](self, 1),
            "lr_warmup": lambda: self._lr(1),
            "noise_schedule": lambda: self.noise_schedule is None or schedule.phases(self.noise_schedule),
            "noise_ramp": lambda: self.noise_ramp is None or schedule.ramp(*self.noise_ramp),
        }
        for key, check in checks.items():
            try:
                check()
            except ValueError as error:
                raise UserError(f"optim.{key}: {error}") from error

    @property
    def halves(self) -> bool:
        """Whether the passes of a step share the minibatch out, so that it must have two examples."""
        return self.method == "mrwp" or (self.method == "ssgd" and self.signs == "halves")

    def _settle(self) -> None:
        """Gives the settings that were left open the method's own values; refuses those that it does not have."""
        own = METHODS[self.method].settings
        for key, unset in SETTINGS.items():
            value = getattr(self, key)
            if value is None:
                setattr(self, key, own.get(key, unset))
            elif value != unset and key not in own and self.method != "none":
                takers = ", ".join(name for name, method in METHODS.items() if key in method.settings)
                raise UserError(f"optim.{key}: {self.method} has no such setting (these have: {takers}); leave it out")

    def _lr(self, epochs: int) -> schedule.Schedule | None:
        """The factor of the learning rate by epoch; None if it is constant."""
        factor = LR_SCHEDULES[self.lr_schedule](self, epochs)
        return factor if self.lr_warmup is None else schedule.warmup(self.lr_warmup, factor or (lambda epoch: 1.0))

    def _noise(self) -> schedule.Schedule | None:
        """The factor of the noise level over time; None if it is constant."""
        factors: list[schedule.Schedule] = []
        if self.noise_schedule is not None:
            factors.append(schedule.phases(self.noise_schedule))
        if self.noise_ramp is not None:
            factors.append(schedule.ramp(*self.noise_ramp))
        return (lambda time: math.prod(factor(time) for factor in factors)) if factors else None


# Every schedule of the learning rate: (configuration, epochs) -> factor by epoch.
LR_SCHEDULES: dict[str, Callable[[OptimConfig, int], schedule.Schedule | None]] = {
    "constant": lambda c, epochs: None,
    "zaremba": lambda c, epochs: schedule.zaremba_decay(c.lr_constant_epochs, c.lr_divisor),
    "sgdr": lambda c, epochs: schedule.sgdr(c.lr_period, c.lr_multiplier),
    "cosine": lambda c, epochs: schedule.cosine(epochs),
    "steps": lambda c, epochs: schedule.steps(c.lr_milestones, c.lr_divisor),
}


def build_optimizer(model: nn.Module, config: OptimConfig) -> MultiPassOptimizer:
    """The optimizer that ``config`` describes, for the parameters of ``model``.

    Raises:
        UserError: the method does not fit the model (no weights with the roles of ``only``).
    """
    try:
        return METHODS[config.method].build(model, config)
    except ValueError as error:
        raise UserError(f"optim: {error}") from error


def build_schedulers(optimizer: Optimizer, config: OptimConfig, epochs: int) -> list[tuple[Any, str]]:
    """The schedulers that ``config`` describes for ``optimizer``, as pairs with when :func:`fit` steps them.

    Args:
        epochs: of the training: where a cosine ends.
    """
    schedulers: list[tuple[Any, str]] = []
    if (factor := config._lr(epochs)) is not None:
        schedulers.append((LambdaLR(optimizer, factor), "epoch"))
    if not isinstance(optimizer, SinglePass) and (factor := config._noise()) is not None:
        schedulers.append((LambdaNoise(optimizer, factor), config.noise_unit))
    return schedulers


# ---- the command line ------------------------------------------------------------------------------------------------


@dataclass
class Command:
    """A recipe's command line, read.

    Attributes:
        config: the configuration: what the result depends on.
        data: the folder of prepared data.
        out: the run directory.
        max_steps, max_minutes: limits of this call, for :func:`fit`; no part of the configuration.
    """

    config: Any
    data: Path
    out: Path
    max_steps: int | None
    max_minutes: float | None


def parse_recipe(config_class: type, argv: Sequence[str] | None = None, description: str = "") -> Command:
    """Reads ``--config FILE --data DIR --out RUN [--max-steps N] [--max-minutes M] [--KEY VALUE ...]``.

    Args:
        config_class: a dataclass with the recipe's settings, one of them ``seed``, nested dataclasses such as
            ``optim: OptimConfig`` and ``training: TrainingConfig`` included. Each is a key of the file and, with dots,
            an option, which goes before the file.
        argv: the arguments; None: those of the program.

    Raises:
        UserError: an unknown key, a wrong value, a setting that does nothing, a missing or empty data folder.
    """
    from jsonargparse import ArgumentParser, Namespace  # here: a program with a configuration of its own needs none

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of settings")
    parser.add_argument("--data", type=str, required=True, metavar="DIR", help="the folder of prepared data")
    parser.add_argument("--out", type=str, required=True, metavar="RUN", help="the run directory; resumed if it exists")
    parser.add_argument("--max-steps", type=int | None, default=None, help="finish after so many steps in all")
    parser.add_argument("--max-minutes", type=float | None, default=None, help="stop, to be resumed, after so many")
    parser.add_class_arguments(config_class, as_group=False)
    files, options = _split_off_files(argv)
    try:
        parsed = parser.parse_args(files + options)  # the files first: an option holds wherever it stands
        for field in dataclasses.fields(config_class):
            if dataclasses.is_dataclass(field.type):
                value = parsed[field.name]
                _require(isinstance(value, Namespace), field.name, value, "a group of settings; see --help for them")
        settings = parser.instantiate(parsed)
    except (ArgumentError, UnicodeDecodeError) as error:
        raise UserError(_one_line(str(error), _keys(config_class), files)) from error
    names = [field.name for field in dataclasses.fields(config_class)]
    config = config_class(**{name: settings[name] for name in names})
    if isinstance(getattr(config, "optim", None), OptimConfig):
        paths = [word.removeprefix("--config=") for word in files if word != "--config"]
        check_used(config.optim, paths, options)
    for key in ("max_steps", "max_minutes"):
        _require(_positive(settings[key]), f"--{key.replace('_', '-')}", settings[key], "a number > 0")
    data = Path(settings.data)
    if not data.is_dir() or not any(data.iterdir()):
        state = "an empty folder" if data.is_dir() else "not a folder"
        raise UserError(f"--data {data}: {state}; prepare the data with the recipe's program in data_prep/")
    return Command(config, data, Path(settings.out), settings.max_steps, settings.max_minutes)


def _split_off_files(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The arguments that are ``--config FILE``, and all others."""
    import sys

    rest, files = list(sys.argv[1:] if argv is None else argv), []
    for index in reversed([i for i, word in enumerate(rest) if word == "--config" or word.startswith("--config=")]):
        end = index + 1 + (rest[index] == "--config")
        files[:0], rest[index:end] = rest[index:end], []
    return files, rest


def _keys(config_class: type, prefix: str = "") -> list[str]:
    keys = []
    for field in dataclasses.fields(config_class):
        keys.append(prefix + field.name)
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            keys.extend(_keys(field.type, f"{prefix}{field.name}."))
    return keys


def _one_line(message: str, keys: list[str], files: list[str]) -> str:
    """jsonargparse's message, which may run over many lines, as one that starts with the key, or names the file."""
    text = " ".join(message.split())
    if unreadable := re.match(r"(Problems parsing|Unexpected) config: ?|(?='utf-8' codec)", text):
        names = ", ".join(word.removeprefix("--config=") for word in files if word != "--config")
        return f"--config {names}: no settings in YAML ({text[unreadable.end() :] or 'nothing at all'})"
    unknown = (
        re.fullmatch(r"Group '(?P<group>.+)' does not accept option '(?P<key>.+)'", text)
        or re.fullmatch(r"Option '(?P<group>)(?P<key>.+)' is not accepted", text)
        or re.match(r"unrecognized arguments: --(?P<group>)(?P<key>[^ =]+)", text)
    )
    if unknown:
        key = ".".join(filter(None, (unknown["group"], unknown["key"])))
        close = difflib.get_close_matches(key, keys, n=1)
        return f"{key}: no such setting{f'; did you mean {close[0]}?' if close else '; --help lists them all'}"
    text = re.sub(r'^Parser key "(.+?)": ', r"\1: ", text)
    text = re.sub(r"Expected an? <class '(\w+)'>\. Got value:", r"expected \1, got", text)
    return re.sub(r"Expected a typing\.Literal\[(.*?)\]\. Got value:", r"expected one of \1, got", text)
