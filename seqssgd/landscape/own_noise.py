"""The weight noise that a run was trained with: its level, its kind, and draws of it around the weights."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..optim import IVON, CovarianceNoise, DropConnect
from ..optim.noise import NORMS
from ..optim.random_noise import RandomNoise
from ..runs import checkpoints
from ..runs.recipes import read_recipe
from ..runs.settings import restored
from ..training.building import build_optimizer, to_look_at
from ..training.methods import find_method
from .sharpness import WeightNoise
from .subjects import Subject

WITHOUT_NOISE = 0.5  # the level at which the steps of a run without weight noise are looked at


class NoRelativeLevel(ValueError):
    """A method's noise level is no fraction of the norm of the weights."""


class NoPosterior(ValueError):
    """A checkpoint has weights alone."""


def has_noise(optim: Mapping[str, Any]) -> bool:
    """Whether the method moves the weights at random, whatever level stands in the file."""
    return issubclass(find_method(optim.get("method", "none")).kind, (RandomNoise, CovarianceNoise))


def of_noise(optim: Mapping[str, Any], key: str) -> Any:
    """A setting of the noise, or what the method has where it is not set."""
    return optim[key] if optim.get(key) is not None else find_method(optim["method"]).settings.get(key)


def noise_level(optim: Mapping[str, Any]) -> float:
    """The noise level of a run's section ``optim``, over the norm of the weights; 0.5 where it has no weight noise.

    Raises:
        NoRelativeLevel: it has weight noise whose level is measured by something else.
    """
    if not has_noise(optim):
        return WITHOUT_NOISE
    name, granularity = optim["method"], of_noise(optim, "granularity")
    method = find_method(name)
    if not method.takes_noise or issubclass(method.kind, DropConnect) or granularity is None:
        raise NoRelativeLevel(f"the level of {name} is no fraction of the norm of the weights")
    if granularity not in NORMS:
        raise NoRelativeLevel(f"with granularity {granularity} the level is no fraction of the norm of the weights")
    return optim.get("noise") or WITHOUT_NOISE


def own_noise(subject: Subject, optim: Mapping[str, Any] | None) -> WeightNoise:
    """The noise that ``optim``, the section of a configuration, describes; else that of S-SGD's defaults."""
    kind = {}
    if optim is not None and has_noise(optim):
        kind = {key: of_noise(optim, key) for key in ("only", "distribution", "granularity")}
    return WeightNoise(subject.model, **kind)


def draws_of(subject: Subject, pairs: int) -> tuple[int, Callable[[], Iterator[Any]]]:
    """How many draws there are of a run's own noise, and what moves the weights to one after the other.

    IVON's are of its posterior, and all others' of the level and kind of the training, with both signs. There is none
    of a run without weight noise.

    Raises:
        NoPosterior: the checkpoint of an IVON run has no h.
        NoRelativeLevel: the level is no fraction of the norm of the weights.
    """
    optim = subject.settings["optim"]
    if issubclass(find_method(optim["method"]).kind, IVON):
        return 2 * pairs, _posterior(subject, 2 * pairs)
    if not has_noise(optim) or optim.get("noise") == 0:
        return 0, lambda: iter(())
    level, noise = noise_level(optim), own_noise(subject, optim)

    def models() -> Iterator[None]:
        for draw in range(pairs):
            with noise.moved(level, draw) as signs:
                for _ in signs:
                    subject.recalibrate()
                    yield

    return 2 * pairs, models


def _posterior(subject: Subject, draws: int) -> Callable[[], Iterator[Any]]:
    state = checkpoints.load(subject.checkpoint).get("optimizer")
    if state is None:
        raise NoPosterior(f"{subject.checkpoint.name} has no optimizer's state, where IVON's h is; give RUN@last")
    config = restored(subject.settings, read_recipe(subject.name, settled=False)[0].config_class)
    optimizer = build_optimizer(subject.model, to_look_at(config.optim))
    assert isinstance(optimizer, IVON)
    optimizer.load_state_dict(state)

    def models() -> Iterator[None]:
        for _ in optimizer.samples(draws):
            subject.recalibrate()
            yield

    return models
