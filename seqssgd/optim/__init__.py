"""Optimizers with weight noise, for any loop; they need torch alone.

:func:`noise_groups` says which weights of a model get noise and how much, :class:`SymmetricNoise` is S-SGD around any
base optimizer, and other classes are what it is compared with. :mod:`seqssgd.optim.reference` is S-SGD slow and plain.
"""

from . import schedules
from .averaging import WeightAverage
from .batchnorm import recalibrate_bn
from .covariance import CovarianceNoise
from .describe import Description, describe
from .dropconnect import DropConnect
from .entry import Entry
from .finder import NoiseCurve, noise_finder
from .groups import noise_groups
from .ivon import IVON
from .msam import MSAM
from .muon import MuonAdamW
from .noise import NoiseSource
from .passes import MultiPassOptimizer, Pass
from .peers import MRWP, NSO, OneSidedNoise, SinglePass
from .random_noise import RandomNoise
from .sam import SAM
from .schedules import LambdaNoise
from .shaped import ShapedNoise
from .symmetric import SymmetricNoise
from .together import Together

__all__ = [
    "IVON",
    "MRWP",
    "MSAM",
    "NSO",
    "SAM",
    "CovarianceNoise",
    "Description",
    "DropConnect",
    "Entry",
    "LambdaNoise",
    "MultiPassOptimizer",
    "MuonAdamW",
    "NoiseCurve",
    "NoiseSource",
    "OneSidedNoise",
    "Pass",
    "RandomNoise",
    "ShapedNoise",
    "SinglePass",
    "SymmetricNoise",
    "Together",
    "WeightAverage",
    "describe",
    "noise_finder",
    "noise_groups",
    "recalibrate_bn",
    "schedules",
]
