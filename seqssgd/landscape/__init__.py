"""How flat a minimum is, and where it lies: curvature, sharpness and surfaces of a loss."""

from .ctc import ctc_loss
from .curvature import CurvatureOperator, NotDifferentiable
from .objective import Objective
from .sharpness import (
    WeightNoise,
    keskar_sharpness,
    noise_sharpness,
    predicted_sharpness,
    sam_sharpness,
    under_noise,
)
from .spectrum import (
    Eigenpairs,
    Estimate,
    LayerTraces,
    NotConverged,
    layer_traces,
    spectral_density,
    top_eigenvalues,
    trace,
)
from .surface import Plane, Surface, line, measure, plane, random_slice, read_surface

__all__ = [
    "CurvatureOperator",
    "Eigenpairs",
    "Estimate",
    "LayerTraces",
    "NotConverged",
    "NotDifferentiable",
    "Objective",
    "Plane",
    "Surface",
    "WeightNoise",
    "ctc_loss",
    "keskar_sharpness",
    "layer_traces",
    "line",
    "measure",
    "noise_sharpness",
    "plane",
    "predicted_sharpness",
    "random_slice",
    "read_surface",
    "sam_sharpness",
    "spectral_density",
    "top_eigenvalues",
    "trace",
    "under_noise",
]
