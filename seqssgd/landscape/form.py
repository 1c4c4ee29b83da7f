"""What ``landscape.json`` holds, as far as anything reads it: types that :func:`seqssgd.kinds.misfit` holds a file
against. A number that was not finite is null."""

from typing import NotRequired, TypedDict

Number = float | None
Interval = tuple[Number, Number, Number]  # a value with its 95 % interval


class Stage(TypedDict):
    """What every stage may have."""

    left_out: NotRequired[str | None]
    warning: NotRequired[str | None]


class LeftOut(TypedDict):
    """A stage that could not be had."""

    left_out: str


class Errors(Stage):
    """Loss and error rate."""

    loss: NotRequired[Number]
    error: NotRequired[Number]
    terms: NotRequired[int]


class Layer(TypedDict):
    """Of the traces."""

    relative: Interval


class Traces(Stage):
    """Of the Hessian."""

    trace: NotRequired[Interval]
    relative_trace: NotRequired[Interval]
    layers: NotRequired[dict[str, Layer]]
    predicted_sharpness: NotRequired[dict[str, Interval]]


class Increase(TypedDict):
    """Of a figure, under noise of a level."""

    level: float
    clean: Number
    increase: Interval


class Sharpness(Stage):
    """In three measures."""

    noise: NotRequired[list[Increase]]
    keskar: NotRequired[Number]
    sam: NotRequired[Number]


class Eigenvalues(Stage):
    """The largest ones."""

    lambda_max: NotRequired[Number]
    of_halves: NotRequired[list[Number]]
    loss: NotRequired[Number]


class Robustness(Stage):
    """Curves of figures."""

    curves: NotRequired[dict[str, list[Increase]]]


class Rounded(TypedDict):
    """Of a model with weights in few bits."""

    loss: Number
    error: Number


class Rounding(Stage):
    """Figures by the bits of a weight, and ``"clean"``."""

    bits: NotRequired[dict[str, Rounded]]
    terms: NotRequired[int]


class Confidence(TypedDict):
    """How a model predicts."""

    loss: Number
    error: Number
    calibration_error: Number


class Calibration(Stage):
    """At the weights, and of the mean of the probabilities at draws around them."""

    weights: NotRequired[Confidence]
    averaged: NotRequired[Confidence]
    draws: NotRequired[int]


class Density(Stage):
    """Of the spectrum."""

    nodes: list[Number]
    weights: list[Number]


OfStep = TypedDict("OfStep", {"none": Number, "one-sided": Number, "halves": Number, "pair": Number})


class Variance(Stage):
    """Of a step's gradient."""

    level: float
    batch: int
    data: Interval
    first: Interval
    second: Interval
    of_step: OfStep
    break_even: Number
    recommended: str


class Run(TypedDict):
    """One run: what it is, and its stages."""

    checkpoint: str
    digest: str
    terms_are: str
    errors_are: str
    errors: NotRequired[Errors]
    traces: NotRequired[Traces]
    sharpness: NotRequired[Sharpness]
    eigenvalues: NotRequired[Eigenvalues]
    robustness: NotRequired[Robustness]
    rounding: NotRequired[Rounding]
    calibration: NotRequired[Calibration | LeftOut]
    density: NotRequired[Density | LeftOut]
    variance: NotRequired[Variance | LeftOut]


class Surface(TypedDict):
    """One line, plane or slice."""

    points: int
    done: int
    not_finite: int
    barriers: NotRequired[dict[str, Number]]


class Settings(TypedDict):
    """Those that the words of a section repeat."""

    terms: int
    figure_terms: int
    levels: list[float]
    split: str


class Landscape(TypedDict):
    """All of it."""

    complete: NotRequired[bool]
    settings: Settings
    runs: dict[str, Run]
    surfaces: dict[str, Surface]
