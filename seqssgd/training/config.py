"""Configurations as dataclasses, and the optimizer they describe."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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

LARGEST = 1e30  # numbers beyond it are none in single precision


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
    hint = f"; give {min(-value, 10**18 - 1)}, or any other" if value < 0 else ""
    if not 0 <= value < 2**63:
        raise UserError(f"{key}: {value} is not a whole number from 0 on of at most 18 digits{hint}")


def _one_of(choices: Iterable[str], key: str, value: str) -> None:
    require(value in choices, key, value, f"one of {', '.join(choices)}")


def is_positive(value: float | None) -> bool:
    """Whether a setting is a finite number > 0, or is left open."""
    return value is None or 0 < value <= LARGEST


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
            require(value >= 1, f"training.{key}", value, "a whole number >= 1")
        for key in ("threads", "checkpoint_every", "patience", "clip", "checkpoint_minutes"):
            value = getattr(self, key)
            require(is_positive(value), f"training.{key}", value, "a finite number > 0, or null")
        for key, choices in (("precision", ("fp32", "bf16", "fp16")), ("device", ("auto", "cpu", "cuda"))):
            _one_of(choices, f"training.{key}", getattr(self, key))


@dataclass
class OptimConfig:
    """The optimizer: a method, the optimizer inside it, and their schedules.

    Attributes:
        method: none (the base optimizer alone, whatever the settings of other methods), ssgd (symmetric weight
            noise), ssgd_shaped (the same, its noise following the curvature), or one it is compared with: weight_noise,
            two_draws, smoothout, adasmoothout, graves, nso, mrwp, dropconnect, covariance, sam, asam, msam, ivon (noise
            that adapts to the curvature), ema, swa.
        base: the optimizer that steps: sgd, adam or adamw; ivon steps by itself.
        lr: learning rate.
        momentum: of sgd.
        weight_decay: L2 penalty with sgd and adam, decoupled with adamw; of ivon δ.
        betas: of adam, adamw and ivon; null: 0.9 and 0.999, of ivon 0.9 and 0.99999.
        noise: the noise level c: a perturbation has c times the norm of the weights. With granularity absolute or
            filter_std the size of an element; of dropconnect the probability of dropping a weight; of covariance
            √(B/b - 1), for minibatches of B with the noise of b.
        distribution: of the noise: rademacher, gaussian or uniform; null: the method's own.
        granularity: over what the norm is taken (tensor, layer, filter), or what the size of an element is measured
            by (filter_std: the filter's norm; absolute: nothing); null: the method's own.
        signs: of ssgd: where the gradients at w+n and w-n come from: batch (two passes), halves, steps or ranks (one),
            or pairs (one in each of two processes, with one minibatch); the last two take an even number of processes.
            Of ssgd_shaped: batch or halves. Of ivon: one (a perturbation a step), batch, halves or steps.
        copies: of one-sided noise: the perturbations of a step.
        pairs: of nso: the symmetric pairs of a step.
        clean_weight: of nso and mrwp: how much the gradient at the weights themselves counts.
        rho: of sam, asam and msam: the norm of the perturbation.
        diagonal: of covariance: the diagonal of the gradients' second moments alone, for a second pass.
        centred: of covariance: the covariance of the gradients in place of their second moments.
        eta: of asam: what is added to the size of each weight.
        ess: of ivon: λ, the effective sample size: the number of training examples, in units of the loss's mean.
        curvature_decay: of ssgd_shaped: of the running mean of the diagonal of the Hessian.
        damping: of ssgd_shaped: what is added to the diagonal, in units of its mean in the layer.
        hess_init: of ivon: the start of its diagonal of the Hessian.
        clip_radius: of ivon: the largest size of an element of its update, before the learning rate; null: no limit.
        average_decay: of ema.
        average_start: of ema and swa: steps before the average begins.
        only: roles of the weights to perturb (recurrent, conv, dense, embedding, other); null: all of them (of sam,
            asam and ivon: every parameter).
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
    betas: tuple[float, float] | None = None
    noise: float = 0.0
    distribution: str | None = None
    granularity: str | None = None
    signs: str | None = None
    copies: int | None = None
    pairs: int | None = None
    clean_weight: float | None = None
    rho: float | None = None
    diagonal: bool | None = None
    centred: bool | None = None
    eta: float | None = None
    ess: float | None = None
    curvature_decay: float | None = None
    damping: float | None = None
    hess_init: float | None = None
    clip_radius: float | None = None
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
        require(is_positive(self.lr), "optim.lr", self.lr, "a finite number > 0")
        require(0 <= self.weight_decay <= LARGEST, "optim.weight_decay", self.weight_decay, "a finite number >= 0")
        require(0 <= self.momentum < 1, "optim.momentum", self.momentum, "a number >= 0 and < 1")
        require(0 <= self.noise <= LARGEST, "optim.noise", self.noise, "a finite number >= 0")
        check_seed("optim.noise_seed", self.noise_seed)
        _one_of(METHODS, "optim.method", self.method)
        self._settle()
        require(all(0 <= beta < 1 for beta in self.betas or ()), "optim.betas", self.betas, "two numbers >= 0 and < 1")
        for key, (holds, wanted) in LIMITS.items():
            value = getattr(self, key)
            require(value is None or holds(value), f"optim.{key}", value, wanted)
        relative = "granularity" in METHODS[self.method].settings and self.granularity != "absolute"
        if relative and self.noise_ramp is None and self.noise > HIGHEST_LEVEL:  # the noise finder ramps to failure
            hint = f"a fraction; for {self.noise:g} percent give {self.noise / 100:g}"
            raise UserError(f"optim.noise: {self.noise!r} is not at most {HIGHEST_LEVEL:g} ({hint})")
        if self.method == "dropconnect":
            require(self.noise < 1, "optim.noise", self.noise, "a probability < 1 (of dropping a weight)")
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
        return self.method == "mrwp" or (self.method in ("ssgd", "ssgd_shaped", "ivon") and self.signs == "halves")

    def _settle(self) -> None:
        """Gives the settings that were left open the method's own values; refuses those that it does not have."""
        own = METHODS[self.method].settings
        self.betas = METHODS[self.method].betas if self.betas is None else self.betas
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
