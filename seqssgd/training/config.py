"""The settings of a training and of its optimizer."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from ..errors import UserError
from ..optim import MultiPassOptimizer
from ..optim import schedules as schedule
from ..optim.batchnorm import BNStats
from ..optim.groups import HIGHEST_LEVEL
from ..optim.limits import LARGEST, unmet
from ..optim.roles import Role
from .bases import check_base
from .method_settings import with_settings_of
from .methods import METHODS, Method, find_method, is_elsewhere

Precision = Literal["fp32", "bf16", "fp16", "auto"]
Device = Literal["auto", "cpu", "cuda"]


def require(condition: bool, key: str, value: Any, wanted: str) -> None:
    """Raises a ``UserError`` that names the setting, its value and what is ``wanted``, unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{key}: {value!r} is not {wanted}{_percent(value)}")


def _percent(value: Any) -> str:
    """What is meant, if a share is wanted and a percentage was given."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not all(isinstance(one, (int, float)) and 1 < one <= 100 for one in values):
        return ""
    return f"; {', '.join(f'{one:g}' for one in values)} % is {', '.join(f'{one / 100:g}' for one in values)}"


def check_seed(key: str, value: int) -> None:
    """Raises a ``UserError`` for a seed that not every generator takes for what it is: to Python's -1 is 1."""
    hint = f"; give {min(-value, 2**63 - 1)}, or any other" if value < 0 else ""
    if not 0 <= value < 2**63:
        raise UserError(f"{key}: {value} is not a whole number from 0 to {2**63 - 1}{hint}")


def _one_of(choices: Iterable[str], key: str, value: str) -> None:
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def is_positive(value: float | None) -> bool:
    """Whether a setting is a finite number > 0, or is left open."""
    return value is None or 0 < value <= LARGEST


@dataclass
class TrainingConfig:
    """How a task is trained, whatever the task.

    Attributes:
        epochs: how often the training data are gone through.
        accumulate: minibatches whose gradients are averaged into one step.
        clip: the largest norm of the averaged gradient; null: no clipping.
        precision: fp32, or bf16 or fp16 by autocast (fp16 with a gradient scaler); auto: bf16 where the processor
            multiplies in it, else fp32, as config.yaml then says.
        device: auto takes CUDA if there is one.
        threads: CPU threads; null: torch's choice. Results are the same to the bit for the same number only.
        checkpoint_every: steps between checkpoints, beside that of every epoch's end; null: none.
        checkpoint_minutes: minutes between checkpoints; null: no limit.
        keep: how many of the last checkpoints are kept, beside the best.
        patience: evaluations without a new best after which training stops; null: never.
        evaluate_every: epochs between evaluations.
        log_every: steps between lines of training metrics.
        log_curvature: of ssgd with signs batch or pairs: log the trace of the Hessian by layer, the relative trace and
            the sharpness, which the two passes of a step give away; null: do not.
        max_nonfinite: steps skipped in a row, for a loss or gradient that is not finite, after which training stops.
        graphs: record what the network computes as CUDA graphs, for each shape of its inputs, and replay them: several
            times as fast where a network is small. For networks that do the same for all inputs of one shape.
        deterministic: refuse operations that have no deterministic form (torch.use_deterministic_algorithms).
    """

    epochs: int = 1
    accumulate: int = 1
    clip: float | None = None
    precision: Precision = "fp32"
    device: Device = "auto"
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
    graphs: bool = False

    def __post_init__(self) -> None:
        for key in ("epochs", "accumulate", "keep", "evaluate_every", "log_every", "max_nonfinite"):
            value = getattr(self, key)
            require(value >= 1, f"training.{key}", value, "a whole number >= 1")
        for key in ("threads", "checkpoint_every", "patience", "clip", "checkpoint_minutes"):
            value = getattr(self, key)
            require(is_positive(value), f"training.{key}", value, "a finite number > 0, or null")
        _one_of(get_args(Precision), "training.precision", self.precision)
        _one_of(get_args(Device), "training.device", self.device)

    def check_accumulate(self, minibatches: int) -> None:
        """Raises a ``UserError`` if a step is to have more minibatches than an epoch, whose number is given."""
        if self.accumulate > minibatches:
            raise UserError(
                f"training.accumulate: {self.accumulate} is not at most {minibatches}, the minibatches of an epoch"
            )


def optim_class(methods: Iterable[str]) -> "type[OptimConfig]":
    """The class of configurations, with fields for the settings of ``methods`` from elsewhere too.

    Raises:
        UserError: there is no such method.
    """
    others = tuple(dict.fromkeys(filter(is_elsewhere, methods)))
    return _extended(others) if others else OptimConfig


@functools.cache  # so that equal configurations are of one class
def _extended(methods: tuple[str, ...]) -> "type[OptimConfig]":
    return with_settings_of({name: find_method(name) for name in methods})(OptimConfig)


@with_settings_of(METHODS)
@dataclass
class OptimConfig:
    """The optimizer: a method, the optimizer inside it, and their schedules.

    Attributes:
        method: none (the base optimizer alone, whatever the settings of other methods), ssgd (symmetric weight
            noise), ssgd_shaped (the same, its noise following the curvature), or one it is compared with: weight_noise,
            two_draws, smoothout, adasmoothout, graves, nso, mrwp, dropconnect, covariance, sam, asam, msam, ivon (noise
            that adapts to the curvature), ema, swa; or a class from elsewhere, as module:Class.
        base: the optimizer that steps: sgd, adam or adamw; any other by its class, as torch.optim.RMSprop or
            module:Class; ivon steps by itself.
        base_settings: further arguments of base, such as {nesterov: true}; of a class all but the learning rate.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 penalty with sgd and adam, decoupled with adamw; of ivon δ.
        betas: of adam, adamw and ivon; null: 0.9 and 0.999, of ivon 0.9 and 0.99999.
        noise: the noise level c: a perturbation has c times the norm of the weights. With granularity absolute or
            filter_std the size of an element; of dropconnect the probability of dropping a weight; of covariance
            √(B/b - 1), for minibatches of B with the noise of b.
        only: roles of the weights to perturb (recurrent, conv, dense, embedding, other); null: all of them (of sam,
            asam, msam and ivon: every parameter).
        noise_seed: of the noise.
        noise_schedule: phases without and with (S) noise, such as 75-25S-25S; null: always on.
        noise_ramp: start and length of a linear rise of the level from 0; null: none.
        noise_unit: the unit of noise_schedule and noise_ramp.
        lr_schedule: constant, zaremba, sgdr, cosine or steps, by epochs. zaremba divides by lr_divisor after every
            epoch that follows the constant ones, steps at the lr_milestones.
        lr_warmup: length of a linear rise of the learning rate at the start, on top of lr_schedule; null: none.
        lr_warmup_unit: the unit of lr_warmup. By epochs the first of n has 1/n of the rate and the last the whole.
        lr_constant_epochs: of zaremba.
        lr_divisor: of zaremba and steps.
        lr_milestones: of steps.
        lr_period: epochs in the first period of sgdr.
        lr_multiplier: of sgdr: how much longer each period is than the one before.
        bn_stats: which passes update batch-norm statistics.
    """

    methods: ClassVar[Mapping[str, Method]] = {}  # those whose settings are fields here

    method: str = "none"
    base: str = "sgd"
    base_settings: dict[str, Any] | None = None
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None
    noise: float = 0.0
    only: list[Role] | None = None
    noise_seed: int = 0
    noise_schedule: str | None = None
    noise_ramp: tuple[int, int] | None = None
    noise_unit: Literal["epoch", "step"] = "epoch"
    lr_schedule: str = "constant"
    lr_warmup: int | None = None
    lr_warmup_unit: Literal["epoch", "step"] = "epoch"
    lr_constant_epochs: int = 0
    lr_divisor: float = 10.0
    lr_milestones: list[int] = dataclasses.field(default_factory=list)
    lr_period: int = 10
    lr_multiplier: int = 2
    bn_stats: BNStats = "both"

    if TYPE_CHECKING:  # the fields that with_settings_of adds

        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self) -> None:
        require(is_positive(self.lr), "optim.lr", self.lr, "a finite number > 0")
        require(0 <= self.weight_decay <= LARGEST, "optim.weight_decay", self.weight_decay, "a finite number >= 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "a number >= 0 and < 1")
        require(0 <= self.noise <= LARGEST, "optim.noise", self.noise, "a finite number >= 0")
        check_seed("optim.noise_seed", self.noise_seed)
        for key, least in (("lr_constant_epochs", 0), ("lr_divisor", 1), ("lr_period", 1), ("lr_multiplier", 1)):
            value = getattr(self, key)
            require(least <= value <= LARGEST, f"optim.{key}", value, f"a finite number >= {least}")
        steps = self.lr_milestones
        require(all(step >= 0 for step in steps), "optim.lr_milestones", steps, "a list of epochs >= 0")
        method = find_method(self.method)
        self._settle(method)
        require(all(0 <= beta < 1 for beta in self.betas or ()), "optim.betas", self.betas, "two numbers >= 0 and < 1")
        self._check_own(method)
        relative = "granularity" in method.own and self.granularity != "absolute"
        if relative and self.noise_ramp is None and self.noise > HIGHEST_LEVEL:  # the noise finder ramps to failure
            hint = f"a fraction; for {self.noise:g} percent give {self.noise / 100:g}"
            raise UserError(f"optim.noise: {self.noise!r} is not at most {HIGHEST_LEVEL:g} ({hint})")
        if method.takes_noise:
            require(self.noise in method.kind.levels, "optim.noise", self.noise, f"a level {method.kind.levels}")
        if not method.steps_itself:
            check_base(self)
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

    @classmethod
    def restored(cls, section: Mapping[str, Any]) -> "OptimConfig":
        """The configuration of an optimizer, of whichever method, from the section of a run's config.yaml.

        Raises:
            TypeError: a setting that no method of this version has.
            UserError: an impossible one, or a method from elsewhere that is not there.
        """
        method = section.get("method", "none")
        kind = optim_class([method])
        known = {field.name for field in dataclasses.fields(kind)}
        if method == "none":  # whose file may have had settings of a method from elsewhere, which are left out
            section = {key: value for key, value in section.items() if key in known}
        return kind(**section)

    def takes(self, key: str) -> bool:
        """Whether a setting that not all methods have is one of the method's."""
        return key in find_method(self.method).settings

    @property
    def halves(self) -> bool:
        """Whether the passes of a step share the minibatch out, so that it must have two examples: the method's class
        says how, and a setting ``signs``, if it has one, whether.
        """
        shares = find_method(self.method).kind.share is not MultiPassOptimizer.share
        return shares and (self.signs == "halves" if self.takes("signs") else True)

    @classmethod
    def unset(cls) -> dict[str, Any]:
        """The settings that only some methods take, and what they are for the others: as S-SGD's, else null."""
        every = dict.fromkeys(key for method in cls.methods.values() for key in method.settings)
        return {**every, **cls.methods["ssgd"].settings}

    def _settle(self, method: Method) -> None:
        """Gives the settings that were left open the method's own values; refuses those that it does not have."""
        own_betas = method.parameters["betas"].default if "betas" in method.parameters else (0.9, 0.999)
        first, second = own_betas if self.betas is None else self.betas
        self.betas = (first, second)  # no list, as in a run's config.yaml
        for key, unset in self.unset().items():
            value = getattr(self, key)
            if value is None:
                setattr(self, key, method.settings.get(key, unset))
            elif value != unset and key not in method.settings and self.method != "none":
                takers = ", ".join(name for name, other in self.methods.items() if key in other.settings)
                raise UserError(f"optim.{key}: {self.method} has no such setting (these have: {takers}); leave it out")

    def _check_own(self, method: Method) -> None:
        """Holds the settings that methods have of their own against what their signatures say."""
        plain = self.method == "none"  # what is left out must yet be a value for one of the others
        for key in self.unset():
            settings = [each.own[key] for each in (self.methods.values() if plain else [method]) if key in each.own]
            value = getattr(self, key)
            if not settings or (value is None and (plain or settings[0].required)):  # build_optimizer asks for it
                continue
            wanted = unmet(functools.reduce(operator.or_, (setting.annotation for setting in settings)), value)
            require(wanted is None, f"optim.{key}", value, wanted or "")

    def _lr(self, epochs: int, steps_per_epoch: int = 1) -> schedule.Schedule | None:
        """The factor of the learning rate by epoch, or by step if it warms up by steps; None if it is constant."""
        factor = LR_SCHEDULES[self.lr_schedule](self, epochs)
        if self.lr_warmup is None:
            return factor
        then = factor or (lambda epoch: 1.0)
        by_step = self.lr_warmup_unit == "step"
        return schedule.warmup(self.lr_warmup, (lambda step: then(step // steps_per_epoch)) if by_step else then)

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
