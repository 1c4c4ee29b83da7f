"""A task small enough to train in a second, with all that makes resuming hard: dropout, a carried state, noise.

As a program it trains itself into a run directory: ``toy_task.py RUN '{"lr": …}' '{"max_steps": …}'``.
"""

import json
import sys
from dataclasses import asdict, dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from seqssgd.errors import run_cli
from seqssgd.training import (
    OptimConfig,
    RunDirectory,
    Task,
    TrainingConfig,
    build_optimizer,
    build_schedulers,
    cleanup,
    distributed,
    fit,
    setup,
)


@dataclass
class ToyConfig:
    """Settings of the toy.

    Attributes:
        seed: of weights, dropout and data.
        dropout: between the recurrent layer and the output.
    """

    seed: int = 0
    dropout: float = 0.5
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


class ToyModel(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.rnn, self.dropout, self.out = nn.LSTM(4, 8, batch_first=True), nn.Dropout(dropout), nn.Linear(8, 3)

    def forward(self, x, state):
        hidden, state = self.rnn(x, state)
        return self.out(self.dropout(hidden)), state


class ToyTask(Task):
    """Classifies the steps of random sequences; the state is carried from minibatch to minibatch, one per pass."""

    best = ("valid_loss", "min")

    def __init__(self, config: ToyConfig, steps_per_epoch: int = 5, batch: int = 4, carry: bool = True):
        self.config, self.steps_per_epoch, self.batch, self.carry = config, steps_per_epoch, batch, carry
        self.model = ToyModel(config.dropout)
        self.states: dict[str, list[torch.Tensor]] = {}
        self.evaluations = 0

    def start_epoch(self, epoch):
        self.states = {}

    def batches(self, epoch, start=0):
        accumulate, (rank, world) = self.config.training.accumulate, distributed.data_share(self.config.optim)
        for index in range(start, self.steps_per_epoch * accumulate):
            generator = torch.Generator().manual_seed(1000 * epoch + index)
            x = torch.randn(self.batch * world, 6, 4, generator=generator)
            y = (x.sum(-1) > 0).long() + (x[..., 0] > 1).long()
            yield x[rank::world], y[rank::world]

    def loss(self, batch, part):
        x, y = part.take(*batch)
        state = self.states.get(str(part.index))
        logits, state = self.model(x, tuple(state) if state and self.carry else None)
        self.states[str(part.index)] = [tensor.detach() for tensor in state]
        losses = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
        return part.mean(losses.mean(1)), y.numel()

    def evaluate(self):
        torch.rand(3)  # an evaluation that draws from the global generator must not change the training
        self.evaluations += 1
        x, y = next(iter(ToyTask(self.config, 1).batches(10**6)))
        logits, _ = self.model(x, None)
        return {"valid_loss": F.cross_entropy(logits.flatten(0, 1), y.flatten())}

    def state_dict(self):
        return {"states": self.states}

    def load_state_dict(self, state):
        self.states = state["states"]


def toy_config(optim: dict | None = None, training: dict | None = None, **settings) -> ToyConfig:
    optim = {"method": "ssgd", "noise": 0.5, "lr": 0.1, "momentum": 0.9, **(optim or {})}
    training = {"epochs": 4, "threads": 1, "log_every": 3, "checkpoint_every": 1, **(training or {})}
    return ToyConfig(optim=OptimConfig(**optim), training=TrainingConfig(**training), **settings)


def train(out, config: ToyConfig, task_class=ToyTask, task_settings: dict | None = None, **limits):
    """What every recipe does: set up, build, fit. Returns the result and the task."""
    setup(config.training, config.seed)
    task = task_class(config, **(task_settings or {}))
    optimizer = build_optimizer(task.model, config.optim)
    schedulers = build_schedulers(optimizer, config.optim, config.training.epochs, task.steps_per_epoch)
    return fit(task, optimizer, schedulers, config.training, RunDirectory(out, asdict(config)), **limits), task


def main() -> int:
    out, settings, limits = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    try:
        result, _ = train(out, toy_config(**settings), **limits)
    finally:
        cleanup()
    return result["exit_code"]


if __name__ == "__main__":
    sys.exit(run_cli(main))
