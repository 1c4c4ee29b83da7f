"""The settings of a language model and its training."""

from dataclasses import dataclass, field

from ..errors import UserError
from ..networks import NetworkSettings
from ..training.config import OptimConfig, TrainingConfig
from .networks import NETWORKS


@dataclass
class Config:
    """A language model and its training.

    Attributes:
        model: the network; its name, and the settings that its class has.
        optim: the method and the optimizer.
        training: the loop.
        batch_size: columns that the text is cut into and read in parallel.
        sequence_length: time steps T of truncated back-propagation.
        seed: of initial weights and dropout.
    """

    model: NetworkSettings = NETWORKS.field()
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    batch_size: int = 20
    sequence_length: int = 35
    seed: int = 0

    def __post_init__(self) -> None:
        for key in ("batch_size", "sequence_length"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: {getattr(self, key)} is not a whole number >= 1")
