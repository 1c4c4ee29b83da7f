"""A recipe's configuration, and what reads its command line."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from seqssgd.training import OptimConfig, TrainingConfig, parse_recipe
from seqssgd.training.command_line import Command


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        size: of it.
    """

    size: int = 3


@dataclass
class Config:
    """A recipe's.

    Attributes:
        model: the network.
        optim: the optimizer.
        training: the loop.
        seed: of the weights.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0


def reader(folder: Path, of: type = Config) -> Callable[..., Command]:
    """What reads a command line that has proper --data and --out; yaml=… becomes a file given by --config."""
    (folder / "data").mkdir()
    (folder / "data/train.txt").write_text("…")

    def parse(*options: str, yaml: str | bytes | None = None, of: type = of) -> Command:
        arguments = ["--data", str(folder / "data"), "--out", str(folder / "run")]
        if yaml is not None:
            (folder / "c.yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
            arguments += ["--config", str(folder / "c.yaml")]
        return parse_recipe(of, [*arguments, *options])

    return parse
