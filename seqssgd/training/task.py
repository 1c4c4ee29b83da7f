"""What the loop is given."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..optim import Pass


class Task:
    """What a recipe gives to :func:`fit`: a model, its data, its loss and its evaluation.

    A task of one's own must have ``model``, ``steps_per_epoch``, ``batches`` and ``loss``. The rest has defaults:
    nothing is evaluated or carried from step to step, and the training loss is logged as it is.

    Attributes:
        model: the module to train, on its device. Under torchrun it is replaced by its data-parallel wrapper while
            ``loss`` is called: call ``self.model(...)`` there and ask nothing else of it. While ``evaluate`` is called
            it is the model with averaged weights, if the optimizer has one.
        steps_per_epoch: optimizer steps in an epoch, each of ``accumulate`` minibatches (the last may have fewer).
        best: a name in ``evaluate()``'s metrics and ``"min"`` or ``"max"``; None: the last model is the best, and there
            is no patience.
        replayable: whether the model does the same for all inputs of one shape, and its minibatches have few shapes, so
            that ``training.graphs`` can record it.
    """

    model: nn.Module
    steps_per_epoch: int
    best: tuple[str, str] | None = None
    replayable: bool = False

    def start_epoch(self, epoch: int) -> None:
        """Called before epoch 0, 1, …: to zero a carried state. Not called when a run is resumed within an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """This process's minibatches of an epoch, from number ``start`` on: a pure function of seed and epoch.

        The loop takes up to ``accumulate`` of them for each of ``steps_per_epoch`` steps; a step for which none is left
        is an error.
        """
        raise NotImplementedError

    def loss(self, batch: Any, part: Pass) -> tuple[Tensor, float]:
        """The loss on ``part.take(batch)``, a tensor without dimensions to differentiate, and the number of units
        (tokens, images, seconds of audio) that it was taken on.

        The loss is ``part.mean`` of the examples' losses (B,), so that a method can weigh the examples.
        """
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Metrics on validation data, none where there is none; the model is in evaluation mode, without gradients, at
        the clean weights."""
        return {}

    def train_metrics(self, loss: float) -> dict[str, float]:
        """What a mean training loss is in the units of ``evaluate``, under names that begin with "train_", to be logged
        beside validation; nothing where the loss has those units, or does not give the others."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What is carried from step to step (LSTM states): tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
