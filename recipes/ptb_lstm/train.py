"""Trains the LSTM language models of Zaremba et al. (2014), with or without symmetric weight noise.

    python data_prep/ptb.py --source PTB --out data/ptb
    python recipes/ptb_lstm/train.py --config recipes/ptb_lstm/small_cpu.yaml --data data/ptb --out runs/ptb
    python recipes/ptb_lstm/evaluate.py --run runs/ptb --data data/ptb --split test

Any prepared text will do (data_prep/text.py). The README beside this file has times, results and settings.
"""

import seqssgd.interrupts  # noqa: F401  # isort: skip  (before torch)
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from seqssgd import training
from seqssgd.data.text import TextDataset, Windows, columns, load_text
from seqssgd.errors import UserError
from seqssgd.files import make_folder
from seqssgd.models.lstm import LSTMLanguageModel
from seqssgd.optim import Pass
from seqssgd.runs import layout
from seqssgd.training import OptimConfig, TrainingConfig, distributed


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        hidden_size: units of each LSTM layer and length of an embedding.
        num_layers: LSTM layers.
        dropout: on the non-recurrent paths: embedding, between layers, before the output layer.
        init_scale: all parameters start uniform within ± this.
    """

    hidden_size: int = 200
    num_layers: int = 2
    dropout: float = 0.0
    init_scale: float = 0.1


@dataclass
class Config:
    """A language model and its training.

    Attributes:
        model: the network.
        optim: the method and the optimizer.
        training: the loop.
        batch_size: columns that the text is cut into and read in parallel.
        sequence_length: time steps T of truncated back-propagation.
        seed: of initial weights and dropout.
    """

    model: ModelConfig
    optim: OptimConfig
    training: TrainingConfig
    batch_size: int = 20
    sequence_length: int = 35
    seed: int = 0


class LanguageModelTask:
    """Next-token prediction over a text cut into columns, the LSTM state carried from window to window.

    Every noise path carries a state of its own: what the network at w+n remembers was computed at weights around
    w+n, what it remembers at w-n around w-n. A path that begins within an epoch (noise switched on at some step)
    begins, as an epoch does, from the zero state.
    """

    best = ("valid_perplexity", "min")

    def __init__(self, model: LSTMLanguageModel, dataset: TextDataset, config: Config, device: torch.device):
        share, shares = distributed.data_share(config.optim)
        if config.batch_size % shares:
            raise UserError(f"batch_size: {config.batch_size} columns do not divide among {shares}")
        if config.optim.halves and config.batch_size < 2 * shares:
            raise UserError(f"batch_size: {config.batch_size} cannot be halved in every process, as optim asks for")
        self.model, self.device, self.accumulate = model, device, config.training.accumulate
        data = columns(dataset.split("train"), config.batch_size).to(device)
        mine = data.chunk(shares, dim=1)[share]
        self.windows = Windows(mine.contiguous(), config.sequence_length)
        valid = columns(dataset.split("valid"), config.batch_size).to(device)
        self.valid = Windows(valid, min(config.sequence_length, len(valid) - 1))
        self.steps_per_epoch = math.ceil(len(self.windows) / self.accumulate)
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def start_epoch(self, epoch: int) -> None:
        """Every column is read from its beginning again."""
        self.states = {}

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, each (T, B), in the order of the text."""
        return (self.windows[i] for i in range(start, len(self.windows)))

    def loss(self, batch: tuple[Tensor, Tensor], part: Pass) -> tuple[Tensor, int]:
        """Cross-entropy summed over time and averaged over the batch, as Zaremba et al. scale it: mean × T."""
        inputs, targets = part.take(*batch, dim=1)
        if part.index == 0 and part.last:
            self.states = {0: self.states[0]} if 0 in self.states else {}
        state = self.states.get(part.index)
        if state is not None and state[0].shape[1] != inputs.shape[1]:
            state = None
        logits, state = self.model(inputs, state)
        # A step that is skipped because its loss is not finite must not spoil the state of all that follow.
        self.states[part.index] = tuple(s.detach().nan_to_num(0.0, 0.0, 0.0) for s in state)
        losses = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
        return part.mean(losses.sum(0)), targets.numel()

    def evaluate(self) -> dict[str, float]:
        """Validation perplexity with the columns and windows of training, as Zaremba et al. report it."""
        total, count, state = 0.0, 0, None
        for inputs, targets in self.valid:
            logits, state = self.model(inputs, state)
            total += cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum").item()
            count += targets.numel()
        loss = total / count
        return {"valid_loss": loss, "valid_perplexity": math.exp(loss) if loss < 700 else math.inf}

    def state_dict(self) -> dict[str, Any]:
        """The carried states."""
        return {"states": self.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the carried states back."""
        states = {index: tuple(s.to(self.device) for s in pair) for index, pair in state["states"].items()}
        lstm = self.model.lstm
        for pair in states.values():
            if len(pair) != 2 or any(s.ndim != 3 or s.shape[::2] != (lstm.num_layers, lstm.hidden_size) for s in pair):
                raise ValueError("the carried states are not those of this network")
        self.states = states


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line says; returns the exit status."""
    command = training.parse_recipe(Config, argv, description=__doc__.splitlines()[0])
    config = command.config
    dataset = load_text(command.data)
    device = training.setup(config.training, config.seed)
    try:
        model = LSTMLanguageModel(dataset.tokenizer.vocab_size, **dataclasses.asdict(config.model)).to(device)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    task = LanguageModelTask(model, dataset, config, device)
    about = {"data": {"name": dataset.info["name"], "fingerprint": dataset.info["fingerprint"]}}

    def save_tokenizer(run: Path) -> None:
        make_folder(run / layout.TOKENIZER)  # so that the run can be used without the data
        dataset.tokenizer.save(run / layout.TOKENIZER)

    return training.train(command, task, about, save_tokenizer)


if __name__ == "__main__":
    training.run_program(main)
