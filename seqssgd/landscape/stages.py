"""What is measured of a single run, each stage for itself: opened subject and settings in, plain numbers out."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..optim import ShapedNoise
from ..runs.recipes import read_recipe
from ..training.methods import find_method
from .calibration import calibration as calibration_of
from .curvature import CurvatureOperator, NotDifferentiable
from .own_noise import NoPosterior, NoRelativeLevel, draws_of, has_noise, noise_level, own_noise
from .rounding import in_bits
from .sharpness import (
    Increase,
    WeightNoise,
    keskar_sharpness,
    noise_sharpness,
    predicted_sharpness,
    sam_sharpness,
    under_noise,
)
from .spectrum import Estimate, NotConverged, layer_traces, spectral_density, top_eigenvalues
from .subjects import Subject, open_run
from .variance import VarianceSplit, variance_split

UNSTABLE = 0.2  # largest difference of λ_max among the data and both halves of them, over it, without a warning
BITS = (8, 6, 5, 4, 3)  # of a weight, of those that are rounded


class NoLabels(ValueError):
    """A loss term is not that of one label, as those of CTC, so that there is no confidence in it."""


@dataclass(frozen=True)
class StageSettings:
    """How much is spent on a run.

    Attributes:
        terms: loss terms that curvature and sharpness are measured on.
        figure_terms: loss terms of each split that losses and error rates are measured on.
        levels: of the noise.
        draws: pairs of perturbations of each level.
        probes: products for the traces.
        steps: products for the density.
        pairs: of half-minibatches, for the variance.
        split: beside the training set.
    """

    terms: int
    figure_terms: int
    levels: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    draws: int = 4
    probes: int = 6
    steps: int = 16
    pairs: int = 8
    split: str = "test"


# Loss terms by the kind of a run: tokens, utterances, images.
TERMS = {"language": (4000, 2000), "speech": (48, 48), "images": (512, 512)}
ALL_TERMS = {"language": 100_000, "speech": 1000, "images": 10_000}  # at most, of the error rate of a split


def eigenvalues(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """λ_max of the Hessian on the data and on both halves of them."""
    operator = _operator(subject, settings)
    found = top_eigenvalues(operator, 1, 1e-3)
    halves: list[float | None] = []
    lost = None
    for half in (0, 1):
        try:
            part = CurvatureOperator(subject.objective("train", settings.terms, half))
            halves.append(float(top_eigenvalues(part, 1, 1e-2, found.vectors[:, 0], basis=8).values[0]))
        except NotConverged as error:  # that of the whole is known
            halves.append(None)
            lost = f"λ_max of a half of the data is not known: {error}"
    values = [float(found.values[0]), *(value for value in halves if value is not None)]
    warning = None
    if lost is None and max(values) - min(values) > UNSTABLE * max(abs(values[0]), 1e-30):
        warning = (
            f"λ_max is {values[0]:.3g}, and {halves[0]:.3g} and {halves[1]:.3g} on two halves of "
            f"{operator.objective.terms:,} {subject.terms}: too few of them for a stable value; give more terms"
        )
    return {
        "lambda_max": float(found.values[0]),
        "of_halves": halves,
        "products": operator.products,
        "loss": operator.objective.loss,
        "terms": operator.objective.terms,
        "operator": repr(operator),
        "warning": "; ".join(filter(None, [_differences(operator), warning, lost])) or None,
    }


def errors(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """Loss and error rate on the split beside the training set, all of it if it is not huge."""
    loss, error, terms = subject.loss_and_error(subject.spread(settings.split, ALL_TERMS[subject.kind]))
    return {"split": settings.split, "loss": loss, "error": error, "terms": terms}


def traces(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """Trace of the Hessian, relative trace R, and both of every layer that training may perturb."""
    noise = WeightNoise(subject.model)
    operator = _operator(subject, settings, noise)
    found = layer_traces(operator, noise.params, noise.layers, settings.probes)
    layers = {
        name: {"trace": found.of_layer(i), "relative": found.relative_of_layer(i), "weights": int(found.sizes[i])}
        for i, name in enumerate(found.names)
    }
    predicted = {f"{level:g}": predicted_sharpness(found, level) for level in settings.levels}
    return {
        "trace": found.total,
        "relative_trace": found.relative,
        "layers": layers,
        "predicted_sharpness": predicted,
        "warning": _differences(operator),
    }


def density(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """The spectral density: nodes and weights."""
    nodes, weights = spectral_density(_operator(subject, settings), settings.steps)
    return {"nodes": nodes[0].tolist(), "weights": weights[0].tolist()}


def sharpness(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """The rise of the training loss under noise of every level, Keskar's measure and SAM's."""
    objective = subject.objective("train", settings.terms)
    found = noise_sharpness(objective, WeightNoise(subject.model), settings.levels, settings.draws)
    return {
        "noise": [_plain(increase) for increase in found],
        "keskar": keskar_sharpness(objective),
        "sam": sam_sharpness(objective),
        "warning": _nonfinite({"loss": found}),
    }


def robustness(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """Loss and error rate of both splits under noise of every level, batch-norm statistics taken anew each time."""

    def figures() -> dict[str, float]:
        subject.recalibrate()
        return subject.figures(("train", settings.split), settings.figure_terms)

    try:
        found = under_noise(figures, WeightNoise(subject.model), settings.levels, settings.draws)
    finally:
        subject.recalibrate()
    curves = {name: [_plain(increase) for increase in increases] for name, increases in found.items()}
    return {"curves": curves, "warning": _nonfinite(found)}


def rounding(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """As :func:`errors`, with the weights that training may perturb in few bits."""
    weights = WeightNoise(subject.model).params
    found = {"clean": errors(subject, settings)}
    try:
        for bits in BITS:
            with in_bits(weights, bits):
                subject.recalibrate()
                found[f"{bits}"] = errors(subject, settings)
    finally:
        subject.recalibrate()
    return {"bits": {name: {key: figures[key] for key in ("loss", "error")} for name, figures in found.items()},
            "terms": found["clean"]["terms"]}  # fmt: skip


def calibration(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """Calibration on the split beside the training set: at the weights, and averaged over draws of the run's noise."""
    if subject.kind == "speech":
        raise NoLabels("a sequence of labels has many alignments, and no frame a label of its own to be sure of")
    batches = subject.spread(settings.split, ALL_TERMS[subject.kind])

    def of(models: Callable[[], Iterator[Any]]) -> dict[str, float]:
        return calibration_of(batches, subject.outputs, lambda batch: batch[1].flatten(), models)._asdict()

    found: dict[str, Any] = {"weights": of(lambda: iter([None]))}
    try:
        draws, models = draws_of(subject, settings.draws)
        if draws:
            found |= {"averaged": of(models), "draws": draws}
            if warning := _other_noise(subject.settings["optim"], "the average is over draws"):
                found["warning"] = warning
    except (NoRelativeLevel, NoPosterior) as error:
        found["warning"] = f"no average over draws: {error}"
    finally:
        subject.recalibrate()
    return found


def variance(subject: Subject, settings: StageSettings) -> dict[str, Any]:
    """Where the noise in a step's gradient comes from, under the run's own noise and with its minibatch."""
    optim = subject.settings["optim"]
    level = noise_level(optim)
    found = split_of(subject, level, settings.pairs, optim)
    method, why = found.recommendation()
    return {
        **dataclasses.asdict(found),
        "of_step": found.of_step(),
        "break_even": found.break_even,
        "recommended": method,
        "because": why,
        "warning": _other_noise(optim, "the variance is that"),
    }


def split_of(subject: Subject, level: float, pairs: int = 8, optim: Mapping[str, Any] | None = None) -> VarianceSplit:
    """The parts of the gradient's variance, from random training examples in half-minibatches of the run's size.

    Without augmentation and dropout, batch norm frozen; the gradient is that of the mean over the loss terms.

    Args:
        subject: the run.
        level: of the noise.
        pairs: of half-minibatches.
        optim: the section of a run's configuration that says what is perturbed, and how; None: as S-SGD's defaults.
    """
    noise = own_noise(subject, optim)
    examples = max(1, minibatch_size(subject) // 2)

    def gradient(batches: list[Any]) -> Tensor:
        return torch.cat([g.reshape(-1) for g in subject.part(batches).gradient()])

    halves = (
        (subject.random_batches(examples, 2 * i), subject.random_batches(examples, 2 * i + 1)) for i in range(pairs)
    )
    return variance_split(gradient, halves, examples, noise, level)


def advice(run: Path, data: str, level: float, noisy: Path) -> str:
    """Where the two signs are best taken from, and why: at the weights and for the minibatches of ``run``, under noise
    of a level and of the kind of the run ``noisy``."""
    try:
        optim = read_recipe(noisy)[1]["optim"]
        noise_level(optim)
        return str(split_of(open_run(run, data, "last"), level, optim=optim))
    except (UserError, NoRelativeLevel) as error:
        return f"no advice on where to take the signs from: {error}"


def _other_noise(optim: Mapping[str, Any], what: str) -> str | None:
    """What to say of a figure under noise that is not quite the training's."""
    if not has_noise(optim) or not (issubclass(find_method(optim["method"]).kind, ShapedNoise) or optim.get("balance")):
        return None
    return f"{what} of flat noise of one level, not of noise that follows the curvature as in the training"


def minibatch_size(subject: Subject) -> int:
    """Examples in a minibatch of the run's training; of speech about as many, in a corpus of its mean length."""
    return subject.minibatch or subject.settings["batch_size"]


# Every stage by its name, the cheap ones first.
STAGES: dict[str, Callable[[Subject, StageSettings], dict[str, Any]]] = {
    "errors": errors,
    "traces": traces,
    "sharpness": sharpness,
    "eigenvalues": eigenvalues,
    "robustness": robustness,
    "rounding": rounding,
    "calibration": calibration,
    "density": density,
    "variance": variance,
}


def run_stage(subject: Subject, stage: str, settings: StageSettings) -> dict[str, Any]:
    """The figures of a stage; what cannot be had is named under ``"left_out"``."""
    try:
        return STAGES[stage](subject, settings)
    except (NotDifferentiable, NotConverged, NoRelativeLevel, NoLabels) as error:
        return {"left_out": str(error)}


def _operator(subject: Subject, settings: StageSettings, noise: WeightNoise | None = None) -> CurvatureOperator:
    objective = subject.objective("train", settings.terms)
    if not math.isfinite(objective.loss):
        raise NotDifferentiable(f"the loss on {objective.terms:,} {subject.terms} of the training data is not finite")
    return CurvatureOperator(objective, noise and noise.params)


def _differences(operator: CurvatureOperator) -> str | None:
    return f"{operator.reason}: central differences are used" if operator.method == "differences" else None


def _plain(increase: Increase) -> dict[str, Any]:
    return {**increase._asdict(), "increase": _finite(increase.increase)}


def _finite(estimate: Estimate) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in estimate]


def _nonfinite(found: Mapping[str, Sequence[Increase]]) -> str | None:
    lost = {increase.level: increase.nonfinite for each in found.values() for increase in each if increase.nonfinite}
    if not lost:
        return None
    levels = ", ".join(f"{count} at {level:g}" for level, count in lost.items())
    return f"the loss is not finite under some perturbations, which are left out ({levels})"
