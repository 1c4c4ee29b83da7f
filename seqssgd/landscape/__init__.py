"""How flat a minimum is, and where it lies: curvature, sharpness and surfaces of a loss."""

from .ctc import ctc_loss
from .curvature import CurvatureOperator
from .objective import Objective
from .spectrum import Eigenpairs, Estimate, LayerTraces, layer_traces, spectral_density, top_eigenvalues, trace

__all__ = [
    "CurvatureOperator",
    "Eigenpairs",
    "Estimate",
    "LayerTraces",
    "Objective",
    "ctc_loss",
    "layer_traces",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
