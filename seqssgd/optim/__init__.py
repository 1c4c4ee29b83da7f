"""Optimizers with weight noise. Needs torch alone."""

from . import schedules
from .batchnorm import recalibrate_bn
from .groups import noise_groups
from .passes import MultiPassOptimizer, Pass
from .peers import SinglePass
from .schedules import LambdaNoise
from .symmetric import SymmetricNoise

__all__ = [
    "LambdaNoise",
    "MultiPassOptimizer",
    "Pass",
    "SinglePass",
    "SymmetricNoise",
    "noise_groups",
    "recalibrate_bn",
    "schedules",
]
