"""The training of a language model: its data, its loss, its evaluation."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data.text import TextDataset, Windows, columns
from ..errors import UserError
from ..networks import NetworkSettings
from ..optim import Pass
from ..training import Task, distributed
from .config import Config
from .networks import check_network, fits


class LanguageModelTask(Task):
    """Next-token prediction over a text cut into columns, the state of the network carried from window to window.

    Every noise path carries a state of its own: what the network at w+n remembers was computed at weights around
    w+n, what it remembers at w-n around w-n. A path that begins within an epoch (noise switched on at some step)
    begins, as an epoch does, from the zero state.
    """

    best = ("valid_perplexity", "min")

    def __init__(self, model: nn.Module, dataset: TextDataset, config: Config, device: torch.device):
        share, shares = distributed.data_share(config.optim)
        if config.batch_size % shares:
            raise UserError(f"batch_size: {config.batch_size} columns do not divide among {shares}")
        if config.optim.halves and config.batch_size < 2 * shares:
            raise UserError(f"batch_size: {config.batch_size} cannot be halved in every process, as optim asks for")
        self.model, self.device, self.accumulate = model, device, config.training.accumulate
        self.replayable = not config.model.elsewhere  # of whose forward nothing is known
        with _naming("train"):
            data = columns(dataset.split("train"), config.batch_size).to(device)
            mine = data.chunk(shares, dim=1)[share]
            self.windows = Windows(mine.contiguous(), config.sequence_length)
        with _naming("valid"):
            valid = columns(dataset.split("valid"), config.batch_size).to(device)
            self.valid = Windows(valid, min(config.sequence_length, len(valid) - 1))
        config.training.check_accumulate(len(self.windows))
        self.steps_per_epoch = math.ceil(len(self.windows) / self.accumulate)
        self.states: dict[int, tuple[Tensor, ...]] = {}

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

    def train_metrics(self, loss: float) -> dict[str, float]:
        """The perplexity that a loss over a window is: of the network that is trained, with its dropout and noise."""
        return {"train_perplexity": _perplexity(loss / self.windows.length)}

    def evaluate(self) -> dict[str, float]:
        """Validation perplexity with the columns and windows of training, as Zaremba et al. report it."""
        total, count, state = 0.0, 0, None
        for inputs, targets in self.valid:
            logits, state = self.model(inputs, state)
            total += cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="sum").item()
            count += targets.numel()
        loss = total / count
        return {"valid_loss": loss, "valid_perplexity": _perplexity(loss)}

    def state_dict(self) -> dict[str, Any]:
        """The carried states."""
        return {"states": self.states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the carried states back."""
        states = {index: tuple(s.to(self.device) for s in own) for index, own in state["states"].items()}
        network: Any = self.model
        for own in states.values():
            if not own or not fits(own, network.zero_state(own[0].shape[1] if own[0].ndim > 1 else 1)):
                raise ValueError("the carried states are not those of this network")
        self.states = states


def build_model(settings: NetworkSettings, vocab_size: int) -> nn.Module:
    """The network with these settings.

    Raises:
        UserError: settings that make no sense, or a network from elsewhere that is none for text.
    """
    try:
        model = settings.build(vocab_size=vocab_size)
    except ValueError as error:
        raise UserError(f"model.{error}") from error
    if settings.elsewhere:
        check_network(settings.name, model, vocab_size)
    return model


@contextlib.contextmanager
def _naming(split: str) -> Iterator[None]:
    """What is wrong with a split names it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{split}: {error}") from None


def _perplexity(loss: float) -> float:
    """Of a mean loss a token; infinite where it would be no float."""
    return math.exp(loss) if loss < 700 else math.inf
