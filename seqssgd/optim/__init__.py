"""Optimizers with weight noise. Needs torch alone."""

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
